"""CP decomposition of a convolution (Lebedev et al. 2015): 1x1 to r channels, one kernel for each of them, 1x1 to the outputs.

W[o, i, k] = sum_r A[o, r] B[i, r] C[k, r] with k over the kh * kw places of the kernel. Lebedev's fourth factor, which splits the kernel
into rows and columns, is a special case of this: it saves kh * kw - kh - kw of in + out + kh * kw multiply-adds and costs one more layer.
By alternating least squares from tensorly, from the higher-order SVD, with a ridge: without one, components that cancel each other grow
without bound (De Silva and Lim 2008).
"""

import math
from functools import cached_property

import tensorly
import torch
from tensorly.decomposition import parafac
from torch import Tensor, nn

from autocompress.compress.factorize.rank import cost, kernel_of, least_rank, stride_of
from autocompress.compress.factorize.stand_in import Block, exact, peak, stand_in
from autocompress.compress.factorize.svd import spectrum
from autocompress.errors import InfeasibleRecipe

WORK = 4e9  # multiply-adds of all sweeps together; a rank is found in about a second
LEAST_SWEEPS, MOST_SWEEPS = 10, 200
TOLERANCE = 1e-7  # of the relative error, from one sweep to the next
RIDGE = 10  # of the machine precision, for a tensor of norm 1
GROWTH, PRECISION = 1.5, 16


class Cp:
    """The ``Factorization`` into a sum of ``rank`` products."""

    def __init__(self, layer: nn.Conv2d, name: str) -> None:
        self.layer, self.name = layer, name
        self.found: dict[int, tuple[Tensor, ...]] = {}

    @cached_property
    def weight(self) -> Tensor:
        """(out, in, kh * kw), divided by its peak."""
        weight = exact(self.layer.weight).flatten(2)
        return weight / peak(weight)

    @cached_property
    def spectra(self) -> list[tuple[Tensor, Tensor]]:
        """Squared singular values and left singular vectors of the three matrix views, largest first."""
        return [spectrum(self.weight.movedim(mode, 0).flatten(1)) for mode in range(3)]

    def rank_for(self, energy: float) -> int:
        """The least rank at which the sweeps keep this share of the squared norm, to within a sixteenth of it.

        The search begins at the rank below which no matrix view of the weight keeps so much, and ends at the first that saves nothing.
        """
        low, limit = max(least_rank(squares, energy) for squares, _ in self.spectra), self._first_that_saves_nothing()
        too_low, high = low - 1, low
        while high < limit and self._kept(high) < energy:
            too_low, high = high, max(high + 1, round(GROWTH * high))
        if high >= limit:
            high = limit - 1
            if too_low >= high or self._kept(high) < energy:
                return max(low, limit)
        while high - too_low > max(1, high // PRECISION):
            middle = (high + too_low) // 2
            too_low, high = (too_low, middle) if self._kept(middle) >= energy else (middle, high)
        return high

    def block(self, rank: int) -> Block:
        out, inner, places = (factor * peak(exact(self.layer.weight)) ** (1 / 3) for factor in self._factors(rank))
        return stand_in(self.layer, "cp", {"reduce": inner.T, "core": places.T, "expand": out})

    def _first_that_saves_nothing(self) -> int:
        (out, inner), kernel, stride = self.layer.weight.shape[:2], kernel_of(self.layer), stride_of(self.layer)
        return -(-self.layer.weight.numel() // cost(out, inner, kernel, 1, "cp", stride))

    def _kept(self, rank: int) -> float:
        """Share of the squared norm that the factors of this rank keep."""
        error = (self.weight - torch.einsum("or,ir,kr->oik", *self._factors(rank))).norm() / self.weight.norm()
        return 1.0 - float(error) ** 2

    def _factors(self, rank: int) -> tuple[Tensor, ...]:
        """A (out, rank), B (in, rank), C (kh * kw, rank). Raises InfeasibleRecipe where the sweeps do not stay finite."""
        if rank not in self.found:
            found = decompose(self.weight, begin([vectors for _, vectors in self.spectra], rank))
            if not all(torch.isfinite(factor).all() for factor in found):
                raise InfeasibleRecipe(f"{self.name}: rank {rank}: the sweeps of cp do not converge. Choose another rank or tucker2.")
            self.found[rank] = found
        return self.found[rank]


def decompose(weight: Tensor, factors: list[Tensor]) -> tuple[Tensor, ...]:
    """weight (out, in, k) and first factors (out, rank), (in, rank), (k, rank) -> better ones; NaN where the sweeps fail.

    The columns of a component are equal in length: all three factors stay well ranged.
    """
    rank, numbers = factors[0].shape[1], torch.finfo(weight.dtype)
    scale = weight.norm().clamp_min(numbers.tiny)
    sweeps = min(MOST_SWEEPS, max(LEAST_SWEEPS, int(WORK / (3 * weight.numel() * rank))))
    first = (torch.ones(rank).to(weight), factors)
    try:
        with tensorly.backend_context("pytorch"):
            _, found = parafac(weight / scale, rank, n_iter_max=sweeps, init=first, tol=TOLERANCE, l2_reg=RIDGE * numbers.eps)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # singular in spite of the ridge
        return tuple(torch.full_like(factor, math.nan) for factor in factors)
    norms = torch.stack([factor.norm(dim=0) for factor in found])  # (3, rank)
    even = (norms.prod(0) * scale) ** (1 / 3) / norms.clamp_min(numbers.tiny)
    return tuple(factor * share for factor, share in zip(found, even, strict=True))


def begin(vectors: list[Tensor], rank: int) -> list[Tensor]:
    """The leading ``rank`` columns of each (size, size); where there are fewer, random ones of length 1 follow."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for known in vectors:
        more = torch.randn(len(known), max(0, rank - len(known)), generator=generator, dtype=torch.float64).to(known)
        found.append(torch.cat([known[:, :rank], more / more.norm(dim=0)], 1))
    return found
