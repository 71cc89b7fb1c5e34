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
SEGMENT = 4  # pairs timed with one loading of both
CHEAP_LOADING_SECONDS = 0.1  # a slower artifact is loaded once only


@dataclass(frozen=True)
class Effort:
    """How long to sample: ``segments``, then until the interval is at most ``width`` of the ratio wide or ``seconds`` are spent."""

    width: float
    seconds: float
    segments: int


GATE = Effort(width=0.10, seconds=0.4, segments=8)
SEARCH = Effort(width=0.08, seconds=1.5, segments=12)
HOLDOUT = Effort(width=0.04, seconds=5.0, segments=20)


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
    """Time both on ``inputs`` (batch, ...) until ``effort`` is satisfied.

    Both are loaded anew for every segment of pairs: where the memory of a session happens to lie moves its time by a percent, for as
    long as it lives, and an interval that does not draw from this is too narrow (seen: two sessions of one file, 77 % coverage).
    """
    both = (baseline, candidate)
    calls = [_calls_a_block(deployed, inputs) for deployed in both]
    random = np.random.default_rng(seed)
    started, is_cheap = time.monotonic(), True
    times: tuple[list[float], list[float]] = ([], [])
    while True:
        if is_cheap:
            loading = time.monotonic()
            both = _reopened(both, random)
            is_cheap = time.monotonic() - loading < CHEAP_LOADING_SECONDS
            for index in random.permutation(2):  # in a fixed order the second one would be warmer in the first pair
                both[index].seconds(inputs, calls[index])
        for _ in range(SEGMENT):
            for index in random.permutation(2):
                times[index].append(float(np.median(both[index].seconds(inputs, calls[index]))))
        if len(times[0]) < SEGMENT * effort.segments:
            continue
        ratios = np.array(times[0]) / np.array(times[1])
        low, high = interval(ratios, random)
        middle = float(np.median(ratios))
        resolved = high - low <= effort.width * middle
        if resolved or time.monotonic() - started > effort.seconds:
            medians = [1000 * float(np.median(series)) for series in times]
            return Timing(medians[1], medians[0], middle, low, high, resolved, len(ratios))


def _reopened(both: tuple[Deployed, Deployed], random: np.random.Generator) -> tuple[Deployed, Deployed]:
    """Both loaded anew in random order: the second one finds other memory free than the first."""
    fresh: dict[int, Deployed] = {index: both[index].reopened() for index in map(int, random.permutation(2))}
    return fresh[0], fresh[1]


def interval(ratios: NDArray[np.float64], random: np.random.Generator, draws: int = 1000) -> tuple[float, float]:
    """Bootstrap 95 % interval of the median (Efron 1979), drawing two neighbouring segments at a time: a busy moment outlasts one.

    ratios (segments * SEGMENT,), in the order of time; an odd last segment counts in the median only.
    """
    unit = 2 * SEGMENT
    segments = ratios[: len(ratios) // unit * unit].reshape(-1, unit)
    picks = random.integers(0, len(segments), size=(draws, len(segments)))
    low, high = np.quantile(np.median(segments[picks].reshape(draws, -1), axis=1), (0.025, 0.975))
    middle, wider = float(np.median(ratios)), _few(len(segments))
    return middle - wider * (middle - float(low)), middle + wider * (float(high) - middle)


def _few(count: int) -> float:
    """How much too narrow the bootstrap of ``count`` values is: Bessel's factor, and Student's t over z (Cornish-Fisher series)."""
    z, freedom = 1.96, count - 1
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return float(np.sqrt(count / freedom)) * t / z


def _calls_a_block(deployed: Deployed, inputs: Array) -> int:
    """Warm up, then as many calls as fill a block, three at least."""
    started, series = time.monotonic(), deployed.seconds(inputs, 3)
    while time.monotonic() - started < WARM_UP_SECONDS and len(series) < 1000:
        series += deployed.seconds(inputs, 3)
    return int(np.clip(BLOCK_SECONDS / max(float(np.min(series)), 1e-9), 3, 1000))
