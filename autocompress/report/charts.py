"""The Pareto front as SVG for the page and as PNG for elsewhere, and the history of the search as SVG."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate, pairwise

from matplotlib.axes import Axes as Plot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from autocompress.records import Measurement
from autocompress.report.facts import PERCENT, Facts, Row, drop_title, interval, lost, reference, size

WIDTH, HEIGHT = 520, 380  # of the SVG's own units; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 58, 18, 16, 58
Range = tuple[float, float]


@dataclass(frozen=True)
class Axes:
    """What the plotting area shows: from the smallest to the largest value, in data units."""

    x: Range
    y: Range


def place(axes: Axes, x: float, y: float) -> tuple[float, float]:
    """Data units -> units of the SVG; what lies outside lands on the edge."""
    across = min(max((x - axes.x[0]) / (axes.x[1] - axes.x[0]), 0.0), 1.0)
    up = min(max((y - axes.y[0]) / (axes.y[1] - axes.y[0]), 0.0), 1.0)
    return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) from low to high, at most ``most`` + 1 of them."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= most)
    return [count * step for count in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def measured(facts: Facts) -> list[tuple[int, Measurement]]:
    return [(result.number, result.measurement) for result in facts.results if result.measurement is not None]


def pareto_axes(facts: Facts) -> Axes:
    """Wide enough for the bounds, what was chosen, and three times the allowed drop; a collapsed trial does not flatten them."""
    points, config = [point for _, point in measured(facts)], facts.config
    drops = [point.drop for point in points]
    chosen = [row["drop"] for row in (facts.chosen, (facts.chosen or {}).get("holdout")) if row]
    point = abs(facts.baseline.accuracy) / 100 or 1.0  # about one percentage point, whatever the metric counts
    ordinary = [drop for drop in drops if abs(drop) <= max(3 * config.max_drop, point)]
    right = 1.08 * max([1.25 * config.max_drop, 0.5 * point, *ordinary, *chosen])
    left = min([0.0, *ordinary, *chosen])
    top = max([config.min_speedup * 1.15, 1.2, *(point.speedup_high for point in points if point.drop <= right)])
    return Axes((left - 0.04 * (right - left), right), (0.0, 1.06 * top))


def svg_frame(axes: Axes, x_title: str, y_title: str) -> str:
    """Grid, tick labels and titles of both axes."""
    parts = []
    for value in ticks(*axes.x):
        x, y = place(axes, value, axes.y[0])
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 20:.1f}" text-anchor="middle">{value + 0.0:g}</text>')
    for value in ticks(*axes.y):
        x, y = place(axes, axes.x[0], value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{x - 8:.1f}" y="{y + 5:.1f}" text-anchor="end">{value + 0.0:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text x="{middle[0]}" y="{HEIGHT - 12}" text-anchor="middle">{escape(x_title)}</text>')
    parts.append(f'<text transform="translate(18 {middle[1]}) rotate(-90)" text-anchor="middle">{escape(y_title)}</text>')
    return "".join(parts)


def figure(title: str, label: str, body: str, caption: str) -> str:
    """``caption`` is HTML; the others are text."""
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{body}</svg>'
    return f"<figure><h2>{escape(title)}</h2>{svg}<figcaption>{caption}</figcaption></figure>"


def key(kind: str, text: str) -> str:
    """An entry of a chart's legend."""
    return f'<span class="key"><svg viewBox="-8 -8 16 16" aria-hidden="true">{mark(kind, 0, 0)}</svg>{escape(text)}</span> '


def mark(kind: str, x: float, y: float, title: str = "") -> str:
    """A point of the chart; ``title`` shows when the pointer rests on it."""
    shape = {
        "best": f'<path d="M{x:.1f} {y - 8:.1f}l8 8l-8 8l-8 -8z"/>',
        "holdout": f'<path d="M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z"/>',
        "beyond": f'<path d="M{x - 6:.1f} {y - 4:.1f}l6 4l-6 4z"/>',
        "baseline": f'<path d="M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10"/>',
        "line": f'<path d="M{x - 7:.1f} {y:.1f}h14"/>',
        "front": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5"/>',
    }.get(kind, f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
    hint = f"<title>{escape(title)}</title>" if title else ""
    return f'<g class="{kind}">{hint}{shape}</g>'


def hint(facts: Facts, trial: int, row: Row) -> str:
    drop = lost(row["drop"], facts.baseline.metric_unit)
    return f"trial {trial}: {interval(row)}, drop {drop}, {size(row.get('size_bytes'))}"


def path(kind: str, points: Iterable[tuple[float, float]]) -> str:
    return f'<path class="{kind}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in points)}"/>'


def pareto_svg(facts: Facts) -> str:
    axes = pareto_axes(facts)
    front = [row for row in facts.summary.get("front") or [] if row["drop"] <= axes.x[1]]
    ours = {row["trial"] for row in front}
    faint = [(trial, point.model_dump()) for trial, point in measured(facts) if trial not in ours]
    beyond = sum(row["drop"] > axes.x[1] for _, row in faint)
    parts = [svg_frame(axes, drop_title(facts.baseline), "speedup"), svg_bounds(facts, axes)]
    for trial, row in faint:
        kind = "beyond" if row["drop"] > axes.x[1] else "measured"
        parts.append(mark(kind, *place(axes, row["drop"], row["speedup"]), hint(facts, trial, row)))
    parts.append(mark("baseline", *place(axes, 0, 1), f"baseline: fp32 in {facts.baseline.target.runtime}, 1x by definition"))
    parts += [path("staircase", (place(axes, *corner) for corner in staircase(front)))] if front else []
    for row in front:
        low, high = (place(axes, row["drop"], row.get(name) or row["speedup"]) for name in ("speedup_low", "speedup_high"))
        parts.append(path("error", (low, high)))
        parts.append(mark("front", *place(axes, row["drop"], row["speedup"]), hint(facts, row["trial"], row)))
    parts.append(svg_chosen(facts, axes))
    label = f"Speedup against drop of {len(faint) + len(front)} measured trials, {len(front)} on the Pareto front"
    return figure("Speed against accuracy", label, "".join(parts), pareto_keys(facts, beyond))


def pareto_keys(facts: Facts, beyond: int) -> str:
    keys = [("front", "front, with 95 % intervals"), ("measured", "other measured trials"), ("baseline", "baseline")]
    keys += [("best", "best" if facts.summary.get("best") else "nearest")] if facts.chosen else []
    keys += [("holdout", "the same on holdout")] if (facts.chosen or {}).get("holdout") else []
    keys += [("beyond", f"{beyond} at the right edge lost more")] if beyond else []
    return "".join(key(kind, text) for kind, text in keys) + escape(f"Speedups are against {reference(facts)}.")


def staircase(front: Sequence[Row]) -> list[tuple[float, float]]:
    """The edge of what was reached: (drop, speedup) corners, from the smallest drop on."""
    points = sorted((row["drop"], row["speedup"]) for row in front)
    return sorted([*points, *((drop, speed) for (_, speed), (drop, _) in pairwise(points))])


def svg_bounds(facts: Facts, axes: Axes) -> str:
    """The region that was asked for, and its two edges."""
    config = facts.config
    x, y = place(axes, config.max_drop, config.min_speedup)
    side, anchor = (-5, "end") if x > LEFT + 160 else (5, "start")
    allowed = f'<rect class="allowed" x="{LEFT}" y="{TOP}" width="{x - LEFT:.1f}" height="{y - TOP:.1f}"/>'
    edges = path("bound", ((x, TOP), (x, HEIGHT - BOTTOM))) + path("bound", ((LEFT, y), (WIDTH - RIGHT, y)))
    unit = "points" if facts.baseline.metric_unit == PERCENT else facts.baseline.metric_unit
    most, least = escape(f"at most {config.max_drop:g} {unit}".rstrip()), f"at least {config.min_speedup:g}x"
    labels = (
        f'<text class="small" x="{x + side:.1f}" y="{HEIGHT - BOTTOM - 8}" text-anchor="{anchor}">{most}</text>'
        f'<text class="small" x="{WIDTH - RIGHT - 4}" y="{y - 6:.1f}" text-anchor="end">{least}</text>'
    )
    return allowed + edges + labels


def svg_chosen(facts: Facts, axes: Axes) -> str:
    chosen = facts.chosen
    if chosen is None:
        return ""
    word, holdout = "best" if facts.summary.get("best") else "nearest", chosen.get("holdout")
    x, y = place(axes, chosen["drop"], chosen["speedup"])
    parts = []
    if holdout:
        there = place(axes, holdout["drop"], holdout["speedup"])
        parts += [path("thread", ((x, y), there)), mark("holdout", *there, f"on holdout, {hint(facts, chosen['trial'], holdout | {})}")]
    side, anchor = (-12, "end") if x > LEFT + 160 else (12, "start")  # nothing is both faster and better: upper left is free
    parts.append(mark("best", x, y, f"{word}, {hint(facts, chosen['trial'], chosen)}"))
    name = f"{word}: trial {chosen['trial']}"
    parts.append(f'<text class="name" x="{x + side:.1f}" y="{y - 8:.1f}" text-anchor="{anchor}">{escape(name)}</text>')
    return "".join(parts)


def history_svg(facts: Facts) -> str:
    """Speedup of every measured trial by number, and the fastest within both bounds up to there."""
    config, points = facts.config, measured(facts)
    last = facts.results[-1].number
    top = max([config.min_speedup * 1.15, 1.2, *(point.speedup for _, point in points)])
    axes = Axes((min(facts.results[0].number, last - 1) - 0.5, last + 0.5), (0.0, 1.06 * top))
    parts = [svg_frame(axes, "trial", "speedup")]
    met = {trial: within(facts, point) for trial, point in points}
    parts += [
        mark("met" if met[trial] else "measured", *place(axes, trial, point.speedup), hint(facts, trial, point.model_dump()))
        for trial, point in points
    ]
    good = [(trial, point.speedup) for trial, point in points if met[trial]]
    records = list(accumulate((speed for _, speed in good), max))
    steps = [(trial, record) for (trial, _), record in zip(good, records, strict=True)]
    if steps:
        corners = [corner for (_, record), (trial, better) in pairwise(steps) for corner in ((trial, record), (trial, better))]
        parts.append(path("record", (place(axes, *corner) for corner in [steps[0], *corners, (last + 0.5, records[-1])])))
    keys = key("met", "within both bounds") + key("measured", "not within both") + key("line", "fastest so far within both")
    keys += escape(f"Search split only. Speedups are against {reference(facts)}.")
    label = f"Speedup of {len(points)} measured trials in the order of the search"
    return figure("How the search went", label, "".join(parts), keys)


def within(facts: Facts, point: Measurement) -> bool:
    config = facts.config
    return point.drop <= config.max_drop and point.speedup >= config.min_speedup and all(one.excess(point) <= 0 for one in config.limits)


def draw_png(facts: Facts) -> Figure:
    """The Pareto figure in matplotlib, without pyplot and its global state."""
    shown, config = pareto_axes(facts), facts.config
    drawing = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.add_subplot(xlim=shown.x, ylim=shown.y, ylabel="speedup")
    beyond = sum(point.drop > shown.x[1] for _, point in measured(facts))
    axes.set_xlabel(plain(drop_title(facts.baseline)) + (f" ({beyond} trials lost more)" if beyond else ""))
    axes.set_title(plain(f"{config.study}: speedup against {reference(facts)}"), fontsize=9)
    axes.fill_between((shown.x[0], config.max_drop), config.min_speedup, shown.y[1], color="#2f8f5b", alpha=0.08, linewidth=0)
    axes.axvline(config.max_drop, color="#777", linestyle="--", linewidth=1)
    axes.axhline(config.min_speedup, color="#777", linestyle="--", linewidth=1)
    points = [point for _, point in measured(facts)]
    spots = [point.drop for point in points], [point.speedup for point in points]
    axes.scatter(*spots, s=18, color="#9aa3ad", alpha=0.6, label="measured")
    axes.scatter([0], [1], marker="x", color="#333", label="baseline")
    draw_front(axes, facts)
    axes.grid(alpha=0.2)
    axes.legend(loc="best", fontsize=9, frameon=False)
    return drawing


def draw_front(axes: Plot, facts: Facts) -> None:
    """The front with intervals, and the recipe that was chosen."""
    front = sorted(facts.summary.get("front") or [], key=lambda row: float(row["drop"]))
    if front:
        drops, speeds = [row["drop"] for row in front], [row["speedup"] for row in front]
        low = [row["speedup"] - (row.get("speedup_low") or row["speedup"]) for row in front]
        high = [(row.get("speedup_high") or row["speedup"]) - row["speedup"] for row in front]
        axes.errorbar(drops, speeds, yerr=(low, high), fmt="o", color="#2a6fdb", capsize=3, label="front, 95 % intervals")
        axes.step(drops, speeds, where="post", color="#2a6fdb", alpha=0.4, linewidth=1)
    if facts.chosen:
        name = f"{'best' if facts.summary.get('best') else 'nearest'}: trial {facts.chosen['trial']}"
        axes.scatter([facts.chosen["drop"]], [facts.chosen["speedup"]], s=90, marker="D", color="#c9560f", zorder=5, label=name)


def plain(text: str) -> str:
    """Matplotlib reads a pair of dollar signs as mathematics."""
    return text.replace("$", r"\$")
