"""Adaptive rounding chooses between the two neighbours of every weight, and never does worse than the nearer one."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.blocks import FakeQuantized, WeightQuantizer
from autocompress.compress.quantize import adaround
from autocompress.compress.quantize.adaround import Problem, adaround_, annealed, rectified, rows_of
from autocompress.compress.quantize.calibrate import quantize
from autocompress.recipe import LayerPlan, Quantization, Recipe
from tests.small_models import Net, conv, depthwise, inputs, outputs, residual


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def quantized(model: nn.Module, x: Tensor, bits: int = 4, activation: int = 8, **settings: object) -> FakeQuantized:
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    plans = tuple(LayerPlan(name=name, weight_bits=bits, activation_bits=activation) for name in names)
    return quantize(model, Recipe(layers=plans, quantization=Quantization(**settings)), [x])  # type: ignore[arg-type]


def correlated(count: int, *shape: int) -> Tensor:
    """The inputs of a sample go together, which is what rounding each weight by itself does not see."""
    return inputs(count, *shape) + 2 * inputs(count, *[1] * len(shape), seed=1)


SINGLE = {
    "linear": (lambda: Net(lambda m, x: m.a(x), a=nn.Linear(16, 8)), (16,)),
    "linear, three axes": (lambda: Net(lambda m, x: m.a(x), a=nn.Linear(16, 8, bias=False)), (5, 16)),
    "conv": (lambda: Net(lambda m, x: m.a(x), a=conv(4, 8)), (4, 6, 6)),
    "conv, same": (lambda: Net(lambda m, x: m.a(x), a=nn.Conv2d(4, 8, (2, 3), padding="same", dilation=(2, 1))), (4, 6, 6)),
    "conv, reflected": (lambda: Net(lambda m, x: m.a(x), a=nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect")), (4, 6, 6)),
    "strided, relu": (lambda: Net(lambda m, x: F.relu(m.a(x)), a=conv(4, 8, stride=2)), (4, 6, 6)),
    "grouped": (lambda: Net(lambda m, x: m.a(x), a=conv(4, 8, groups=2)), (4, 6, 6)),
    "depthwise": (lambda: Net(lambda m, x: F.relu6(m.a(x)), a=conv(4, 4, groups=4)), (4, 6, 6)),
}


def reconstruction(wrapped: FakeQuantized, model: nn.Module, x: Tensor) -> float:
    """Mean squared distance of the one layer's output, activation included, before it is rounded itself."""
    layer = wrapped.model.a
    with torch.no_grad():
        inner = wrapped.points[wrapped.inputs["a"]](x)
        twin = copy.deepcopy(model)
        twin.a.weight.copy_(wrapped.weights["a"](layer.weight))
        return float((twin(inner) - model(x)).square().mean())


@pytest.mark.parametrize("case", SINGLE)
def test_at_four_bits_a_layer_is_strictly_closer_to_the_float_one_than_with_rounding_to_nearest(case: str) -> None:
    make, shape = SINGLE[case]
    model, x = make().eval(), correlated(128, *shape)
    wrapped = quantized(model, x)
    before = reconstruction(wrapped, model, x)
    adaround_(wrapped, torch.split(x, 32), steps=400, seed=0)
    assert reconstruction(wrapped, model, x) < 0.9 * before


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("settings", [{}, {"symmetric": False}, {"granularity": "tensor"}, {"granularity": "group", "group_size": 12}])
def test_every_weight_is_one_of_its_two_neighbours_on_the_grid_and_stays_there(bits: int, settings: dict[str, object]) -> None:
    model, x = Net(lambda m, x: m.a(x), a=conv(4, 6)).eval(), correlated(32, 4, 6, 6)
    activation = 32 if settings.get("granularity") == "group" else 8
    wrapped = quantized(model, x, bits, activation, **settings)
    quantizer = wrapped.weights["a"]
    assert isinstance(quantizer, WeightQuantizer)
    scale = quantizer.scale.reshape(-1, 1).expand(-1, 216 // quantizer.scale.numel()).reshape(6, 4, 3, 3)
    adaround_(wrapped, [x], steps=100, seed=0)
    found = wrapped.model.a.weight.detach().clone()
    assert torch.equal(quantizer(found), found)
    assert ((found - model.a.weight) / scale).abs().max() < 1 + 1e-3
    assert bits == 8 or not torch.equal(found, quantizer(model.a.weight))
    wrapped.freeze_()
    assert torch.equal(wrapped.model.a.weight, found)


def test_with_too_few_steps_it_is_never_worse_than_rounding_to_nearest() -> None:
    for seed in range(5):
        model, x = Net(lambda m, x: m.a(x), a=nn.Linear(16, 8)).eval(), correlated(64, 16)
        wrapped = quantized(model, x)
        before = reconstruction(wrapped, model, x)
        adaround_(wrapped, [x], steps=1, seed=seed)
        assert reconstruction(wrapped, model, x) <= before


def test_the_better_of_all_roundings_is_found_where_they_can_be_counted() -> None:
    model, x = Net(lambda m, x: m.a(x), a=nn.Linear(6, 1)).eval(), correlated(256, 6)
    wrapped = quantized(model, x, bits=3)
    quantizer, weight = wrapped.weights["a"], model.a.weight.detach()
    inner = wrapped.points[wrapped.inputs["a"]](x)
    floor = (weight / quantizer.scale).floor()
    errors = []
    for number in range(2**6):
        up = torch.tensor([[number >> place & 1 for place in range(6)]])
        rounded = (floor + up).clamp(-3, 3) * quantizer.scale
        errors.append(float((inner @ rounded.T - x @ weight.T).square().mean()))
    adaround_(wrapped, [x], steps=300, seed=0)
    assert reconstruction(wrapped, model, x) <= sorted(errors)[1] * (1 + 1e-4)  # the best of 64, or the one after it


def test_weights_on_the_grid_and_zeros_of_a_mask_have_nothing_to_choose() -> None:
    model, x = Net(lambda m, x: m.a(x), a=nn.Linear(16, 8)).eval(), correlated(64, 16)
    model.a.weight.data[:, ::2] = 0
    wrapped = quantized(model, x, symmetric=False)
    adaround_(wrapped, [x], steps=50, seed=0)
    assert (wrapped.model.a.weight[:, ::2] == 0).all()
    once = wrapped.model.a.weight.detach().clone()
    adaround_(wrapped, [x], steps=50, seed=1)
    assert torch.equal(wrapped.model.a.weight, once)


def test_a_seed_repeats_itself_and_leaves_the_global_random_state_alone() -> None:
    model, x = depthwise(), inputs(32, 3, 6, 6)
    results = []
    for seed in (0, 0, 1):
        wrapped, state = quantized(model, x), torch.get_rng_state()
        adaround_(wrapped, torch.split(x, 10), steps=20, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        results.append(wrapped.model.b.weight)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_biases_ranges_modes_and_gradients_stay_as_they_are_and_no_steps_change_nothing() -> None:
    model, x = residual(4), inputs(16, 1, 8, 8)
    wrapped = quantized(model, x)
    before = copy.deepcopy(wrapped.state_dict())
    trained = [value.requires_grad for value in wrapped.parameters()]
    adaround_(wrapped, [x], steps=0, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in wrapped.state_dict().items())
    wrapped.train()
    adaround_(wrapped, [x], steps=5, seed=0)
    changed = {name for name, value in wrapped.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"model.{name}.weight" for name in wrapped.bits}
    assert all(module.training for module in wrapped.modules())
    assert all(value.grad is None for value in wrapped.parameters())
    assert [value.requires_grad for value in wrapped.parameters()] == trained


def test_only_layers_with_integer_weights_are_rounded() -> None:
    model, x = depthwise(), inputs(16, 3, 6, 6)
    bits = {"a": 16, "b": 4, "c": 5}
    plans = tuple(LayerPlan(name=name, weight_bits=width, activation_bits=max(width, 8)) for name, width in bits.items())
    wrapped = quantize(model, Recipe(layers=plans), [x])
    adaround_(wrapped, [x], steps=5, seed=0)
    changed = [name for name, value in wrapped.model.named_parameters() if not torch.equal(value, model.get_parameter(name))]
    assert changed == ["b.weight", "c.weight"]


def test_a_layer_that_runs_twice_and_one_whose_input_depends_on_the_rest_are_served() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        hidden = F.relu(m.a(x))
        hidden = hidden + m.b(m.b(hidden))
        return m.c(hidden.permute(1, 0, 2))  # the batch is not the first axis any more

    model = Net(run, a=nn.Linear(6, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 3)).eval()
    x = inputs(32, 5, 6)
    wrapped = quantized(model, x)
    adaround_(wrapped, torch.split(x, 9), steps=20, seed=0)
    for name, quantizer in wrapped.weights.items():
        weight = wrapped.model.get_submodule(name).weight
        assert torch.equal(quantizer(weight), weight)
    assert outputs(wrapped, x).shape == (5, 32, 3)


def test_the_activation_counts_only_where_it_alone_reads_the_layer() -> None:
    seen: dict[str, tuple[float, float]] = {}

    class Spy(Problem):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]
            seen[names[len(seen)]] = self.clip

    def run(m: Net, x: Tensor) -> Tensor:
        x = m.relu(m.a(x)) + F.relu6(m.b(x))
        hidden = m.c(x)
        x = F.relu(hidden) + hidden
        return m.e(m.d(x).relu_())

    layers = {name: conv(3, 3) for name in "abcde"}
    names = list(layers)
    model, x = Net(run, relu=nn.ReLU(inplace=True), **layers).eval(), inputs(8, 3, 6, 6)
    wrapped = quantized(model, x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adaround, "Problem", Spy)
        adaround_(wrapped, [x], steps=2, seed=0)
    everything, positive = (-math.inf, math.inf), (0.0, math.inf)
    assert seen == {"a": positive, "b": (0.0, 6.0), "c": everything, "d": positive, "e": everything}


@pytest.mark.parametrize("options", [{"stride": 2, "padding": 1}, {"groups": 2, "dilation": 2}, {"padding": "same"}, {"groups": 4}])
def test_rows_times_weight_is_the_convolution_at_the_chosen_places(options: dict[str, object]) -> None:
    layer, x = nn.Conv2d(4, 8, 3, **options).double(), inputs(5, 4, 8, 8).double()  # type: ignore[arg-type]
    out = layer(x).flatten(2)  # (N, 8, positions)
    places = torch.randint(out.shape[2], (5, 7))
    args = (x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    rows = rows_of(torch.conv2d, args, places)
    weight = layer.weight.reshape(layer.groups, 8 // layer.groups, -1)
    found = torch.einsum("rgk,gok->rgo", rows, weight).flatten(1) + layer.bias
    expected = torch.cat([out[number][:, place].T for number, place in enumerate(places)])
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_the_rectified_sigmoid_and_beta_are_those_of_the_paper() -> None:
    v = torch.linspace(-6, 6, 41, dtype=torch.float64)
    torch.testing.assert_close(rectified(v), torch.clip(torch.sigmoid(v) * 1.2 - 0.1, 0, 1), atol=1e-15, rtol=0)
    betas = [annealed(step / 100) for step in range(100)]
    assert betas[:20] == [None] * 20
    later = [beta for beta in betas if beta is not None]
    assert later[0] == 20
    assert later == sorted(later, reverse=True)
    assert 2 < later[-1] < 2.1


def test_a_pass_takes_no_more_inputs_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Net(lambda m, x: m.b(F.relu(m.a(x))), a=conv(3, 4), b=conv(4, 2)).eval(), inputs(32, 3, 8, 8)
    wrapped = quantized(model, x)
    batches: list[int] = []
    wrapped.model.a.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    monkeypatch.setattr(adaround, "MEMORY_BYTES", 6 * adaround.HELD * 4 * 4 * 8 * 8)  # six inputs: its largest tensor is (4, 8, 8)
    adaround_(wrapped, [x], steps=1, seed=0)
    assert batches == [1, 6, 6]  # to see how large it is, in float, quantized


def test_a_residual_network_of_three_bits_is_closer_to_the_float_one_on_unseen_inputs() -> None:
    model, x, unseen = residual(6), inputs(64, 1, 8, 8), inputs(256, 1, 8, 8, seed=1)
    wrapped = quantized(model, x, bits=3)
    reference = outputs(model, unseen)
    before = (outputs(wrapped, unseen) - reference).square().mean()
    adaround_(wrapped, [x], steps=40, seed=0)
    assert (outputs(wrapped, unseen) - reference).square().mean() < 0.8 * before
