"""Tucker-2 of a convolution (Kim et al. 2016): W[o, i] = sum_ab U[o, a] C[a, b] V[i, b], kernels C between fewer channels.

By higher-order orthogonal iteration from the truncated higher-order SVD (De Lathauwer et al. 2000), from tensorly.
"""

import tensorly
import torch
from tensorly.decomposition import partial_tucker
from torch import nn

from autocompress.compress.factorize.rank import least_rank
from autocompress.compress.factorize.stand_in import Block, exact, peak, stand_in
from autocompress.compress.factorize.svd import spectrum

SWEEPS = 20


class Tucker:
    """The ``Factorization`` that keeps the kernel between ``rank`` channels; a side that is narrower is left whole."""

    def __init__(self, layer: nn.Conv2d) -> None:
        self.layer = layer

    def rank_for(self, energy: float) -> int:
        """The least rank at which the truncated higher-order SVD keeps this share of the squared norm; the iteration keeps no less."""
        weight = exact(self.layer.weight).double()
        out, inner = weight.shape[:2]
        (_, left), (_, right) = spectrum(weight.flatten(1)), spectrum(weight.transpose(0, 1).flatten(1))
        rotated = torch.einsum("oa,oihw,ib->abhw", left, weight, right).square().sum((2, 3)).cumsum(0).cumsum(1)
        ranks = torch.arange(max(out, inner), device=weight.device)
        kept = rotated[ranks.clamp_max(out - 1), ranks.clamp_max(inner - 1)]  # of rank 1, 2, ...
        return least_rank(kept.diff(prepend=kept.new_zeros(1)), energy)

    def block(self, rank: int) -> Block:
        out, inner = self.layer.weight.shape[:2]
        ranks = [min(rank, out), min(rank, inner)]
        weight = exact(self.layer.weight)
        scale = peak(weight)
        with tensorly.backend_context("pytorch"):
            # weight (out, in, kh, kw) -> core (rank_out, rank_in, kh, kw), left (out, rank_out), right (in, rank_in)
            (core, (left, right)), _ = partial_tucker(
                weight / scale, rank=ranks, modes=[0, 1], init="svd", n_iter_max=SWEEPS, random_state=0
            )
        return stand_in(self.layer, "tucker2", {"reduce": right.T, "core": core * scale, "expand": left})
