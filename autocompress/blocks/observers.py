"""Observers: they see the batches of a tensor one after the other and say which range a grid should cover.

Min-max; moving average of both (Jacob et al. 2018, section 3.1); and by a histogram: a percentile, the least KL divergence (Migacz, "8-bit
Inference with TensorRT", GTC 2017), or the least mean squared error. Zero is inside of every range, so it is exactly representable. They
hold no parameters and no buffers: nothing of them is saved with a model.
"""

import math

import torch
from torch import Tensor

from autocompress.blocks.rounding import grid_of
from autocompress.recipe import Quantization

SIDE = 2048  # bins of a histogram on each side of zero; at least half of them are in use on the wider side
SLOWEST = 0.01  # share of a new batch in a moving average that has seen many
CANDIDATES = 128  # thresholds that are tried
SMOOTHING = 1e-4  # what an empty bin counts in a divergence, so that it stays finite


class Observer:
    """``see`` takes batches of any shape; ``range`` is the (low, high) of all of them, low <= 0 <= high, tensors of no dimension.

    Batches that are not finite make a range that is not.
    """

    def __init__(self) -> None:
        self.low = self.high = torch.zeros(())
        self.batches = 0

    @torch.no_grad()
    def see(self, x: Tensor) -> None:
        if x.numel() == 0:
            return
        wide = x.detach().float()
        low, high = torch.aminmax(wide)
        self.batches += 1
        if self.batches == 1:
            self.low, self.high = low, high
        self.low, self.high = self.low.to(low.device), self.high.to(low.device)
        self._take(wide, low, high)

    def range(self) -> tuple[Tensor, Tensor]:
        low, high = self._found()
        return low.clamp(max=0), high.clamp(min=0)

    def _take(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)

    def _found(self) -> tuple[Tensor, Tensor]:
        return self.low, self.high


class MinMax(Observer):
    """The least and the largest value."""


class MovingAverage(Observer):
    """Averages of the batches' least and largest values: of all alike, and from the hundredth batch on with more weight on later ones."""

    def _take(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        share = max(1 / self.batches, SLOWEST)
        self.low, self.high = torch.lerp(self.low, low, share), torch.lerp(self.high, high, share)


class Histogram(Observer):
    """Counts in 2 * SIDE equal bins over -reach..reach; where a batch reaches farther, the reach doubles and bins merge in pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.reach = 0.0
        self.counts = torch.zeros(0)
        self.zeros = 0  # seen before any other value

    def _take(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        super()._take(x, low, high)
        reach = max(-low.item(), high.item())
        if not reach <= torch.finfo(torch.float32).max / 4:
            self.low = self.high = torch.full_like(low, math.nan)
        elif self.reach == 0 and reach == 0:
            self.zeros += x.numel()
        else:
            self._count(x, max(reach, 1e-30))

    def _count(self, x: Tensor, reach: float) -> None:
        if self.reach == 0:
            self.reach, self.counts = reach, torch.zeros(2 * SIDE, dtype=torch.float64, device=x.device)
        while self.reach < reach:
            pairs = self.counts.view(-1, 2).sum(1)  # (SIDE,)
            self.counts = torch.nn.functional.pad(pairs, (SIDE // 2, SIDE // 2))
            self.reach *= 2
        self.counts = self.counts.to(x.device) + torch.histc(x, 2 * SIDE, -self.reach, self.reach).double()

    def _found(self) -> tuple[Tensor, Tensor]:
        if self.reach == 0 or not math.isfinite(self.low.item()):
            return self.low, self.high
        counts = self.counts.cpu()
        counts[SIDE] += self.zeros
        edges = torch.linspace(-self.reach, self.reach, 2 * SIDE + 1, dtype=torch.float64)
        low, high = self._search(counts, edges)
        return self.low.clamp(min=low), self.high.clamp(max=high)

    def _search(self, counts: Tensor, edges: Tensor) -> tuple[float, float]:
        """counts (bins,), edges (bins + 1,), both float64 on the CPU -> the range, at most as wide as what was seen."""
        raise NotImplementedError


class Percentile(Histogram):
    """The range that leaves out (100 - percentile) / 2 percent of the values on each side."""

    def __init__(self, percentile: float) -> None:
        super().__init__()
        self.percentile = percentile

    def _search(self, counts: Tensor, edges: Tensor) -> tuple[float, float]:
        sums = counts.cumsum(0)
        cut = (1 - self.percentile / 100) / 2 * sums[-1]
        first = int(torch.searchsorted(sums, cut, right=True))
        last = int(torch.searchsorted(sums, sums[-1] - cut))
        return edges[first].item(), edges[last + 1].item()


class Entropy(Histogram):
    """The threshold t with the least KL divergence of the values, clipped to -t..t, from the same on ``levels`` levels (Migacz 2017)."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def _search(self, counts: Tensor, edges: Tensor) -> tuple[float, float]:
        counts = counts.clone()
        counts[SIDE] = counts[SIDE + 1]  # zeros cost nothing on any grid, and their peak would hide the rest
        seen = counts.nonzero()
        if len(seen) == 0:
            return edges[0].item(), edges[-1].item()
        first, last = int(seen[0]), int(seen[-1]) + 1
        widest = max(SIDE - first, last - SIDE)
        best, threshold = math.inf, widest
        for reach in range(widest, 0, -max(1, widest // CANDIDATES)):
            start, stop = max(SIDE - reach, first), min(SIDE + reach, last)
            if stop - start < self.levels:
                break
            divergence = divergence_of(counts, start, stop, self.levels)
            if divergence < best:
                best, threshold = divergence, reach
        return edges[SIDE - threshold].item(), edges[SIDE + threshold].item()


class MeanSquare(Histogram):
    """The range whose grid has the least mean squared error of rounding and clipping; each end is searched with the other one fixed."""

    def __init__(self, levels: int, symmetric: bool) -> None:
        super().__init__()
        self.levels, self.symmetric = levels, symmetric

    def _search(self, counts: Tensor, edges: Tensor) -> tuple[float, float]:
        used = counts.nonzero().squeeze(1)
        values, weights = (edges[used] + edges[used + 1]) / 2, counts[used]
        ends = torch.stack([self.low, self.high]).double().cpu()
        ends = torch.stack([ends[0].clamp(max=0), ends[1].clamp(min=0)])
        shares = torch.linspace(1, 1 / CANDIDATES, CANDIDATES, dtype=torch.float64)
        best = ends.clone()
        for end in (1, 0, 1, 0):
            tried = best.repeat(CANDIDATES, 1)
            tried[:, end] = ends[end] * shares
            scale, zero = grid_of(tried[:, 0, None], tried[:, 1, None], 0, self.levels - 1, self.symmetric)  # (candidates, 1)
            codes = (values / scale).round_().add_(zero).clamp_(0, self.levels - 1)
            errors = codes.sub_(zero).mul_(scale).sub_(values).square_() @ weights
            best = tried[int(errors.argmin())]
        return best[0].item(), best[1].item()


def divergence_of(counts: Tensor, start: int, stop: int, levels: int) -> float:
    """KL(P || Q): P the counts of start..stop with all outliers in the outermost bins, Q the same merged into ``levels`` levels.

    A level's counts spread evenly over those of its bins that P does not have empty.
    """
    inside = counts[start:stop]
    reference = inside.clone()
    reference[0] += counts[:start].sum()
    reference[-1] += counts[stop:].sum()
    level = torch.arange(len(inside)) * levels // len(inside)
    filled = (reference > 0).double()
    merged = torch.zeros(levels, dtype=torch.float64).index_add_(0, level, inside)
    holders = torch.zeros(levels, dtype=torch.float64).index_add_(0, level, filled)
    spread = filled * (merged / holders.clamp(min=1))[level]
    p, q = _smoothed(reference), _smoothed(spread)
    return float((p * (p / q).log()).sum())


def _smoothed(counts: Tensor) -> Tensor:
    counts = counts.clamp(min=SMOOTHING)
    return counts / counts.sum()


def observer_of(settings: Quantization, bits: int = 8) -> Observer:
    """A new observer of the kind that ``settings`` name, for grids of 2^bits levels."""
    if settings.observer == "moving_average":
        return MovingAverage()
    if settings.observer == "percentile":
        return Percentile(settings.percentile)
    if settings.observer == "entropy":
        return Entropy(2**bits)
    return MeanSquare(2**bits, settings.symmetric_activations) if settings.observer == "mse" else MinMax()
