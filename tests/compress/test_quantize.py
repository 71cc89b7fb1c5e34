"""Batch norm is folded only where that changes nothing; each layer gets the bits that the recipe says; bad data and bits are refused."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.blocks import FakeQuantized, LowRankConv2d, WeightQuantizer
from autocompress.compress.quantize import bits_at, fold_batch_norm, layer_bits, progress_, quantize
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import LayerPlan, Quantization, Recipe, Student
from tests.small_models import Net, concat, conv, fingerprint, flat, inputs, outputs, residual, shaken


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def plans(*names: str, weight: int = 7, activation: int = 8, **settings: Any) -> Recipe:
    layers = tuple(LayerPlan(name=name, weight_bits=weight, activation_bits=activation) for name in names)
    return Recipe(layers=layers, quantization=Quantization(**settings))


def all_of(model: nn.Module, **more: Any) -> Recipe:
    return plans(*[name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)], **more)


def norms(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]


def linear_then_norm() -> nn.Module:
    return shaken(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2, bias=False), nn.BatchNorm1d(2)))


@pytest.mark.parametrize(
    ("model", "shape"),
    [(residual(4), (1, 8, 8)), (concat(), (3, 6, 6)), (flat(), (3, 6, 6)), (linear_then_norm(), (4,))],
    ids=["residual", "concat", "flat", "linear"],
)
def test_folding_every_batch_norm_leaves_the_outputs_as_they_are(model: nn.Module, shape: tuple[int, ...]) -> None:
    x = inputs(8, *shape)
    folded = fold_batch_norm(model, x[:1])
    assert norms(model)
    assert norms(folded) == []
    torch.testing.assert_close(outputs(folded, x), outputs(model, x), atol=2e-5, rtol=1e-4)


def test_folding_changes_neither_the_model_nor_its_mode() -> None:
    model = residual(4).train()
    before = fingerprint(model)
    assert not fold_batch_norm(model, inputs(1, 1, 8, 8)).training
    assert fingerprint(model) == before


def read_twice(m: Net, x: Tensor) -> Tensor:
    hidden = m.a(x)
    return m.norm(hidden) + hidden


def called_twice(m: Net, x: Tensor) -> Tensor:
    return m.norm(m.a(m.a(x)))


def norm_called_twice(m: Net, x: Tensor) -> Tensor:
    return m.norm(m.a(x)) + m.norm(x)


def before_the_layer(m: Net, x: Tensor) -> Tensor:
    return m.a(m.norm(x))


def behind_a_relu(m: Net, x: Tensor) -> Tensor:
    return m.norm(F.relu(m.a(x)))


@pytest.mark.parametrize("run", [read_twice, called_twice, norm_called_twice, before_the_layer, behind_a_relu])
def test_a_batch_norm_that_cannot_be_folded_is_left_alone(run: object) -> None:
    model, x = shaken(Net(run, a=conv(2, 2), norm=nn.BatchNorm2d(2))), inputs(4, 2, 5, 5)
    folded = fold_batch_norm(model, x[:1])
    assert norms(folded) == ["norm"]
    assert torch.equal(outputs(folded, x), outputs(model, x))


def test_a_batch_norm_over_another_axis_than_the_features_of_a_linear_layer_is_left_alone() -> None:
    for steps in (5, 6):  # 6: as many steps as features, so that a wrong fold would run
        model = shaken(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(steps)))
        x = inputs(3, steps, 4)
        folded = fold_batch_norm(model, x[:1])
        torch.testing.assert_close(outputs(folded, x), outputs(model, x), atol=1e-5, rtol=1e-5)


def test_reading_the_shape_between_layer_and_batch_norm_does_not_prevent_folding() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        hidden = m.a(x)
        assert hidden.shape[1] == hidden.size(1) == 2
        return m.norm(hidden)

    model = shaken(Net(run, a=conv(2, 2), norm=nn.BatchNorm2d(2)))
    assert norms(fold_batch_norm(model, inputs(1, 2, 5, 5))) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_calibration_data_that_are_not_finite_are_refused(value: float) -> None:
    x = inputs(4, 3, 6, 6)
    x[2, 0, 0, 0] = value
    with pytest.raises(InfeasibleRecipe, match=r"calibration: the data hold NaN or infinite"):
        quantize(flat(), plans("a"), [inputs(4, 3, 6, 6), x])


@pytest.mark.parametrize("value", [0.0, 3.5])
def test_calibration_data_of_one_constant_value_are_refused(value: float) -> None:
    with pytest.raises(InfeasibleRecipe, match=rf"^calibration: every value of the data is {value:g}; a constant has no range\. Give"):
        quantize(flat(), plans("a"), [torch.full((4, 3, 6, 6), value)] * 2)
    quantize(flat(), plans("a"), [torch.full((4, 3, 6, 6), value), torch.full((4, 3, 6, 6), value + 1)])  # two values have one


def test_no_calibration_data_are_refused() -> None:
    for batches in ([], [torch.zeros(0, 3, 6, 6)]):
        with pytest.raises(InfeasibleRecipe, match="calibration: there are no data"):
            quantize(flat(), plans("a"), batches)


def test_bad_data_are_refused_before_anything_is_computed() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        raise AssertionError("the model ran")

    with pytest.raises(InfeasibleRecipe, match="calibration"):
        quantize(Net(run, a=conv(2, 2)), plans("a"), [inputs(1, 2, 5, 5), torch.full((1, 2, 5, 5), float("nan"))])


# ---- which layer has which bits


def test_only_the_planned_layers_are_quantized_and_the_factors_of_a_low_rank_layer_all_are() -> None:
    model = residual(8)
    model.block1.conv1 = LowRankConv2d(model.block1.conv1, 3, 3)
    recipe = Recipe(layers=(*plans("block1.conv1", "head").layers, LayerPlan(name="stem.0", keep=0.5)))
    names = [f"block1.conv1.{part}" for part, _ in model.block1.conv1.named_children()]
    assert layer_bits(model, recipe) == dict.fromkeys((*names, "head"), (7, 8))


def test_a_plan_speaks_for_what_lies_inside_of_its_module_until_one_further_in_does() -> None:
    recipe = Recipe(layers=(*plans("block1").layers, LayerPlan(name="block1.conv2", weight_bits=4), LayerPlan(name="block1.conv1")))
    model = residual(4)
    inside = [name for name, layer in model.block1.named_modules(prefix="block1") if isinstance(layer, nn.Conv2d)]
    expected = {name: (7, 8) for name in inside if name != "block1.conv1"}
    assert layer_bits(model, recipe) == {**expected, "block1.conv2": (4, 32)}


@pytest.mark.parametrize("pair", [(8, 8), (4, 8), (32, 8), (3, 32), (16, 32), (16, 16), (32, 16), (2, 16)])
def test_bits_of_weights_and_activations_mix_freely(pair: tuple[int, int]) -> None:
    x = inputs(8, 3, 6, 6)
    wrapped = quantize(flat(), plans("middle", weight=pair[0], activation=pair[1]), [x])
    assert wrapped.bits == {"middle": pair}
    noise = (outputs(wrapped, x) - outputs(flat(), x)).abs().max() / outputs(flat(), x).abs().max()
    assert 0 < noise < 1
    wrapped.freeze_()
    assert outputs(wrapped, x).isfinite().all()


def test_recurrent_layers_have_bits_by_name() -> None:
    model = Net(lambda m, x: m.b(m.a(m.lstm(x)[0])[0]), lstm=nn.LSTM(3, 4), a=nn.GRU(4, 4), b=nn.Linear(4, 2))
    recipe = plans("lstm", "a", "b", weight=8, activations="dynamic")
    assert layer_bits(model, recipe) == dict.fromkeys(("lstm", "a", "b"), (8, 8))
    wrapped = quantize(model, recipe, [inputs(5, 2, 3)])
    assert set(wrapped.reached) == {"lstm", "a", "b"}


def backwards() -> Net:
    """Registered in another order than that of execution."""
    inner, last, planned, first = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 4), nn.Linear(3, 4)
    layers = {"inner": inner, "last": last, "planned": planned, "first": first, "cell": nn.LSTM(4, 4)}
    return Net(lambda m, x: m.last(m.inner(m.planned(m.cell(m.first(x))[0]))), **layers)


def test_the_students_bits_are_those_of_its_inner_layers_without_a_plan_in_the_order_of_execution() -> None:
    model, example = backwards().train(), inputs(5, 1, 3)
    student = Student(weight_bits=4)
    recipe = Recipe(student=student, layers=(LayerPlan(name="planned", weight_bits=8), LayerPlan(name="last", weight_bits=8)))
    assert layer_bits(model, recipe, example) == {"last": (8, 32), "inner": (4, 32), "planned": (8, 32), "cell": (4, 32)}
    assert set(layer_bits(model, recipe)) == {"last", "planned", "first"}  # without an example as they are registered
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert layer_bits(model, Recipe(student=Student()), example) == {}
    assert set(layer_bits(model, Recipe(), example)) == set()


def test_the_students_bits_pass_over_kinds_that_their_scheme_has_no_kernel_for() -> None:
    student = Student(weight_bits=8, activation_bits=8)
    assert set(layer_bits(backwards(), Recipe(student=student), inputs(5, 1, 3))) == {"inner", "planned"}
    dynamic = Recipe(student=student, quantization=Quantization(activations="dynamic"))
    assert set(layer_bits(backwards(), dynamic, inputs(5, 1, 3))) == {"inner", "planned", "cell"}
    assert set(layer_bits(flat(), dynamic, inputs(1, 3, 6, 6))) == {"middle"}
    attention = nn.TransformerEncoderLayer(4, 2, 8)
    named = set(layer_bits(nn.Sequential(nn.Linear(4, 4), attention, nn.Linear(4, 4)), Recipe(student=student)))
    assert named == {"1.linear1", "1.linear2"}


def test_a_layer_whose_input_is_never_seen_is_refused_for_integer_inputs_and_taken_for_weights_alone() -> None:
    """torch's own attention reads the weight of its output projection and never calls it."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    model, x = Net(lambda m, x: m.b(m.a(x, x, x)[0]), a=attention, b=nn.Linear(4, 2)), inputs(3, 5, 4)
    for activations in ("static", "dynamic"):
        with pytest.raises(InfeasibleRecipe, match=r"^a\.out_proj: activation_bits 8: its input is never seen .* Set activation_bits to"):
            quantize(model, plans("a.out_proj", activations=activations), [x])
    wrapped = quantize(model, plans("a.out_proj", weight=4, activation=32), [x])
    before = outputs(model, x)
    wrapped.freeze_()
    assert 0 < (outputs(wrapped, x) - before).abs().max() < 0.2


def test_a_group_size_that_does_not_divide_is_refused_by_name_and_the_model_is_as_it_was() -> None:
    model = flat()
    before = fingerprint(model)
    with pytest.raises(InfeasibleRecipe, match=r"^middle: group_size 32 does not divide the 36 inputs of an output"):
        quantize(model, plans("middle", weight=4, activation=32, granularity="group", group_size=32), [inputs(4, 3, 6, 6)])
    assert fingerprint(model) == before


def test_quantizing_changes_neither_the_model_nor_its_mode() -> None:
    model = residual(4).train()
    before = fingerprint(model)
    wrapped = quantize(model, plans("stem.0", "head"), [inputs(8, 1, 8, 8)])
    assert isinstance(wrapped, FakeQuantized)
    assert not wrapped.training
    assert fingerprint(model) == before


def test_ranges_come_from_all_of_the_calibration_data() -> None:
    batches = [inputs(4, 3, 6, 6), 5 * inputs(4, 3, 6, 6, seed=1), inputs(4, 3, 6, 6, seed=2)]
    wrapped = quantize(flat(), plans("a"), iter(batches))
    point = wrapped.points[wrapped.inputs["a"]]
    whole = torch.cat(batches)
    assert (point.low, point.high) == (whole.min(), whole.max())


@pytest.mark.parametrize("bits", [8, 7])
def test_a_fake_quantized_model_is_close_to_the_float_one(bits: int) -> None:
    model, x = residual(8), inputs(64, 1, 8, 8)
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    wrapped, reference = quantize(model, plans(*names, weight=bits), [x]), outputs(model, x)
    wrapped.freeze_()
    noise = (outputs(wrapped, x) - reference).pow(2).mean() / reference.var()
    assert 0 < noise < {8: 2e-3, 7: 6e-3}[bits]


@pytest.mark.parametrize(
    "settings",
    [
        {"observer": "moving_average"}, {"observer": "percentile"}, {"observer": "entropy"}, {"observer": "mse"},
        {"weight_observer": "mse"}, {"symmetric_activations": True}, {"symmetric": False}, {"granularity": "tensor"},
        {"equalize": True}, {"bias_correction": True}, {"adaround_steps": 20}, {"learned_step": True},
        {"equalize": True, "adaround_steps": 20, "bias_correction": True},
    ],
    ids=str,
)  # fmt: skip
def test_with_any_settings_an_8_bit_model_is_close_to_the_float_one_and_rounds_the_same_once_frozen(settings: dict[str, Any]) -> None:
    model, x = residual(8), inputs(64, 1, 8, 8)
    wrapped, reference = quantize(model, all_of(model, weight=8, **settings), x.split(16)), outputs(model, x)
    noise = (outputs(wrapped, x) - reference).pow(2).mean() / reference.var()
    assert 0 < noise < 0.05
    wrapped.freeze_()
    noise = (outputs(wrapped, x) - reference).pow(2).mean() / reference.var()
    assert 0 < noise < 0.05
    for name, parameter, quantizer in wrapped.quantizers():
        weight = wrapped.model.get_submodule(name).get_parameter(parameter)
        assert isinstance(quantizer, WeightQuantizer)
        assert torch.equal(quantizer.dequantize(quantizer.codes(weight)), weight)


def test_adaptive_rounding_is_what_is_frozen_and_better_than_rounding_to_nearest() -> None:
    model, x = flat(), inputs(64, 3, 6, 6)
    reference, noise = outputs(model, x), {}
    for steps in (0, 100):
        wrapped = quantize(model, plans("middle", weight=3, adaround_steps=steps), [x])
        rounded, scale = wrapped.model.middle.weight.detach().clone(), wrapped.weights["middle"].scale.clone()
        wrapped.freeze_()
        if steps:
            assert torch.equal(wrapped.model.middle.weight, rounded)
            assert torch.equal(wrapped.weights["middle"].scale, scale)
        noise[steps] = (outputs(wrapped, x) - reference).pow(2).mean().item()
    assert noise[100] < 0.8 * noise[0]


def test_percentiles_are_those_of_all_batches_and_clip_what_lies_beyond() -> None:
    batches = [inputs(64, 3, 6, 6, seed=seed) for seed in range(4)]
    batches[2][0, 0, 0, 0] = 90.0
    wrapped = quantize(flat(), plans("a", observer="percentile", percentile=99.0), batches)
    point, whole = wrapped.points[wrapped.inputs["a"]], torch.cat(batches).flatten()
    assert point.high.item() == pytest.approx(whole.quantile(0.995).item(), abs=0.1)
    assert point.low.item() == pytest.approx(whole.quantile(0.005).item(), abs=0.1)


# ---- while training


def test_bits_fall_from_8_to_the_target_one_by_one_and_stay_there() -> None:
    found = [bits_at(step / 100, 2, 0.8) for step in range(101)]
    assert found[0] == 8
    assert all(before - after in (0, 1) for before, after in itertools.pairwise(found))
    assert set(found[80:]) == {2}
    assert found[40] == 5  # half of the way at half of the time
    assert {bits_at(step / 10, 8, 0.8) for step in range(11)} == {8}
    assert {bits_at(step / 10, 3, 0.0) for step in range(11)} == {3}


@pytest.mark.parametrize("learned", [False, True])
def test_progressive_training_ends_on_the_target_bits_and_holds_its_scales_late(learned: bool) -> None:
    model, x = residual(4), inputs(16, 1, 8, 8)
    wrapped = quantize(model, all_of(model, weight=3, progressive=True, learned_step=learned, freeze_after=0.5), [x]).train()
    quantizer, seen, scales = wrapped.weights["block1/conv1"], [], []
    optimizer = torch.optim.SGD(wrapped.parameters(), 1e-3)
    for step in range(12):
        progress_(wrapped, step / 12)
        optimizer.zero_grad()
        wrapped(x).square().mean().backward()
        optimizer.step()
        seen.append(quantizer.bits)
        scales.append(quantizer.scale.detach().clone())
    assert seen[0] == 8
    assert seen == sorted(seen, reverse=True)
    assert set(seen[6:]) == {3}
    assert all(torch.equal(scale, scales[6]) for scale in scales[6:])
    assert not torch.equal(scales[0], scales[1])
    wrapped.freeze_()
    assert torch.equal(quantizer.scale, scales[6])
    assert quantizer.codes(wrapped.model.block1.conv1.weight).abs().max() <= 3


def test_training_that_ends_early_is_frozen_with_the_target_bits() -> None:
    model, x = residual(4), inputs(16, 1, 8, 8)
    wrapped = quantize(model, all_of(model, weight=4, progressive=True), [x]).train()
    progress_(wrapped, 0.0)
    assert wrapped.weights["head"].bits == 8
    wrapped(x)
    wrapped.freeze_()
    assert wrapped.weights["head"].bits == 4
    assert wrapped.weights["head"].codes(wrapped.model.head.weight).abs().max() == 7


def test_batch_norm_that_could_not_be_folded_stands_still_late_in_training() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        hidden = m.a(x)
        return m.norm(hidden) + hidden

    model, x = Net(run, a=conv(2, 2), norm=nn.BatchNorm2d(2)), inputs(4, 2, 5, 5)
    wrapped = quantize(model, plans("a", freeze_after=0.5), [x]).train()
    progress_(wrapped, 0.4)
    wrapped(3 * x)
    moved = wrapped.model.norm.running_mean.clone()
    assert not torch.equal(moved, model.norm.running_mean)
    progress_(wrapped, 0.5)
    wrapped(9 * x)
    assert torch.equal(wrapped.model.norm.running_mean, moved)


def test_what_is_held_late_is_the_grid_of_the_weights_as_they_are_then() -> None:
    wrapped = quantize(flat(), plans("a", freeze_after=1.0), [inputs(4, 3, 6, 6)]).train()
    layer, quantizer = wrapped.model.a, wrapped.weights["a"]
    layer.weight.data *= 3  # an average of weights takes their place after the last step
    expected = layer.weight.detach().abs().flatten(1).amax(1) / 63
    progress_(wrapped, 1.0)
    layer.weight.data *= 2
    wrapped.freeze_()
    torch.testing.assert_close(quantizer.scale, expected)


def test_without_the_progressive_setting_bits_never_change() -> None:
    wrapped = quantize(flat(), plans("a", weight=3), [inputs(4, 3, 6, 6)]).train()
    for share in (0.0, 0.3, 0.9):
        progress_(wrapped, share)
        assert wrapped.weights["a"].bits == 3
