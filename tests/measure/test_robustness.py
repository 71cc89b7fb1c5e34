"""Shifted inputs run through the artifact; the attack climbs the loss of the twin, also through fake quantization."""

from dataclasses import replace

import pytest
import torch
import toy_task
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.blocks.flow import FakeQuantized
from autocompress.compress.build import freeze_, settle
from autocompress.measure.robustness import ATTACK, NoGradient, Subject, blurred, fast_gradient, shifts
from autocompress.recipe import LayerPlan, Quantization, Recipe
from autocompress.tasks.task import Task, accuracy, outputs_of, score

NAMES = ["noise 0.5 sd", "blur 0.7 px", "brightness +0.5 sd", "contrast 50 %", "FGSM 0.1 sd"]


@pytest.fixture(scope="module")
def task() -> Task:
    return toy_task.make()


def subject(model: nn.Module) -> Subject:
    return Subject(lambda inputs: outputs_of(model, inputs), model)


def holdout() -> tuple[Tensor, Tensor]:
    return toy_task.data()[2]


def test_images_get_every_shift_the_same_each_time_and_the_attack_hurts_most(task: Task) -> None:
    x, y = holdout()
    found = shifts(task, subject(task.model), subject(task.model), x, y)
    assert [part.name for part in found.shifts] == NAMES
    assert found.notes == ()
    assert all(part.score == part.baseline_score and part.samples == len(y) for part in found.shifts)
    assert found == shifts(task, subject(task.model), subject(task.model), x, y)
    clean = score(task, outputs_of(task.model, x), y)
    assert found.shifts[-1].score < clean


def test_scores_are_those_of_the_artifact_and_gradients_those_of_the_twin(task: Task) -> None:
    x, y = holdout()
    always = F.one_hot(torch.zeros(len(y), dtype=torch.int64), 10).float()
    found = shifts(task, Subject(lambda inputs: always, task.model), subject(task.model), x, y)
    assert {round(part.score, 3) for part in found.shifts} == {round(accuracy(always, y), 3)}


def test_shifted_inputs_stay_within_the_range_of_the_data_and_move_by_their_strength(task: Task) -> None:
    x, y = holdout()
    seen: list[Tensor] = []

    def run(inputs: Tensor) -> Tensor:
        seen.append(inputs)
        return outputs_of(task.model, inputs)

    shifts(task, Subject(run, task.model), subject(task.model), x, y)
    assert all(one.min() >= x.min() - 1e-6 and one.max() <= x.max() + 1e-6 for one in seen)
    spread = x.std(correction=0)
    attacked = (seen[-1] - x).abs()
    assert attacked.max() == pytest.approx(float(ATTACK * spread), rel=1e-3)
    assert float((seen[3] - seen[3].mean((2, 3), keepdim=True)).std() / (x - x.mean((2, 3), keepdim=True)).std()) == pytest.approx(0.5)


def test_a_blur_keeps_what_is_even_and_spreads_a_point() -> None:
    even = torch.full((1, 2, 5, 5), 3.0)
    assert torch.allclose(blurred(even), even)
    point = torch.zeros(1, 1, 5, 5)
    point[0, 0, 2, 2] = 1
    spread = blurred(point)
    assert spread.sum() == pytest.approx(1)
    assert spread[0, 0, 2, 2] == spread.max() < 1


@pytest.mark.parametrize(
    ("bits", "settings"),
    [
        ((7, 8), Quantization()),
        ((4, 8), Quantization(granularity="tensor")),
        ((7, 8), Quantization(learned_step=True)),
        ((4, 32), Quantization(granularity="group", group_size=8)),
        ((16, 16), Quantization(half="bf16")),
    ],
)
def test_the_gradient_goes_straight_through_a_frozen_fake_quantized_twin(task: Task, bits: tuple[int, int], settings: Quantization) -> None:
    x, y = holdout()
    plans = tuple(LayerPlan(name=name, weight_bits=bits[0], activation_bits=bits[1]) for name in ("conv2", "head"))
    twin = settle(task.model, Recipe(layers=plans, quantization=settings), x[:64])
    assert isinstance(twin, FakeQuantized)
    freeze_(twin)
    attacked, warning = fast_gradient(task, twin, x, y)
    assert warning == ""
    assert task.loss(outputs_of(twin, attacked), y) > 1.2 * task.loss(outputs_of(twin, x), y)


def test_the_attack_is_the_formula_and_leaves_the_twin_as_it_was(task: Task) -> None:
    x, y = torch.randn(5, 3), torch.randint(2, (5,))
    twin = nn.Linear(3, 2).train()
    attacked, _ = fast_gradient(task, twin, x, y)
    probabilities = twin(x).softmax(1) - F.one_hot(y, 2)
    expected = x + ATTACK * x.std(correction=0) * (probabilities @ twin.weight).sign()
    assert torch.allclose(attacked, expected.clamp(x.min(), x.max()))
    assert twin.training
    assert twin.weight.grad is None


def test_inputs_that_are_no_images_get_noise_and_the_attack_with_a_note(task: Task) -> None:
    x, y = torch.randn(40, 6), torch.randint(3, (40,))
    model = nn.Linear(6, 3)
    found = shifts(task, subject(model), subject(model), x, y)
    assert [part.name for part in found.shifts] == [NAMES[0], NAMES[-1]]
    assert "no images" in found.notes[0]


def test_integer_inputs_have_no_shifts_with_a_note(task: Task) -> None:
    found = shifts(task, subject(task.model), subject(task.model), torch.randint(9, (4, 7)), torch.zeros(4))
    assert found.shifts == ()
    assert "int64 has no small changes" in found.notes[0]


def test_at_most_2000_samples_are_shifted(task: Task) -> None:
    model = nn.Linear(3, 2)
    found = shifts(task, subject(model), subject(model), torch.randn(2300, 3), torch.randint(2, (2300,)))
    assert {part.samples for part in found.shifts} == {2000}


class Cut(nn.Module):
    """Outputs that do not depend on the inputs in a way that has a gradient."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(3, 2), how

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.detach() if self.how == "detached" else x.sign())


@pytest.mark.parametrize(("how", "reason"), [("detached", "allow_unused|not have been used"), ("flat", "flat at every input")])
def test_a_model_without_a_gradient_has_a_note_in_place_of_the_attack(task: Task, how: str, reason: str) -> None:
    x, y = torch.randn(20, 3), torch.randint(2, (20,))
    with pytest.raises(NoGradient, match=reason):
        fast_gradient(task, Cut(how), x, y)
    found = shifts(task, subject(Cut(how)), subject(nn.Linear(3, 2)), x, y)
    assert [part.name for part in found.shifts] == NAMES[:1]
    assert "no FGSM" in found.notes[-1]


def test_samples_that_cannot_be_attacked_are_said(task: Task) -> None:
    x, y = torch.randn(20, 3), torch.zeros(20, dtype=torch.int64)
    sure = nn.Linear(3, 2)
    with torch.no_grad():
        sure.bias.copy_(torch.tensor([1000.0, 0.0]))
        sure.weight.zero_()[0, 0] = 1
    y[:10] = 1  # wrong and sure: the slope is steep there
    assert fast_gradient(task, sure, x, y)[1].startswith("50 % of the samples are not attacked")


def test_a_metric_that_fails_on_shifted_inputs_costs_its_part_only(task: Task) -> None:
    x, y = holdout()
    clean = outputs_of(task.model, x)

    def picky(outputs: Tensor, targets: Tensor) -> float:
        return accuracy(outputs, targets) if torch.equal(outputs, clean) else float("nan")

    found = shifts(replace(task, metric=picky), subject(task.model), subject(task.model), x, y)
    assert found.shifts == ()
    assert len(found.notes) == len(NAMES)
    assert all("returned nan" in note for note in found.notes)


def test_one_sample_and_a_channel_that_never_changes_are_fine(task: Task) -> None:
    x, y = holdout()
    assert len(shifts(task, subject(task.model), subject(task.model), x[:1], y[:1]).shifts) == len(NAMES)
    dark = torch.zeros_like(x)
    found = shifts(task, subject(task.model), subject(task.model), dark, y)
    assert len({round(part.score, 4) for part in found.shifts}) == 1
