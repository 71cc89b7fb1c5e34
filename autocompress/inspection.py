"""A closer look at the recipe that a study shows: memory, load time, throughput, classes, hard and rare samples, shifted inputs.

Takes some ten seconds an artifact, so a search makes it of the chosen one only and `inspect` of any; on the holdout split, which selects
nothing.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from autocompress.bench import reopened
from autocompress.compress.quantize import fold_batch_norm
from autocompress.config import parse_counts
from autocompress.errors import UserError
from autocompress.evaluate import Bench, opened, twin
from autocompress.measure.accuracy import predict
from autocompress.measure.end_to_end import end_to_end
from autocompress.measure.latency import SEARCH
from autocompress.measure.quality import inspect_outputs
from autocompress.measure.robustness import Run, Subject, shifts
from autocompress.measure.throughput import sweep, sweep_threads
from autocompress.measure.turn import turn
from autocompress.measure.usage import usage
from autocompress.progress import Progress
from autocompress.records import Inspection, TrialResult
from autocompress.runs import RunPaths, read_json, to_json, write_text
from autocompress.runtimes.runtime import Deployed
from autocompress.tasks.task import Task

SWEEP_SECONDS = 5.0


def inspect(
    study: str,
    *,
    trial: str | int = "best",
    threads: str | int | Sequence[int] = (),
    runs: str | Path = "runs",
    task: Task | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """A closer look at any measured trial, kept for the report; made once. ``threads`` ("1,2,4") adds samples a second at so many threads.

    Raises InvalidStudy where there is no such study or trial, the study is being run, its task changed, or this is another machine.
    """
    progress = progress or Progress()
    counts = parse_counts("--threads", threads) if threads else ()
    paths = RunPaths(Path(runs), study)
    with reopened(paths, trial, task, "inspect", progress) as (result, bench):
        inspect_trial(result, paths, bench, progress)
        files = paths.trial(result.number)
        if not files.inspection.exists():
            raise UserError(f"trial {result.number} of {study!r} could not be looked at; the line above says why")
        found = read_json(files.inspection, Inspection)
        if counts:
            with progress.stage(f"samples a second on {', '.join(map(str, counts))} threads"), turn(bench.target.device, progress.say):
                rows = sweep_threads(bench.deployed, opened(result.recipe, bench, files.artifact), bench.inputs, counts, math.inf)
            kept = [row for row in found.throughput if row.threads not in counts or row.threads == bench.target.threads]
            new = [row for row in rows if row.threads != bench.target.threads]  # its own number is in the sweep over batches
            found = found.model_copy(update={"throughput": (*kept, *new)})
            write_text(files.inspection, to_json(found))
    return found


def inspect_trial(result: TrialResult, paths: RunPaths, bench: Bench, progress: Progress) -> None:
    """Look at a measured trial and keep what was found as its inspection.json; once."""
    files = paths.trial(result.number)
    if files.inspection.exists():
        return
    with progress.stage(f"a closer look at trial {result.number}"):
        try:
            with turn(bench.target.device, progress.say):
                found = look(result, bench, files.artifact, paths.baseline_artifact)
        except UserError as error:  # a process that died is no reason to end without the report
            progress.say(f"trial {result.number} is shown without memory, throughput and shifts: {error}")
        else:
            write_text(files.inspection, to_json(found))


def look(result: TrialResult, bench: Bench, artifact: Path, baseline_artifact: Path) -> Inspection:
    """Everything of an artifact that not every trial is measured for, beside the same of the baseline."""
    task, target, (x, y) = bench.task, bench.target, bench.splits["holdout"]
    model = twin(result.recipe, bench, artifact)
    deployed = bench.runtime.open(artifact, target.threads, model)
    used, used_before = (usage(folder, target.runtime, target.threads, bench.inputs) for folder in (artifact, baseline_artifact))
    throughput = sweep(bench.deployed, deployed, bench.inputs, target.threads, SWEEP_SECONDS)
    given = fold_batch_norm(task.model, bench.example)
    shifted = shifts(task, Subject(runs(deployed), model), Subject(runs(bench.deployed), given), x, y)
    parts = inspect_outputs(task, predict(deployed, x), bench.outputs["holdout"], y)
    notes = (*parts.notes, *shifted.notes, f"throughput: {throughput.stopped}")
    return Inspection(
        usage=used,
        baseline_usage=used_before,
        **parts._replace(notes=notes)._asdict(),
        throughput=throughput.rows,
        shifts=shifted.shifts,
        end_to_end=end_to_end(task, (bench.deployed, deployed), bench.inputs, target.threads, SEARCH),
    )


def runs(deployed: Deployed) -> Run:
    """Inputs (N, ...) -> outputs (N, ...) of the artifact."""

    def run(inputs: Tensor) -> Tensor:
        return predict(deployed, inputs)

    return run
