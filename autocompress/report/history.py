"""How the search went: speedups in the order of the trials, and the area that the front has won, over trials and over time."""

from collections.abc import Sequence
from itertools import accumulate

from autocompress.records import TrialResult
from autocompress.report.drawing import BLUE, GREY, ORANGE, SMALL, Drawing, Mark, canvas, scatter_, settled
from autocompress.report.facts import Facts, lost, reference, told, within
from autocompress.study import pareto


def history_drawing(facts: Facts) -> Drawing:
    """Speedup of every measured trial by number, and the fastest within both bounds up to there."""
    figure, (axes,) = canvas(3.8)
    points = facts.measured
    first, last = facts.results[0].number, facts.results[-1].number
    top = max([facts.config.min_speedup * 1.15, 1.2, *(point.speedup for point in points.values())])
    axes.set(xlim=(first - 0.5, last + 0.5), ylim=(0, 1.06 * top), xlabel="trial", ylabel="speedup")
    axes.locator_params(axis="x", integer=True)
    met = {trial: within(facts, point) for trial, point in points.items()}
    marks = {trial: Mark(trial, point.speedup, told(facts, trial)) for trial, point in points.items()}
    within_both = [marks[trial] for trial in marks if met[trial]]
    missed = [marks[trial] for trial in marks if not met[trial]]
    tips = {
        **scatter_(axes, "missed", missed, s=14, alpha=0.55, color=GREY, label="not within both"),
        **scatter_(axes, "met", within_both, s=18, alpha=0.8, color=BLUE, label="within both bounds"),
    }
    good = [(trial, point.speedup) for trial, point in points.items() if met[trial]]
    if good:
        trials = [*(trial for trial, _ in good), last + 0.5]
        records = list(accumulate((speed for _, speed in good), max))
        axes.step(trials, [*records, records[-1]], where="post", color=BLUE, linewidth=1.5, label="fastest so far within both")
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper left", ncols=2)
    label = f"Speedup of {len(points)} measured trials in the order of the search"
    caption = f"Search split only. Speedups are against {reference(facts)}."
    return Drawing("history", "How the search went", label, caption, settled(figure), tips)


def progress(facts: Facts) -> tuple[list[float], list[float]]:
    """After each finished trial: minutes that trials took up to there, and the hypervolume of the front."""
    minutes = list(accumulate(sum(result.seconds.values()) / 60 for result in facts.results))
    areas: list[float] = []
    front: list[TrialResult] = []
    for result in facts.results:
        front = pareto.front([*front, result])
        areas.append(pareto.hypervolume(front, facts.config.max_drop))
    return minutes, areas


def hypervolume_drawing(facts: Facts) -> Drawing | None:
    """None where no trial has won any area, so that there is nothing to see."""
    minutes, areas = progress(facts)
    if not areas or areas[-1] <= 0:
        return None
    figure, (by_trial, by_time) = canvas(2.9, 1.0, 1.0, sharey=True)
    trials = [result.number for result in facts.results]
    tips: dict[str, Sequence[str]] = {}
    for axes, name, places in ((by_trial, "trials", trials), (by_time, "minutes", minutes)):
        axes.set(xlim=(0, max(places[-1], 1e-3) * 1.03), ylim=(0, 1.08 * areas[-1]))
        axes.locator_params(axis="x", nbins=5)
        axes.step(places, areas, where="post", color=ORANGE, linewidth=1.5)
        grown = [index for index, area in enumerate(areas) if area > (areas[index - 1] if index else 0.0)]
        said = [f"after trial {trials[index]} and {minutes[index]:.1f} minutes: {areas[index]:.1f}" for index in grown]
        marks = [Mark(places[index], areas[index], tip) for index, tip in zip(grown, said, strict=True)]
        tips |= scatter_(axes, f"area-{name}", marks, s=12, color=ORANGE)
    by_trial.set_xlabel("trial", fontsize=SMALL)
    by_time.set_xlabel("minutes of work on trials", fontsize=SMALL)
    by_trial.set_ylabel("hypervolume", fontsize=SMALL)
    label = f"Hypervolume of the front over {len(trials)} trials and over {minutes[-1]:.1f} minutes"
    drop = lost(facts.config.max_drop, facts.unit)
    caption = f"The area that the front dominates, from speedup 1 and a drop of {drop} on: speedup times what is not lost of that."
    return Drawing("hypervolume", "What the front has won", label, caption, settled(figure), tips)
