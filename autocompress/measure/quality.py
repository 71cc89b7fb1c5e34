"""Accuracy is more than one number: by class, on hard samples and rare classes, which answers changed, how far confidence can be trusted.

All of it is read off outputs (N, classes) of both models on the same samples; a task whose outputs are no class logits has none of it.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from autocompress.measure.paired import mcnemar
from autocompress.measure.samples import Numbers, confidence, is_right, margins, no_classes, sample_scores
from autocompress.records import Part
from autocompress.tasks.task import Task, lost

BINS = 15
HARD_SHARE = RARE_SHARE = 0.1
NAMED_CLASSES = 5

Indices = NDArray[np.int64]


class OutputParts(NamedTuple):
    """What `Inspection` holds of the outputs, by the names of its fields: ``Inspection(usage=..., **parts._asdict())``."""

    classes: tuple[Part, ...] = ()
    hard: Part | None = None
    rare: Part | None = None
    broken: tuple[int, ...] = ()
    righted: tuple[int, ...] = ()
    calibration_error: float | None = None
    baseline_calibration_error: float | None = None
    notes: tuple[str, ...] = ()


def inspect_outputs(task: Task, outputs: Tensor, baseline_outputs: Tensor, targets: Tensor) -> OutputParts:
    """Parts of the samples before and after; outputs (N, classes), targets (N,). Empty with a note where they are no class logits."""
    reason = no_classes(task, baseline_outputs, targets)
    if reason:
        return OutputParts(notes=(f"no classes, hard or rare samples, calibration: {reason}",))
    after, before = (_part_scores(task, one, targets) for one in (outputs, baseline_outputs))
    right, was_right = is_right(outputs, targets), is_right(baseline_outputs, targets)
    labels, hard = targets.cpu().numpy(), hardest(baseline_outputs)
    rare = rarest(labels)
    rare_samples = np.flatnonzero(np.isin(labels, rare))
    name = ("class " if len(rare) == 1 else "classes ") + ", ".join(map(str, rare[:NAMED_CLASSES]))
    name += f" and {len(rare) - NAMED_CLASSES} more" if len(rare) > NAMED_CLASSES else ""
    return OutputParts(
        classes=tuple(_part(str(label), np.flatnonzero(labels == label), before, after) for label in np.unique(labels)),
        hard=_part("hard samples", hard, before, after),
        rare=_part(name, rare_samples, before, after),
        broken=tuple(map(int, np.flatnonzero(was_right & ~right))),
        righted=tuple(map(int, np.flatnonzero(~was_right & right))),
        calibration_error=calibration_error(outputs, targets),
        baseline_calibration_error=calibration_error(baseline_outputs, targets),
        notes=_notes(task, outputs, targets, labels),
    )


def checks(task: Task, outputs: Tensor, baseline_outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """The numbers of `records.CHECKS` by name; empty where the outputs (N, ...) are no class logits."""
    if no_classes(task, baseline_outputs, targets):
        return {}
    after, before = (_part_scores(task, one, targets) for one in (outputs, baseline_outputs))
    right, was_right = is_right(outputs, targets), is_right(baseline_outputs, targets)
    labels, hard = targets.cpu().numpy(), hardest(baseline_outputs)
    rare = np.flatnonzero(np.isin(labels, rarest(labels)))
    worse = before - after if task.higher_is_better else after - before
    counts = np.bincount(labels)
    present = counts > 0
    return {
        "worst_class_drop": float((np.bincount(labels, worse)[present] / counts[present]).max()),
        "hard_drop": float(worse[hard].mean()),
        "rare_drop": float(worse[rare].mean()),
        "calibration_error_rise": calibration_error(outputs, targets) - calibration_error(baseline_outputs, targets),
        "mcnemar_p": mcnemar(int((was_right & ~right).sum()), int((~was_right & right).sum())),
    }


def worst_class(task: Task, classes: tuple[Part, ...]) -> Part | None:
    """The class that lost most, of equal ones the first; None where there are none."""
    return max(classes, key=lambda part: lost(task, part.baseline_score, part.score), default=None)


def calibration_error(outputs: Tensor, targets: Tensor) -> float:
    """Expected calibration error in percent, over 15 bins of equal width (Guo et al. 2017, eq. 3); outputs (N, classes), targets (N,)."""
    sure = confidence(outputs)
    right = is_right(outputs, targets)
    bins = np.clip(np.ceil(sure * BINS) - 1, 0, BINS - 1).astype(np.int64)
    gaps = np.bincount(bins, right, BINS) - np.bincount(bins, sure, BINS)  # samples of a bin * (accuracy - confidence)
    return 100 * float(np.abs(gaps).sum()) / len(sure)


def hardest(baseline_outputs: Tensor) -> Indices:
    """Indices of the tenth of the samples, rounded up, with the smallest margin of the baseline; of equal ones the first."""
    order = np.argsort(margins(baseline_outputs), kind="stable")
    return np.sort(order[: int(np.ceil(HARD_SHARE * len(order)))])


def rarest(labels: Indices) -> Indices:
    """Class numbers, rarest first, that together hold at most a tenth of the samples; the rarest one whatever it holds.

    labels (N,). A class without a sample is no class of this split.
    """
    present, counts = np.unique(labels, return_counts=True)
    order = np.argsort(counts, kind="stable")
    few = int((np.cumsum(counts[order]) <= RARE_SHARE * len(labels)).sum())
    return present[order[: max(few, 1)]]


def _part(name: str, indices: Indices, before: Numbers, after: Numbers) -> Part:
    return Part(name=name, samples=len(indices), score=float(after[indices].mean()), baseline_score=float(before[indices].mean()))


def _part_scores(task: Task, outputs: Tensor, targets: Tensor) -> Numbers:
    """The metric of each sample (N,); for one of a whole split the percentage of right answers, of wrong ones where lower is better."""
    scores = sample_scores(task, outputs, targets)
    if scores is not None:
        return scores
    wanted: Numbers = 100.0 * (is_right(outputs, targets) == task.higher_is_better)
    return wanted


def _notes(task: Task, outputs: Tensor, targets: Tensor, labels: Indices) -> tuple[str, ...]:
    notes = []
    absent = np.setdiff1d(np.arange(outputs.shape[1]), labels)
    if len(absent):
        named = ", ".join(map(str, absent[:NAMED_CLASSES])) + (", ..." if len(absent) > NAMED_CLASSES else "")
        notes.append(f"{len(absent)} of {outputs.shape[1]} classes have no sample in this split: {named}")
    if sample_scores(task, outputs, targets) is None:
        kind = "right" if task.higher_is_better else "wrong"
        notes.append(f"parts show the percentage of {kind} answers: {task.metric_name} is a number of a whole split")
    return tuple(notes)
