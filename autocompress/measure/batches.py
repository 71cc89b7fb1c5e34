"""Several batch sizes: a model that wins at batch 1 may lose at batch 32, so a speed over all of them is a mean, and the worst is named."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from autocompress.measure.latency import Effort, Timing, compare
from autocompress.records import BatchTiming
from autocompress.runtimes.runtime import Array, Deployed


def compare_batches(
    baseline: Deployed, candidate: Deployed, batches: Sequence[Array], effort: Effort, seed: int = 0
) -> tuple[Timing, tuple[BatchTiming, ...]]:
    """Time both on each of ``batches``, (batch, ...) each, with ``effort`` for each: what holds over all of them, and one by one.

    With one batch size the first is that of ``compare``, and the second is empty. With several its ratio is ``overall``, its milliseconds
    are those of the first batch, and it is resolved where all are.
    """
    timings = [compare(baseline, candidate, batch, effort, seed) for batch in batches]
    if len(timings) == 1:
        return timings[0], ()
    told = tuple(at_batch(len(batch), timing) for batch, timing in zip(batches, timings, strict=True))
    speedup, low, high = overall(told)
    resolved, blocks = all(one.resolved for one in timings), sum(one.blocks for one in timings)
    return replace(timings[0], speedup=speedup, low=low, high=high, resolved=resolved, blocks=blocks), told


def overall(batches: Sequence[BatchTiming]) -> tuple[float, float, float]:
    """Geometric mean of the speedups, with its 95 % interval.

    On the scale of logarithms, where the mean is g = sum(x_i) / n and batch i has the interval (l_i, u_i) independently of the others:
    g - sqrt(sum((x_i - l_i)^2)) / n to g + sqrt(sum((u_i - x_i)^2)) / n, the recovery of variances by Zou and Donner (2008).
    """
    count = len(batches)
    mean = sum(math.log(one.speedup) for one in batches) / count
    below = math.hypot(*(_log_ratio(one.speedup, one.speedup_low) for one in batches)) / count
    above = math.hypot(*(_log_ratio(one.speedup_high, one.speedup) for one in batches)) / count
    return math.exp(mean), math.exp(mean - below), math.exp(mean + above)


def _log_ratio(more: float, less: float) -> float:
    return math.log(more / less) if less > 0 else math.inf  # a few wild blocks can push the lower end of an interval below 0


def batch_of(inputs: Array, batch_size: int) -> Array:
    """(batch_size, ...) of inputs (N, ...): real samples, repeated where there are too few."""
    repeats = -(-batch_size // len(inputs))
    samples = inputs if repeats == 1 else np.concatenate([inputs] * repeats)
    return np.ascontiguousarray(samples[:batch_size])


def at_batch(batch_size: int, timing: Timing) -> BatchTiming:
    """What is kept of a timing of one batch size."""
    return BatchTiming(
        batch_size=batch_size,
        latency_ms=timing.latency_ms,
        baseline_latency_ms=timing.baseline_latency_ms,
        speedup=timing.speedup,
        speedup_low=timing.low,
        speedup_high=timing.high,
        resolved=timing.resolved,
    )
