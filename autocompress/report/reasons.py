"""What each decision of the recipe bought in time and cost in accuracy, where `autocompress explain` has measured it."""

import shlex
from collections.abc import Sequence

from autocompress.records import Attribution, Undone
from autocompress.report.drawing import BLUE, GREY, ORANGE, SMALL, SOFT, Drawing, canvas, rows_, settled, told_
from autocompress.report.facts import PERCENT, Facts, counted, interval, lost, score, signed
from autocompress.report.tables import note, section, table

MOST_DECISIONS = 30


def attribution_of(facts: Facts) -> Attribution | None:
    """That of the chosen trial, or else the first that there is."""
    return facts.attributions.get(facts.trial) or next(iter(facts.attributions.values()), None)


def reasons_drawing(facts: Facts) -> Drawing | None:
    found = attribution_of(facts)
    if found is None or not found.decisions:
        return None
    shown = sorted(found.decisions, key=lambda one: -one.bought_ms)[:MOST_DECISIONS]
    figure, (bought, cost) = canvas(1.0 + 0.36 * len(shown), 1.0, 1.0, sharey=True)
    rows_(bought, [one.decision for one in shown])
    said = [
        f"{one.decision}: bought {signed(one.bought_ms, 3, ' ms')}, cost {cost_of(facts, one)}\n"
        f"without it: {one.speedup:.2f}x, drop {lost(one.drop, facts.unit)}" + ("" if one.bought else "\nbought nothing: it can go")
        for one in shown
    ]
    tips: dict[str, Sequence[str]] = {}
    rows = range(len(shown))
    for axes, name, values, colour in (
        (bought, "ms bought", [one.bought_ms for one in shown], BLUE),
        (cost, f"{counted(facts.unit) or facts.baseline.metric} lost", [one.cost_points for one in shown], ORANGE),
    ):
        colours = [colour if one.bought else GREY for one in shown]
        tips |= told_(axes.barh(rows, values, height=0.7, color=colours).patches, name.replace(" ", "-"), said)
        axes.axvline(0, color=SOFT, linewidth=0.8)
        axes.set_xlabel(name, fontsize=SMALL)
        axes.locator_params(axis="x", nbins=3)
    label = f"What {len(shown)} decisions of trial {found.trial} bought in time and cost in accuracy"
    caption = "Each decision undone in turn and measured. Grey: without it the recipe is no slower, beyond 3 % and the interval."
    return Drawing("attribution", f"Why trial {found.trial} is fast", label, caption, settled(figure), tips)


def cost_of(facts: Facts, one: Undone) -> str:
    return f"{signed(one.cost_points, 2 if facts.unit == PERCENT else 4)} {counted(facts.unit)}".rstrip()


def reasons_section(facts: Facts) -> str:
    found = attribution_of(facts)
    if found is None:
        command = shlex.join(("autocompress", "explain", facts.config.study, "--trial", str(facts.trial)))
        asked = f"`{command}` undoes each decision of the recipe in turn and measures what it bought."
        return section("Why this recipe", note(asked)) if facts.chosen else ""
    head = ("decision", "layers", "bought", "cost", "speedup without it", "drop without it")
    rows = [
        (
            one.decision if one.bought else f"{one.decision} (bought nothing)",
            str(len(one.layers)),
            signed(one.bought_ms, 3, " ms"),
            cost_of(facts, one),
            f"{one.speedup:.2f}x",
            score(one.drop, facts.unit),
        )
        for one in found.decisions
    ]
    point, simpler = found.simpler_measurement, ""
    if point is not None:
        numbers = f"{interval(point.model_dump())}, drop {lost(point.drop, facts.unit)}"
        simpler = note(f"Without the decisions that bought nothing, the smaller recipe is measured at {numbers}.")
    return section(f"Why trial {found.trial} is fast", table(head, rows, "layers"), simpler)
