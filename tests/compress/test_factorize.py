"""Factors hold what linear algebra says they hold, and stand in for the layer they replace."""

import pytest
import tensorly
import torch
from tensorly.decomposition import partial_tucker
from torch import nn
from torch.nn import functional as F

from autocompress.blocks import LowRankConv2d, LowRankLinear
from autocompress.compress.factorize import cost, factorize, refusal
from autocompress.errors import InfeasibleRecipe
from tests.small_models import Net, conv, fingerprint, inputs, outputs


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def alone(layer: nn.Module) -> Net:
    return Net(lambda m, x: m.layer(x), layer=layer)


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_the_error_of_a_low_rank_linear_is_the_tail_of_the_singular_values(rank: int) -> None:
    layer = nn.Linear(8, 12).double()
    block = factorize(alone(layer), {"layer": rank}).layer
    tail = torch.linalg.svdvals(layer.weight)[rank:]
    torch.testing.assert_close((layer.weight - block.weight).norm(), tail.norm(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.linalg.matrix_norm(layer.weight - block.weight, 2), tail[0], rtol=1e-9, atol=1e-12)


def test_the_scale_of_a_matrix_is_split_evenly_between_its_factors() -> None:
    block = factorize(alone(nn.Linear(8, 12).double()), {"layer": 3}).layer
    torch.testing.assert_close(block.expand.weight.norm(dim=0), block.reduce.weight.norm(dim=1))


def test_a_tucker_convolution_equals_the_reconstruction_by_tensorly() -> None:
    layer = conv(6, 8).double()
    block = factorize(alone(layer), {"layer": 3}).layer
    with tensorly.backend_context("pytorch"):
        (core, factors), _ = partial_tucker(layer.weight.detach(), rank=[3, 3], modes=[0, 1], init="svd", n_iter_max=100, tol=1e-9)
        reference = tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1])
    error, least = (layer.weight - block.weight).norm(), (layer.weight - reference).norm()
    torch.testing.assert_close(error, least, rtol=1e-3, atol=0)  # the optimum is flat: the factors may still turn, the error may not
    torch.testing.assert_close(block.weight, reference, rtol=0, atol=0.1 * layer.weight.abs().max().item())


def test_a_convolution_of_low_rank_is_found_exactly() -> None:
    layer = conv(6, 8).double()
    layer.weight.data = torch.einsum("or,rshw,si->oihw", *(inputs(*shape).double() for shape in ((8, 2), (2, 2, 3, 3), (2, 6))))
    torch.testing.assert_close(factorize(alone(layer), {"layer": 2}).layer.weight, layer.weight)


def test_a_pointwise_convolution_is_the_svd_of_its_matrix() -> None:
    layer, linear = conv(8, 12, 1).double(), nn.Linear(8, 12).double()
    linear.weight.data = layer.weight.data[:, :, 0, 0]
    block, reference = (factorize(alone(item), {"layer": 3}).layer for item in (layer, linear))
    assert isinstance(block, LowRankConv2d)
    assert block.core is None
    torch.testing.assert_close(block.weight[:, :, 0, 0], reference.weight)


GEOMETRY = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": (3, 5), "stride": (2, 1), "padding": (0, 2)},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 1, "padding": 1, "bias": False},
    {"kernel_size": 1, "padding": 1, "padding_mode": "reflect"},
]


@pytest.mark.parametrize("options", GEOMETRY, ids=str)
def test_a_low_rank_convolution_is_the_dense_one_with_the_reconstructed_weight(options: dict[str, object]) -> None:
    layer, x = nn.Conv2d(8, 10, **options).double(), inputs(2, 8, 9, 9).double()
    block = factorize(alone(layer), {"layer": 3}).layer
    after = block(x)
    layer.weight.data = block.weight.data
    torch.testing.assert_close(after, layer(x))


@pytest.mark.parametrize("bias", [True, False])
def test_a_low_rank_linear_is_the_dense_one_with_the_reconstructed_weight(bias: bool) -> None:
    layer, x = nn.Linear(8, 10, bias=bias).double(), inputs(2, 5, 8).double()
    block = factorize(alone(layer), {"layer": 3}).layer
    torch.testing.assert_close(block(x), F.linear(x, block.weight, layer.bias))
    assert (block.bias is None) != bias


def test_what_code_around_a_layer_reads_of_it_is_still_there() -> None:
    linear, layer = nn.Linear(8, 10), nn.Conv2d(8, 10, 3, 2, 1, 2)
    blocks = [factorize(alone(item), {"layer": 3}).layer for item in (linear, layer)]
    for name in ("in_features", "out_features"):
        assert getattr(blocks[0], name) == getattr(linear, name)
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"):
        assert getattr(blocks[1], name) == getattr(layer, name)
    for block, item in zip(blocks, (linear, layer), strict=True):
        assert block.weight.shape == item.weight.shape
        assert torch.equal(block.bias, item.bias)


def test_a_linear_rank_that_is_not_smaller_than_the_matrix_is_refused_with_the_rule() -> None:
    with pytest.raises(InfeasibleRecipe, match=r"layer: rank 8 is not smaller than min\(weight shape\) = 8; .*Lower the rank"):
        factorize(alone(nn.Linear(8, 12)), {"layer": 8})


@pytest.mark.parametrize(("layer", "largest"), [(nn.Linear(8, 12), 4), (conv(8, 12, 1), 4), (conv(8, 12), 9)], ids=["linear", "1x1", "3x3"])
def test_a_rank_with_no_fewer_multiply_adds_than_the_dense_layer_is_refused(layer: nn.Module, largest: int) -> None:
    outer, inner, *kernel = layer.weight.shape
    dense = layer.weight.numel()
    block = factorize(alone(layer), {"layer": largest}).layer
    spent = sum(value.numel() for name, value in block.named_parameters() if "weight" in name)
    assert spent == cost(outer, inner, 9 if kernel == [3, 3] else 1, largest) < dense
    with pytest.raises(InfeasibleRecipe, match=rf"layer: rank {largest + 1} needs \d+ multiply-adds a position, the dense layer {dense}"):
        factorize(alone(layer), {"layer": largest + 1})


def test_a_rank_above_the_smaller_width_leaves_that_side_whole() -> None:
    block = factorize(alone(conv(4, 32)), {"layer": 8}).layer
    assert (block.reduce.out_channels, block.expand.in_channels) == (4, 8)


def test_what_cannot_be_factorized_is_refused_by_name() -> None:
    with pytest.raises(InfeasibleRecipe, match=r"layer: rank 2 is not possible: a grouped convolution is not factorized"):
        factorize(alone(conv(8, 8, groups=2)), {"layer": 2})
    with pytest.raises(InfeasibleRecipe, match=r"layer: rank 2 is not possible: only Linear and Conv2d"):
        factorize(alone(nn.Conv1d(8, 8, 3)), {"layer": 2})
    assert refusal(conv(8, 8)) == refusal(nn.Linear(8, 8)) == ""


def test_the_given_model_is_not_changed_and_the_result_shares_nothing_with_it() -> None:
    model = Net(lambda m, x: m.b(m.a(x)), a=nn.Linear(8, 8), b=nn.Linear(8, 8))
    before = fingerprint(model)
    result = factorize(model, {"a": 2})
    assert isinstance(result.a, LowRankLinear)
    assert torch.equal(outputs(result, inputs(2, 8)), F.linear(result.a(inputs(2, 8)), model.b.weight, model.b.bias))
    for value in result.parameters():
        value.data.zero_()
    assert fingerprint(model) == before


def test_a_nested_layer_is_replaced_where_it_is() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 2))
    result = factorize(model, {"0.0": 2})
    assert isinstance(result[0][0], LowRankLinear)
    assert isinstance(result[1], nn.Linear)
