"""Bias correction takes back the shift of every channel's mean, layer after layer, and touches nothing else."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.blocks import FakeQuantized
from autocompress.compress.quantize.bias_correction import bias_correct_
from autocompress.compress.quantize.calibrate import quantize
from autocompress.recipe import LayerPlan, Recipe
from tests.small_models import Net, conv, depthwise, inputs, outputs, residual


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def quantized(model: nn.Module, batches: list[Tensor], bits: int = 4, activation: int = 8) -> FakeQuantized:
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    plans = tuple(LayerPlan(name=name, weight_bits=bits, activation_bits=activation) for name in names)
    return quantize(model, Recipe(layers=plans), batches)


def means(model: nn.Module, of: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Mean of every channel that the layers of ``of`` make while ``model`` runs: module hooks see outputs before they are rounded."""
    found: dict[str, Tensor] = {}
    hooks = []
    for name, layer in of.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):

            def note(layer: nn.Module, args: object, out: Tensor, name: str = name) -> None:
                axes = (0, 2, 3) if isinstance(layer, nn.Conv2d) else tuple(range(out.dim() - 1))
                found[name] = out.detach().double().mean(axes)

            hooks.append(layer.register_forward_hook(note))
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def shift(wrapped: FakeQuantized, expected: dict[str, Tensor], x: Tensor) -> float:
    found = means(wrapped, wrapped.model, x)
    assert found.keys() == expected.keys()
    return max(float((found[name] - expected[name]).abs().max()) for name in found)


def sequence(m: Net, x: Tensor) -> Tensor:
    return m.c(F.relu(m.b(F.relu(m.a(x)))))


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (depthwise, (3, 6, 6)),
        (lambda: Net(sequence, a=nn.Linear(3, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 2)).eval(), (5, 3)),
        (lambda: Net(sequence, a=conv(3, 8), b=conv(8, 8), c=conv(8, 2)).eval(), (3, 6, 6)),
    ],
    ids=["depthwise", "linear on three axes", "conv"],
)
def test_every_layer_has_the_means_of_the_float_model_afterwards(make: object, shape: tuple[int, ...]) -> None:
    model, x = make(), inputs(64, *shape)  # type: ignore[operator]
    wrapped = quantized(model, [x])
    expected = means(model, model, x)
    assert shift(wrapped, expected, x) > 3e-3
    bias_correct_(wrapped, [x])
    assert shift(wrapped, expected, x) < 2e-5


def test_a_bias_is_moved_by_the_difference_of_the_means_of_its_layer() -> None:
    model, x = Net(lambda m, x: m.a(x), a=nn.Linear(6, 4)).eval(), inputs(32, 6)
    wrapped = quantized(model, [x])
    with torch.no_grad():
        layer, key = wrapped.model.a, wrapped.inputs["a"]
        rounded = F.linear(wrapped.points[key](x), wrapped.weights["a"](layer.weight), layer.bias)
        expected = layer.bias - (rounded.double().mean(0) - model(x).double().mean(0)).float()
    bias_correct_(wrapped, [x])
    torch.testing.assert_close(wrapped.model.a.bias, expected)
    assert torch.equal(wrapped.model.a.weight, model.a.weight)


def test_over_many_batches_a_last_one_of_a_single_sample_counts_as_one_sample() -> None:
    model, x = depthwise(), inputs(65, 3, 6, 6)
    expected = means(model, model, x)
    wrapped = quantized(model, [x])
    before = shift(wrapped, expected, x)
    bias_correct_(wrapped, [x[:32], x[:0], x[32:64], x[64:]])
    assert shift(wrapped, expected, x) < before / 10


def test_a_layer_that_runs_twice_gets_the_mean_shift_of_both_runs() -> None:
    model = Net(lambda m, x: torch.cat([m.a(x), m.a(2 * x)], 1), a=nn.Linear(6, 4)).eval()
    x = inputs(32, 6)
    wrapped = quantized(model, [x])
    difference = (outputs(wrapped, x) - outputs(model, x)).reshape(32, 2, 4).mean((0, 1))
    bias_correct_(wrapped, [x])
    torch.testing.assert_close(model.a.bias - wrapped.model.a.bias, difference, atol=5e-3, rtol=0)  # outputs are rounded, means are not
    assert difference.abs().max() > 1e-2


def test_weights_grids_modes_and_layers_without_a_bias_stay_as_they_are() -> None:
    model, x = Net(sequence, a=conv(3, 8), b=conv(8, 8), c=conv(8, 2)).eval(), inputs(16, 3, 6, 6)
    model.b.bias = None
    wrapped = quantized(model, [x]).train()
    wrapped.model.a.eval()
    modes = [module.training for module in wrapped.modules()]
    before = copy.deepcopy(wrapped.state_dict())
    bias_correct_(wrapped, [x])
    changed = {name for name, value in wrapped.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"model.a.bias", "model.c.bias"}
    assert [module.training for module in wrapped.modules()] == modes
    assert all(value.grad is None and value.requires_grad for value in wrapped.parameters())
    assert wrapped.phase == "quantize"


def test_weights_on_their_grids_stay_there_and_the_shift_of_rounded_activations_is_still_taken_back() -> None:
    model, x = depthwise(), inputs(64, 3, 6, 6)
    wrapped = quantized(model, [x], bits=3)
    wrapped.freeze_()
    weights = {name: wrapped.model.get_submodule(name).weight.clone() for name in wrapped.bits}
    expected = means(wrapped.model, wrapped.model, x)
    assert shift(wrapped, expected, x) > 1e-4
    bias_correct_(wrapped, [x])
    assert shift(wrapped, expected, x) < 2e-5
    assert all(torch.equal(wrapped.model.get_submodule(name).weight, weight) for name, weight in weights.items())


def test_layers_left_in_float_keep_their_bias() -> None:
    model, x = Net(sequence, a=conv(3, 8), b=conv(8, 8), c=conv(8, 2)).eval(), inputs(16, 3, 6, 6)
    wrapped = quantize(model, Recipe(layers=(LayerPlan(name="b", weight_bits=3, activation_bits=8),)), [x])
    bias_correct_(wrapped, [x])
    assert torch.equal(wrapped.model.a.bias, model.a.bias)
    assert torch.equal(wrapped.model.c.bias, model.c.bias)
    assert not torch.equal(wrapped.model.b.bias, model.b.bias)


def test_weight_only_layers_are_corrected_too() -> None:
    model, x = depthwise(), inputs(64, 3, 6, 6)
    expected = means(model, model, x)
    wrapped = quantized(model, [x], bits=3, activation=32)
    assert shift(wrapped, expected, x) > 1e-2
    bias_correct_(wrapped, [x])
    assert shift(wrapped, expected, x) < 2e-5


def test_a_residual_network_of_three_bits_is_far_closer_to_the_float_one_on_unseen_inputs() -> None:
    model, x, unseen = residual(6), inputs(64, 1, 8, 8), inputs(256, 1, 8, 8, seed=1)
    wrapped = quantized(model, [x], bits=3)
    reference = outputs(model, unseen)
    before = (outputs(wrapped, unseen) - reference).square().mean()
    bias_correct_(wrapped, torch.split(x, 30))
    assert (outputs(wrapped, unseen) - reference).square().mean() < before / 10
