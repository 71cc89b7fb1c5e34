"""Every technique alone and in the usual combinations, measured: python benchmarks/techniques.py [--task digits|fashion|all]

A row is a recipe of benchmarks/recipes.py: compressed, recovered, deployed in onnxruntime (batch 1, 1 thread), then timed against the given
model in fp32 and scored on the holdout split, which selected nothing. Fashion-MNIST's 10,000 test images judge; digits has 400 of them, one
a quarter of a point. (Post-training int8 of the pretrained ResNet-56 has a program of its own, resnet56.py.) Prints a table for each task
and, as its last line, one JSON object {"name", "figures", "met"}. Two cores, about an hour; --rows PATTERN for some of it.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's own path is this folder

from autocompress.evaluate import Bench, confirm, evaluate, prepare
from autocompress.gate import Gate
from autocompress.progress import Progress
from autocompress.records import Measurement, Target, TrialResult
from autocompress.tasks.digits import digits
from autocompress.tasks.task import Task, with_holdout
from benchmarks import step_memory
from benchmarks.fashion import CACHE, fashion, folder, is_present
from benchmarks.recipes import ROWS, Bound, Row, Subject

QUICK, SMOKE = 10, 2  # steps of a short recovery


@dataclass(frozen=True)
class Kind:
    """A task, the modules whose outputs a student is compared by, the steps of a short recovery, and whether its bounds count."""

    make: Callable[[Path, Progress], Task]
    features: tuple[str, ...]
    steps: int
    judges: bool


TASKS = {
    "digits": Kind(digits, ("block2", "block4"), 40, judges=False),
    "fashion": Kind(fashion, ("stages.0", "stages.2"), 120, judges=True),
}


@dataclass(frozen=True)
class Line:
    """A finished row: how it ended, and its artifact on the holdout split where there is one."""

    row: Row
    result: TrialResult
    holdout: Measurement | None
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=[*TASKS, "all"], default="all")
    parser.add_argument("--rows", default="", help="only the rows in whose name this regular expression is found")
    parser.add_argument("--quick", action="store_true", help=f"digits only, {QUICK} steps of recovery")
    parser.add_argument("--smoke", action="store_true", help=f"digits only, few rows, {SMOKE} steps: does it run at all")
    asked = parser.parse_args()
    short = asked.quick or asked.smoke
    rows = [row for row in ROWS if re.search(asked.rows, row.name) and (row.smoke or not asked.smoke)]
    names = ["digits"] if short else list(TASKS) if asked.task == "all" else [asked.task]
    if "fashion" in names and not is_present():
        if asked.task == "fashion":
            parser.error(f"no Fashion-MNIST in {folder()}; AUTOCOMPRESS_DATA names another folder")
        print(f"no Fashion-MNIST in {folder()}: its rows are left out, and no bound is judged", file=sys.stderr)
        names.remove("fashion")
    progress = Progress()
    figures: dict[str, Any] = {}
    verdicts: dict[str, bool] = {}
    for name in names:
        steps = SMOKE if asked.smoke else QUICK if asked.quick else TASKS[name].steps
        bench, lines = run(name, rows, steps, progress)
        judged = {line.row.name: judge(line, bench) for line in lines} if TASKS[name].judges else {}
        verdicts |= {f"{row}: {what}": met for row, found in judged.items() for what, met in found.items()}
        show(name, bench, lines, judged)
        figures[name] = {"baseline": bench.baseline.model_dump(mode="json"), "rows": {line.row.name: facts(line) for line in lines}}
    if not asked.smoke and not asked.rows:
        with progress.stage("peak memory of a recovery step"):
            figures["memory"] = step_memory.measured(bench.task)
        verdicts |= {f"peak memory, {name}": one["met"] for name, one in figures["memory"].items()}
        step_memory.show(figures["memory"])
    figures["missed"] = [what for what, met in verdicts.items() if not met]
    print(json.dumps({"name": "techniques", "figures": figures, "met": all(verdicts.values())}))


def run(name: str, rows: Sequence[Row], steps: int, progress: Progress) -> tuple[Bench, list[Line]]:
    """Every row on one task; artifacts lie in a temporary folder."""
    task = with_holdout(TASKS[name].make(CACHE, progress), seed=0)
    with tempfile.TemporaryDirectory() as place:
        bench = prepare(task, Target(), torch.device("cpu"), Path(place) / "baseline", progress)
        subject = Subject(bench.layers, TASKS[name].features, steps)
        lines = []
        for number, row in enumerate(rows):
            line = one(row, subject, bench, Path(place) / str(number))
            lines.append(line)
            progress.say(f"{name} {number + 1}/{len(rows)}: {in_words(line)}")
    return bench, lines


def one(row: Row, subject: Subject, bench: Bench, place: Path) -> Line:
    started = time.monotonic()
    recipe = row.make(subject)
    result = evaluate(recipe, bench, Gate(), place)
    holdout = confirm(recipe, bench, place / "artifact") if result.measurement else None
    return Line(row, result, holdout, time.monotonic() - started)


def judge(line: Line, bench: Bench) -> dict[str, bool]:
    """What the row must reach -> whether it does; a row that was not measured reaches nothing."""
    found, limits = line.holdout, asdict(line.row.bound or Bound())
    values: dict[str, float] = {}
    if found is not None:
        kept = found.accuracy / bench.baseline.holdout_accuracy
        values = {"most_drop": found.drop, "least_speed": found.speedup, "least_kept": kept, "least_smaller": smaller(found)}
    return {
        f"{name.replace('_', ' ')} {limit:g}": name in values and (values[name] <= limit if name == "most_drop" else values[name] >= limit)
        for name, limit in limits.items()
        if limit is not None
    }


def smaller(found: Measurement) -> float:
    return found.baseline_size_bytes / found.size_bytes


def in_words(line: Line) -> str:
    found, searched = line.holdout, line.result.measurement
    if found is None or searched is None:
        return f"{line.row.name}: {line.result.outcome}: {line.result.message}"
    return (
        f"{line.row.name}: drop {searched.drop:.2f}, on holdout {found.drop:.2f}; {found.speedup:.2f}x; "
        f"{found.size_bytes / 1000:.0f} kB; {line.seconds:.0f} s"
    )


def facts(line: Line) -> dict[str, Any]:
    """What is kept of a row: enough for runs/README.md."""
    found, searched = line.holdout, line.result.measurement
    told: dict[str, Any] = {"outcome": line.result.outcome, "seconds": round(line.seconds, 1)}
    if found is None or searched is None:
        return told | {"message": line.result.message}
    numbers = {
        "accuracy": found.accuracy,
        "drop": found.drop,
        "drop_search": searched.drop,
        "latency_ms": found.latency_ms,
        "speedup": found.speedup,
        "speedup_low": found.speedup_low,
        "speedup_high": found.speedup_high,
        "agreement": found.agreement,
        "recover_s": line.result.seconds.get("recover", 0.0),
    }
    sizes = {"size_bytes": found.size_bytes, "deployed_bytes": found.deployed_bytes}
    return told | {name: round(value, 4) for name, value in numbers.items()} | sizes


def show(name: str, bench: Bench, lines: Sequence[Line], judged: dict[str, dict[str, bool]]) -> None:
    given, samples = bench.baseline, len(bench.splits["holdout"][1])
    print(
        f"\n{name}: {given.holdout_accuracy:.2f} % on holdout ({samples:,} samples), {given.size_bytes / 1000:.0f} kB, "
        f"{given.macs / 1e6:.1f} million multiply-adds, {given.latency_ms:.3f} ms in {given.target}"
    )
    print(f"{'':48} {'accuracy':>8} {'drop':>6} {'packed':>9} {'smaller':>7} {'deployed':>9} {'ms':>7} {'times faster':>20} {'seconds':>7}")
    for line in lines:
        found = line.holdout
        if found is None:
            print(f"{line.row.name:48} {line.result.outcome}: {line.result.message}")
            continue
        speed = f"{found.speedup:.2f} ({found.speedup_low:.2f}-{found.speedup_high:.2f})"
        verdict = "; ".join(f"{what}: {'met' if met else 'MISSED'}" for what, met in judged.get(line.row.name, {}).items())
        print(
            f"{line.row.name:48} {found.accuracy:8.2f} {found.drop:6.2f} {found.size_bytes / 1000:6.1f} kB {smaller(found):6.1f}x "
            f"{found.deployed_bytes / 1000:6.1f} kB {found.latency_ms:7.3f} {speed:>20} {line.seconds:7.0f}  {verdict}".rstrip()
        )


if __name__ == "__main__":
    main()
