"""Where accuracy went: each class before and after, hard and rare samples, shifted inputs, samples newly broken and newly right."""

import shlex
from collections.abc import Sequence

from autocompress.records import Part
from autocompress.report.drawing import BLUE, GREEN, GREY, RED, SMALL, Drawing, Mark, canvas, rows_, scatter_, settled, shortened
from autocompress.report.facts import Facts, lost, score
from autocompress.report.tables import folded, note, section, table

MOST_CLASSES = 30
MOST_INDICES = 200


def worst_class(facts: Facts) -> Part | None:
    """The class that lost most; None where the task has no classes or nobody looked."""
    return max(facts.inspection.classes if facts.inspection else (), key=facts.lost_by, default=None)


def classes_drawing(facts: Facts) -> Drawing | None:
    """The metric of each class before and after, on holdout; None where it was not looked at."""
    classes = facts.inspection.classes if facts.inspection else ()
    if not classes:
        return None
    order = {id(part): place for place, part in enumerate(classes)}
    shown = sorted(sorted(classes, key=facts.lost_by, reverse=True)[:MOST_CLASSES], key=lambda part: order[id(part)])
    figure, (axes,) = canvas(1.1 + 0.25 * len(shown))
    rows_(axes, [part.name for part in shown])
    low = min(min(part.score, part.baseline_score) for part in shown)
    high = max(max(part.score, part.baseline_score) for part in shown)
    pad = 0.06 * max(high - low, 1.0)
    axes.set_xlim(low - pad, high + pad)
    axes.set_xlabel(f"{shortened(facts.baseline.metric)} of each class, holdout split", fontsize=SMALL)
    for row, part in enumerate(shown):
        axes.plot((part.baseline_score, part.score), (row, row), color=RED if facts.lost_by(part) > 0 else GREEN, linewidth=2, alpha=0.6)
    before = [Mark(part.baseline_score, row, words(facts, part)) for row, part in enumerate(shown)]
    after = [Mark(part.score, row, words(facts, part)) for row, part in enumerate(shown)]
    tips = {
        **scatter_(axes, "before", before, s=30, facecolor="none", edgecolor=GREY, linewidths=1.4, label="baseline"),
        **scatter_(axes, "after", after, s=22, color=BLUE, zorder=3, label=f"trial {facts.trial}"),
    }
    figure.legend(loc="outside upper left", ncols=2)
    some = f"The {len(shown)} of {len(classes)} classes that lost most." if len(shown) < len(classes) else ""
    label = f"{facts.baseline.metric} of {len(shown)} classes before and after"
    return Drawing("classes", "Class by class", label, some, settled(figure), tips)


def words(facts: Facts, part: Part) -> str:
    before, after = (score(value, facts.unit) for value in (part.baseline_score, part.score))
    return f"{part.name}: {before} before, {after} after, {lost(facts.lost_by(part), facts.unit)} lost ({part.samples} samples)"


def samples_section(facts: Facts) -> str:
    """Hard, rare and shifted samples, and those whose answer changed; or a line that says how to get them."""
    found = facts.inspection
    if found is None:
        return section("Where accuracy went", note(how_to_inspect(facts))) if facts.chosen else ""
    parts = [part for part in (found.hard, found.rare, *found.shifts) if part is not None]
    rows = [
        (part.name, part.samples, *(score(value, facts.unit) for value in (part.baseline_score, part.score, facts.lost_by(part))))
        for part in parts
    ]
    tabled = table(("samples", "number", "baseline", f"trial {facts.trial}", "lost"), rows) if rows else ""
    worst = worst_class(facts)
    named = f" The class that lost most is {worst.name}, {lost(facts.lost_by(worst), facts.unit)}." if worst else ""
    flips = f"{len(found.broken)} samples of the {found.split} split are newly wrong, {len(found.righted)} newly right.{named}"
    lists = folded("Which samples", indices("Newly wrong", found.broken), indices("Newly right", found.righted))
    notes = "".join(note(text) for text in found.notes)
    return section("Where accuracy went", note(flips), tabled, lists, notes)


def indices(title: str, places: Sequence[int]) -> str:
    rest = len(places) - MOST_INDICES
    listed = ", ".join(map(str, places[:MOST_INDICES])) or "none"
    return note(f"{title}: {listed}{f' and {rest} more' if rest > 0 else ''}. Numbers are places in the split.")


def how_to_inspect(facts: Facts) -> str:
    command = shlex.join(("autocompress", "resume", facts.config.study))
    return f"Classes, hard samples, memory and throughput of trial {facts.trial} were not looked at. `{command}` measures what is missing."
