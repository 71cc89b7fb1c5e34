"""The bench of a study or of an artifact: its task, found and checked, and the facts that were written when it began."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from autocompress.config import SearchConfig
from autocompress.errors import InvalidStudy
from autocompress.evaluate import Bench, prepare
from autocompress.measure.machine import differences, this_machine
from autocompress.progress import Progress
from autocompress.records import TrialResult
from autocompress.runs import Layers, RunPaths, only_driver, to_json, write_text
from autocompress.study import pareto
from autocompress.tasks.find import NOTHING, find_task
from autocompress.tasks.task import Task, check, digest, with_holdout

IN_MEMORY = "(in memory)"
CACHE = ".cache"


def task_of(task: Task | str, runs: Path, progress: Progress, options: Mapping[str, str] = NOTHING) -> Task:
    """The task with its three splits, checked on its own example. ``options`` are for a task by name."""
    ready = find_task(task, runs / CACHE, progress, options) if isinstance(task, str) else task
    check(ready)
    if any(parameter.device.type != "cpu" for parameter in ready.model.parameters()):
        ready = replace(ready, model=copy.deepcopy(ready.model).cpu())  # the target is a CPU; recovery moves its own copies
    ready = with_holdout(ready, seed=0)
    for note in (*ready.notes, *_of_metric(ready)):
        progress.say(f"note: {note}")
    return ready


def _of_metric(task: Task) -> tuple[str, ...]:
    """What bounds mean where the metric is no percentage."""
    if task.metric_unit == "%":
        return ()
    better, unit = "higher" if task.higher_is_better else "lower", task.metric_unit or f"the unit of {task.metric_name}"
    return (f"the metric is {task.metric_name} ({better} is better): drops, and --max-drop, are in {unit}",)


def bench_of(paths: RunPaths, config: SearchConfig, task: Task, progress: Progress) -> Bench:
    """The bench of a study; on the first call its facts are written, later they must be the same.

    Raises InvalidStudy where the task is not the one that the study began with.
    """
    stored = paths.read_baseline() if paths.baseline.exists() else None
    if stored is not None and stored.task_digest != (now := digest(task)):
        raise InvalidStudy(
            f"study {paths.study!r}: the task changed since (weights or data: {stored.task_digest} then, {now} now); "
            "its results would not compare. Restore the task or start a new study with --study."
        )
    bench = prepare(task, config.target, torch.device(config.device), paths.baseline_artifact, progress)
    if stored is not None:
        bench.baseline = stored
        return bench
    write_text(paths.machine, to_json(bench.machine))
    write_text(paths.layers, to_json(Layers(layers=bench.layers)))
    write_text(paths.baseline, to_json(bench.baseline))
    return bench


def named_task(config: SearchConfig, task: Task | None, verb: str) -> Task | str:
    """What a study is of: the task in memory that is given again, or the name it has. Raises InvalidStudy where neither is there."""
    if config.task == IN_MEMORY and task is None:
        name = config.study
        raise InvalidStudy(f"study {name!r} was made from a task in memory: {verb} it in Python with {verb}({name!r}, task=...)")
    return task or config.task


@contextlib.contextmanager
def reopened(
    paths: RunPaths, trial: str | int, task: Task | None, verb: str, progress: Progress
) -> Iterator[tuple[TrialResult, Bench]]:
    """A measured trial of a study and the study's bench, while nobody else runs the study.

    ``trial``: best, fastest, smallest, knee or a number. Raises InvalidStudy where there is no such study or trial, the study is being
    run, its task changed, or this is another machine.
    """
    config = paths.read_config()
    result = pareto.pick(paths.results(), trial, pareto.bounds_of(config))
    wanted = named_task(config, task, verb)
    with only_driver(paths):
        same_machine(paths)
        yield result, bench_of(paths, config, task_of(wanted, paths.runs, progress, config.task_options), progress)


def same_machine(paths: RunPaths) -> None:
    """Raises InvalidStudy, with what changed, where the study was measured on another machine or with other versions."""
    if not paths.machine.exists():
        return
    changed = differences(paths.read_machine(), this_machine())
    if changed:
        raise InvalidStudy(
            f"study {paths.study!r} was measured elsewhere or before an upgrade ({'; '.join(changed)}); speedups of the two do not belong "
            "on one front. Start a new study with --study, or go back to that machine and those versions."
        )
