"""Linear and 1x1 convolutions: the error is the tail of the singular values, of the weight or of what the layer makes of its inputs."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.blocks import LowRankConv2d
from autocompress.compress.factorize.activation_svd import RIDGE, root, second_moments
from autocompress.compress.factorize.svd import Svd
from autocompress.errors import InfeasibleRecipe
from tests.compress.factorize.single import alone, block_of, kept, seeded_conv, seeded_linear
from tests.small_models import Net, fingerprint, inputs


def correlated(count: int, width: int, seed: int = 0) -> Tensor:
    """Rows (count, width), float64, of which some directions are a thousand times stronger than others and the mean is not 0."""
    scales = torch.logspace(0, -3, width, dtype=torch.float64)
    return inputs(count, width, seed=seed).double() @ (scales[:, None] * inputs(width, width, seed=9).double()) + 0.1


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_the_error_of_a_low_rank_linear_is_the_tail_of_the_singular_values(rank: int) -> None:
    layer = seeded_linear(8, 12)
    block = block_of(layer, rank)
    tail = torch.linalg.svdvals(layer.weight)[rank:]
    torch.testing.assert_close((layer.weight - block.weight).norm(), tail.norm(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.linalg.matrix_norm(layer.weight - block.weight, 2), tail[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["svd", "activation_svd"])
def test_the_scale_of_a_matrix_is_split_evenly_between_its_factors(method: str) -> None:
    block = block_of(seeded_linear(8, 12), 3, method=method, x=correlated(64, 8))
    torch.testing.assert_close(block.expand.weight.norm(dim=0), block.reduce.weight.norm(dim=1))


@pytest.mark.parametrize("method", ["svd", "activation_svd"])
def test_a_pointwise_convolution_is_the_svd_of_its_matrix(method: str) -> None:
    layer, linear, x = seeded_conv(8, 12, 1), seeded_linear(8, 12), correlated(64, 8)
    linear.weight.data = layer.weight.data[:, :, 0, 0]
    block, reference = block_of(layer, 3, method=method, x=x[:, :, None, None]), block_of(linear, 3, method=method, x=x)
    assert isinstance(block, LowRankConv2d)
    assert block.core is None
    torch.testing.assert_close(block.weight[:, :, 0, 0], reference.weight)


def test_at_full_rank_the_layer_is_itself() -> None:
    for layer in (seeded_linear(8, 12), seeded_conv(12, 8, 1)):
        torch.testing.assert_close(Svd(layer).block(8).weight, layer.weight, atol=1e-12, rtol=0)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_the_weighted_error_is_the_tail_of_the_singular_values_of_the_weight_times_the_root_of_the_moment(rank: int) -> None:
    layer, x = seeded_linear(8, 12), correlated(400, 8)
    moment = x.T @ x / len(x)
    values, vectors = torch.linalg.eigh(moment + RIDGE * moment.diagonal().mean() * torch.eye(8))
    tail = torch.linalg.svdvals(layer.weight @ (vectors * values.sqrt()))[rank:]
    left = layer.weight - block_of(layer, rank, method="activation_svd", x=x).weight
    weighted = torch.trace(left @ (moment + RIDGE * moment.diagonal().mean() * torch.eye(8)) @ left.T)
    torch.testing.assert_close(weighted, tail.square().sum(), rtol=1e-8, atol=0)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_on_what_the_layer_sees_the_weighted_form_is_closer_than_the_plain_one(rank: int) -> None:
    layer, x = seeded_linear(8, 12), correlated(400, 8)
    plain, weighted = (
        (layer(x) - block_of(layer, rank, method=method, x=x)(x)).square().sum(1).mean() for method in ("svd", "activation_svd")
    )
    assert weighted < 0.7 * plain
    least = torch.linalg.svdvals(layer.weight @ x.T / len(x) ** 0.5)[rank:].square().sum()
    torch.testing.assert_close(weighted, least, rtol=1e-2, atol=0)  # the ridge costs the rest


def test_white_inputs_weigh_nothing() -> None:
    layer = seeded_linear(8, 12)
    torch.testing.assert_close(block_of(layer, 3, method="activation_svd", x=torch.eye(8).double()).weight, block_of(layer, 3).weight)


def test_inputs_that_are_always_zero_weigh_nothing() -> None:
    layer = seeded_linear(8, 12)
    torch.testing.assert_close(block_of(layer, 3, method="activation_svd", x=torch.zeros(4, 8).double()).weight, block_of(layer, 3).weight)


def test_fewer_inputs_than_channels_are_enough() -> None:
    layer, x = seeded_linear(8, 12), correlated(3, 8)
    torch.testing.assert_close(block_of(layer, 4, method="activation_svd", x=x)(x), layer(x), atol=1e-5, rtol=1e-4)


def test_the_root_of_a_moment_is_one() -> None:
    moment = correlated(50, 6).T @ correlated(50, 6)
    torch.testing.assert_close(root(moment) @ root(moment).T, moment + RIDGE * moment.diagonal().mean() * torch.eye(6))


READERS = [{}, {"stride": 2}, {"padding": 1}, {"padding": 1, "stride": (3, 2)}, {"padding": (0, 2), "padding_mode": "reflect"}]


@pytest.mark.parametrize("options", READERS, ids=str)
def test_the_moment_of_a_convolution_counts_every_position_that_an_output_is_made_from(options: dict[str, object]) -> None:
    layer, x = seeded_conv(3, 5, 1, bias=False, **options), inputs(4, 3, 7, 8).double()
    with torch.no_grad():
        layer.weight.copy_(torch.cat([torch.eye(3), torch.zeros(2, 3)])[:, :, None, None])
    read = layer(x)[:, :3].movedim(1, -1).reshape(-1, 3)  # the identity lets through what it reads
    torch.testing.assert_close(second_moments(alone(layer), ["layer"], x)["layer"], read.T @ read / len(read))


@pytest.mark.parametrize("count", [5, 300])
def test_moments_come_from_all_inputs_in_eval_mode_and_leave_the_model_as_it_was(count: int) -> None:
    model = Net(lambda m, x: m.b(F.relu(m.drop(m.a(x)))), a=nn.Linear(4, 6), drop=nn.Dropout(0.5), b=nn.Linear(6, 3)).double()
    model.b.eval()
    before, x = fingerprint(model), inputs(count, 4).double()
    found = second_moments(model, ["a", "b"], x)
    assert fingerprint(model) == before
    hidden = F.relu(model.a(x)).detach()
    torch.testing.assert_close(found["a"], x.T @ x / count)
    torch.testing.assert_close(found["b"], hidden.T @ hidden / count)


def test_a_layer_that_is_called_by_keyword_or_on_sequences_is_seen_too() -> None:
    model, x = Net(lambda m, x: m.layer(input=x), layer=nn.Linear(4, 6)), inputs(5, 7, 4)
    rows = x.reshape(-1, 4).double()
    found = second_moments(model, ["layer"], x)["layer"]
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, rows.T @ rows / 35)


@pytest.mark.parametrize("x", [None, torch.zeros(0, 8)], ids=["none", "empty"])
def test_without_calibration_inputs_the_weighted_form_is_refused(x: Tensor | None) -> None:
    with pytest.raises(InfeasibleRecipe, match=r"^layer: activation_svd needs calibration inputs, and there are none"):
        block_of(nn.Linear(8, 12), 3, method="activation_svd", x=x)


def test_a_layer_that_never_runs_or_reads_nan_is_refused() -> None:
    with pytest.raises(InfeasibleRecipe, match=r"^layer: activation_svd, but it reads NaN or infinite values"):
        block_of(nn.Linear(8, 12), 3, method="activation_svd", x=torch.full((2, 8), torch.nan))
    with pytest.raises(InfeasibleRecipe, match=r"^idle: activation_svd, but the layer never runs"):
        second_moments(Net(lambda m, x: m.a(x), a=nn.Linear(4, 6), idle=nn.Linear(4, 6)), ["a", "idle"], inputs(2, 4))


@pytest.mark.parametrize("energy", [0.3, 0.6, 0.8])
def test_energy_takes_the_least_rank_that_keeps_it(energy: float) -> None:
    layer = seeded_linear(24, 20)
    block = block_of(layer, energy=energy)
    assert kept(layer, block) >= energy > kept(layer, block_of(layer, block.rank - 1))


def test_energy_counts_what_the_layer_sees() -> None:
    layer, x = seeded_linear(24, 20), correlated(400, 24)
    plain, block = block_of(layer, energy=0.8), block_of(layer, energy=0.8, method="activation_svd", x=x)
    assert block.rank < plain.rank
    shown = F.linear(x, layer.weight)
    left, less = (
        (shown - F.linear(x, found.weight)).norm() ** 2 / shown.norm() ** 2
        for found in (block, block_of(layer, block.rank - 1, method="activation_svd", x=x))
    )
    assert left <= 0.2 + 1e-4
    assert less > 0.2 - 1e-4


def test_half_floats_are_factorized_and_stay_half() -> None:
    layer = nn.Linear(8, 12).half()
    for method in ("svd", "activation_svd"):
        block = block_of(layer, 4, method=method, x=inputs(16, 8).half())
        assert block.weight.dtype == torch.float16
    torch.testing.assert_close(block_of(layer, 4).weight, block_of(nn.Linear(8, 12).half(), 4).weight.new_tensor(
        Svd(layer.float()).block(4).weight.tolist()), atol=2e-3, rtol=0)  # fmt: skip
