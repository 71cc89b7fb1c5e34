"""Several teachers speak as one whose loss has the gradient of the weighted sum; who reads what, and who does not run at all."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.compress.distill import Sample, Teacher, distillation_loss, retaught, taught
from autocompress.compress.distill.teachers import averaged, outputs_on
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import Distillation
from tests.small_models import fingerprint, inputs, recurrent, residual

CPU = torch.device("cpu")
PLAIN = Distillation()


def batches(count: int = 3, third: bool = False) -> Iterator[tuple[Tensor, ...]]:
    for seed in range(count):
        x, y = inputs(6, 1, 8, 8, seed=seed), torch.arange(6) % 10
        yield (x, y, inputs(6, 5, 3, seed=seed)) if third else (x, y)


def samples(teachers: Sequence[Teacher], settings: Distillation | None = PLAIN, third: bool = False, **options: Any) -> list[Sample]:
    return list(taught(batches(third=third), teachers, settings, 0, CPU, **options))


class Counting(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.layer = nn.Linear(64, classes)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.calls += 1
        return self.layer(x.flatten(1))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_several_teachers_have_the_gradient_of_the_weighted_sum_and_its_value_less_what_no_student_changes(temperature: float) -> None:
    teachers = [(3 * inputs(6, 4, seed=seed)).double() for seed in (1, 2, 3)]
    weights, shares = (1.0, 3.0, 4.0), (0.125, 0.375, 0.5)
    together = averaged(teachers, weights, temperature)
    p = sum(share * F.softmax(one / temperature, 1) for share, one in zip(shares, teachers, strict=True))
    torch.testing.assert_close(F.softmax(together / temperature, 1), p, rtol=1e-12, atol=0)
    among = sum(share * distillation_loss(together, one, temperature) for share, one in zip(shares, teachers, strict=True))
    for seed in (5, 6):
        student = (3 * inputs(6, 4, seed=seed)).double().requires_grad_()
        single = sum(share * distillation_loss(student, one, temperature) for share, one in zip(shares, teachers, strict=True))
        loss = distillation_loss(student, together, temperature)
        torch.testing.assert_close(loss + among, single, rtol=1e-10, atol=0)
        (expected,), (found,) = torch.autograd.grad(single, student), torch.autograd.grad(loss, student)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


def test_outputs_that_are_no_logits_are_averaged_as_they_are() -> None:
    first, second = inputs(6, 3), inputs(6, 3, seed=1)
    torch.testing.assert_close(averaged([first, second], [1.0, 3.0], None), 0.25 * first + 0.75 * second)
    assert averaged([first], [0.3], None) is first


def test_batches_come_with_the_average_of_the_teachers_that_have_a_weight() -> None:
    first, second, silent = Counting(), Counting(), Counting()
    found = samples([Teacher(first, 1.0), Teacher(second, 3.0), Teacher(silent, 0.0)])
    assert [first.calls, second.calls, silent.calls] == [3, 3, 0]
    for sample, (x, y) in zip(found, batches(), strict=True):
        assert torch.equal(sample.inputs, x)
        assert torch.equal(sample.targets, y)
        p = [F.softmax(one.layer(x.flatten(1)) / 4, 1) for one in (first, second)]
        torch.testing.assert_close(F.softmax(sample.teacher / 4, 1), 0.25 * p[0] + 0.75 * p[1])
        assert not sample.teacher.requires_grad
        assert sample.mixed is None
    means = samples([Teacher(first, 1.0), Teacher(second, 3.0)], are_logits=False)
    x = next(batches())[0].flatten(1)
    torch.testing.assert_close(means[0].teacher, 0.25 * first.layer(x) + 0.75 * second.layer(x))


@pytest.mark.parametrize(("settings", "weight"), [(None, 1.0), (PLAIN, 0.0), (Distillation(soft_weight=0.0, hard_weight=1.0), 1.0)])
def test_no_teacher_runs_where_nobody_asks(settings: Distillation | None, weight: float) -> None:
    teacher = Counting()
    assert [sample.teacher for sample in samples([Teacher(teacher, weight)], settings)] == [None] * 3
    assert teacher.calls == 0


def test_the_teacher_is_left_as_it_was_module_by_module() -> None:
    teacher = residual(4)
    teacher.train()
    teacher.block1.norm1.eval()
    before = fingerprint(teacher)
    samples([Teacher(teacher)])
    assert fingerprint(teacher) == before


# ---- another modality -----------------------------------------------------------------------------------------------


def test_of_three_tensors_the_teacher_reads_the_third_and_the_student_the_first() -> None:
    teacher = recurrent()
    for sample, (x, _, sequence) in zip(samples([Teacher(teacher)], third=True), batches(third=True), strict=True):
        assert torch.equal(sample.inputs, x)
        torch.testing.assert_close(sample.teacher, outputs_on(teacher, sequence))


def test_a_teacher_of_the_students_modality_reads_the_first_of_three() -> None:
    teacher = residual(4)
    for sample in samples([Teacher(teacher, reads_inputs=True)], third=True):
        torch.testing.assert_close(sample.teacher, outputs_on(teacher, sample.inputs))


@pytest.mark.parametrize(("settings", "said"), [
    (Distillation(augmentation="mixup"), r"mixup would change the student's inputs, and the teachers read others \(6, 5, 3\)"),
    (Distillation(feature_weight=1.0, features=("a",)), "cannot be compared with it layer by layer"),
])  # fmt: skip
def test_what_two_modalities_do_not_bear_is_refused_each_time_it_is_asked(settings: Distillation, said: str) -> None:
    source = taught(batches(third=True), [Teacher(recurrent())], settings, 0, CPU)
    for _ in range(2):  # the next trial of a study may ask again
        with pytest.raises(InfeasibleRecipe, match=said):
            next(source)


def test_teachers_of_different_classes_are_refused_with_their_shapes() -> None:
    with pytest.raises(InfeasibleRecipe, match=r"one shape to be averaged, got \(6, 10\), \(6, 7\)"):
        samples([Teacher(Counting()), Teacher(Counting(classes=7))])


# ---- augmentation, assistant ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", ["mixup", "cutmix", "randaugment"])
def test_the_teacher_sees_the_augmented_inputs_and_they_repeat_by_seed(augmentation: str) -> None:
    teacher, settings = residual(4), Distillation(augmentation=augmentation)
    runs = [list(taught(batches(), [Teacher(teacher)], settings, seed, CPU)) for seed in (0, 0, 1)]
    for one, other, (x, _) in zip(runs[0], runs[1], batches(), strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert not torch.equal(one.inputs, x)
        assert (one.mixed is None) == (augmentation == "randaugment")
        torch.testing.assert_close(one.teacher, outputs_on(teacher, one.inputs))
    assert not torch.equal(runs[0][0].inputs, runs[2][0].inputs)


def test_the_global_random_state_is_not_touched() -> None:
    before = torch.get_rng_state()
    samples([Teacher(residual(4))], Distillation(augmentation="randaugment"))
    assert torch.equal(torch.get_rng_state(), before)


def test_another_teacher_takes_over_where_somebody_taught() -> None:
    assistant = residual(4)
    x = inputs(6, 1, 8, 8)
    first, second = retaught(iter([Sample(x, torch.zeros(6), inputs(6, 10)), Sample(x, torch.zeros(6))]), assistant)
    torch.testing.assert_close(first.teacher, outputs_on(assistant, x))
    assert second.teacher is None
