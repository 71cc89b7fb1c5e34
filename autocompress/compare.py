"""Two studies, or two exported folders, side by side, and whether their numbers may be compared at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.artifact import Measured, is_artifact, read_measured
from autocompress.config import SearchConfig
from autocompress.errors import InvalidStudy, UserError
from autocompress.measure.machine import differences
from autocompress.records import Baseline, Machine, Target, TrialResult
from autocompress.runs import RunPaths, is_running, studies
from autocompress.study import pareto
from autocompress.study.summary import summary


@dataclass(frozen=True)
class _Study:
    """What is read of one study."""

    config: SearchConfig
    baseline: Baseline
    machine: Machine
    summary: dict[str, Any]
    results: list[TrialResult]


def compare(a: str | Path, b: str | Path, runs: str | Path = "runs") -> dict[str, Any]:
    """``kind`` (studies or artifacts), what is known of ``a`` and of ``b``, and ``differences``: why their numbers do not compare.

    A name is that of a study in ``runs``, or the path of an exported folder or of a study's. Raises UserError for one that is neither,
    and for one of each kind; InvalidStudy for a study with no finished trial.
    """
    first, second = (_find(name, Path(runs)) for name in (a, b))
    if isinstance(first, Path) and isinstance(second, Path):
        return _artifacts((str(a), first), (str(b), second))
    if isinstance(first, RunPaths) and isinstance(second, RunPaths):
        return _studies(_read(first), _read(second))
    study, folder = (a, b) if isinstance(first, RunPaths) else (b, a)
    raise UserError(f"{study} is a study and {folder} an exported folder; compare two of a kind, or export a trial of the study first")


def _find(name: str | Path, runs: Path) -> Path | RunPaths:
    folder = Path(name)
    if is_artifact(folder):
        return folder
    if (folder / "config.yaml").is_file():
        return RunPaths(folder.absolute().parent, folder.absolute().name)
    if folder.name == str(name) and (runs / folder / "config.yaml").is_file():
        return RunPaths(runs, str(name))
    known = ", ".join(studies(runs)) or "none"
    raise UserError(f"{name}: neither a study in {runs}/ nor a folder that `autocompress export` wrote. Studies there: {known}.")


def _read(paths: RunPaths) -> _Study:
    config, results = paths.read_config(), paths.results()
    if not results:
        raise InvalidStudy(
            f"study {paths.study!r} has no finished trial, so there is nothing to compare. Go on with `autocompress resume {paths.study}`."
        )
    baseline, state = paths.read_baseline(), "running" if is_running(paths) else "not running"
    found = summary(config, baseline, results, paths.holdouts(), state=state)
    return _Study(config, baseline, paths.read_machine(), found, results)


def _studies(a: _Study, b: _Study) -> dict[str, Any]:
    """Hypervolumes from one reference point, that of the wider bound, or they would not compare."""
    reference = max(a.config.max_drop, b.config.max_drop)
    sides = {}
    for side, study in (("a", a), ("b", b)):
        own = {"task": study.config.task, "seed": study.config.seed, "cpu": study.machine.cpu}
        sides[side] = study.summary | own | {"hypervolume": pareto.hypervolume(study.results, reference)}
    points = [pareto.points(study.results) for study in (a, b)]
    return {
        "kind": "studies",
        **sides,
        "beaten": {"a": _beaten(points[0], points[1]), "b": _beaten(points[1], points[0])},
        "reference_drop": reference,
        "differences": _differences((a.baseline, b.baseline), (a.machine, b.machine), (a.config.target, b.config.target)),
    }


def _beaten(own: Sequence[tuple[float, float]], others: Sequence[tuple[float, float]]) -> int:
    """Points (speedup, drop) of a front that the other front beats on both, at least one of them strictly."""
    return sum(any(s >= speed and d <= drop and (s, d) != (speed, drop) for s, d in others) for speed, drop in own)


def _artifacts(a: tuple[str, Path], b: tuple[str, Path]) -> dict[str, Any]:
    told = [read_measured(folder) for _, folder in (a, b)]
    first, second = told
    changed = _differences((first.baseline, second.baseline), (first.machine, second.machine), (first.target, second.target))
    splits = [one.claimed.split for one in told if one.claimed is not None]
    if len(set(splits)) == 2:
        changed.append(f"split: {splits[0]} -> {splits[1]}")
    return {"kind": "artifacts", "a": _told(a[0], first), "b": _told(b[0], second), "differences": changed}


def _told(name: str, told: Measured) -> dict[str, Any]:
    if told.claimed is None:
        raise UserError(f"{name}: measured.json holds no measurement; export again")
    whole = {"task": told.task, "trial": told.trial, "target": told.target.model_dump(mode="json"), "cpu": told.machine.cpu}
    return {
        "folder": name,
        **whole,
        **told.claimed.model_dump(mode="json"),
        "metric": told.baseline.metric,
        "metric_unit": told.baseline.metric_unit,
    }


def _differences(baselines: tuple[Baseline, Baseline], machines: tuple[Machine, Machine], targets: tuple[Target, Target]) -> list[str]:
    """Why the numbers of two do not compare: another task, target or machine."""
    told = []
    if baselines[0].task_digest != baselines[1].task_digest:
        told.append(f"task: other weights or data ({baselines[0].task_digest} -> {baselines[1].task_digest})")
    if baselines[0].metric != baselines[1].metric:
        told.append(f"metric: {baselines[0].metric} -> {baselines[1].metric}")
    if targets[0] != targets[1]:
        told.append(f"target: {targets[0]} -> {targets[1]}")
    return told + differences(*machines)
