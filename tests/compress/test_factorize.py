"""Layers of a model become products of smaller ones: the right layers, in place, and nothing else."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from autocompress.blocks import LowRankConv2d, LowRankLinear
from autocompress.compress.factorize import factorize, refusal, shared
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import LayerPlan
from tests.compress.factorize.single import KERNELS, MATRICES, block_of, plan
from tests.small_models import Net, conv, fingerprint, inputs, outputs, residual

METHODS = {**dict.fromkeys(MATRICES, "head"), **dict.fromkeys(KERNELS, "block4.conv1")}


@pytest.mark.parametrize("method", METHODS)
def test_the_given_model_is_not_changed_and_the_result_shares_nothing_with_it(method: str) -> None:
    model, name = residual(8).train(), METHODS[method]
    model.block1.eval()
    before, random = fingerprint(model), torch.get_rng_state()
    result = factorize(model, {name: plan(3, method=method, name=name)}, inputs(16, 1, 8, 8))
    assert isinstance(result.get_submodule(name), LowRankLinear | LowRankConv2d)
    assert all(module.training for module in result.get_submodule(name).modules())
    assert not result.block1.training
    assert torch.equal(torch.get_rng_state(), random)
    for value in result.state_dict().values():
        value.zero_()
    assert fingerprint(model) == before


def test_all_other_layers_stay() -> None:
    model = Net(lambda m, x: m.b(m.a(x)), a=nn.Linear(8, 8), b=nn.Linear(8, 8))
    result = factorize(model, {"a": plan(2, name="a")})
    assert isinstance(result.a, LowRankLinear)
    assert torch.equal(outputs(result, inputs(2, 8)), F.linear(result.a(inputs(2, 8)), model.b.weight, model.b.bias))


def test_a_nested_layer_is_replaced_where_it_is() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 2))
    result = factorize(model, {"0.0": plan(2, name="0.0")})
    assert isinstance(result[0][0], LowRankLinear)
    assert isinstance(result[1], nn.Linear)


def test_plans_without_rank_and_energy_are_left_out_whatever_they_name() -> None:
    plans = {"0": LayerPlan(name="0", keep=0.5, factorization="cp"), "gone": LayerPlan(name="gone", weight_bits=8)}
    assert isinstance(factorize(nn.Sequential(nn.Linear(8, 8)), plans)[0], nn.Linear)


def test_the_errors_that_activations_weigh_are_those_of_the_given_model() -> None:
    """The second layer is weighted by what it reads before the first one is replaced."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    x, asked = inputs(64, 8), {name: plan(2, method="activation_svd", name=name) for name in ("0", "2")}
    both, second = factorize(model, asked, x), factorize(model, {"2": asked["2"]}, x)
    assert torch.equal(both[2].weight, second[2].weight)


def test_a_whole_network_is_factorized_by_one_method_each_and_trains() -> None:
    names = {
        "block1.conv1": "tucker2",
        "block3.conv2": "cp",
        "block4.conv1": "spatial_svd",
        "head": "activation_svd",
        "block3.shortcut.0": "svd",
    }
    model, x = residual(8), inputs(16, 1, 8, 8)
    result = factorize(model, {name: plan(3, method=method, name=name) for name, method in names.items()}, x).train()
    result(x).square().sum().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in result.parameters())
    assert all(result.get_submodule(name).expand.weight.grad.abs().sum() > 0 for name in names)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_frozen_stays_frozen(method: str) -> None:
    model, name = residual(8), METHODS[method]
    model.get_submodule(name).weight.requires_grad_(False)
    block = factorize(model, {name: plan(3, method=method, name=name)}, inputs(16, 1, 8, 8)).get_submodule(name)
    assert {key for key, value in block.named_parameters() if value.requires_grad} <= {"expand.bias"}


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


REFUSED = [
    (conv(8, 8, groups=2), "auto", "a grouped convolution is not factorized"),
    (conv(8, 8, groups=8), "cp", "a grouped convolution is not factorized"),
    (nn.Conv1d(8, 8, 3), "auto", "only Linear and Conv2d are factorized"),
    (Doubled(8, 8), "auto", "its class Doubled has a forward of its own"),
    (nn.Linear(8, 8), "cp", "cp is for convolutions with a kernel larger than 1x1; this layer takes svd or activation_svd"),
    (conv(8, 8, 1), "tucker2", "tucker2 is for convolutions with a kernel larger than 1x1"),
    (conv(8, 8), "activation_svd", "activation_svd is for Linear and 1x1 convolutions; this layer takes tucker2, cp or spatial_svd"),
]


@pytest.mark.parametrize(("layer", "method", "reason"), REFUSED, ids=lambda value: str(value).split("(")[0])
def test_what_cannot_be_factorized_is_refused_by_name_with_the_reason(layer: nn.Module, method: str, reason: str) -> None:
    assert refusal(layer, method).startswith(reason)
    with pytest.raises(InfeasibleRecipe, match=rf"^layer: rank 2 is not possible: {reason}.*\. Leave the rank out\.$"):
        block_of(layer, 2, method=method)
    with pytest.raises(InfeasibleRecipe, match=rf"^layer: energy 0\.5 is not possible: {reason}.*\. Leave the energy out\.$"):
        block_of(layer, energy=0.5, method=method)


def test_what_can_be_factorized_is_not_refused() -> None:
    assert {refusal(conv(8, 8), method) for method in ("auto", *KERNELS)} == {""}
    assert {refusal(layer, method) for layer in (nn.Linear(8, 8), conv(8, 8, 1)) for method in ("auto", *MATRICES)} == {""}


def test_the_output_projection_of_torchs_attention_is_refused() -> None:
    model = Net(lambda m, x: m.attention(x, x, x)[0], attention=nn.MultiheadAttention(8, 2))
    with pytest.raises(InfeasibleRecipe, match=r"^attention\.out_proj: rank 2 .*MultiheadAttention reads the weight of this projection"):
        factorize(model, {"attention.out_proj": plan(2, name="attention.out_proj")})


def test_weights_that_two_modules_share_are_refused_with_the_other_one() -> None:
    model = Net(lambda m, x: m.head(m.words(x)), words=nn.Embedding(12, 8), head=nn.Linear(8, 12))
    model.head.weight = model.words.weight
    assert shared(model, "head") == "its weights are shared with words.weight, and factorizing would untie them"
    with pytest.raises(InfeasibleRecipe, match=r"^head: rank 2 is not possible: its weights are shared with words\.weight"):
        factorize(model, {"head": plan(2, name="head")})


def test_a_module_under_two_names_is_refused_and_one_that_runs_twice_is_not() -> None:
    layer = nn.Linear(8, 8)
    twice = Net(lambda m, x: m.b(m.a(x)), a=layer, b=layer)
    with pytest.raises(InfeasibleRecipe, match=r"^b: rank 2 is not possible: its weights are shared with a\."):
        factorize(twice, {"b": plan(2, name="b")})
    again = factorize(Net(lambda m, x: m.a(m.a(x)), a=layer), {"a": plan(2, name="a")})
    torch.testing.assert_close(again(inputs(3, 8)), again.a(again.a(inputs(3, 8))))


def test_a_layer_that_is_not_there_or_not_finite_is_refused() -> None:
    with pytest.raises(InfeasibleRecipe, match=r"^gone: rank 2 is not possible: the model has no such layer"):
        factorize(nn.Sequential(nn.Linear(8, 8)), {"gone": plan(2, name="gone")})
    layer = nn.Linear(8, 8)
    layer.weight.data[0, 0] = torch.nan
    with pytest.raises(InfeasibleRecipe, match=r"^layer: rank 2 is not possible: its weights are not all finite"):
        block_of(layer, 2)


def test_a_parametrized_weight_is_read_as_it_is_used() -> None:
    layer = parametrizations.weight_norm(nn.Linear(8, 12))
    plain = nn.Linear(8, 12)
    plain.load_state_dict({"weight": layer.weight.detach(), "bias": layer.bias.detach()})
    torch.testing.assert_close(block_of(layer, 3).weight, block_of(plain, 3).weight)


@pytest.mark.parametrize("method", KERNELS)
def test_a_model_in_channels_last_stays_so(method: str) -> None:
    layer, x = conv(8, 12), inputs(2, 8, 6, 6)
    block = block_of(copy.deepcopy(layer).to(memory_format=torch.channels_last), 3, method=method)
    plain = block_of(layer, 3, method=method)
    weights = [part.weight for part in block.children() if part.weight[0, 0].numel() > 1 and part.weight.shape[1] > 1]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    torch.testing.assert_close(block(x.to(memory_format=torch.channels_last)), plain(x), atol=1e-5, rtol=1e-4)
