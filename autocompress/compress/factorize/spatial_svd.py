"""A kh x kw convolution as kh x 1 followed by 1 x kw (Jaderberg et al. 2014, scheme 2), the best one of its rank.

The weight, seen as a matrix from (input, row) to (output, column), is truncated by its singular values: the error is that of Eckart and
Young 1936.
"""

from functools import cached_property

import torch
from torch import Tensor, nn

from autocompress.compress.factorize.rank import least_rank
from autocompress.compress.factorize.stand_in import Block, exact, split_evenly, stand_in


class SpatialSvd:
    """The ``Factorization`` into rows and columns of the kernel."""

    def __init__(self, layer: nn.Conv2d) -> None:
        self.layer = layer

    @cached_property
    def decomposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """U (in * kh, k), s (k,), V^T (k, out * kw)."""
        out, inner, height, width = self.layer.weight.shape
        matrix = exact(self.layer.weight).permute(1, 2, 0, 3).reshape(inner * height, out * width)
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        return u, s, vt

    def rank_for(self, energy: float) -> int:
        return least_rank(self.decomposed[1].square(), energy)

    def block(self, rank: int) -> Block:
        rows, columns = split_evenly(*self.decomposed, rank)  # (in * kh, rank), (rank, out * kw)
        expand = columns.reshape(rank, self.layer.out_channels, -1).movedim(0, 1)  # (out, rank, kw)
        return stand_in(self.layer, "spatial_svd", {"reduce": rows.T, "expand": expand})
