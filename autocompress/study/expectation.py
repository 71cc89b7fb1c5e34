"""What finished trials teach about points that nobody tried: speed, drop after recovery, and other bounded quantities, with uncertainty.

Speed is the forecast times a correction fitted to what was measured; drop is fitted to the predicted harm and to what else is known of a
recipe before it is trained. A trial without a measurement teaches the speed that the gate saw, and a drop out of all bounds where it
ended badly.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autocompress.bounds import Constraint, value_of
from autocompress.recipe import FLOAT_BITS
from autocompress.records import TrialResult
from autocompress.study.forecast import HARMFUL, Floats, Forecast, Points
from autocompress.study.regression import MOST, Regression
from autocompress.study.space import BITS, KEEP, RANK, SPARSITY

WRECKED = 4.0  # bounds of the drop that a trial which diverged or died counts as
FLOORS = {"speed": 0.05, "drop": 0.5, "other": 0.05}  # least spread of what is fitted: log speed, scaled drop, logarithm of the rest
SAMPLE = 100  # points that show how much a feature varies in this space
FEW = 3  # trials below which a spread of its own is not believed

Seen = tuple[TrialResult, Points]  # a finished trial and its point


class Expected(NamedTuple):
    """By point: mean and deviation of log speedup and of the scaled drop (see ``scaled``), probability of keeping the constraints."""

    log_speed: Floats
    log_speed_sd: Floats
    drop: Floats
    drop_sd: Floats
    feasible: Floats
    unit: float  # of scaled drops
    least: float  # drop below which nothing was seen, and nothing is expected


class Expectation:
    """Fitted to the finished trials of one question; pure: equal trials give equal expectations."""

    def __init__(self, forecast: Forecast, told: Sequence[Seen], given: Points) -> None:
        """``told``: finished trials of this space with their points, by number; the latest count.

        ``given``: the point that leaves the model as it is, as far as the space has one: speedup 1 and drop 0 there are known.
        """
        self.forecast, question = forecast, forecast.question
        sample = np.random.default_rng(0).integers(0, forecast.sizes, size=(SAMPLE, len(forecast.sizes)))
        self._scale = np.maximum(self.features(np.vstack([sample, given[None]])).std(0), 1e-2)
        self.unit = max(question.max_drop / 3, 1e-6)
        speeds = [(point, speed) for result, point in told if (speed := _speed(result)) is not None and speed > 0]
        drops = [(point, drop) for result, point in told if (drop := _drop(result, question.max_drop)) is not None]
        self._speed = self._fit(speeds, given, 0.0, "speed")
        self._drop = self._fit([(point, float(scaled(drop, self.unit))) for point, drop in drops], given, 0.0, "drop")
        self._limits = [(one, self._fit_limit(one, told)) for one in question.constraints]
        self.least = min([0.0, *(drop for _, drop in drops)])

    def at(self, points: Points) -> Expected:
        features, singles = self.features(points), self.singles(points)
        mean, deviation = self._speed.predict(features, singles)
        drop, drop_deviation = self._drop.predict(features, singles)
        feasible = np.ones(len(points))
        cost = np.zeros(len(points))
        for limit, fit in self._limits:
            if fit is None:
                continue
            value, spread = fit.predict(features, singles)
            if limit.soft:
                cost += [max(0.0, limit.missed_by(one)) for one in np.exp(value)]
            else:
                side = 1 if limit.sign == "<=" else -1
                feasible *= normal_below(side * (math.log(max(limit.limit, 1e-12)) - value) / spread)
        log_speed = np.log(self.forecast.speedup(points)) + mean - np.log1p(cost)
        return Expected(log_speed, np.maximum(deviation, 0.01), drop, drop_deviation, feasible, self.unit, self.least)

    def features(self, points: Points) -> Floats:
        """What is known of a recipe before it is trained, (points, features)."""
        forecast = self.forecast
        harm, look = forecast.harm(points), forecast.look(points)
        columns = [np.log1p(10 * one) for one in harm.values()]
        columns.append(np.log1p(10 * sum(harm.values(), np.zeros(len(points)))))
        columns += [np.log(np.maximum(look[:, 0], 1e-9)), np.log(np.maximum(look[:, 1], 1.0))]
        for kind in (KEEP, RANK, BITS):
            values = [np.array(dim.choices, dtype=float)[points[:, place]] for place, dim in enumerate(forecast.dims) if dim.kind == kind]
            if not values:
                continue
            table = np.array(values)  # (dimensions, points)
            if kind == BITS:
                columns.append((table < FLOAT_BITS).mean(0))
            else:
                columns += [table.mean(0), table.min(0)]
        plain = self.singles(points)
        columns += [plain[:, place] for place, dim in enumerate(forecast.dims) if dim.kind not in HARMFUL or dim.kind == SPARSITY]
        return np.column_stack(columns)

    def singles(self, points: Points) -> Floats:
        """Each choice as its place on its ladder, 0..1."""
        return np.asarray(points / np.maximum(self.forecast.sizes - 1, 1))

    def _fit(self, told: Sequence[tuple[Points, float]], given: Points, value: float, what: str) -> Regression:
        told = told[-MOST:]
        points = np.array([given, *(point for point, _ in told)])
        y = np.array([value, *(one for _, one in told)])
        if what == "speed":
            y[1:] = np.log(y[1:]) - np.log(self.forecast.speedup(points[1:]))
        floor = FLOORS[what] if len(told) >= FEW else max(FLOORS[what], self.forecast.error if what == "speed" else 1.0)
        return Regression(self.features(points), self.singles(points), y, floor, self._scale)

    def _fit_limit(self, limit: Constraint, told: Sequence[Seen]) -> Regression | None:
        """Of the logarithm of a bounded quantity; None while too few were measured, and for what may be negative."""
        values = [(point, value_of(limit.name, result.measurement)) for result, point in told[-MOST:] if result.measurement is not None]
        known = [(point, value) for point, value in values if value is not None and value > 0]
        if len(known) < FEW or len(known) < len(values) / 2 or limit.limit <= 0:
            return None
        points = np.array([point for point, _ in known])
        y = np.log([value for _, value in known])
        return Regression(self.features(points), self.singles(points), y, FLOORS["other"], self._scale)


def scaled(drop: float | Floats, unit: float) -> Floats:
    """A drop as it is fitted: straight near 0, logarithmic far out, so that one wrecked model does not decide the fit."""
    return np.asarray(np.arcsinh(np.asarray(drop) / unit))


def unscaled(value: Floats, unit: float) -> Floats:
    return np.asarray(unit * np.sinh(np.clip(value, -20.0, 20.0)))


def normal_below(x: Floats) -> Floats:
    """The standard normal distribution function."""
    return np.array([0.5 * (1 + math.erf(one / math.sqrt(2))) for one in x])


def _speed(result: TrialResult) -> float | None:
    """As it was timed: a prediction teaches nothing about predictions."""
    if result.measurement is not None:
        return result.measurement.speedup
    return None if result.gate_predicted else result.gate_speedup


def _drop(result: TrialResult, max_drop: float) -> float | None:
    if result.measurement is not None:
        return result.measurement.drop
    return result.gate_drop if result.outcome == "gated" else WRECKED * max_drop
