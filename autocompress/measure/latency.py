"""Paired timing: baseline and candidate in short alternating blocks, so that a drifting machine drifts under both.

The ratio of a pair of blocks is one sample; reported are the median of the ratios and its bootstrap 95 % interval over pairs.
"""

import itertools
import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autocompress.measure.machine import busy_cores, work
from autocompress.measure.turn import turn
from autocompress.runtimes.runtime import Array, Call, Deployed

BLOCK_SECONDS = 0.004
WARM_UP_SECONDS = 0.05
LEAST = 8  # segments, whatever they cost: four values to draw from
SEGMENT = 4  # pairs timed with one loading of both
ABOUT_AS_FAST = 1.3
SLOW_BLOCK_SECONDS = 0.1
SAME = 0.03  # two glances that differ by less agree
MOST_GLANCES = 6
FAST = 0.1  # quantile of single calls that a glance takes for the time of a call
CHEAP_LOADING_SECONDS = 0.1  # a slower artifact is loaded once only


@dataclass(frozen=True)
class Effort:
    """How long to sample: ``segments`` of pairs at least, and until the interval is at most ``width`` of the ratio wide.

    When ``seconds`` are spent it ends all the same, once LEAST segments are there; the interval may then be wider than asked.
    """

    width: float
    seconds: float
    segments: int


GATE = Effort(width=0.10, seconds=0.4, segments=8)
SEARCH = Effort(width=0.06, seconds=1.5, segments=16)
DEFAULT = Effort(width=0.06, seconds=2.3, segments=24)  # 16 hold 1 in 93 of 100 intervals of A against A, 24 in 95 (runs/README.md)
HOLDOUT = Effort(width=0.04, seconds=5.0, segments=32)


@dataclass(frozen=True)
class Timing:
    """Median milliseconds of both, baseline / candidate with its interval, and whether the interval became as narrow as asked.

    ``latency_ms`` are medians over blocks, of calls that nobody interrupted; ``p90_ms`` and ``p99_ms`` are over all single calls
    (``calls`` of the candidate), of which the share ``interrupted`` of both lost its core to another process for a while.
    ``faster`` is the share of the blocks that beat the baseline's block beside them, a tie for half. ``busy`` are the cores that
    others kept busy meanwhile, on average, None where that is not known.
    """

    latency_ms: float
    baseline_latency_ms: float
    speedup: float
    low: float
    high: float
    resolved: bool
    blocks: int
    p90_ms: float = 0.0
    p99_ms: float = 0.0
    baseline_p90_ms: float = 0.0
    baseline_p99_ms: float = 0.0
    calls: int = 0
    interrupted: float = 0.0
    faster: float = 0.5
    busy: float | None = None


class _Series:
    """What was timed so far of one of both: the seconds of each block, and all single calls."""

    def __init__(self) -> None:
        self.blocks: list[float] = []
        self.calls: list[Call] = []

    def add_(self, block: list[Call]) -> None:
        """A block takes as long as the median of its calls that nobody interrupted, or of all of them where there is none."""
        undisturbed = [call.seconds for call in block if not call.is_interrupted]
        self.blocks.append(float(np.median(undisturbed or [call.seconds for call in block])))
        self.calls += block

    def tail_ms(self) -> tuple[float, float]:
        p90, p99 = np.quantile([1000 * call.seconds for call in self.calls], (0.90, 0.99))
        return float(p90), float(p99)


def compare(
    baseline: Deployed, candidate: Deployed, inputs: Array, effort: Effort = DEFAULT, seed: int = 0, device: str = "cpu"
) -> Timing:
    """Time both on ``inputs`` (batch, ...) until ``effort`` is satisfied, while no other process times on ``device``.

    Both are loaded anew for every segment of pairs: where the memory of a session happens to lie moves its time by a percent, for as
    long as it lives, and an interval that does not draw from this is too narrow (seen: two sessions of one file, 77 % coverage).
    """
    with turn(device):
        before, random = work(), np.random.default_rng(seed)
        series = _Series(), _Series()
        ratio, low, high = _sample_(series, (baseline, candidate), inputs, effort, random)
        busy = busy_cores(before, work())
    old, new = series
    (p90, p99), (baseline_p90, baseline_p99) = new.tail_ms(), old.tail_ms()
    return Timing(
        latency_ms=1000 * float(np.median(new.blocks)),
        baseline_latency_ms=1000 * float(np.median(old.blocks)),
        speedup=ratio, low=low, high=high,
        resolved=high - low <= effort.width * ratio,
        blocks=len(new.blocks),
        p90_ms=p90, p99_ms=p99, baseline_p90_ms=baseline_p90, baseline_p99_ms=baseline_p99,
        calls=len(new.calls), interrupted=float(np.mean([call.is_interrupted for call in old.calls + new.calls])),
        faster=_faster(series), busy=busy,
    )  # fmt: skip


def glance(baseline: Deployed, candidate: Deployed, inputs: Array, pairs: int = 6, device: str = "cpu") -> float:
    """Latency of ``baseline`` / latency of ``candidate`` from a few pairs of blocks: good to some percent, and without an interval.

    Of all calls of each the fast ones count (FAST), for what others do on the machine only ever adds to a call; and it looks again until
    two looks agree. It is for fitting a model to many artifacts; what is reported or gated on is `compare`'s to time.
    """
    both = (baseline, candidate)
    with turn(device):
        calls, halves = _calls_a_block(both, inputs), []
        for _ in range(MOST_GLANCES):
            spent: tuple[list[float], list[float]] = ([], [])
            for pair in range(pairs):
                for index in (0, 1) if pair % 2 else (1, 0):  # neither is always the warmer one
                    spent[index].extend(call.seconds for call in both[index].timed(inputs, 1 + calls[index])[1:])
            old, new = (float(np.quantile(seconds, FAST)) for seconds in spent)
            halves.append(old / new)
            if any(abs(other / halves[-1] - 1) < SAME for other in halves[:-1]):
                break
    return float(np.median(halves))


def _sample_(
    series: tuple[_Series, _Series], both: tuple[Deployed, Deployed], inputs: Array, effort: Effort, random: np.random.Generator
) -> tuple[float, float, float]:
    """Fill ``series`` until ``effort`` is satisfied -> the ratio and its interval.

    It looks at the interval each time a quarter more is there: who looks after every block stops at a moment of luck.
    """
    calls = _calls_a_block(both, inputs)
    started, is_cheap, look = time.monotonic(), True, effort.segments
    for segment in itertools.count(1):
        if is_cheap:
            loading = time.monotonic()
            both = _reopened(both, random)
            is_cheap = time.monotonic() - loading < CHEAP_LOADING_SECONDS
            for index in random.permutation(2):  # in a fixed order the second one would be warmer in the first pair
                both[index].timed(inputs, calls[index])
        for _ in range(SEGMENT):
            for index in random.permutation(2):
                series[index].add_(_block(both[index], inputs, calls[index]))
        is_over = time.monotonic() - started > effort.seconds
        if segment < look and not (is_over and segment >= min(LEAST, effort.segments)):
            continue
        look = math.ceil(1.25 * segment)
        ratios = np.array(series[0].blocks) / np.array(series[1].blocks)
        middle, (low, high) = float(np.median(ratios)), interval(ratios, random)
        if is_over or high - low <= effort.width * middle:
            return middle, low, high
    raise AssertionError("count() has no end")


def _block(deployed: Deployed, inputs: Array, calls: int) -> list[Call]:
    """``calls`` calls, and twice as many more where all were interrupted, unless they are slow.

    The first one is not counted: it pays for the caches that the other model emptied (seen: 2 to 10 % slower than the next).
    """
    block = deployed.timed(inputs, 1 + calls)[1:]
    for _ in range(2):
        if not all(call.is_interrupted for call in block) or sum(call.seconds for call in block) > SLOW_BLOCK_SECONDS:
            break
        block += deployed.timed(inputs, calls)
    return block


def _faster(series: tuple[_Series, _Series]) -> float:
    old, new = (np.array(one.blocks) for one in series)
    return float(np.mean(new < old) + np.mean(new == old) / 2)


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


def _calls_a_block(both: tuple[Deployed, Deployed], inputs: Array) -> tuple[int, int]:
    """As many calls of each as fill a block, three at least; equally many of two that are about as fast.

    A block of three calls is a little slower a call than one of four, so rounding must not part a model from itself (seen: 1 %).
    """
    one, other = (max(_least_seconds(deployed, inputs), 1e-9) for deployed in both)
    counts = [int(np.clip(BLOCK_SECONDS / seconds, 3, 1000)) for seconds in (one, other)]
    if max(one, other) < ABOUT_AS_FAST * min(one, other):
        return max(counts), max(counts)
    return counts[0], counts[1]


def _least_seconds(deployed: Deployed, inputs: Array) -> float:
    """Warm up; the shortest call of it."""
    started, series = time.monotonic(), deployed.seconds(inputs, 3)
    while time.monotonic() - started < WARM_UP_SECONDS and len(series) < 1000:
        series += deployed.seconds(inputs, 3)
    return float(np.min(series))
