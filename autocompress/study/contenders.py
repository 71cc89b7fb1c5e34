"""Which finished trials are worth a longer timing: where the order of two neighbours is open and decides what is on the front.

Pure functions of results; `contest` does the timing.
"""

from collections.abc import Sequence
from itertools import pairwise

from autocompress.records import Measurement, TrialResult
from autocompress.study.pareto import Bounds, measured

DECIDED = 0.02  # of the speedup: two intervals this narrow that still overlap are declared equal
MOST = 8  # trials that are timed longer

Pair = tuple[TrialResult, Measurement]


def contenders(results: Sequence[TrialResult], bounds: Bounds) -> tuple[int, ...]:
    """Numbers of the trials to time longer: those that meet all bounds first, then by speed; none where every order is decided."""
    chosen: dict[int, Pair] = {}
    for pair in _open_pairs(results, bounds):
        chosen |= {result.number: (result, point) for result, point in pair if not _is_narrow(point)}
    ordered = sorted(chosen.values(), key=lambda pair: (not bounds.hold(pair[1]), -pair[1].speedup, pair[0].number))
    return tuple(result.number for result, _ in ordered[:MOST])


def equals(results: Sequence[TrialResult], bounds: Bounds) -> tuple[tuple[int, int], ...]:
    """Neighbours near the front, the faster one first, whose intervals overlap."""
    return tuple((first[0].number, second[0].number) for first, second in _open_pairs(results, bounds))


def near_front(results: Sequence[TrialResult], bounds: Bounds) -> list[Pair]:
    """Measured trials, fastest first, that no other certainly beats: none with no larger drop is faster beyond both intervals.

    Trials out of both bounds are left out, for nobody would take them.
    """
    pairs = [pair for pair in measured(results) if pair[1].drop <= bounds.max_drop or pair[1].speedup >= bounds.min_speedup]
    near = [pair for pair in pairs if not any(one.drop <= pair[1].drop and one.speedup_low > pair[1].speedup_high for _, one in pairs)]
    return sorted(near, key=lambda pair: (-pair[1].speedup, pair[1].drop, pair[0].number))


def _open_pairs(results: Sequence[TrialResult], bounds: Bounds) -> list[tuple[Pair, Pair]]:
    near = near_front(results, bounds)
    return [(first, second) for first, second in pairwise(near) if first[1].speedup_low <= second[1].speedup_high]


def _is_narrow(point: Measurement) -> bool:
    return point.speedup_high - point.speedup_low <= DECIDED * point.speedup
