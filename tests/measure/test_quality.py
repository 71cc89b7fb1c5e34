"""Parts of the samples before and after, by hand on a few of them; splits that lack classes, or have one sample or one class."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import toy_task
from torch import Tensor
from torch.nn import functional as F

from autocompress.measure.quality import calibration_error, checks, hardest, inspect_outputs, rarest, worst_class
from autocompress.records import CHECKS, Inspection, Part, Usage
from autocompress.tasks.task import Task

TARGETS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1, 3])


def logits(answers: list[int], sure: list[float] | None = None, classes: int = 4) -> Tensor:
    return F.one_hot(torch.tensor(answers), classes) * torch.tensor(sure or [4.0] * len(answers))[:, None]


BEFORE = logits([0, 0, 0, 1, 1, 1, 1, 1, 1, 3], sure=[4, 4, 4, 4, 4, 1, 4, 4, 4, 4])
AFTER = logits([0, 0, 0, 0, 1, 0, 0, 1, 1, 2])


@pytest.fixture(scope="module")
def task() -> Task:
    return toy_task.make()


def test_classes_hard_and_rare_samples_and_changed_answers_are_told_apart(task: Task) -> None:
    parts = inspect_outputs(task, AFTER, BEFORE, TARGETS)
    assert parts.classes == (
        Part(name="0", samples=4, score=100, baseline_score=75),
        Part(name="1", samples=5, score=60, baseline_score=100),
        Part(name="3", samples=1, score=0, baseline_score=100),
    )
    assert parts.hard == Part(name="hard samples", samples=1, score=0, baseline_score=100)  # sample 5
    assert parts.rare == Part(name="class 3", samples=1, score=0, baseline_score=100)
    assert (parts.broken, parts.righted) == ((5, 6, 9), (3,))
    assert parts.notes == ("1 of 4 classes have no sample in this split: 2",)
    worst = worst_class(task, parts.classes)
    assert worst is not None
    assert worst.name == "3"
    assert worst_class(task, ()) is None


def test_the_parts_are_the_fields_of_an_inspection(task: Task) -> None:
    parts = inspect_outputs(task, AFTER, BEFORE, TARGETS)
    usage = Usage(load_ms=1, peak_bytes=1, mean_bytes=1)
    kept = Inspection(usage=usage, baseline_usage=usage, **parts._asdict())
    assert Inspection.model_validate_json(kept.model_dump_json()) == kept


def test_the_checks_are_those_that_are_known_and_agree_with_the_parts(task: Task) -> None:
    found = checks(task, AFTER, BEFORE, TARGETS)
    assert list(found) == list(CHECKS)
    assert (found["worst_class_drop"], found["hard_drop"], found["rare_drop"]) == (100, 100, 100)
    assert found["calibration_error_rise"] == calibration_error(AFTER, TARGETS) - calibration_error(BEFORE, TARGETS)
    assert found["mcnemar_p"] == pytest.approx(0.625)  # three broken, one righted
    same = checks(task, BEFORE, BEFORE, TARGETS)
    assert same == {**dict.fromkeys(CHECKS, 0.0), "mcnemar_p": 1.0}


def test_where_lower_is_better_a_part_that_rises_has_lost(task: Task) -> None:
    error = replace(task, metric=lambda outputs, targets: 1.0, metric_name="loss", higher_is_better=False)
    parts = inspect_outputs(error, AFTER, BEFORE, TARGETS)
    assert parts.rare == Part(name="class 3", samples=1, score=100, baseline_score=0)
    assert parts.notes[-1] == "parts show the percentage of wrong answers: loss is a number of a whole split"
    assert checks(error, AFTER, BEFORE, TARGETS)["worst_class_drop"] == 100
    worst = worst_class(error, parts.classes)
    assert worst is not None
    assert worst.name == "3"


def test_outputs_that_are_no_class_logits_have_a_note_and_no_checks(task: Task) -> None:
    targets = torch.randn(10)
    parts = inspect_outputs(task, AFTER, BEFORE, targets)
    assert parts._replace(notes=()) == inspect_outputs(task, AFTER, BEFORE, targets)._replace(notes=())
    assert (parts.classes, parts.hard, parts.calibration_error) == ((), None, None)
    assert len(parts.notes) == 1
    assert "no class logits" in parts.notes[0]
    assert checks(task, AFTER, BEFORE, targets) == {}


@pytest.mark.parametrize("samples", [slice(0, 1), slice(4, 9), slice(9, 10)])
def test_one_sample_and_one_class_are_a_split_too(task: Task, samples: slice) -> None:
    outputs, before, targets = AFTER[samples], BEFORE[samples], TARGETS[samples]
    parts = inspect_outputs(task, outputs, before, targets)
    assert len(parts.classes) == 1
    assert parts.rare is not None
    assert parts.rare.samples == len(targets)
    found = checks(task, outputs, before, targets)
    assert all(np.isfinite(list(found.values())))
    assert found["worst_class_drop"] == found["rare_drop"]


def test_outputs_that_are_not_finite_still_give_numbers(task: Task) -> None:
    found = checks(task, AFTER * float("nan"), BEFORE, TARGETS)
    assert all(np.isfinite(list(found.values())))


def reference_calibration_error(sure: list[float], right: list[bool]) -> float:
    """Guo et al. 2017, equation 3, bin by bin."""
    total = 0.0
    for index in range(15):
        inside = [place for place, one in enumerate(sure) if index / 15 < one <= (index + 1) / 15]
        if inside:
            accuracy, confidence = (sum(float(values[place]) for place in inside) / len(inside) for values in (right, sure))
            total += len(inside) / len(sure) * abs(accuracy - confidence)
    return 100 * total


def test_the_calibration_error_is_that_of_the_definition() -> None:
    outputs = 3 * torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(4, (500,), generator=torch.Generator().manual_seed(1))
    sure = outputs.softmax(1).max(1)
    expected = reference_calibration_error(sure.values.tolist(), (sure.indices == targets).tolist())
    assert calibration_error(outputs, targets) == pytest.approx(expected, abs=1e-4)


def test_a_model_that_is_always_sure_and_right_half_of_the_time_is_off_by_half() -> None:
    assert calibration_error(logits([0, 0], sure=[99, 99]), torch.tensor([0, 1])) == pytest.approx(50)
    assert calibration_error(logits([0, 1], sure=[99, 99]), torch.tensor([0, 1])) == pytest.approx(0)


def test_the_hardest_are_a_tenth_rounded_up_and_ties_go_to_the_first() -> None:
    assert hardest(logits([0] * 11, sure=[1.0] * 11)).tolist() == [0, 1]
    assert hardest(logits([0] * 10, sure=[5, 5, 5, 5, 1, 5, 5, 5, 5, 1])).tolist() == [4]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([50, 30, 10, 6, 4], [4, 3]), ([10] * 10, [0]), ([1, 1], [0]), ([0, 5, 0, 95], [1]), ([0, 0, 7], [2]), ([40, 0, 30, 30], [2])],
)
def test_the_rarest_classes_hold_a_tenth_at_most_and_one_at_least(counts: list[int], expected: list[int]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    assert rarest(labels).tolist() == expected


def test_many_rare_classes_have_a_short_name(task: Task) -> None:
    targets = torch.cat([torch.zeros(90, dtype=torch.int64), torch.arange(1, 11)])
    outputs = F.one_hot(targets, 11).float()
    rare = inspect_outputs(task, outputs, outputs, targets).rare
    assert rare is not None
    assert (rare.name, rare.samples) == ("classes 1, 2, 3, 4, 5 and 5 more", 10)
