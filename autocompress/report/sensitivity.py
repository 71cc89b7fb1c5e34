"""What the finished trials say of each thing that the search varied: rank correlation with speedup and with drop.

Spearman's rho over the measured trials. It is what went together in these trials, not what a change would cause: a search looks more
often where it found something.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from autocompress.report.drawing import BLUE, ORANGE, SMALL, SOFT, Drawing, canvas, rows_, settled, told_
from autocompress.report.facts import Facts
from autocompress.study.space import Dimension, dimensions, sampled

FEWEST_TRIALS = 10  # below, a rank correlation says nothing
MOST_SHOWN = 14


@dataclass(frozen=True)
class Sensitivity:
    """Spearman's rank correlations, -1 to 1, of a dimension's place in its ladder; ``trials`` that it was measured in."""

    dimension: Dimension
    speedup: float
    drop: float
    trials: int

    @property
    def strength(self) -> float:
        return max(abs(self.speedup), abs(self.drop))


def sensitivities(facts: Facts) -> list[Sensitivity]:
    """The strongest first. Dimensions whose choices have no order (more than two names) are left out, and those that never varied."""
    rows = [result for result in facts.results if result.measurement is not None and result.params]
    if len(rows) < FEWEST_TRIALS:
        return []
    table = pd.DataFrame([result.params for result in rows])
    reached = pd.DataFrame([{"speedup": one.speedup, "drop": one.drop} for one in (result.measurement for result in rows) if one])
    found = []
    for dimension in sampled(dimensions(facts.config.space, facts.layers)):
        ordered = dimension.is_numeric or len(dimension.choices) == 2
        if ordered and dimension.name in table and int((column := table[dimension.name]).count()) >= FEWEST_TRIALS:
            rho = {name: rank_correlation(column, reached[name]) for name in ("speedup", "drop")}
            found.append(Sensitivity(dimension, rho["speedup"], rho["drop"], int(column.count())))
    return sorted((one for one in found if one.strength > 0), key=lambda one: -one.strength)


def rank_correlation(one: "pd.Series[float]", other: "pd.Series[float]") -> float:
    """Spearman's rho: Pearson's correlation of the ranks, ties sharing theirs; 0 where one of them never varies."""
    first, second = (side[one.notna()].rank() for side in (one, other))
    return 0.0 if min(first.nunique(), second.nunique()) < 2 else float(first.corr(second))


def ladder(dimension: Dimension) -> str:
    first, last = (f"{value:g}" if isinstance(value, float) else str(value) for value in (dimension.choices[0], dimension.choices[-1]))
    return f"{first} to {last}"


def alone(facts: Facts, one: Sensitivity) -> str:
    """What the survey measured of the dimension's choices, each made alone; an empty string where it measured none."""
    tried = facts.survey.tried if facts.survey is not None else ()
    harms = [f"{choice.value}: {choice.harm:+.3f}" for choice in tried
             if f"{choice.kind}:{choice.name}" == one.dimension.name and choice.harm is not None]  # fmt: skip
    return f"\nrise of the loss by the choice alone, untrained: {', '.join(harms)}" if harms else ""


def sensitivity_drawing(facts: Facts) -> Drawing | None:
    """None where too few trials were measured to say anything."""
    found = sensitivities(facts)
    if not found:
        return None
    shown = found[:MOST_SHOWN]
    figure, (axes,) = canvas(1.1 + 0.36 * len(shown))
    rows_(axes, [one.dimension.name for one in shown], longest=30)
    axes.set_xlim(-1, 1)
    axes.axvline(0, color=SOFT, linewidth=0.8)
    axes.set_xlabel("rank correlation", fontsize=SMALL)
    tips: dict[str, Sequence[str]] = {}
    for name, colour, shift in (("speedup", BLUE, -0.19), ("drop", ORANGE, 0.19)):
        values = [getattr(one, name) for one in shown]
        bars = axes.barh([row + shift for row in range(len(shown))], values, height=0.34, color=colour, label=f"with {name}")
        said = [f"{one.dimension.name}, {ladder(one.dimension)}: {value:+.2f} with {name} ({one.trials} trials){alone(facts, one)}"
                for one, value in zip(shown, values, strict=True)]  # fmt: skip
        tips |= told_(bars.patches, f"rho-{name}", said)
    figure.legend(loc="outside upper left", ncols=2)
    label = f"Rank correlation of {len(shown)} searched dimensions with speedup and drop"
    left = f" The {len(shown)} strongest of {len(found)}." if len(found) > len(shown) else ""
    caption = (
        "What the measured trials say: Spearman's rank correlation of each searched choice, from its smallest to its largest, with speedup "
        f"and with drop. It is not a cause: the search looks more often where it found something.{left}"
    )
    return Drawing("sensitivity", "What went together with speed and drop", label, caption, settled(figure), tips)
