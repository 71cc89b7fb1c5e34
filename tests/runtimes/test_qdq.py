"""Rewriting a traced graph changes its operators and not its outputs."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.runtimes.onnx_runtime import FILE, lower
from tests.runtimes.quantized import quantized
from tests.small_models import Net, conv, inputs, outputs


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def lowered(model: nn.Module, x: Tensor, folder: Path) -> onnx.ModelProto:
    lower(model, x[:1], folder / FILE)
    return onnx.load(folder / FILE)


def types(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def run(folder: Path, x: Tensor) -> np.ndarray:
    return onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"]).run(None, {"input": x.numpy()})[0]


MEANS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...], bool]] = {
    "height and width": (lambda x: x.mean((2, 3)), (2, 5, 6), True),
    "width and height": (lambda x: x.mean((-1, -2)), (2, 5, 6), True),
    "kept axes": (lambda x: x.mean((2, 3), keepdim=True), (2, 5, 6), True),
    "width only": (lambda x: x.mean(3), (2, 5, 6), False),
    "channels and height": (lambda x: x.mean((1, 2)), (2, 5, 6), False),
    "everything but the batch": (lambda x: x.mean((1, 2, 3)), (2, 5, 6), False),
    "the last two of three axes": (lambda x: x.mean((-2, -1)), (5, 6), False),
    "the last two of three axes, kept": (lambda x: x.mean((-2, -1), keepdim=True), (5, 6), False),
    "the middle two of five axes": (lambda x: x.mean((2, 3)), (2, 5, 6, 3), False),
    "the last two of five axes": (lambda x: x.mean((-2, -1)), (2, 3, 5, 6), False),
}


@pytest.mark.parametrize("name", MEANS)
def test_a_mean_becomes_a_pool_only_over_the_last_two_of_four_axes(name: str, tmp_path: Path) -> None:
    mean, shape, is_pool = MEANS[name]
    model, x = Net(lambda m, x: mean(x) * 2), inputs(3, *shape)
    found = types(lowered(model, x, tmp_path))
    np.testing.assert_allclose(run(tmp_path, x), outputs(model, x).numpy(), atol=1e-6)
    assert (found["GlobalAveragePool"], found["ReduceMean"]) == ((1, 0) if is_pool else (0, 1))


def test_a_pool_that_is_the_output_keeps_the_name_of_the_output(tmp_path: Path) -> None:
    x = inputs(3, 2, 5, 6)
    model = lowered(Net(lambda m, x: x.mean((2, 3))), x, tmp_path)
    assert [item.name for item in model.graph.output] == ["output"]
    assert run(tmp_path, x).shape == (3, 2)


def integer(model: nn.Module, x: Tensor, bits: int = 7) -> nn.Module:
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    return quantized(model, dict.fromkeys(names, (bits, 8)), x)


def small() -> Net:
    layers = {"a": conv(2, 4), "b": conv(4, 6), "head": nn.Linear(6, 3)}
    return Net(lambda m, x: m.head(F.relu(m.b(F.relu(m.a(x)))).mean((2, 3))), **layers)


def test_weights_are_stored_as_int8_and_biases_as_int32_and_nothing_else_is_large(tmp_path: Path) -> None:
    x = inputs(16, 2, 5, 5)
    wrapped = integer(small(), x)
    arrays = [numpy_helper.to_array(item) for item in lowered(wrapped, x, tmp_path).graph.initializer]
    weights = sorted(value.size for value in arrays if value.dtype == np.int8 and value.ndim > 1)
    biases = sorted(value.size for value in arrays if value.dtype == np.int32 and value.any())
    assert weights == sorted([2 * 4 * 9, 4 * 6 * 9, 6 * 3])
    assert biases == [3, 4, 6]
    assert max(value.size for value in arrays if value.dtype == np.float32) <= 6


def test_seven_bit_weights_stay_within_63_steps(tmp_path: Path) -> None:
    x = inputs(16, 2, 5, 5)
    arrays = [numpy_helper.to_array(item) for item in lowered(integer(small(), x, bits=7), x, tmp_path).graph.initializer]
    largest = [int(np.abs(value.astype(int)).max()) for value in arrays if value.dtype == np.int8 and value.ndim > 1]
    assert largest == [63] * 3


def test_stored_integers_are_those_that_torch_rounded_to(tmp_path: Path) -> None:
    x = inputs(16, 2, 5, 5)
    wrapped = integer(small(), x)
    arrays = [numpy_helper.to_array(item) for item in lowered(wrapped, x, tmp_path).graph.initializer]
    stored = next(value for value in arrays if value.dtype == np.int8 and value.shape == (6, 4, 3, 3))
    layer, quantizer = wrapped.model.b, wrapped.weights["b"]
    grid = quantizer.scale[:, None, None, None]
    assert np.array_equal(stored, (quantizer(layer.weight) / grid).round().detach().numpy())


def test_no_cast_identity_or_quantization_of_a_constant_is_left(tmp_path: Path) -> None:
    x = inputs(16, 2, 5, 5)
    model = lowered(integer(small(), x), x, tmp_path)
    found = types(model)
    assert found["Cast"] == found["Identity"] == found["Constant"] == found["Clip"] == 0
    constants = {item.name for item in model.graph.initializer}
    assert not [node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] in constants]


def test_a_layer_that_is_called_twice_is_stored_once_and_right(tmp_path: Path) -> None:
    model, x = Net(lambda m, x: m.a(F.relu(m.a(x))), a=conv(8, 8)), inputs(16, 8, 5, 5)
    wrapped = integer(model, x)
    lowered(wrapped, x, tmp_path)
    reference = outputs(wrapped, x).numpy()
    assert np.abs(run(tmp_path, x) - reference).max() < 0.02 * np.ptp(reference)


def test_equal_initializers_of_equal_layers_are_not_mixed_up(tmp_path: Path) -> None:
    model, x = Net(lambda m, x: m.b(F.relu(m.a(x))), a=conv(2, 2), b=conv(2, 2)), inputs(4, 2, 5, 5)
    model.b.load_state_dict(model.a.state_dict())  # the exporter shares what is equal, through Identity nodes
    for example in (model, integer(model, x)):
        lowered(example, x, tmp_path)
        np.testing.assert_allclose(run(tmp_path, x), outputs(example, x).numpy(), atol=2e-2)
