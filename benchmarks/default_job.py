"""The default job from no cache, and the timer against itself: python benchmarks/default_job.py [--budget 50] [--repeats 20]

Prints one table and, as its last line, one JSON object {"name", "figures", "met"}. Two cores, about five minutes.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MOST_MINUTES, MOST_GIB, MOST_OTHER = 6.0, 2.0, 0.30
LEAST_SPEEDUP, MOST_DROP = 4.0, 1.0
LEAST_GOOD, WIDEST = 17 / 20, 0.10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=20, help="A against A timings")
    parser.add_argument("--child", choices=["job", "timer"], help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child == "job":
        job(asked.runs, asked.budget)
    elif asked.child == "timer":
        timer(asked.runs, asked.repeats)
    else:
        report(asked.budget, asked.repeats)


def job(runs: Path, budget: int) -> None:
    """In a process of its own, so that its peak memory and its imports are its own."""
    from autocompress import job
    from autocompress.progress import Progress

    progress = Progress()
    study = job.search("digits", budget=budget, max_drop=MOST_DROP, runs=runs, progress=progress)
    print(json.dumps({"stages": progress.seconds, "summary": study.summary, "trials": [result.seconds for result in study.results]}))


def timer(runs: Path, repeats: int) -> None:
    """The deployed baseline in two sessions, timed against itself as every trial is."""
    from autocompress.measure.latency import SEARCH, compare
    from autocompress.records import Target
    from autocompress.runs import RunPaths
    from autocompress.runtimes import find_runtime
    from autocompress.tasks.digits import splits

    study = RunPaths(runs, "digits")
    target = study.read_config().target
    assert isinstance(target, Target)
    runtime = find_runtime(target.runtime)
    one, other = (runtime.open(study.baseline_artifact, target.threads, None) for _ in range(2))  # type: ignore[arg-type]
    inputs = splits()[0][0][: target.batch_size].numpy()
    timings = [compare(one, other, inputs, SEARCH, seed) for seed in range(repeats)]
    print(json.dumps([(timing.low, timing.speedup, timing.high) for timing in timings]))


def child(kind: str, runs: Path, *more: str) -> Any:
    command = [sys.executable, __file__, "--child", kind, "--runs", str(runs), *more]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def report(budget: int, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        done = child("job", Path(folder), "--budget", str(budget))
        wall = time.monotonic() - started
        peak_gib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        pairs = child("timer", Path(folder), "--repeats", str(repeats))
    stages = by_stage(done, wall)
    good = sum(low <= 1 <= high and (high - low) <= WIDEST * middle for low, middle, high in pairs)
    best = done["summary"]["best"] or {}
    holdout = best.get("holdout") or {"speedup": 0.0, "speedup_low": 0.0, "speedup_high": 0.0, "drop": 100.0}
    rows = [(f"stage: {name}", f"{seconds:.1f} s", f"{100 * seconds / wall:.0f} %") for name, seconds in stages.items()]
    checks = {
        "wall": (wall / 60 <= MOST_MINUTES, f"{wall / 60:.2f} min", f"at most {MOST_MINUTES:g} min"),
        "peak memory": (peak_gib <= MOST_GIB, f"{peak_gib:.2f} GiB", f"at most {MOST_GIB:g} GiB"),
        "other than training, recovery, measurement": (
            stages["other"] <= MOST_OTHER * wall,
            f"{100 * stages['other'] / wall:.0f} %",
            f"at most {100 * MOST_OTHER:.0f} %",
        ),
        "best on holdout: speed": (
            holdout["speedup"] >= LEAST_SPEEDUP,
            f"{holdout['speedup']:.2f}x ({holdout['speedup_low']:.2f} to {holdout['speedup_high']:.2f})",
            f"at least {LEAST_SPEEDUP:g}x fp32, batch 1",
        ),
        "best on holdout: drop": (holdout["drop"] <= MOST_DROP, f"{holdout['drop']:.2f}", f"at most {MOST_DROP:g} point"),
        "A against A": (good >= LEAST_GOOD * repeats, f"{good} of {repeats}", f"at least {LEAST_GOOD * repeats:.0f}"),
    }
    for name, seconds, share in rows:
        print(f"{name:45} {seconds:>28} {share:>8}")
    for name, (met, figure, bound) in checks.items():
        print(f"{name:45} {figure:>28} {bound:>28} {'met' if met else 'MISSED'}")
    figures = {
        "wall_s": round(wall, 1),
        "peak_gib": round(peak_gib, 3),
        "stages_s": {name: round(seconds, 1) for name, seconds in stages.items()},
        "outcomes": done["summary"]["outcomes"],
        "best": best,
        "a_against_a": {"good": good, "of": repeats, "widest": round(max((high - low) / middle for low, middle, high in pairs), 4)},
    }
    print(json.dumps({"name": "default_job", "figures": figures, "met": all(met for met, _, _ in checks.values())}))


def by_stage(done: dict[str, Any], wall: float) -> dict[str, float]:
    """Seconds of the whole job by stage; ``other`` is all that is neither training nor measurement."""
    names = ("recover", "measure", "shrink", "quantize", "deploy")
    trials = {name: sum(seconds.get(name, 0.0) for seconds in done["trials"]) for name in names}
    stages = {
        "baseline training": done["stages"]["training the baseline"],
        "recovery": trials["recover"],
        "measurement": trials["measure"] + done["stages"]["timing the baseline"] + done["stages"]["confirming on holdout"],
    }
    other = wall - sum(stages.values())
    return {**stages, "other": other, **{f"of which {name}": trials[name] for name in names[2:]}}


if __name__ == "__main__":
    main()
