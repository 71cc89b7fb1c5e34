"""What is known of each sample: its score, its margin, its probabilities, and when outputs are no class logits."""

from dataclasses import replace

import pytest
import torch
import toy_task
from torch import Tensor

from autocompress.errors import InvalidTask
from autocompress.measure.samples import confidence, is_right, margins, no_classes, sample_scores
from autocompress.tasks.task import Task, score

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 5.0, 1.0], [1.0, 1.0, 0.0]])
TARGETS = torch.tensor([0, 2, 1])


@pytest.fixture(scope="module")
def task() -> Task:
    return toy_task.make()


def test_scores_of_samples_average_to_the_accuracy(task: Task) -> None:
    scores = sample_scores(task, LOGITS, TARGETS)
    assert scores is not None
    assert scores.tolist() == [100, 0, 0]
    assert scores.mean() == pytest.approx(score(task, LOGITS, TARGETS))


def test_scores_of_maps_of_classes_are_means_over_their_places(task: Task) -> None:
    outputs = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(3, (4, 5, 6), generator=torch.Generator().manual_seed(1))
    scores = sample_scores(task, outputs, targets)
    assert scores is not None
    assert scores.shape == (4,)
    assert scores.mean() == pytest.approx(score(task, outputs, targets), abs=1e-4)


def test_a_metric_of_a_whole_split_has_no_scores_unless_the_task_gives_them(task: Task) -> None:
    other = replace(task, metric=lambda outputs, targets: 50.0)
    assert sample_scores(other, LOGITS, TARGETS) is None
    given = sample_scores(replace(other, sample_scores=lambda outputs, targets: outputs[:, 0]), LOGITS, TARGETS)
    assert given is not None
    assert given.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        (lambda outputs, targets: outputs, r"gave \(3, 3\), 0 of them not finite; it must be \(3,\)"),
        (lambda outputs, targets: outputs[:, 0] / 0, r"gave \(3,\), 3 of them not finite"),
        (lambda outputs, targets: outputs[9], "failed on outputs .*IndexError"),
    ],
)
def test_scores_of_the_artifact_that_are_none_are_refused_with_the_task_named(task: Task, given: object, rule: str) -> None:
    with pytest.raises(InvalidTask, match=f"task 'toy': sample_scores {rule}"):
        sample_scores(replace(task, sample_scores=given), LOGITS, TARGETS)


def test_ties_of_the_largest_logit_go_to_the_first_class() -> None:
    assert is_right(LOGITS, TARGETS).tolist() == [True, False, False]
    assert margins(LOGITS).tolist() == [1, 4, 0]


@pytest.mark.parametrize("form", ["logits", "logarithms", "probabilities"])
def test_the_confidence_is_the_same_in_whichever_form_the_model_gives_its_outputs(form: str) -> None:
    given: Tensor = {"logits": LOGITS, "logarithms": LOGITS.log_softmax(1), "probabilities": LOGITS.softmax(1)}[form]
    assert confidence(given) == pytest.approx(LOGITS.softmax(1).amax(1).numpy(), abs=1e-6)


@pytest.mark.parametrize(
    ("outputs", "targets", "reason"),
    [
        (LOGITS, torch.randn(3), "are no class logits"),
        (LOGITS[:, 0], TARGETS, "are no class logits"),
        (LOGITS[:, :1], TARGETS, "are no class logits"),
        (LOGITS, torch.tensor([0, 3, 1]), "targets outside 0 to 2"),
        (LOGITS, torch.tensor([0, -100, 1]), "targets outside 0 to 2"),
        (LOGITS, TARGETS, ""),
    ],
)
def test_what_is_no_class_logits_says_why(task: Task, outputs: Tensor, targets: Tensor, reason: str) -> None:
    found = no_classes(task, outputs, targets)
    assert reason in found
    assert bool(found) == bool(reason)


def test_outputs_that_are_taught_by_a_loss_of_their_own_are_not_taken_for_logits(task: Task) -> None:
    own = replace(task, distillation_loss=lambda student, teacher, temperature: (student - teacher).square().mean())
    assert no_classes(own, LOGITS, TARGETS) == ""  # its metric is the accuracy of class logits
    assert "loss of its own" in no_classes(replace(own, metric=lambda outputs, targets: 1.0), LOGITS, TARGETS)
