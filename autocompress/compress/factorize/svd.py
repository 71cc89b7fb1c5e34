"""Truncated singular value decomposition of Linear and 1x1 convolutions: the best approximation of a matrix (Eckart and Young 1936).

W (out, in) = U S V^T; the first r singular values stay, and ||W - W_r||_F^2 is the sum of the squares of the others.
"""

from functools import cached_property

import torch
from torch import Tensor

from autocompress.compress.factorize.rank import least_rank
from autocompress.compress.factorize.stand_in import Block, Layer, exact, split_evenly, stand_in


class Svd:
    """The ``Factorization`` by singular values of the weight."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer

    @cached_property
    def decomposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """U (out, k), s (k,), V^T (k, in)."""
        u, s, vt = torch.linalg.svd(exact(self.layer.weight).flatten(1), full_matrices=False)
        return u, s, vt

    def rank_for(self, energy: float) -> int:
        return least_rank(self.decomposed[1].square(), energy)

    def block(self, rank: int) -> Block:
        expand, reduce = split_evenly(*self.decomposed, rank)
        return stand_in(self.layer, "svd", {"reduce": reduce, "expand": expand})


def spectrum(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """matrix (m, n) -> squared singular values (m,), left singular vectors (m, m), largest first; by the small Gram matrix in float64."""
    values, vectors = torch.linalg.eigh(matrix.double() @ matrix.double().T)
    return values.flip(0).clamp_min(0), vectors.flip(1).to(matrix)
