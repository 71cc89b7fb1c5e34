"""Convolutions with a kernel: errors are those of tensorly and of the singular values, and what is of low rank is found."""

from collections.abc import Callable
from typing import Any

import pytest
import tensorly
import torch
from tensorly.decomposition import parafac, partial_tucker
from torch import Tensor, nn

from autocompress.compress.factorize import cost
from autocompress.compress.factorize.cp import MOST_SWEEPS, Cp
from autocompress.compress.factorize.spatial_svd import SpatialSvd
from autocompress.compress.factorize.tucker import Tucker
from autocompress.errors import InfeasibleRecipe
from tests.compress.factorize.single import KERNELS, block_of, kept, seeded_conv
from tests.small_models import inputs


def matrix(weight: Tensor) -> Tensor:
    """(out, in, kh, kw) -> (in * kh, out * kw)."""
    out, inner, height, width = weight.shape
    return weight.permute(1, 2, 0, 3).reshape(inner * height, out * width)


def test_a_tucker_convolution_equals_the_reconstruction_by_tensorly() -> None:
    layer = seeded_conv(6, 8)
    block = block_of(layer, 3)
    with tensorly.backend_context("pytorch"):
        (core, factors), _ = partial_tucker(layer.weight.detach(), rank=[3, 3], modes=[0, 1], init="svd", n_iter_max=100, tol=1e-9)
        reference = tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1])
    error, least = (layer.weight - block.weight).norm(), (layer.weight - reference).norm()
    torch.testing.assert_close(error, least, rtol=1e-3, atol=0)  # the optimum is flat: the factors may still turn, the error may not
    torch.testing.assert_close(block.weight, reference, rtol=0, atol=0.1 * layer.weight.abs().max().item())


@pytest.mark.parametrize("rank", [2, 5])
def test_the_error_of_cp_is_that_of_tensorly(rank: int) -> None:
    layer = seeded_conv(6, 8)
    tensor = layer.weight.detach().flatten(2)
    with tensorly.backend_context("pytorch"):
        found = parafac(tensor, rank, n_iter_max=MOST_SWEEPS, init="svd", tol=1e-7)
        reference = tensorly.cp_to_tensor(found)
    error = (tensor - block_of(layer, rank, method="cp").weight.flatten(2)).norm()
    torch.testing.assert_close(error, (tensor - reference).norm(), rtol=1e-4, atol=0)


def test_the_components_of_cp_are_spread_evenly_over_the_factors() -> None:
    block = block_of(seeded_conv(6, 8), 5, method="cp")
    norms = [
        block.reduce.weight.flatten(1).norm(dim=1),
        block.core.weight.flatten(1).norm(dim=1),
        block.expand.weight[:, :, 0, 0].norm(dim=0),
    ]
    torch.testing.assert_close(norms[0], norms[1])
    torch.testing.assert_close(norms[0], norms[2])


def test_cp_above_the_narrow_side_still_comes_closer_and_is_seeded() -> None:
    layer = seeded_conv(4, 12)
    shares = [kept(layer, block_of(layer, rank, method="cp")) for rank in (4, 9, 15)]
    assert shares == sorted(shares)
    assert shares[2] > 0.85
    torch.manual_seed(1)
    first = block_of(layer, 15, method="cp").weight
    torch.manual_seed(2)
    assert torch.equal(first, block_of(layer, 15, method="cp").weight)


@pytest.mark.parametrize("kernel", [(3, 3), (3, 5), (5, 1), (1, 3)], ids=str)
@pytest.mark.parametrize("rank", [1, 3])
def test_the_error_of_a_spatial_svd_is_the_tail_of_the_singular_values(kernel: tuple[int, int], rank: int) -> None:
    layer = seeded_conv(6, 8, kernel)
    block = block_of(layer, rank, method="spatial_svd")
    tail = torch.linalg.svdvals(matrix(layer.weight))[rank:]
    torch.testing.assert_close((layer.weight - block.weight).norm(), tail.norm(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.linalg.matrix_norm(matrix(layer.weight - block.weight), 2), tail[0], rtol=1e-9, atol=1e-12)


LOW_RANK = {
    "tucker2": ("oa,abhw,bi->oihw", [(8, 2), (2, 2, 3, 3), (2, 6)]),
    "cp": ("or,rhw,ri->oihw", [(8, 2), (2, 3, 3), (2, 6)]),
    "spatial_svd": ("orw,rih->oihw", [(8, 2, 3), (2, 6, 3)]),
}


@pytest.mark.parametrize("method", LOW_RANK)
def test_a_convolution_of_low_rank_is_found_exactly(method: str) -> None:
    formula, shapes = LOW_RANK[method]
    layer = seeded_conv(6, 8)
    layer.weight.data = torch.einsum(formula, *(inputs(*shape, seed=seed).double() for seed, shape in enumerate(shapes)))
    for block in (block_of(layer, 2, method=method), block_of(layer, energy=0.9999, method=method)):
        bound = 1e-3 if method == "cp" else 1e-7
        torch.testing.assert_close(block.weight, layer.weight, atol=bound, rtol=bound)
        assert block.expand.in_channels <= 2


def test_at_full_rank_the_layer_is_itself() -> None:
    layer = seeded_conv(4, 6)
    for block in (SpatialSvd(layer).block(12), Tucker(layer).block(6)):
        torch.testing.assert_close(block.weight, layer.weight, atol=1e-10, rtol=0)
    torch.testing.assert_close(Cp(layer, "layer").block(36).weight, layer.weight, atol=2e-2 * layer.weight.abs().max().item(), rtol=0)


def test_a_rank_above_the_smaller_width_leaves_that_side_whole() -> None:
    block = block_of(seeded_conv(4, 32), 8)
    assert (block.reduce.out_channels, block.expand.in_channels) == (4, 8)


@pytest.mark.parametrize("energy", [0.3, 0.5])
def test_energy_takes_the_least_rank_of_a_spatial_svd_that_keeps_it(energy: float) -> None:
    layer = seeded_conv(12, 16)
    block = block_of(layer, energy=energy, method="spatial_svd")
    assert kept(layer, block) >= energy > kept(layer, block_of(layer, block.reduce.out_channels - 1, method="spatial_svd"))


@pytest.mark.parametrize(("inner", "outer"), [(12, 16), (6, 24)])
def test_energy_takes_the_least_rank_whose_higher_order_svd_keeps_it(inner: int, outer: int) -> None:
    layer = seeded_conv(inner, outer)
    block = block_of(layer, energy=0.5)
    rank = max(block.reduce.out_channels, block.expand.in_channels)
    assert kept(layer, block) >= 0.5
    with tensorly.backend_context("pytorch"):
        shares = []
        for tried in (rank, rank - 1):
            sizes = [min(tried, outer), min(tried, inner)]
            (core, _), _ = partial_tucker(layer.weight.detach(), sizes, modes=[0, 1], init="svd", n_iter_max=0)
            shares.append((core.norm() / layer.weight.norm()).item() ** 2)
    assert shares[0] >= 0.5 > shares[1]


@pytest.mark.parametrize("energy", [0.3, 0.6])
def test_energy_takes_the_least_rank_of_cp_that_keeps_it_to_within_a_sixteenth(energy: float) -> None:
    layer = seeded_conv(12, 16)
    rank = block_of(layer, energy=energy, method="cp").reduce.out_channels
    assert kept(layer, block_of(layer, rank, method="cp")) >= energy
    assert kept(layer, block_of(layer, rank - max(1, rank // 8), method="cp")) < energy


@pytest.mark.parametrize("method", KERNELS)
def test_an_energy_that_saves_nothing_is_refused_with_the_numbers(method: str) -> None:
    with pytest.raises(InfeasibleRecipe, match=r"^layer: energy 0\.999 needs rank \d+, which needs \d+ multiply-adds a position"):
        block_of(seeded_conv(8, 8), energy=0.999, method=method)


@pytest.mark.parametrize("method", KERNELS)
def test_a_weight_of_zeros_stays_zero(method: str) -> None:
    layer = seeded_conv(6, 8)
    nn.init.zeros_(layer.weight)
    for block in (block_of(layer, 2, method=method), block_of(layer, energy=0.5, method=method)):
        assert torch.equal(block.weight, layer.weight)


def not_finite(tensor: Tensor, rank: int, **settings: Any) -> Any:
    return None, [torch.full((size, rank), torch.nan) for size in tensor.shape]


def singular(tensor: Tensor, rank: int, **settings: Any) -> Any:
    return torch.linalg.solve(torch.zeros(rank, rank), torch.zeros(rank, 1))


@pytest.mark.parametrize("sweeps", [not_finite, singular])
def test_sweeps_that_fail_are_refused_by_name(sweeps: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autocompress.compress.factorize.cp.parafac", sweeps)
    with pytest.raises(InfeasibleRecipe, match=r"^layer: rank 3: the sweeps of cp do not converge\. Choose another rank or tucker2"):
        block_of(seeded_conv(6, 8), 3, method="cp")


@pytest.mark.parametrize("method", KERNELS)
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_very_small_and_very_large_weights_are_factorized_alike(method: str, scale: float) -> None:
    layer, scaled = (seeded_conv(6, 8).float() for _ in range(2))
    scaled.weight.data *= scale
    torch.testing.assert_close(
        block_of(scaled, 2, method=method).weight / scale, block_of(layer, 2, method=method).weight, atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("method", KERNELS)
@pytest.mark.parametrize("stride", [1, 2, (1, 3), (2, 1)], ids=str)
def test_the_cost_is_the_multiply_adds_an_output_position_that_the_factors_do(method: str, stride: int | tuple[int, int]) -> None:
    layer = nn.Conv2d(6, 16, (3, 5), stride, padding=(1, 2)).double()
    block, done = block_of(layer, 2, method=method), 0

    def count(part: nn.Conv2d, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal done
        done += out[0, 0].numel() * part.weight.numel()

    for part in block.children():
        part.register_forward_hook(count)
    out = block(inputs(1, 6, 12, 12).double())
    assert done / out[0, 0].numel() == cost(16, 6, (3, 5), 2, method, stride)
