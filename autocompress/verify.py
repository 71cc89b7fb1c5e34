"""Do the numbers of an exported folder hold here? For a user's CI: measured again, and judged against its own measured.json."""

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from autocompress.artifact import RECIPE, Measured, check_files, read_measured
from autocompress.bench import IN_MEMORY, task_of
from autocompress.errors import InvalidArtifact, UserError
from autocompress.evaluate import confirm, prepare
from autocompress.export import load
from autocompress.measure.machine import differences, this_machine
from autocompress.progress import Progress
from autocompress.recipe import from_yaml
from autocompress.records import Measurement, Target
from autocompress.tasks.find import NOTHING, absolute
from autocompress.tasks.task import Task, digest


@dataclass(frozen=True)
class Tolerance:
    """How far a claim may be off, to either side. ``speed_anyway`` judges speed also on another machine than that of the claim."""

    speed_percent: float = 10.0
    accuracy_points: float = 0.1
    speed_anyway: bool = False


@dataclass(frozen=True)
class Check:
    """One claim: what measured.json says, what was found here. ``held`` is None where it was not judged, and ``words`` say why."""

    name: str
    claimed: float
    found: float
    held: bool | None
    words: str


@dataclass(frozen=True)
class Verdict:
    """``differences``: what is not as on the machine that measured.json was made on; with any, speed is not judged unless asked."""

    folder: Path
    task: str
    target: Target
    measurement: Measurement
    checks: tuple[Check, ...]
    differences: tuple[str, ...]

    @property
    def holds(self) -> bool:
        return all(check.held is not False for check in self.checks)


def verify(
    folder: str | Path,
    *,
    task: Task | str | None = None,
    task_options: Mapping[str, str] = NOTHING,
    tolerance: Tolerance = Tolerance(),
    runs: str | Path = "runs",
    progress: Progress | None = None,
) -> Verdict:
    """Measure an exported folder here and judge it by its own measured.json: files first, then speed, accuracy and size.

    ``task``: the one named in measured.json if not given; ``task_options`` replace its own of the
    same names, as where the data lie elsewhere; ``runs``: where a built-in task keeps its trained model. Raises InvalidArtifact
    with a line for every file that is missing or changed, before anything is timed; UserError for a task that is not the one it was
    made from.
    """
    progress, folder = progress or Progress(), Path(folder)
    for option, allowed in (("--speed-tolerance", tolerance.speed_percent), ("--accuracy-tolerance", tolerance.accuracy_points)):
        if not (math.isfinite(allowed) and allowed >= 0):
            raise UserError(f"{option}: must be a finite number of at least 0, got {allowed}")
    check_files(folder)
    told = read_measured(folder)
    claimed = told.claimed
    if claimed is None:
        raise InvalidArtifact(f"{folder}: measured.json holds no measurement, so there is nothing to verify; export again")
    options = {**(told.task_options if task is None or task == told.task else {}), **absolute(task_options)}
    ready = task_of(_task_name(folder, told, task), Path(runs), progress, options)
    _same_task(folder, told, ready)
    changed = tuple(differences(told.machine, this_machine()))
    now = _measured_here(folder, told, claimed, ready, progress)
    checks = judge(claimed, now, tolerance, _why_not_speed(changed) if changed and not tolerance.speed_anyway else "")
    return Verdict(folder, ready.name if isinstance(task, Task) else str(task or told.task), told.target, now, checks, changed)


def judge(claimed: Measurement, now: Measurement, tolerance: Tolerance, no_speed: str = "") -> tuple[Check, ...]:
    """Speed holds where its interval reaches into that of the claim, widened by the tolerance; accuracy within its tolerance, for the
    same file on the same data repeats; sizes exactly. With ``no_speed``, the reason, speed is not judged.
    """
    percent, allowed = tolerance.speed_percent, tolerance.accuracy_points
    low, high = claimed.speedup_low * (1 - percent / 100), claimed.speedup_high * (1 + percent / 100)
    fast = None if no_speed else now.speedup_high >= low and now.speedup_low <= high
    speed = (
        no_speed
        or f"interval {now.speedup_low:.2f}-{now.speedup_high:.2f} must reach into {low:.2f}-{high:.2f} (the claim's and {percent:g} %)"
    )
    accurate = abs(now.accuracy - claimed.accuracy) <= allowed + 1e-9
    points = f"within {allowed:g} points, {now.samples} samples of the {now.split} split"
    sizes = (("weights bytes", claimed.size_bytes, now.size_bytes), ("deployed bytes", claimed.deployed_bytes, now.deployed_bytes))
    return (
        Check("speedup", claimed.speedup, now.speedup, fast, speed),
        Check("accuracy", claimed.accuracy, now.accuracy, accurate, points),
        *(Check(name, before, after, before == after, "exactly") for name, before, after in sizes),
    )


def _why_not_speed(changed: tuple[str, ...]) -> str:
    return f"not judged: measured elsewhere or with other versions ({'; '.join(changed)}); --speed judges it all the same"


def _task_name(folder: Path, told: Measured, task: Task | str | None) -> Task | str:
    if task is not None:
        return task
    if told.task is None or told.task == IN_MEMORY:
        why = "was made from a task in memory" if told.task else "does not name its task"
        raise UserError(f"{folder}: {why}; say with --task package.module:factory which one it is")
    return told.task


def _same_task(folder: Path, told: Measured, task: Task) -> None:
    now, then = digest(task), told.baseline.task_digest
    if now != then:
        raise UserError(
            f"{folder}: task {task.name!r} is not the one it was measured with (weights or data: {then} then, {now} now), "
            "so its numbers say nothing here. Restore the task, or name the right one with --task."
        )


def _measured_here(folder: Path, told: Measured, claimed: Measurement, task: Task, progress: Progress) -> Measurement:
    """The artifact against a freshly deployed baseline, on the split that the claim is about."""
    file = folder / RECIPE
    recipe = from_yaml(file.read_text(encoding="utf-8"), str(file))
    load(folder, task)  # says in one line what does not fit
    with tempfile.TemporaryDirectory(prefix="autocompress-verify-") as scratch:
        bench = prepare(task, told.target, torch.device("cpu"), Path(scratch) / "baseline", progress)
        with progress.stage("measuring the artifact"):
            return confirm(recipe, bench, folder, claimed.split)
