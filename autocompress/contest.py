"""Only contenders are measured again: trials near the front whose order is open are timed longer, until it is decided or they are equal."""

import time

from autocompress.evaluate import Bench, retime
from autocompress.measure.latency import Effort
from autocompress.progress import Progress
from autocompress.runs import RunPaths, to_json, write_text
from autocompress.study.contenders import DECIDED, MOST, contenders, equals
from autocompress.study.pareto import Bounds

ROUNDS = (Effort(width=2 * DECIDED, seconds=2.0, segments=24), Effort(width=DECIDED, seconds=4.0, segments=40))
SECONDS = 30.0  # for all contenders of a study


def time_contenders(paths: RunPaths, bounds: Bounds, bench: Bench, progress: Progress) -> tuple[int, ...]:
    """Time longer, against the baseline, what `contenders` names, round by round with more patience; the numbers of those timed.

    The new measurement goes to remeasured.json of the trial, which is written whole after every round. A trial that has one from an
    earlier call is settled: a resume times new contenders only.
    """
    results = {result.number: result for result in paths.results()}
    settled = {number for number in results if paths.trial(number).remeasured.exists()}
    artifacts = {number: paths.trial(number).artifact for number in results}
    timed: dict[int, None] = {}
    first = [number for number in contenders(list(results.values()), bounds) if number not in settled and artifacts[number].is_dir()]
    if not first:
        return ()
    started = time.monotonic()
    with progress.stage("timing contenders longer") as advance:
        for effort in ROUNDS:
            for number in contenders(list(results.values()), bounds):
                spent = time.monotonic() - started + effort.seconds > SECONDS
                if number in settled or not artifacts[number].is_dir() or spent or (number not in timed and len(timed) == MOST):
                    continue
                longer = retime(results[number], bench, artifacts[number], effort)
                write_text(paths.trial(number).remeasured, to_json(longer))
                results[number] = results[number].model_copy(update={"measurement": longer})
                timed[number] = None
                advance(1)
    for one, other in equals(list(results.values()), bounds):
        if {one, other} & set(timed):
            progress.say(f"trials {one} and {other}: equally fast as far as this machine can tell")
    return tuple(timed)
