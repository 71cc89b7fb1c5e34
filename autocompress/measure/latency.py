"""Paired timing: baseline and candidate in short alternating blocks, so that a drifting machine drifts under both.

The ratio of a pair of blocks is one sample; reported are the median of the ratios and its bootstrap 95 % interval over pairs.
"""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autocompress.runtimes.runtime import Array, Deployed

BLOCK_SECONDS = 0.004
WARM_UP_SECONDS = 0.05
LEAST_PAIRS, STEP = 20, 5


@dataclass(frozen=True)
class Effort:
    """How long to sample: until the interval is at most ``width`` of the ratio wide, or ``seconds`` are spent."""

    width: float
    seconds: float


GATE = Effort(width=0.10, seconds=0.4)
SEARCH = Effort(width=0.06, seconds=1.5)
HOLDOUT = Effort(width=0.04, seconds=5.0)


@dataclass(frozen=True)
class Timing:
    """Median milliseconds of both, baseline / candidate with its interval, and whether the interval became as narrow as asked."""

    latency_ms: float
    baseline_latency_ms: float
    speedup: float
    low: float
    high: float
    resolved: bool
    blocks: int


def compare(baseline: Deployed, candidate: Deployed, inputs: Array, effort: Effort, seed: int = 0) -> Timing:
    """Time both on ``inputs`` (batch, ...) until ``effort`` is satisfied."""
    both = (baseline, candidate)
    calls = [_calls_a_block(deployed, inputs) for deployed in both]
    random = np.random.default_rng(seed)
    started = time.monotonic()
    times: tuple[list[float], list[float]] = ([], [])
    while True:
        for _ in range(STEP):
            for index in random.permutation(2):
                times[index].append(float(np.median(both[index].seconds(inputs, calls[index]))))
        if len(times[0]) < LEAST_PAIRS:
            continue
        ratios = np.array(times[0]) / np.array(times[1])
        low, high = interval(ratios, random)
        middle = float(np.median(ratios))
        resolved = high - low <= effort.width * middle
        if resolved or time.monotonic() - started > effort.seconds:
            medians = [1000 * float(np.median(series)) for series in times]
            return Timing(medians[1], medians[0], middle, low, high, resolved, len(ratios))


def interval(ratios: NDArray[np.float64], random: np.random.Generator, draws: int = 1000) -> tuple[float, float]:
    """Percentile bootstrap 95 % interval of the median (Efron 1979); ratios (blocks,)."""
    picks = random.integers(0, len(ratios), size=(draws, len(ratios)))
    low, high = np.quantile(np.median(ratios[picks], axis=1), (0.025, 0.975))
    return float(low), float(high)


def _calls_a_block(deployed: Deployed, inputs: Array) -> int:
    """Warm up, then as many calls as fill a block, three at least."""
    started, series = time.monotonic(), deployed.seconds(inputs, 3)
    while time.monotonic() - started < WARM_UP_SECONDS and len(series) < 1000:
        series += deployed.seconds(inputs, 3)
    return int(np.clip(BLOCK_SECONDS / max(float(np.median(series)), 1e-9), 3, 1000))
