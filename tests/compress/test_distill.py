"""The loss is that of Hinton, Vinyals and Dean 2015, and so is its gradient."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from autocompress.compress.distill import combined_loss, distillation_loss
from autocompress.recipe import Distillation
from tests.small_models import inputs

TARGETS = torch.tensor([0, 3, 1, 1, 2, 0])


def logits() -> tuple[Tensor, Tensor]:
    return (3 * inputs(6, 4)).double().requires_grad_(), (3 * inputs(6, 4, seed=1)).double()


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


def test_hard_and_soft_loss_are_added_by_their_weights() -> None:
    student, teacher = logits()
    mixed = combined_loss(Distillation(temperature=2.0, soft_weight=0.7, hard_weight=0.3), F.cross_entropy, student, teacher, TARGETS)
    torch.testing.assert_close(mixed, 0.3 * F.cross_entropy(student, TARGETS) + 0.7 * distillation_loss(student, teacher, 2.0))


def test_the_task_loss_alone_is_used_without_settings_or_teacher_or_soft_weight() -> None:
    student, teacher = logits()
    hard = F.cross_entropy(student, TARGETS)
    only_hard = Distillation(soft_weight=0.0, hard_weight=1.0)
    for settings, given in ((None, teacher), (Distillation(), None), (only_hard, teacher)):
        torch.testing.assert_close(combined_loss(settings, F.cross_entropy, student, given, TARGETS), hard, check_dtype=False)


def test_the_soft_loss_alone_reads_no_targets() -> None:
    def forbidden(student: Tensor, targets: Tensor) -> Tensor:
        raise AssertionError("the task loss was asked")

    student, teacher = logits()
    settings = Distillation(temperature=3.0, soft_weight=1.0, hard_weight=0.0)
    loss = combined_loss(settings, forbidden, student, teacher, TARGETS)
    torch.testing.assert_close(loss, distillation_loss(student, teacher, 3.0), check_dtype=False)
