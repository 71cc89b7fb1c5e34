"""The gate: which trials stop before they have cost all they could. Pure arithmetic on data.

A trial is asked three times: how fast its untrained structure is, how much it drops before recovery, and how much at a few rungs of the
recovery. It stops when nothing that is known lets it reach the front at its latency within the bounds. What finished trials recovered
from a rung to their end is the only evidence about the last two.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from autocompress.records import TrialResult

RUNGS = (0.0, 0.25, 0.5, 0.75, 1.0)  # shares of the float recovery steps after which a drop is looked at
LEAST_CURVES = 8  # finished curves at a rung before it stops anything
HOPE = 0.95  # share of the finished trials that recovered no more than what is granted to begin with
AUDITED = 0.05  # share of the trials that run to the end whatever the gate says, so that what it loses is known


class Curve(NamedTuple):
    """One finished trial: the drop after so many steps of recovery, on the part that rungs look at; and in the end, as measured."""

    drops: dict[int, float]
    final: float


@dataclass(frozen=True)
class Gate:
    """Bounds, today's front (speedup, drop) and finished curves as data. ``floor_drop``: the drop of a model that makes no mistake;
    ``audit``: what would be stopped runs to the end, and its result says so.
    """

    min_speedup: float = 0.0
    front: tuple[tuple[float, float], ...] = ()
    floor_drop: float = -math.inf
    max_drop: float = math.inf
    curves: tuple[Curve, ...] = ()
    audit: bool = False

    def too_slow(self, speedup: float, high: float, how: str = "before recovery") -> str:
        """Why no accuracy could help a model of this speed (``high``: at the most), or an empty string."""
        if high < self.min_speedup:
            return f"{speedup:.2f}x {how} is below min_speedup {self.min_speedup:g}; it was not trained"
        if any(other > high and drop <= self.floor_drop for other, drop in self.front):
            return f"{speedup:.2f}x {how} is dominated by the front at any accuracy; it was not trained"
        return ""

    def is_fast_enough(self, low: float) -> bool:
        """Nothing is asked of a speed that is surely so high."""
        return not self.too_slow(low, low)

    @property
    def asks_nothing(self) -> bool:
        """As where one recipe is measured for itself: any speed will do, and no drop is judged by it."""
        return self.is_fast_enough(0.0) and not self.front and not self.curves

    def hoped(self, step: int, drop: float) -> float | None:
        """The least drop in the end that a trial with ``drop`` after ``step`` steps may hope for. None: too few curves.

        It is granted the recovery that HOPE of the finished trials did not exceed from this step on, and as much again as that lies
        above their median: where trials recover unequally a rung says little, and there nothing is stopped. Without the second part
        half of the front of `digits` was lost (runs/README.md).
        """
        recovered = [curve.drops[step] - curve.final for curve in self.curves if step in curve.drops]
        if len(recovered) < LEAST_CURVES:
            return None
        return drop - 2 * quantile(recovered, HOPE) + quantile(recovered, 0.5)

    def is_telling(self, step: int) -> bool:
        """Could a look after so many steps stop anything, be it the largest drop that was ever seen? True while too few curves are known.

        On `digits` every recipe stands at chance before recovery, and a look costs as much as a step.
        """
        worst = max((drop for curve in self.curves for drop in curve.drops.values()), default=0.0)
        return self.hoped(step, worst) is None or self.hopeless(step, worst, self.min_speedup) is not None

    def hopeless(self, step: int, drop: float, high: float) -> tuple[float, str] | None:
        """The drop that a trial may hope for, and why that does not reach the front at its latency; None: it may go on."""
        hoped = self.hoped(step, drop)
        if hoped is None:
            return None
        where = f"drop {drop:.2f} " + (f"after {step} steps" if step else "before recovery")
        best = f"{where}: the end that finished trials let it hope for is {hoped:.2f}"
        if hoped > self.max_drop:
            return hoped, f"{best}, above max_drop {self.max_drop:g}"
        rivals = [(other, least) for other, least in self.front if other > high and least <= hoped]
        if rivals:
            other, least = rivals[0]
            return hoped, f"{best}, dominated by {other:.2f}x with drop {least:.2f} (its own speed is at most {high:.2f}x)"
        return None


def curves_of(results: Iterable[TrialResult]) -> tuple[Curve, ...]:
    """Of the trials that were measured and looked at on the way."""
    return tuple(
        Curve({point.step: point.drop for point in result.curve}, result.measurement.drop)
        for result in results
        if result.measurement is not None and result.curve
    )


def is_audited(seed: int, number: int) -> bool:
    """One trial in twenty, by the seed of the study and its own number: the same ones when a study is resumed."""
    digest = hashlib.sha256(f"audit/{seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big") < AUDITED * 2**32


def quantile(values: list[float], share: float) -> float:
    """The smallest value that at least ``share`` (0..1) of ``values`` do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
