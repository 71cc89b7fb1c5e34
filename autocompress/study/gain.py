"""How much a point is expected to add to the front: expected hypervolume improvement, averaged over quantiles of speed and drop.

Two objectives in closed form (the area between a point and the staircase of the front); for more, the added hypervolume itself.
"""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from autocompress.study.expectation import Expected, unscaled
from autocompress.study.forecast import Floats

SPEEDS, DROPS = 3, 9  # quantiles


def quantiles(count: int) -> Floats:
    return np.array([NormalDist().inv_cdf((place + 0.5) / count) for place in range(count)])


def expected_gain(front: Sequence[tuple[float, float]], expected: Expected, max_drop: float, min_speedup: float) -> Floats:
    """By point: the area that it is expected to add to ``front``, (speedup, drop) pairs, up from the reference (1, ``max_drop``).

    Speeds below ``min_speedup`` add nothing: the gate stops them.
    """
    speeds = np.exp(expected.log_speed[:, None] + expected.log_speed_sd[:, None] * quantiles(SPEEDS))  # (n, SPEEDS)
    drops = unscaled(expected.drop[:, None] + expected.drop_sd[:, None] * quantiles(DROPS), expected.unit)  # (n, DROPS)
    drops = np.maximum(drops, expected.least)
    speeds = np.where(speeds < min_speedup, 0.0, speeds)
    area = added(front, speeds[:, :, None], drops[:, None, :], max_drop)  # (n, SPEEDS, DROPS)
    return np.asarray(area.mean((1, 2)) * expected.feasible)


def added(front: Sequence[tuple[float, float]], speeds: Floats, drops: Floats, max_drop: float) -> Floats:
    """Area between each (speed, drop) and the staircase of the front: the sum over its steps of height times width above it."""
    steps = sorted((drop, speed) for speed, drop in front if drop < max_drop)
    edges = [-np.inf, *(drop for drop, _ in steps), max_drop]
    best, area = 1.0, np.zeros(np.broadcast(speeds, drops).shape)
    for place in range(len(edges) - 1):
        best = max(best, steps[place - 1][1]) if place else best
        width = np.maximum(edges[place + 1] - np.maximum(edges[place], drops), 0.0)
        area += np.maximum(speeds - best, 0.0) * width
    return area
