"""A layer is of the scheme that its bits say, reads what its neighbours make, or is refused by name."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.blocks import FakeQuantized, HalfQuantizer, WeightQuantizer
from autocompress.blocks.rounding import dynamic_rounding
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import Quantization
from tests.blocks.grids import all_layers, calibrated, rounded_like, rounded_weight
from tests.small_models import Net, conv, inputs, outputs, recurrent


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)



def mixed() -> Net:
    """Convolution, then three linear layers. x (N, 2, 5, 5) -> (N, 3)"""
    def run(m: Net, x: Tensor) -> Tensor:
        return m.c(F.relu(m.b(F.relu(m.a(F.relu(m.conv(x)).flatten(1))))))

    return Net(run, conv=conv(2, 4), a=nn.Linear(100, 8), b=nn.Linear(8, 6), c=nn.Linear(6, 3))


def test_a_weight_only_layer_rounds_its_weight_and_nothing_else() -> None:
    model, x = mixed(), inputs(8, 2, 5, 5)
    wrapped = calibrated(model, {"b": (4, 32)}, x, granularity="group", group_size=4)
    with torch.no_grad():
        weight = wrapped.weights["b"].dequantize(wrapped.weights["b"].codes(model.b.weight))
        hidden = F.relu(model.a(F.relu(model.conv(x)).flatten(1)))
        assert torch.equal(wrapped(x), model.c(F.relu(F.linear(hidden, weight, model.b.bias))))
    assert wrapped.schemes == {"b": "weight_only"}
    assert not wrapped.points
    assert not wrapped.inputs


def test_a_dynamic_layer_rounds_its_weight_and_each_input_by_its_own_range() -> None:
    model, x = mixed(), inputs(8, 2, 5, 5)
    wrapped = calibrated(model, {"b": (8, 8)}, x, activations="dynamic")
    for batch in (x, 100 * x):  # no calibrated range would hold both
        with torch.no_grad():
            hidden = F.relu(model.a(F.relu(model.conv(batch)).flatten(1)))
            made = F.linear(dynamic_rounding(hidden), rounded_weight(model.b.weight, 8), model.b.bias)
            assert torch.equal(wrapped(batch), model.c(F.relu(made)))
    assert not wrapped.points


@pytest.mark.parametrize(("half", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("pair", [(16, 32), (32, 16), (16, 16), (4, 16)])
def test_half_floats_are_rounded_where_the_bits_say(pair: tuple[int, int], half: str, dtype: torch.dtype) -> None:
    model, x = mixed(), inputs(8, 2, 5, 5)
    wrapped = calibrated(model, {"b": pair}, x, half=half)
    with torch.no_grad():
        hidden = F.relu(model.a(F.relu(model.conv(x)).flatten(1)))
        hidden = hidden.to(dtype).float() if pair[1] == 16 else hidden
        weight = {16: model.b.weight.to(dtype).float(), 32: model.b.weight}.get(pair[0])
        if weight is None:
            weight = wrapped.weights["b"](model.b.weight)
        assert torch.equal(wrapped(x), model.c(F.relu(F.linear(hidden, weight, model.b.bias))))
    assert ("b" in wrapped.weights) == (pair[0] != 32)
    assert isinstance(wrapped.weights["b"], WeightQuantizer if pair[0] == 4 else HalfQuantizer) if pair[0] != 32 else True


def test_every_layer_of_a_mixed_model_reads_what_its_neighbours_of_other_schemes_make() -> None:
    model, x = mixed(), inputs(8, 2, 5, 5)
    wrapped = calibrated(model, {"conv": (7, 8), "a": (3, 32), "b": (7, 8), "c": (16, 16)}, x)
    with torch.no_grad():
        float_conv = F.relu(model.conv(x))
        made = F.relu(F.conv2d(rounded_like(x, x), rounded_weight(model.conv.weight), model.conv.bias, padding=1))
        hidden = rounded_like(made, float_conv).flatten(1)  # the convolution runs in integers, so what it makes is rounded
        a = F.relu(F.linear(hidden, wrapped.weights["a"](model.a.weight), model.a.bias))
        float_a = F.relu(model.a(float_conv.flatten(1)))
        b = F.relu(F.linear(rounded_like(a, float_a), rounded_weight(model.b.weight), model.b.bias))
        float_b = F.relu(model.b(float_a))
        c_input = rounded_like(b, float_b).half().float()
        expected = F.linear(c_input, model.c.weight.half().float(), model.c.bias)
        assert torch.equal(wrapped(x), expected)
    assert wrapped.schemes == {"conv": "static", "a": "weight_only", "b": "static", "c": "half"}
    assert set(wrapped.inputs) == {"conv", "b"}


def test_a_static_layer_with_float_weights_rounds_its_input_and_leaves_its_result_in_float() -> None:
    model, x = mixed(), inputs(8, 2, 5, 5)
    wrapped = calibrated(model, {"b": (32, 8)}, x)
    with torch.no_grad():
        hidden = F.relu(model.a(F.relu(model.conv(x)).flatten(1)))
        assert torch.equal(wrapped(x), model.c(F.relu(model.b(rounded_like(hidden, hidden)))))
    assert len(wrapped.points) == 1


def test_a_dynamic_linear_layer_is_torchs_within_rounding() -> None:
    """torch.ao's dynamic Linear with the engine that, as ours, uses all 8 bits of the inputs."""
    layer, x = nn.Linear(40, 7), inputs(16, 40)
    wrapped = calibrated(Net(lambda m, x: m.a(x), a=layer), {"a": (8, 8)}, x, activations="dynamic", granularity="tensor")
    scale, engine = wrapped.weights["a"].scale.item(), torch.backends.quantized.engine
    try:
        torch.backends.quantized.engine = "qnnpack"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch announces the end of its quantized tensors
            theirs = torch.ao.nn.quantized.dynamic.Linear(40, 7)
            theirs.set_weight_bias(torch.quantize_per_tensor(layer.weight.detach(), scale, 0, torch.qint8), layer.bias.detach())
            expected = theirs(x)
    finally:
        torch.backends.quantized.engine = engine
    step = (x.max() - x.min()) / 255
    difference = (outputs(wrapped, x) - expected).abs()
    assert difference.max() <= 0.51 * step * rounded_weight(layer.weight, 8).abs().max()  # at most one input fell the other way
    assert difference.median() < 1e-5


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_dynamic_recurrent_layer_rounds_all_its_weights_and_its_input(kind: type[nn.RNNBase], granularity: Any) -> None:
    layer, x = kind(5, 6, num_layers=2, bidirectional=True, batch_first=True), inputs(4, 7, 5)
    wrapped = calibrated(Net(lambda m, x: m.cell(x)[0], cell=layer), {"cell": (8, 8)}, x, activations="dynamic", granularity=granularity)
    twin = copy.deepcopy(layer)
    names = [name for name, _ in twin.named_parameters() if name.startswith("weight")]
    assert list(wrapped.weights["cell"]) == names
    for name in names:
        quantizer = WeightQuantizer(twin.get_parameter(name), 8, Quantization(granularity=granularity)).eval()
        twin.get_parameter(name).data = quantizer(twin.get_parameter(name).detach())
    twin.flatten_parameters()
    with torch.no_grad():
        torch.testing.assert_close(wrapped(x), twin(dynamic_rounding(x))[0])
        assert not torch.equal(wrapped(x), layer(x)[0])
    wrapped.freeze_()
    for name in names:
        assert torch.equal(layer.get_parameter(name), twin.get_parameter(name))
    torch.testing.assert_close(outputs(wrapped, x), twin(dynamic_rounding(x))[0])


def test_a_weight_only_recurrent_layer_trains_and_its_input_stays_float() -> None:
    model, x = recurrent(), inputs(4, 5, 3)
    wrapped = calibrated(model, {"lstm": (4, 32)}, x).train()
    wrapped(x).square().sum().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in wrapped.parameters())
    twin = copy.deepcopy(model).eval()
    for name, quantizer in wrapped.weights["lstm"].items():
        twin.lstm.get_parameter(name).data = quantizer.eval()(twin.lstm.get_parameter(name).detach())
    torch.testing.assert_close(outputs(wrapped, x), outputs(twin, x))


def test_a_packed_sequence_and_given_states_pass_through_a_quantized_recurrent_layer() -> None:
    layer, x = nn.LSTM(3, 4), inputs(5, 2, 3)

    def run(m: Net, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3]))
        return m.cell(packed, (torch.ones(1, 2, 4), torch.zeros(1, 2, 4)))[0].data

    wrapped = calibrated(Net(run, cell=layer), {"cell": (8, 8)}, x, activations="dynamic")
    noise = (outputs(wrapped, x) - outputs(wrapped.model, x)).abs().max()
    assert 0 < noise < 0.05


# ---- what cannot be


@pytest.mark.parametrize(
    ("bits", "options", "message"),
    [
        ({"conv": (8, 8)}, {"activations": "dynamic"}, r"^conv: weight_bits 8, activation_bits 8, activations dynamic: no kernel"),
        ({"cell": (8, 8)}, {}, r"^cell: weight_bits 8, activation_bits 8, activations static: the hidden states"),
        ({"norm": (8, 8)}, {}, r"^norm: .*BatchNorm2d is no Conv2d"),
        ({"conv": (9, 8)}, {}, r"^conv: weight_bits 9, activation_bits 8: bits must be 2 to 8"),
        ({"conv": (8, 4)}, {}, r"^conv: weight_bits 8, activation_bits 4: activation bits must be 8"),
        ({"conv": (4, 32)}, {"granularity": "group", "group_size": 4}, r"^conv: group_size 4 does not divide the 18 inputs"),
        ({"cell": (4, 32)}, {"granularity": "group", "group_size": 2}, r"^cell: group_size 2 does not divide the 3 inputs"),
        ({"large": (16, 32)}, {}, r"^large: .*a weight of 70000 is beyond 65504, the largest fp16"),
    ],
)
def test_a_layer_that_cannot_be_of_its_scheme_is_refused_by_name(bits: Any, options: Any, message: str) -> None:
    model = Net(lambda m, x: x, conv=conv(2, 4), cell=nn.LSTM(3, 4), norm=nn.BatchNorm2d(4), large=nn.Linear(2, 2))
    model.large.weight.data[0, 0] = 70_000
    with pytest.raises(InfeasibleRecipe, match=message):
        FakeQuantized(model, bits, Quantization(**options))


def test_activations_that_are_not_finite_in_calibration_are_refused_with_their_place() -> None:
    model, x = Net(lambda m, x: m.b(F.relu(m.a(x)) / 0), a=conv(2, 4), b=conv(4, 3)), inputs(8, 2, 5, 5)
    with pytest.raises(InfeasibleRecipe, match=r"^b: calibration: activations from .* are not finite"):
        calibrated(model, all_layers(model), x)
