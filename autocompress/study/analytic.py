"""The analytic front: for each of several speeds the point of least predicted harm, before any trial.

Harm is a sum over choices and time nearly one over layers, so the points that minimise harm + weight * time, for weights from mild to
hard, are found by coordinate descent: each dimension takes its best choice while the others stand still (Everett 1963: every such point
is the best of its own time).
"""

import numpy as np
from numpy.typing import NDArray

from autocompress.recipe import FLOAT_BITS
from autocompress.study.forecast import Floats, Forecast, Points
from autocompress.study.space import BITS

TARGETS = 8  # speeds, evenly on a logarithmic scale from the slowest to the fastest that is worth a trial
WEIGHTS = 24  # between the two at which nothing and everything is given for speed
MOST_SWEEPS = 6  # over all dimensions; two or three are enough unless ranks and widths pull at each other


def analytic_front(forecast: Forecast, least_speedup: float, settings: Points) -> list[Points]:
    """At most TARGETS points, fastest first. ``settings``: a point whose choices stand where a dimension has neither harm nor time.

    Points predicted slower than ``least_speedup`` by more than the error of the prediction are left out: the gate would stop them.
    """
    points = descend_all(forecast, settings)
    speeds = forecast.speedup(points)
    worth = speeds >= least_speedup / (1 + 2 * forecast.error)
    points, speeds = points[worth], speeds[worth]
    if not len(points):
        return []
    wanted = np.geomspace(speeds.max(), max(speeds.min(), 1e-6), TARGETS)
    chosen = [int(np.abs(np.log(speeds / speed)).argmin()) for speed in wanted]
    return [points[place] for place in dict.fromkeys(chosen)]


def descend_all(forecast: Forecast, settings: Points) -> Points:
    """What no other predicts to beat, of one point a weight of time, from the hardest to none, each descended from the one before.

    Two starts: every layer in integers, and every layer in floats. A layer of the other kind between two alike costs two changes, so
    from the one no single step leads to the other.
    """
    touching = [place for place in range(len(forecast.dims)) if forecast.touched[place] or forecast.harms[place].any()]
    harms = [float(np.ptp(forecast.harms[place])) for place in touching] or [1.0]
    scale = max(sum(harms), 1e-9) / forecast.latency.baseline_ms
    hardest, found = settings.copy(), []
    for place in touching:
        hardest[place] = int(np.argmax(forecast.harms[place]))
    floats = hardest.copy()
    for place in touching:
        if forecast.dims[place].kind == BITS:
            floats[place] = forecast.dims[place].nearest(FLOAT_BITS)
    for start in (hardest, floats):
        point = start
        for weight in (*np.geomspace(1e3, 1e-4, WEIGHTS) * scale, 0.0):
            point = descend(forecast, point, float(weight), touching)
            found.append(point.copy())
    points = np.unique(np.array(found), axis=0)
    return points[unbeaten(forecast.look(points)[:, 0], sum(forecast.harm(points).values(), np.zeros(len(points))))]


def unbeaten(ms: Floats, harm: Floats) -> NDArray[np.bool_]:
    """Which points no other is at least as good as in both, and better in one. (points,) each."""
    as_good = (ms[:, None] <= ms) & (harm[:, None] <= harm)
    better = (ms[:, None] < ms) | (harm[:, None] < harm)
    return np.asarray(~(as_good & better).any(axis=0))


def descend(forecast: Forecast, point: Points, weight: float, places: list[int]) -> Points:
    """Coordinate descent on harm + weight * ms from a point, until nothing moves."""
    point = point.copy()
    for _ in range(MOST_SWEEPS):
        before = point.copy()
        for place in places:
            point[place] = int(np.argmin(forecast.harms[place] + weight * times(forecast, point, place)))
        if (point == before).all():
            break
    return point


def times(forecast: Forecast, point: Points, place: int) -> Floats:
    """Milliseconds of the layers that a dimension touches, for each of its choices while the others stand still."""
    choices = forecast.sizes[place]
    points = np.repeat(point[None], choices, axis=0)
    points[:, place] = np.arange(choices)
    _, scale, rest = forecast.latency.correction
    total = scale * forecast.around(forecast.touched[place], points)
    for table in forecast.touched[place]:
        found = forecast.layer(table, points)
        total += scale * found[:, 0] + rest * found[:, 1] / max(forecast.layers, 1)
    return total
