"""Low-rank factorization: truncated SVD for Linear and 1x1 convolutions, Tucker-2 for other convolutions (Kim et al. 2016).

Best rank-r approximation of a matrix: Eckart and Young 1936. Tucker-2 by higher-order orthogonal iteration, from tensorly.
"""

import copy
from collections.abc import Mapping

import tensorly
import torch
from tensorly.decomposition import partial_tucker
from torch import Tensor, nn

from autocompress.blocks import LowRankConv2d, LowRankLinear
from autocompress.errors import InfeasibleRecipe


def factorize(model: nn.Module, ranks: Mapping[str, int]) -> nn.Module:
    """A copy of ``model`` whose named layers have the given ranks.

    Raises InfeasibleRecipe where a layer cannot be factorized, or the result would have no fewer multiply-adds than the dense layer.
    """
    result = copy.deepcopy(model)
    for name, rank in ranks.items():
        layer = result.get_submodule(name)
        reason = refusal(layer)
        if reason:
            raise InfeasibleRecipe(f"{name}: rank {rank} is not possible: {reason}. Leave the rank out.")
        _check_rank(name, layer, rank)
        parent, _, leaf = name.rpartition(".")
        low_rank = _linear(layer, rank) if isinstance(layer, nn.Linear) else _conv(layer, rank)  # type: ignore[arg-type]
        setattr(result.get_submodule(parent), leaf, low_rank)
    return result


def refusal(layer: nn.Module) -> str:
    """Why a layer cannot be factorized at all, or an empty string."""
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        return "only Linear and Conv2d are factorized"
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return "a grouped convolution is not factorized"
    return ""


def cost(kept_out: int, kept_in: int, kernel: int, rank: int) -> int:
    """Multiply-adds per output position of the factorized form; ``kernel`` is kh * kw (1: the SVD form)."""
    if kernel == 1:
        return rank * (kept_in + kept_out)
    r_in, r_out = min(rank, kept_in), min(rank, kept_out)
    return kept_in * r_in + r_in * r_out * kernel + r_out * kept_out


def _check_rank(name: str, layer: nn.Module, rank: int) -> None:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    out, inner, kernel = weight.shape[0], weight.shape[1], weight[0, 0].numel()
    limit = min(out, inner)
    if kernel == 1 and rank >= limit:
        raise InfeasibleRecipe(
            f"{name}: rank {rank} is not smaller than min(weight shape) = {limit}; factorizing would make it larger. "
            "Lower the rank or leave it out."
        )
    if cost(out, inner, kernel, rank) >= out * inner * kernel:
        raise InfeasibleRecipe(
            f"{name}: rank {rank} needs {cost(out, inner, kernel, rank)} multiply-adds a position, the dense layer "
            f"{out * inner * kernel}; factorizing would make it slower. Lower the rank or leave it out."
        )


def _svd(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """weight (out, in) -> expand (out, rank), reduce (rank, in), the scale split evenly: both factors stay well ranged."""
    u, s, vt = torch.linalg.svd(weight.detach(), full_matrices=False)  # u (out, k), s (k,), vt (k, in)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vt[:rank]


@torch.no_grad()
def _linear(layer: nn.Linear, rank: int) -> LowRankLinear:
    block = LowRankLinear(layer.in_features, layer.out_features, rank, layer.bias is not None).to(layer.weight)
    expand, reduce = _svd(layer.weight, rank)
    block.expand.weight.copy_(expand)
    block.reduce.weight.copy_(reduce)
    if layer.bias is not None:
        block.expand.bias.copy_(layer.bias)
    return block


@torch.no_grad()
def _conv(layer: nn.Conv2d, rank: int) -> LowRankConv2d:
    rank_out, rank_in = min(rank, layer.out_channels), min(rank, layer.in_channels)
    block = LowRankConv2d(layer, rank_in, rank_out).to(layer.weight)
    if block.core is None:
        out, inner = _svd(layer.weight[:, :, 0, 0], rank)
    else:
        with tensorly.backend_context("pytorch"):
            # weight (out, in, kh, kw) -> core (rank_out, rank_in, kh, kw), out (out, rank_out), inner (in, rank_in)
            weight, ranks = layer.weight.detach(), [rank_out, rank_in]
            (core, (out, inner)), _ = partial_tucker(weight, rank=ranks, modes=[0, 1], init="svd", n_iter_max=20)
        block.core.weight.copy_(core)
        inner = inner.T
    block.expand.weight.copy_(out[:, :, None, None])
    block.reduce.weight.copy_(inner[:, :, None, None])
    if block.expand.bias is not None and layer.bias is not None:
        block.expand.bias.copy_(layer.bias)
    return block
