"""From factors to the block that takes a layer's place: on its device, in its dtype and memory format, as trainable as it was."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from autocompress.blocks import LowRankConv2d, LowRankLinear
from autocompress.blocks.low_rank import Form

Layer = nn.Linear | nn.Conv2d
Block = LowRankLinear | LowRankConv2d


class Factorization(Protocol):
    """One layer's weight, decomposed when first asked for."""

    def rank_for(self, energy: float) -> int:
        """The least rank that keeps this share of the squared norm."""

    def block(self, rank: int) -> Block:
        """The layer at this rank."""


def exact(weight: Tensor) -> Tensor:
    """A weight to decompose: no gradient, float32 or better, contiguous."""
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32)).contiguous()


def peak(weight: Tensor) -> Tensor:
    """The largest magnitude, 1 where all are 0: of a weight divided by it, squares neither overflow nor vanish."""
    found = weight.abs().max()
    return torch.where(found > 0, found, 1.0)


def split_evenly(u: Tensor, s: Tensor, vt: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """u (m, k), s (k,), vt (k, n) -> (m, rank), (rank, n), the scale split evenly: both factors stay well ranged."""
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vt[:rank]


@torch.no_grad()
def stand_in(layer: Layer, form: Form, factors: Mapping[str, Tensor]) -> Block:
    """The block with these weights, ``reduce`` (r, in, ...), ``expand`` (out, r, ...) and perhaps ``core``, in place of ``layer``."""
    rank_in, rank_out = factors["reduce"].shape[0], factors["expand"].shape[1]
    block: Block
    with torch.random.fork_rng(devices=[]):  # the first values of new layers are random, and are overwritten
        if isinstance(layer, nn.Linear):
            block = LowRankLinear(layer.in_features, layer.out_features, rank_in, layer.bias is not None)
        else:
            block = LowRankConv2d(layer, rank_in, rank_out, form)
    block.to(layer.weight)
    for name, value in factors.items():
        weight = block.get_parameter(f"{name}.weight")
        weight.copy_(value.reshape(weight.shape))
        weight.requires_grad_(layer.weight.requires_grad)
    if block.expand.bias is not None and layer.bias is not None:
        block.expand.bias.copy_(layer.bias)
        block.expand.bias.requires_grad_(layer.bias.requires_grad)
    if isinstance(layer, nn.Conv2d) and not layer.weight.is_contiguous():
        block.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return block.train(layer.training)
