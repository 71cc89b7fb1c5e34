"""A chain of small layers is the layer whose weight it says it amounts to, wherever a layer may stand."""

import copy
import io
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.blocks import FakeQuantized, LowRankConv2d, LowRankLinear
from tests.small_models import Net, conv, inputs, outputs

KERNELS = ("tucker2", "cp", "spatial_svd")
GEOMETRY: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": (3, 5), "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    {"kernel_size": (2, 4), "stride": (1, 3), "padding": (1, 3), "dilation": (3, 1)},
    {"kernel_size": (5, 1), "padding": (2, 0)},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": (3, 2), "padding": "valid", "dilation": (1, 2)},
    {"kernel_size": 3, "padding": (1, 2), "padding_mode": "circular"},
    {"kernel_size": (3, 5), "padding": (1, 2), "padding_mode": "reflect", "stride": (1, 2)},
    {"kernel_size": 3, "padding": (2, 1), "padding_mode": "replicate", "dilation": (2, 1)},
]
POINTWISE: list[dict[str, Any]] = [
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 1, "padding": 1, "bias": False},
    {"kernel_size": 1, "padding": 1, "padding_mode": "reflect", "stride": (2, 1)},
]
CASES = [(form, options) for form in KERNELS for options in GEOMETRY] + [("svd", options) for options in POINTWISE]


def block_and_layer(form: Any, **options: Any) -> tuple[LowRankConv2d, nn.Conv2d]:
    """A block of random factors, and the convolution with its weight; (N, 8, H, W) -> (N, 10, H', W')."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.Conv2d(8, 10, **options)
        block = LowRankConv2d(layer, 3, 4 if form == "tucker2" else 3, form)
        layer.weight.data = block.weight.data
        if layer.bias is not None:
            layer.bias.data = block.bias.data
    return block, layer


@pytest.mark.parametrize(("form", "options"), CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_low_rank_convolution_is_the_dense_one_with_its_weight(form: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    block, layer = block_and_layer(form, **options)
    block, layer = block.to(dtype), layer.to(dtype)
    layer.weight.data = block.weight.data
    x = inputs(2, 8, 9, 11).to(dtype)
    bound = 1e-5 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(block(x), layer(x), atol=bound, rtol=0)
    torch.testing.assert_close(block(x[0]), layer(x[0]), atol=bound, rtol=0)
    torch.testing.assert_close(block(x.to(memory_format=torch.channels_last)), layer(x), atol=bound, rtol=0)


@pytest.mark.parametrize("bias", [True, False])
def test_a_low_rank_linear_is_the_dense_one_with_its_weight(bias: bool) -> None:
    block, x = LowRankLinear(8, 10, 3, bias).double(), inputs(2, 5, 8).double()
    torch.testing.assert_close(block(x), F.linear(x, block.weight, block.bias))
    assert (block.bias is None) != bias


@pytest.mark.parametrize("form", KERNELS)
def test_gradients_of_the_factors_are_those_of_the_weight_that_they_make(form: str) -> None:
    block, layer = block_and_layer(form, kernel_size=3, padding=1)
    block, layer, x = block.double(), layer.double(), inputs(2, 8, 6, 6).double()
    found = torch.autograd.grad(block(x).square().sum(), [part.weight for part in block.children()])
    dense = F.conv2d(x, block.weight, block.bias, padding=1)
    for one, other in zip(found, torch.autograd.grad(dense.square().sum(), [part.weight for part in block.children()]), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("form", "options"), [("svd", {"kernel_size": 1, "stride": 2}), *((form, GEOMETRY[3]) for form in KERNELS)])
def test_what_code_around_a_layer_reads_of_it_is_still_there(form: str, options: dict[str, Any]) -> None:
    block, layer = block_and_layer(form, **options)
    for name in (*layer.__constants__, "in_channels", "out_channels"):
        assert getattr(block, name) == getattr(layer, name), name
    assert block.weight.shape == layer.weight.shape
    assert torch.equal(block.bias, layer.bias)


def test_a_low_rank_linear_has_the_attributes_of_a_linear() -> None:
    block, layer = LowRankLinear(8, 10, 3, bias=True), nn.Linear(8, 10)
    assert (block.in_features, block.out_features, block.weight.shape) == (8, 10, layer.weight.shape)


CHILDREN = {
    "svd": ["reduce", "expand"],
    "tucker2": ["reduce", "core", "expand"],
    "cp": ["reduce", "core", "expand"],
    "spatial_svd": ["reduce", "expand"],
}


@pytest.mark.parametrize("form", CHILDREN)
def test_the_children_have_their_names_and_only_the_last_a_bias(form: str) -> None:
    block, _ = block_and_layer(form, kernel_size=1 if form == "svd" else 3)
    assert sorted({name.split(".")[0] for name in block.state_dict()}) == sorted(CHILDREN[form])
    assert [name for name in block.state_dict() if "bias" in name] == ["expand.bias"]
    assert (block.core is not None) == ("core" in CHILDREN[form])


def test_forms_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="cp has one rank, got 2 and 3"):
        LowRankConv2d(conv(4, 4), 2, 3, "cp")
    with pytest.raises(ValueError, match=r"svd is the form of a 1x1 convolution, got the kernel \(3, 3\)"):
        LowRankConv2d(conv(4, 4), 2, 2, "svd")


def model_with(form: str) -> nn.Module:
    block, _ = block_and_layer(form, kernel_size=1 if form == "svd" else 3, stride=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layers = {"first": conv(3, 8), "block": block, "head": nn.Linear(10, 4)}
        return Net(lambda m, x: m.head(F.relu(m.block(F.relu(m.first(x)))).mean((2, 3))), **layers).eval()


@pytest.mark.parametrize("form", CHILDREN)
def test_every_factor_goes_onto_integer_grids_and_the_outputs_stay_close(form: str) -> None:
    model, x = model_with(form), inputs(64, 3, 9, 9)
    names = ["first", "head", *(f"block.{child}" for child in CHILDREN[form])]
    wrapped = FakeQuantized(copy.deepcopy(model), dict.fromkeys(names, (8, 8))).eval()
    with torch.no_grad():
        wrapped(x)
    wrapped.phase = "quantize"
    after, before = outputs(wrapped, x), outputs(model, x)
    assert set(wrapped.inputs) == set(names)
    assert 0 < (after - before).abs().max() < 0.1 * (before.max() - before.min())


@pytest.mark.parametrize("form", CHILDREN)
def test_onnx_runtime_computes_the_same_at_any_batch_size(form: str) -> None:
    model, file = model_with(form), io.BytesIO()
    torch.onnx.export(model, (inputs(1, 3, 9, 9),), file, input_names=["x"], dynamic_axes={"x": {0: "n"}}, dynamo=False, opset_version=17)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for count in (1, 5):
        x: Tensor = inputs(count, 3, 9, 9, seed=count)
        np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], outputs(model, x).numpy(), atol=1e-5)
