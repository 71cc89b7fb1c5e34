"""The loss is that of Hinton, Vinyals and Dean 2015, and so is its gradient; a lesson adds it to the task's by the recipe's weights."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from autocompress.compress.distill import Lesson, Mixed, Sample, combined_loss, distillation_loss, ramp
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import Distillation
from tests.small_models import inputs

TARGETS = torch.tensor([0, 3, 1, 1, 2, 0])
OTHERS = torch.tensor([1, 3, 0, 2, 2, 1])
LESSON = Lesson(F.cross_entropy)


def logits() -> tuple[Tensor, Tensor]:
    return (3 * inputs(6, 4)).double().requires_grad_(), (3 * inputs(6, 4, seed=1)).double()


def sample(teacher: Tensor | None, mixed: Mixed | None = None) -> Sample:
    return Sample(inputs(6, 4), TARGETS, teacher, mixed)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_loss_and_gradient_are_the_published_formula(temperature: float) -> None:
    student, teacher = logits()
    loss = distillation_loss(student, teacher, temperature)
    p, q = (teacher / temperature).exp(), (student.detach() / temperature).exp()
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    torch.testing.assert_close(loss.detach(), temperature**2 * (p * (p / q).log()).sum(1).mean(), rtol=1e-12, atol=0)
    loss.backward()
    torch.testing.assert_close(student.grad, temperature * (q - p) / len(p), rtol=1e-10, atol=1e-14)


def test_equal_logits_have_no_loss_and_neither_have_logits_shifted_by_a_constant() -> None:
    student, _ = logits()
    assert distillation_loss(student, student.detach(), 4.0).item() == pytest.approx(0, abs=1e-12)
    assert distillation_loss(student, student.detach() + 7, 4.0).item() == pytest.approx(0, abs=1e-12)


def test_at_high_temperature_the_gradient_becomes_that_of_matching_centred_logits() -> None:
    student, teacher = logits()
    distillation_loss(student, teacher, 1e4).backward()
    centred = [value - value.mean(1, keepdim=True) for value in (student.detach(), teacher)]
    torch.testing.assert_close(student.grad, (centred[0] - centred[1]) / 4 / 6, rtol=1e-2, atol=1e-4)  # Hinton et al. 2015, eq. 4


def test_logits_of_every_pixel_are_averaged_over_like_samples() -> None:
    student, teacher = inputs(2, 4, 3, 5), inputs(2, 4, 3, 5, seed=1)
    flat = [one.permute(0, 2, 3, 1).reshape(-1, 4) for one in (student, teacher)]
    torch.testing.assert_close(distillation_loss(student, teacher, 3.0), distillation_loss(*flat, 3.0))


# ---- the weighted sum -----------------------------------------------------------------------------------------------


def test_hard_and_soft_loss_are_added_by_their_weights_and_the_ramp_is_on_the_soft_one() -> None:
    student, teacher = logits()
    settings = Distillation(temperature=2.0, soft_weight=0.7, hard_weight=0.3)
    hard, soft = F.cross_entropy(student, TARGETS), distillation_loss(student, teacher, 2.0)
    for share in (0.0, 0.25, 1.0):
        torch.testing.assert_close(combined_loss(settings, LESSON, student, sample(teacher), share), 0.3 * hard + share * 0.7 * soft)


def test_the_task_loss_alone_is_used_without_settings_or_teacher_or_soft_weight() -> None:
    student, teacher = logits()
    hard = F.cross_entropy(student, TARGETS)
    only_hard = Distillation(soft_weight=0.0, hard_weight=1.0)
    for settings, given in ((None, teacher), (Distillation(), None), (only_hard, teacher), (only_hard, None)):
        torch.testing.assert_close(combined_loss(settings, LESSON, student, sample(given)), hard, check_dtype=False)


def test_the_soft_loss_alone_reads_no_targets() -> None:
    def forbidden(student: Tensor, targets: Tensor) -> Tensor:
        raise AssertionError("the task loss was asked")

    student, teacher = logits()
    settings = Distillation(temperature=3.0, soft_weight=1.0, hard_weight=0.0)
    loss = combined_loss(settings, Lesson(forbidden), student, sample(teacher))
    torch.testing.assert_close(loss, distillation_loss(student, teacher, 3.0), check_dtype=False)


def test_features_alone_leave_no_loss_of_the_outputs() -> None:
    student, _ = logits()
    settings = Distillation(soft_weight=0.0, hard_weight=0.0, feature_weight=1.0, features=("a",))
    assert combined_loss(settings, LESSON, student, sample(None)).item() == 0


def test_mixed_targets_count_by_their_shares_and_equal_the_loss_on_mixed_one_hot_targets() -> None:
    student, teacher = logits()
    soft_targets = 0.3 * F.one_hot(TARGETS, 4).double() + 0.7 * F.one_hot(OTHERS, 4).double()
    expected = -(soft_targets * student.log_softmax(1)).sum(1).mean()
    for settings in (None, Distillation(soft_weight=0.0, hard_weight=1.0)):
        found = combined_loss(settings, LESSON, student, sample(teacher, Mixed(OTHERS, 0.3)))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0, check_dtype=False)


def test_a_task_that_is_no_classification_brings_its_own_soft_loss_and_any_shape() -> None:
    def distance(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return (student - teacher[:, :1].sum(2)).square().mean() / temperature

    student, teacher = inputs(6, 1).requires_grad_(), inputs(6, 3, 2)
    lesson = Lesson(lambda outputs, targets: outputs.abs().mean(), distance)
    found = combined_loss(Distillation(soft_weight=0.5, hard_weight=0.5, temperature=2.0), lesson, student, sample(teacher))
    torch.testing.assert_close(found, 0.5 * student.abs().mean() + 0.5 * (student - teacher[:, :1].sum(2)).square().mean() / 2)


@pytest.mark.parametrize(("student", "teacher", "said"), [
    ((6, 4), (6, 5), r"like the student's, \(N, 4\), got \(N, 5\).*Choose a teacher of the same classes"),
    ((6, 4), (6, 4, 2), r"\(N, 4\), got \(N, 4, 2\)"),
    ((6, 1), (6, 1), r"two classes or more, got \(N, 1\).*Give the Task a distillation_loss"),
    ((6,), (6,), r"two classes or more, got \(N\)"),
])  # fmt: skip
def test_outputs_that_are_no_logits_of_the_same_classes_are_refused_in_one_line(
    student: tuple[int, ...], teacher: tuple[int, ...], said: str
) -> None:
    lesson = Lesson(lambda outputs, targets: outputs.mean())
    with pytest.raises(InfeasibleRecipe, match=said) as caught:
        combined_loss(Distillation(), lesson, torch.zeros(student), sample(torch.zeros(teacher)))
    assert "\n" not in str(caught.value)


def test_the_ramp_is_a_line_from_nothing_to_all() -> None:
    settings = Distillation(ramp=0.5)
    assert [ramp(settings, progress) for progress in (0.0, 0.25, 0.5, 1.0)] == [0.0, 0.5, 1.0, 1.0]
    assert ramp(Distillation(), 0.0) == ramp(None, 0.0) == 1.0
