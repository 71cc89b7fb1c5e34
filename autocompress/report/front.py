"""The Pareto front: speedup against drop of every trial, with intervals, the bounds, what was chosen and what holdout says of it."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes

from autocompress.records import Measurement
from autocompress.report.drawing import (
    BLUE,
    CARD,
    GREEN,
    GREY,
    INK,
    ORANGE,
    SMALL,
    SOFT,
    Drawing,
    Mark,
    Tips,
    canvas,
    scatter_,
    settled,
    shortened,
)
from autocompress.report.facts import Facts, counted, drop_title, reference, told, where, within

Range = tuple[float, float]


def front_drawing(facts: Facts) -> Drawing:
    figure, (axes,) = canvas(4.4)
    x, y = limits(facts)
    axes.set(xlim=x, ylim=y, ylabel="speedup")
    named = facts.baseline.model_copy(update={"metric": shortened(facts.baseline.metric)})
    axes.set_xlabel(f"{drop_title(named)}\nspeedup 1: fp32 in {where(facts.baseline.target)}", fontsize=SMALL)
    bounds_(axes, facts)
    tips = {**others_(axes, facts), **front_(axes, facts), **chosen_(axes, facts)}
    figure.legend(loc="outside upper left", ncols=2)
    measured, front = len(facts.measured), len(facts.front)
    label = f"Speedup against drop of {measured} measured trials, {front} on the Pareto front"
    caption = f"Speedups are against {reference(facts)}. Point, touch or use the arrow keys: each mark tells its recipe."
    return Drawing("pareto", "Speed against accuracy", label, caption, settled(figure), tips)


def limits(facts: Facts) -> tuple[Range, Range]:
    """Of drop and of speedup: wide enough for the bounds, what was chosen, and three times the allowed drop.

    A collapsed trial does not flatten the others; it lies on the right edge.
    """
    points, config = list(facts.measured.values()), facts.config
    chosen = facts.chosen or {}
    holdout = [chosen["holdout"]] if chosen.get("holdout") else []
    drops = [one.drop for one in points] + [row["drop"] for row in holdout]
    point = abs(facts.baseline.accuracy) / 100 or 1.0  # about one percentage point, whatever the metric counts
    drops = [drop for drop in drops if abs(drop) <= max(3 * config.max_drop, point)] + [row["drop"] for row in (chosen,) if row]
    right = 1.08 * max([1.25 * config.max_drop, 0.5 * point, *drops])
    left = min([0.0, *drops])
    speeds = [row["speedup"] for row in holdout] + [one.speedup_high for one in points if one.drop <= right]
    return (left - 0.04 * (right - left), right), (0.0, 1.06 * max([config.min_speedup * 1.15, 1.2, *speeds]))


def bounds_(axes: Axes, facts: Facts) -> None:
    """The region that was asked for, and its two edges."""
    config, left, top = facts.config, axes.get_xlim()[0], axes.get_ylim()[1]
    axes.fill_between((left, config.max_drop), config.min_speedup, top, color=GREEN, alpha=0.1, linewidth=0)
    dashes: dict[str, Any] = {"color": SOFT, "linestyle": (0, (5, 4)), "linewidth": 0.8}
    axes.axvline(config.max_drop, **dashes)
    axes.axhline(config.min_speedup, **dashes)
    words: dict[str, Any] = {"color": SOFT, "fontsize": SMALL}
    side = "right" if config.max_drop > sum(axes.get_xlim()) / 2 else "left"
    gap = -4 if side == "right" else 4
    most = f"at most {config.max_drop:g} {counted(facts.unit)}".rstrip()
    axes.annotate(most, (config.max_drop, 0), (gap, 4), textcoords="offset points", ha=side, **words)
    right = (axes.get_xlim()[1], config.min_speedup)
    axes.annotate(f"at least {config.min_speedup:g}x", right, (-2, 3), textcoords="offset points", ha="right", **words)


def others_(axes: Axes, facts: Facts) -> Tips:
    """Faint: dominated trials, those outside a bound, those that lost too much to be shown, those that were not trained at all."""
    edge = axes.get_xlim()[1]
    rest = {trial: point for trial, point in facts.measured.items() if trial not in facts.front}
    near = {trial: point for trial, point in rest.items() if point.drop <= edge}
    inside = [mark(facts, trial) for trial, point in near.items() if within(facts, point)]
    outside = [mark(facts, trial) for trial, point in near.items() if not within(facts, point)]
    beyond = [mark(facts, trial) for trial in rest if trial not in near]
    gated = [
        Mark(edge, result.gate_speedup, told(facts, result.number))
        for result in facts.results
        if result.measurement is None and result.gate_speedup is not None
    ]
    faint: dict[str, Any] = {"s": 16, "alpha": 0.55, "linewidths": 0.8}
    return {
        **scatter_(axes, "inside", inside, color=GREY, label="dominated", **faint),
        **scatter_(axes, "outside", outside, facecolor="none", edgecolor=GREY, label="outside a bound", **faint),
        **scatter_(axes, "beyond", beyond, marker=">", color=GREY, label=f"{len(beyond)} lost more", **faint),
        **scatter_(axes, "gated", gated, marker="_", color=GREY, label=f"{len(gated)} stopped on the way", **{**faint, "s": 40}),
        **scatter_(axes, "baseline", [Mark(0, 1, baseline_words(facts))], marker="x", s=28, color=INK, label="baseline"),
    }


def baseline_words(facts: Facts) -> str:
    return f"baseline: fp32 in {facts.baseline.target.runtime}, 1x by definition"


def mark(facts: Facts, trial: int) -> Mark:
    point = facts.measured[trial]
    return Mark(point.drop, point.speedup, told(facts, trial))


def front_(axes: Axes, facts: Facts) -> Tips:
    """The front with its intervals, of drop too where it was measured, and the edge of what was reached."""
    front = sorted(((facts.measured[trial], trial) for trial in facts.front), key=lambda pair: pair[0].drop)
    front = [(point, trial) for point, trial in front if point.drop <= axes.get_xlim()[1]]
    if not front:
        return {}
    corners = staircase([(point.drop, point.speedup) for point, _ in front])
    axes.plot(*zip(*corners, strict=True), color=BLUE, alpha=0.4, linewidth=1)
    intervals_(axes, [point for point, _ in front])
    marks = [mark(facts, trial) for _, trial in front]
    return scatter_(axes, "front", marks, s=30, color=BLUE, zorder=3, label="front, 95 % intervals")


def intervals_(axes: Axes, front: Sequence[Measurement]) -> None:
    lines: dict[str, Any] = {"fmt": "none", "ecolor": BLUE, "elinewidth": 1.2, "capsize": 2}
    drops, speeds = [point.drop for point in front], [point.speedup for point in front]
    up = ([point.speedup - point.speedup_low for point in front], [point.speedup_high - point.speedup for point in front])
    axes.errorbar(drops, speeds, yerr=up, **lines)
    known = [(point, point.drop_low, point.drop_high) for point in front if point.drop_low is not None and point.drop_high is not None]
    if known:
        low, high = [max(point.drop - low, 0) for point, low, _ in known], [max(high - point.drop, 0) for point, _, high in known]
        axes.errorbar([point.drop for point, *_ in known], [point.speedup for point, *_ in known], xerr=(low, high), alpha=0.5, **lines)


def staircase(front: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """(drop, speedup) of a front -> the corners of the edge of what was reached, from the smallest drop on."""
    points = sorted(front)
    return sorted([*points, *((drop, speed) for (_, speed), (drop, _) in pairwise(points))])


def chosen_(axes: Axes, facts: Facts) -> Tips:
    chosen = facts.chosen
    if chosen is None:
        return {}
    trial, holdout = chosen["trial"], chosen.get("holdout")
    tips: dict[str, Sequence[str]] = {}
    if holdout:
        across = (chosen["drop"], min(holdout["drop"], axes.get_xlim()[1]))
        axes.plot(across, (chosen["speedup"], holdout["speedup"]), color=ORANGE, linestyle=":", linewidth=1.2)
        there = Mark(holdout["drop"], holdout["speedup"], f"on holdout: {told(facts, trial, holdout)}")
        hollow: dict[str, Any] = {"marker": "D", "s": 40, "facecolor": CARD, "edgecolor": ORANGE, "zorder": 4}
        tips |= scatter_(axes, "holdout", [there], label="the same on holdout", **hollow)
    here = Mark(chosen["drop"], chosen["speedup"], f"{facts.word}: {told(facts, trial)}")
    look: dict[str, Any] = {"marker": "D", "s": 54, "facecolor": ORANGE, "edgecolor": CARD, "linewidths": 0.8, "zorder": 5}
    return {**tips, **scatter_(axes, "chosen", [here], label=f"{facts.word}: trial {trial}", **look)}
