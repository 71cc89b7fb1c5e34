"""The stages in the order that the recipe gives, every technique through all of them, and the same structure again for stored weights."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.blocks import FakeQuantized, LowRankConv2d
from autocompress.compress.build import Materials, compress, freeze_, rebuild, settle, shrink, training_steps
from autocompress.compress.distill import Lesson, Sample
from autocompress.errors import Diverged, InfeasibleRecipe
from autocompress.recipe import Assistant, Distillation, LayerPlan, Pruning, Quantization, Recipe, Recovery, Student
from tests.small_models import fingerprint, inputs, outputs, residual

X = inputs(96, 1, 8, 8)
SHARED = ("stem.0", "block1.conv2", "block2.conv2")
CUT = tuple(LayerPlan(name=name, keep=0.5, weight_bits=7, activation_bits=8) for name in SHARED)
MIXED = Recipe(
    layers=(*CUT, LayerPlan(name="block4.conv1", rank=4, weight_bits=8, activation_bits=8), LayerPlan(name="block3.conv1", keep=0.75))
)
FLOAT = Recipe(layers=(LayerPlan(name="block1.conv1", keep=0.5), LayerPlan(name="block4.conv1", rank=4)))
SHORT = Recovery(steps=4, quantized_steps=2, learning_rate=1e-3)
HALF = LayerPlan(name="block1.conv1", keep=0.5)


def integers(weight_bits: int = 8, activation_bits: int = 8, **extra: Any) -> tuple[LayerPlan, ...]:
    names = ("stem.0", "block1.conv1", "block1.conv2", "block2.conv1", "block3.conv1", "head")
    return tuple(LayerPlan(name=name, weight_bits=weight_bits, activation_bits=activation_bits, **extra) for name in names)


def batches() -> Iterator[Sample]:
    teacher, seed = residual(8), 0
    while True:
        x = inputs(16, 1, 8, 8, seed=seed)
        logits = outputs(teacher, x)
        yield Sample(x, logits.argmax(1), logits)
        seed += 1


def materials(**changes: Any) -> Materials:
    scoring = tuple(sample for sample, _ in zip(batches(), range(2), strict=False))
    plain = {"calibration": X, "lesson": Lesson(F.cross_entropy, teacher=residual(8)), "samples": batches(), "scoring": scoring}
    return Materials(**{**plain, **changes})


def build_student(width: float, depth: float) -> nn.Module:
    return residual(round(8 * width))


TECHNIQUES = {
    "nothing": Recipe(recovery=SHORT),
    "float": FLOAT.model_copy(update={"recovery": SHORT}),
    "mixed": MIXED.model_copy(update={"recovery": SHORT}),
    "post-training": Recipe(layers=integers(), recovery=Recovery(steps=0, quantized_steps=0)),
    "all that saves accuracy": Recipe(
        layers=integers(4),
        recovery=Recovery(steps=0, quantized_steps=0),
        quantization=Quantization(observer="mse", equalize=True, bias_correction=True, adaround_steps=10),
    ),
    "learned step, progressive": Recipe(layers=integers(4), recovery=SHORT, quantization=Quantization(learned_step=True, progressive=True)),
    "dynamic head": Recipe(
        layers=(LayerPlan(name="head", weight_bits=8, activation_bits=8),), recovery=SHORT, quantization=Quantization(activations="dynamic")
    ),
    "weight-only": Recipe(
        layers=(LayerPlan(name="head", weight_bits=4),), recovery=SHORT, quantization=Quantization(granularity="group", group_size=16)
    ),
    "half": Recipe(layers=integers(16, 32), recovery=SHORT),
    "taylor, cubic": Recipe(layers=(HALF,), recovery=SHORT, pruning=Pruning(importance={"taylor": 1.0}, schedule="cubic", steps_between=1)),
    "zeros": Recipe(layers=(LayerPlan(name="block2.conv1", sparsity=0.5), LayerPlan(name="head", pattern="2:4")), recovery=SHORT),
    "global zeros, cubic": Recipe(recovery=SHORT, pruning=Pruning(global_sparsity=0.5, schedule="cubic", steps_between=1)),
    "depth": Recipe(layers=(LayerPlan(name="block2", drop=True), HALF), recovery=SHORT),
    "energy": Recipe(layers=(LayerPlan(name="block4.conv1", energy=0.5),), recovery=SHORT, order=("distill", "factorize", "distill")),
    "spatial": Recipe(layers=(LayerPlan(name="block4.conv1", rank=4, factorization="spatial_svd"),), recovery=SHORT),
    "cp": Recipe(layers=(LayerPlan(name="block4.conv1", rank=4, factorization="cp"),), recovery=SHORT),
    "features": Recipe(
        layers=(HALF,), recovery=SHORT, distillation=Distillation(feature_weight=0.1, attention_weight=0.1, features=("block1", "block3"))
    ),
    "assistant": Recipe(layers=(HALF,), recovery=SHORT, distillation=Distillation(assistant=Assistant(keep=0.75, steps=2))),
    "student": Recipe(student=Student(width=0.5, weight_bits=8, activation_bits=8), recovery=SHORT),
    "distil, prune, quantize": Recipe(
        layers=(*integers(), LayerPlan(name="block4.conv1", keep=0.5)), recovery=SHORT, order=("distill", "prune", "distill", "quantize")
    ),
}


@pytest.mark.parametrize("name", TECHNIQUES)
def test_every_technique_goes_through_changes_nothing_given_and_comes_back_from_its_stored_weights(name: str) -> None:
    recipe, given = TECHNIQUES[name], residual(8)
    before = fingerprint(given)
    made = compress(given, recipe, materials(build_student=build_student))
    assert fingerprint(given) == before
    assert not made.training
    assert outputs(made, X).shape == (96, 10)
    assert torch.isfinite(outputs(made, X)).all()
    again = rebuild(given, recipe, X, made.state_dict(), build_student)
    assert torch.equal(outputs(again, X), outputs(made, X))
    assert fingerprint(given) == before


@pytest.mark.parametrize("name", ["taylor, cubic", "learned step, progressive", "student", "zeros"])
def test_equal_recipes_give_equal_weights(name: str) -> None:
    states = [compress(residual(8), TECHNIQUES[name], materials(build_student=build_student)).state_dict() for _ in range(2)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("name", TECHNIQUES)
def test_as_many_samples_are_read_as_training_steps_says(name: str) -> None:
    read = 0

    def counted() -> Iterator[Sample]:
        nonlocal read
        for sample in batches():
            read += 1
            yield sample

    compress(residual(8), TECHNIQUES[name], materials(samples=counted(), build_student=build_student))
    assert read == training_steps(TECHNIQUES[name])


def test_the_stages_come_in_the_order_of_the_recipe() -> None:
    entered: list[str] = []

    @contextlib.contextmanager
    def timed(name: str) -> Iterator[None]:
        entered.append(name)
        yield

    compress(residual(8), TECHNIQUES["distil, prune, quantize"], materials(), timed)
    assert entered == ["recover", "shrink", "recover", "quantize", "recover"]
    entered.clear()
    compress(residual(8), TECHNIQUES["taylor, cubic"], materials(), timed)
    assert entered == ["shrink", *["shrink", "recover"] * 4, "shrink", "recover"]  # blocks; four cuts; factorize; recovery


class Sequences(nn.Module):
    """An attention of four heads, an LSTM of eight units. x (N, 5, 16) -> (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.memory = nn.LSTM(16, 8, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        out: Tensor = self.head(self.memory(x)[0][:, -1])
        return out


def test_heads_and_hidden_units_go_along_the_cubic_schedule_as_channels_do() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        given = Sequences().eval()
    seen: list[tuple[int, int]] = []

    def step(model: nn.Module, x: Tensor, targets: Tensor, teacher: Tensor | None) -> Tensor:
        attention, memory = model.get_submodule("attention"), model.get_submodule("memory")
        seen.append((attention.num_heads, memory.hidden_size))
        return F.cross_entropy(model(x), targets)

    samples = (Sample(inputs(8, 5, 16, seed=seed), torch.arange(8)) for seed in itertools.count())
    plans = (LayerPlan(name="attention", keep=0.25), LayerPlan(name="memory", keep=0.25))
    cubic = Pruning(schedule="cubic", iterations=3, steps_between=1)
    recipe = Recipe(layers=plans, pruning=cubic, recovery=Recovery(steps=1, quantized_steps=0), distillation=None)
    lesson = Lesson(F.cross_entropy, training_step=step)
    made = compress(given, recipe, Materials(calibration=inputs(8, 5, 16), lesson=lesson, samples=samples))
    assert seen == [(2, 4), (1, 2), (1, 2), (1, 2)]  # 1 - 0.75 * (19/27, 26/27, 1) of four and eight, and the last recovery
    assert outputs(made, inputs(3, 5, 16)).shape == (3, 10)


def test_zeros_survive_recovery_and_quantization_exactly() -> None:
    plans = (LayerPlan(name="block2.conv1", sparsity=0.75, weight_bits=8, activation_bits=8), LayerPlan(name="head", pattern="2:4"))
    made = compress(residual(8), Recipe(layers=plans, recovery=SHORT), materials())
    assert isinstance(made, FakeQuantized)
    weight = made.model.get_submodule("block2.conv1").weight
    assert (weight == 0).sum() >= round(0.75 * weight.numel())
    head = made.model.get_submodule("head").weight
    assert ((head == 0).view(10, -1, 4).sum(-1) >= 2).all()


def test_a_student_is_refused_where_the_task_builds_none() -> None:
    with pytest.raises(InfeasibleRecipe, match=r"student: the task has no build_student\(width, depth\)"):
        compress(residual(8), TECHNIQUES["student"], materials())


def test_plans_of_layers_that_the_student_does_not_have_are_refused() -> None:
    recipe = Recipe(student=Student(width=0.5), layers=(LayerPlan(name="block9", drop=True),))
    with pytest.raises(InfeasibleRecipe, match="block9: the student has no such layer"):
        compress(residual(8), recipe, materials(build_student=build_student))


def test_plans_inside_a_block_that_is_left_out_go_with_it() -> None:
    recipe = Recipe(layers=(LayerPlan(name="block2", drop=True), LayerPlan(name="block2.conv1", keep=0.5, rank=1)), recovery=SHORT)
    made = compress(residual(8), recipe, materials())
    assert "block2.conv1" not in dict(made.named_modules())


def test_a_loss_that_diverges_ends_the_line_with_the_step() -> None:
    recipe = Recipe(layers=(HALF,), recovery=Recovery(steps=3))
    broken = iter([Sample(inputs(8, 1, 8, 8) * float("nan"), torch.zeros(8, dtype=torch.long), inputs(8, 10))] * 3)
    given = residual(8)
    before = fingerprint(given)
    with pytest.raises(Diverged, match="step 1 of 3"):
        compress(given, recipe, materials(samples=broken))
    assert fingerprint(given) == before


def test_a_model_is_pruned_first_and_then_factorized_at_its_new_width() -> None:
    recipe = Recipe(layers=(LayerPlan(name="block4.conv1", keep=0.5, rank=6),))
    block = shrink(residual(8), recipe, X).block4.conv1
    assert isinstance(block, LowRankConv2d)
    assert (block.out_channels, block.reduce.out_channels, block.expand.in_channels) == (8, 6, 6)
    too_large = Recipe(layers=(LayerPlan(name="block4.conv1", keep=0.125, rank=12),))
    with pytest.raises(InfeasibleRecipe, match=r"block4\.conv1: rank 12"):
        shrink(residual(8), too_large, X)


def test_a_float_recipe_settles_with_folded_batch_norm_and_needs_no_quantizer() -> None:
    model = shrink(residual(8), FLOAT, X)
    settled = settle(model, FLOAT, X)
    freeze_(settled)
    assert not isinstance(settled, FakeQuantized)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in settled.modules())
    torch.testing.assert_close(outputs(settled, X), outputs(model, X), atol=2e-5, rtol=1e-4)
