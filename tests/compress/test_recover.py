"""Recovery repairs, repeats, stops where the loss is lost, keeps zeros and grids, and does nothing in no steps."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.blocks import FakeQuantized
from autocompress.compress.distill import Lesson, Mixed, Sample
from autocompress.compress.prune.masks import mask_
from autocompress.compress.quantize import quantize
from autocompress.compress.recover import recover_
from autocompress.errors import Diverged, InfeasibleRecipe
from autocompress.recipe import Distillation, LayerPlan, Quantization, Recipe, Recovery
from tests.small_models import Net, conv, fingerprint, inputs

LESSON = Lesson(F.cross_entropy)


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
        yield Sample(x, logits.argmax(1), logits)


def recipe(steps: int = 0, quantized_steps: int = 0, rate: float = 1e-2, seed: int = 0, **settings: Any) -> Recipe:
    own = {name: settings.pop(name) for name in ("distillation", "quantization", "layers") if name in settings}
    return Recipe(recovery=Recovery(steps=steps, quantized_steps=quantized_steps, learning_rate=rate, seed=seed, **settings), **own)


def integers(*names: str, bits: int = 7) -> tuple[LayerPlan, ...]:
    return tuple(LayerPlan(name=name, weight_bits=bits, activation_bits=8) for name in names)


def mistakes(model: nn.Module) -> float:
    """Share of unseen samples whose class is not the teacher's."""
    x, classes, *_ = next(samples(1))
    with torch.no_grad():
        return (model.eval()(x).argmax(1) != classes).float().mean().item()


@pytest.mark.parametrize(("optimizer", "rate"), [("adamw", 1e-2), ("sgd", 0.1)])
@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "constant"])
def test_recovery_brings_the_student_closer_to_its_teacher(optimizer: str, rate: float, schedule: str) -> None:
    model = student()
    before, unseen = mistakes(model), samples(61)
    next(unseen)  # the sample that `mistakes` asks about
    recover_(model, recipe(steps=60, rate=rate, optimizer=optimizer, schedule=schedule), unseen, LESSON)
    assert mistakes(model) < 0.15 < before


def test_equal_seeds_give_equal_weights_and_other_seeds_others() -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed + len(states))  # what ran before must not matter
        states.append(recover_(student(), recipe(steps=5, seed=seed), samples(5), LESSON).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_recovery_leaves_the_random_state_of_the_process_as_it_was() -> None:
    before = torch.get_rng_state()
    recover_(student(), recipe(steps=3), samples(3), LESSON)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("quantized", [False, True])
def test_no_steps_leave_the_weights_as_they_are_and_read_no_sample(quantized: bool) -> None:
    model = student().train()
    if quantized:
        model = quantize(model, Recipe(layers=integers("0")), [inputs(8, 4)])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = recipe(steps=9 * quantized, quantized_steps=9 * (not quantized), batch_norm_batches=3, ema=0.9)
    assert recover_(model, plan, iter(()), LESSON) is model
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training


@pytest.mark.parametrize(("asked", "taken"), [(None, 4), (2, 2)])
def test_exactly_the_asked_number_of_samples_is_taken(asked: int | None, taken: int) -> None:
    rest = samples(9)
    recover_(student(), recipe(steps=4, batch_norm_batches=3), rest, LESSON, asked)
    assert len(list(rest)) == 9 - taken


def test_parameters_that_were_frozen_stay_as_they_are() -> None:
    model = student()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    recover_(model, recipe(steps=5, ema=0.5), samples(5), LESSON)
    assert torch.equal(model[0].weight, before)


def test_a_model_whose_parameters_are_all_frozen_is_refused_before_any_step() -> None:
    with pytest.raises(InfeasibleRecipe, match="every parameter is frozen"):
        recover_(student().requires_grad_(False), recipe(steps=5), samples(5), LESSON)


def test_a_loss_of_one_number_in_a_list_is_a_loss() -> None:
    lesson = Lesson(lambda outputs, targets: F.cross_entropy(outputs, targets)[None])
    states = [recover_(student(), recipe(steps=2, distillation=None), samples(2), one).state_dict() for one in (LESSON, lesson)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_no_gradient_is_left_behind() -> None:
    model = recover_(student(), recipe(steps=2), samples(2), LESSON)
    assert all(parameter.grad is None for parameter in model.parameters())


# ---- divergence -----------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_recovery_before_its_step_and_names_it() -> None:
    model, earlier = student(), recover_(student(), recipe(steps=5), samples(2), LESSON, 0)
    with pytest.raises(Diverged, match=r"the loss is nan at step 1 of 5; lower the learning rate \(0\.01\)"):
        recover_(model, recipe(steps=5), samples(5, broken_at=1), LESSON)
    assert all(torch.equal(value, earlier.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(Diverged, match=r"the loss is nan at step 3 of 5"):
        recover_(student(), recipe(steps=5), samples(5, broken_at=3), LESSON)


def test_a_gradient_that_is_not_finite_ends_recovery() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - outputs.detach()).abs().sqrt().sum()  # 0, with an infinite slope

    with pytest.raises(Diverged, match=r"the gradient is (nan|inf) at step 1 of 2"):
        recover_(student(), recipe(steps=2, distillation=None), samples(2), Lesson(loss))


def test_a_loss_that_climbs_and_stays_up_ends_recovery_long_before_its_last_step() -> None:
    plan = recipe(steps=400, rate=10.0, optimizer="sgd", schedule="constant", distillation=None)
    with pytest.raises(Diverged, match=r"the loss climbed to \S+ by step \d+ of 400, from \S+ at the start") as caught:
        recover_(nn.Linear(4, 3), plan, samples(400), Lesson(lambda outputs, targets: outputs.square().mean()))
    assert int(str(caught.value).split("by step ")[1].split()[0]) < 100


# ---- order of weights: masks, averages, statistics ------------------------------------------------------------------


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_masked_weights_are_exactly_zero_after_training_and_the_others_move(optimizer: str, quantized: bool) -> None:
    model = student()
    mask = inputs(16, 4) > 0
    mask_(model[0], mask)
    if quantized:
        model = quantize(model, Recipe(layers=integers("0", "3")), [inputs(64, 4)])
    layer = model.get_submodule("model.0" if quantized else "0")
    before = layer.weight.detach().clone()
    recover_(model, recipe(steps=6, quantized_steps=6, optimizer=optimizer, ema=0.5), samples(6), LESSON)
    assert torch.equal(layer.weight == 0, ~mask)
    assert not torch.equal(layer.weight, before)


def test_the_average_of_the_weights_is_what_remains() -> None:
    seen: list[Tensor] = []

    class Recorded(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                seen.append(self.weight.detach().clone())
            return super().forward(x)

    def trained(ema: float) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return recover_(Recorded(4, 3), recipe(steps=5, ema=ema), samples(5), LESSON).weight.detach()

    last = trained(0.0)
    path = [*seen[1:], last]  # the weights after each step
    weights = torch.tensor([0.8**age for age in (4, 3, 2, 1, 0)], dtype=torch.float64)
    expected = sum(weight * one.double() for weight, one in zip(weights / weights.sum(), path, strict=True))
    torch.testing.assert_close(trained(0.8).double(), expected, rtol=1e-5, atol=1e-7)


def with_norm() -> nn.Module:
    """A batch norm behind a ReLU, where it cannot be folded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = {"a": conv(1, 4), "norm": nn.BatchNorm2d(4), "head": nn.Linear(4, 3)}
        return Net(lambda m, x: m.head(m.norm(F.relu(m.a(x))).mean((2, 3))), **layers)


def images(count: int) -> Iterator[Sample]:
    return (Sample(3 + 2 * inputs(8, 1, 5, 5, seed=step), torch.arange(8) % 3) for step in range(count))


def test_batch_norm_statistics_are_taken_anew_from_the_last_batches_as_plain_averages() -> None:
    model = recover_(with_norm(), recipe(steps=6, batch_norm_batches=3, ema=0.5), images(6), LESSON)
    with torch.no_grad():
        flowing = [F.relu(model.a(sample.inputs)).double() for sample in list(images(6))[3:]]
    means = torch.stack([x.mean((0, 2, 3)) for x in flowing]).mean(0)
    variances = torch.stack([x.var((0, 2, 3)) for x in flowing]).mean(0)
    torch.testing.assert_close(model.norm.running_mean.double(), means, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.norm.running_var.double(), variances, rtol=1e-5, atol=1e-6)
    assert model.norm.momentum == 0.1
    assert not model.norm.training


def test_statistics_are_averaged_along_with_the_weights_that_they_belong_to() -> None:
    path: list[Tensor] = []
    model = with_norm()
    handle = model.norm.register_forward_pre_hook(lambda module, args: path.append(module.running_mean.clone()))
    recover_(model, recipe(steps=3, ema=0.5), images(3), LESSON)
    handle.remove()
    plain = recover_(with_norm(), recipe(steps=3), images(3), LESSON)
    after = [*path[1:], plain.norm.running_mean]
    torch.testing.assert_close(model.norm.running_mean, sum(share * one for share, one in zip((1 / 7, 2 / 7, 4 / 7), after, strict=True)))


# ---- integer grids --------------------------------------------------------------------------------------------------


def test_batch_norm_on_integer_grids_stands_still_from_freeze_after_on() -> None:
    moved: dict[float, list[int]] = {}
    for freeze_after in (0.0, 0.5, 1.0):
        plan = recipe(quantized_steps=4, layers=integers("a"), quantization=Quantization(freeze_after=freeze_after))
        model = quantize(with_norm(), plan, [inputs(8, 1, 5, 5)])
        path: list[Tensor] = []
        norm = model.get_submodule("model.norm")
        norm.register_forward_hook(lambda module, args, out, path=path: path.append(module.running_mean.clone()))
        before = norm.running_mean.clone()
        recover_(model, plan, images(4), LESSON)
        states = [before, *path]
        moved[freeze_after] = [step for step in range(1, 5) if not torch.equal(states[step], states[step - 1])]
    assert moved == {0.0: [], 0.5: [1, 2], 1.0: [1, 2, 3, 4]}


def test_fake_quantized_training_moves_the_weights_and_keeps_the_calibrated_ranges() -> None:
    model = quantize(student(), Recipe(layers=integers("0", "3")), [inputs(64, 4)])
    assert isinstance(model, FakeQuantized)
    ranges = {key: (point.low.item(), point.high.item()) for key, point in model.points.items()}
    weight = model.model[0].weight.clone()
    recover_(model, recipe(quantized_steps=5), samples(5), LESSON)
    assert not torch.equal(model.model[0].weight, weight)
    assert {key: (point.low.item(), point.high.item()) for key, point in model.points.items()} == ranges


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_learned_scales_train_along_and_change_by_shares_of_themselves(optimizer: str) -> None:
    settings = Quantization(learned_step=True)
    plan = recipe(quantized_steps=30, optimizer=optimizer, layers=integers("0", "3", bits=4), quantization=settings)
    model = quantize(student(), plan, [inputs(64, 4)])
    scales = {name: value.detach().clone() for name, value in model.named_parameters() if not name.startswith("model.")}
    assert scales
    recover_(model, plan, samples(30), LESSON)
    changes = {name: (value.detach() / scales[name] - 1).abs().max().item() for name, value in model.named_parameters() if name in scales}
    assert max(changes.values()) > 1e-4
    assert max(changes.values()) < 0.5


def test_progressive_training_ends_at_the_bits_that_were_asked_for() -> None:
    plan = recipe(quantized_steps=5, ema=0.9, layers=integers("0", "3", bits=3), quantization=Quantization(progressive=True))
    model = quantize(student(), plan, [inputs(64, 4)])
    bits: list[int] = []
    quantizer = next(quantizer for _, _, quantizer in model.quantizers() if getattr(quantizer, "target_bits", 0) == 3)
    quantizer.register_forward_hook(lambda module, args, out: bits.append(module.bits))
    recover_(model, plan, samples(5), LESSON)
    assert bits[0] == 8
    assert bits == sorted(bits, reverse=True)
    assert (bits[-1], quantizer.bits) == (3, 3)


# ---- lessons --------------------------------------------------------------------------------------------------------


def test_features_and_attention_of_a_live_teacher_are_learned_and_the_teacher_stays_as_it_was() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        return m.head(F.relu(m.a(x)).mean((2, 3)))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        teacher, given = (Net(run, a=conv(1, width), head=nn.Linear(width, 3)).train() for width in (5, 4))
    before = fingerprint(teacher)
    settings = Distillation(soft_weight=0.0, hard_weight=0.0, attention_weight=1.0, features=("a",))
    lesson = Lesson(F.cross_entropy, teacher=teacher)
    x = 3 + 2 * inputs(8, 1, 5, 5, seed=77)

    def distance(model: nn.Module) -> float:
        with torch.no_grad():
            maps = [F.normalize(one.a(x).square().sum(1).flatten(1), dim=1) for one in (model, teacher)]
        return (maps[0] - maps[1]).square().sum().item()

    trained = recover_(copy.deepcopy(given), recipe(steps=40, distillation=settings), images(40), lesson)
    assert distance(trained) < 0.5 * distance(given)
    assert torch.equal(trained.head.weight, given.head.weight)  # the loss of the outputs has no weight
    hinted = Distillation(soft_weight=0.0, hard_weight=0.0, feature_weight=1.0, features=("a",))
    parameters = [name for name, _ in given.named_parameters()]
    made = recover_(copy.deepcopy(given), recipe(steps=3, distillation=hinted), images(3), lesson)
    assert [name for name, _ in made.named_parameters()] == parameters  # the adapter is thrown away
    assert not torch.equal(made.a.weight, given.a.weight)
    assert fingerprint(teacher) == before


def test_the_weight_of_the_teacher_rises_over_the_ramp() -> None:
    shares: list[float] = []

    def soft(own: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        loss = own.sum()
        loss.register_hook(lambda gradient: shares.append(gradient.item()))
        return loss

    settings = Distillation(soft_weight=0.5, hard_weight=0.5, ramp=0.5)
    recover_(student(), recipe(steps=8, distillation=settings), samples(8), Lesson(F.cross_entropy, soft))
    assert shares == pytest.approx([0.5 * share for share in (0, 0.25, 0.5, 0.75, 1, 1, 1, 1)])


def test_a_training_step_of_the_task_stands_in_for_both_losses() -> None:
    def forbidden(*args: Any) -> Tensor:
        raise AssertionError("asked")

    given: list[bool] = []

    def own(model: nn.Module, x: Tensor, targets: Tensor, teacher: Tensor | None) -> Tensor:
        given.append(teacher is not None)
        return F.mse_loss(model(x), torch.ones(len(x), 3))

    model = student()
    recover_(model, recipe(steps=60), samples(60), Lesson(forbidden, forbidden, training_step=own))
    assert given == [True] * 60
    with torch.no_grad():
        assert F.mse_loss(model(inputs(32, 4)), torch.ones(32, 3)) < 0.2


def test_mixed_targets_and_a_training_step_of_one_target_are_refused() -> None:
    mixed = (sample._replace(mixed=Mixed(sample.targets, 0.5)) for sample in samples(1))
    lesson = Lesson(F.cross_entropy, training_step=lambda model, x, targets, teacher: model(x).sum())
    with pytest.raises(InfeasibleRecipe, match="the task's training_step takes one of each"):
        recover_(student(), recipe(steps=1), mixed, lesson)


def test_a_teacher_of_other_classes_is_refused_before_any_step() -> None:
    model = student()
    other = (sample._replace(teacher=torch.zeros(32, 5)) for sample in samples(1))
    with pytest.raises(InfeasibleRecipe, match=r"\(N, 3\), got \(N, 5\)"):
        recover_(model, recipe(steps=1), other, LESSON)
    assert all(torch.equal(value, student().state_dict()[name]) for name, value in model.state_dict().items())


def test_mixed_precision_without_cuda_is_float32_to_the_bit() -> None:
    states = [recover_(student(), recipe(steps=3, precision=name), samples(3), LESSON).state_dict() for name in ("float32", "mixed")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
