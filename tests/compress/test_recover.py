"""Recovery repairs, repeats, stops where the loss is not finite, and does nothing in no steps."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.blocks import FakeQuantized
from autocompress.compress.quantize import quantize
from autocompress.compress.recover import Sample, cycle, recover_
from autocompress.errors import Diverged
from autocompress.recipe import LayerPlan, Recipe, Recovery
from tests.small_models import Net, conv, inputs


def student(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def samples(count: int, broken_at: int = 0) -> Iterator[Sample]:
    teacher = student(seed=9).eval()
    for step in range(1, count + 1):
        x = inputs(32, 4, seed=step)
        if step == broken_at:
            x[0, 0] = float("nan")
        with torch.no_grad():
            logits = teacher(x)
        yield x, logits.argmax(1), logits


def recipe(steps: int = 0, quantized_steps: int = 0, rate: float = 1e-2, seed: int = 0) -> Recipe:
    return Recipe(recovery=Recovery(steps=steps, quantized_steps=quantized_steps, learning_rate=rate, seed=seed))


def mistakes(model: nn.Module) -> float:
    """Share of unseen samples whose class is not the teacher's."""
    x, classes, _ = next(samples(1))
    with torch.no_grad():
        return (model.eval()(x).argmax(1) != classes).float().mean().item()


def test_recovery_brings_the_student_closer_to_its_teacher() -> None:
    model = student()
    before, unseen = mistakes(model), samples(61)
    next(unseen)  # the sample that `mistakes` asks about
    assert mistakes(recover_(model, recipe(steps=60), unseen, F.cross_entropy)) < 0.1 < before


def test_equal_seeds_give_equal_weights_and_other_seeds_others() -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed + len(states))  # what ran before must not matter
        states.append(recover_(student(), recipe(steps=5, seed=seed), samples(5), F.cross_entropy).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_recovery_leaves_the_random_state_of_the_process_as_it_was() -> None:
    before = torch.get_rng_state()
    recover_(student(), recipe(steps=3), samples(3), F.cross_entropy)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loss_that_is_not_finite_ends_recovery_and_names_the_step() -> None:
    with pytest.raises(Diverged, match=r"the loss is nan at step 3 of 5; lower the learning rate \(0\.01\)"):
        recover_(student(), recipe(steps=5), samples(5, broken_at=3), F.cross_entropy)


@pytest.mark.parametrize("quantized", [False, True])
def test_no_steps_leave_the_weights_as_they_are_and_read_no_sample(quantized: bool) -> None:
    model = student().train()
    if quantized:
        model = quantize(model, {"0": LayerPlan(name="0", weight_bits=7, activation_bits=8)}, [inputs(8, 4)])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = recipe(steps=9 * quantized, quantized_steps=9 * (not quantized))
    assert recover_(model, plan, iter(()), F.cross_entropy) is model
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training


def test_exactly_the_asked_number_of_samples_is_taken() -> None:
    rest = samples(9)
    recover_(student(), recipe(steps=4), rest, F.cross_entropy)
    assert len(list(rest)) == 5


def behind_a_relu(m: Net, x: Tensor) -> Tensor:
    return m.head(m.norm(F.relu(m.a(x))).mean((2, 3)))


def test_batch_norm_statistics_move_in_float_and_stand_still_while_fake_quantized() -> None:
    moved = {}
    for quantized in (False, True):
        model: nn.Module = Net(behind_a_relu, a=conv(1, 4), norm=nn.BatchNorm2d(4), head=nn.Linear(4, 3))
        if quantized:
            model = quantize(model, {"a": LayerPlan(name="a", weight_bits=7, activation_bits=8)}, [inputs(8, 1, 5, 5)])
        batches = ((inputs(8, 1, 5, 5, seed=step), torch.arange(8) % 3, None) for step in range(3))
        norm = model.get_submodule("model.norm" if quantized else "norm")
        before = norm.running_mean.clone()
        recover_(model, recipe(steps=3, quantized_steps=3), batches, F.cross_entropy)
        moved[quantized] = not torch.equal(norm.running_mean, before)
    assert moved == {False: True, True: False}


def test_fake_quantized_training_moves_the_weights_and_keeps_the_calibrated_ranges() -> None:
    model = quantize(student(), {name: LayerPlan(name=name, weight_bits=7, activation_bits=8) for name in "03"}, [inputs(64, 4)])
    assert isinstance(model, FakeQuantized)
    ranges = {key: (point.low.item(), point.high.item()) for key, point in model.points.items()}
    weight = model.model[0].weight.clone()
    recover_(model, recipe(quantized_steps=5), samples(5), F.cross_entropy)
    assert not torch.equal(model.model[0].weight, weight)
    assert {key: (point.low.item(), point.high.item()) for key, point in model.points.items()} == ranges


def test_parameters_that_were_frozen_stay_as_they_are() -> None:
    model = student()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    recover_(model, recipe(steps=5), samples(5), F.cross_entropy)
    assert torch.equal(model[0].weight, before)


def test_the_learning_rate_rises_for_a_tenth_and_falls_to_zero() -> None:
    values = [cycle(step / 100) for step in range(101)]
    assert values[0] == 0
    assert values[10] == max(values) == 1
    assert values[:11] == sorted(values[:11])
    assert values[10:] == sorted(values[10:], reverse=True)
    assert values[55] == pytest.approx(0.5)
    assert values[-1] == pytest.approx(0, abs=1e-7)
