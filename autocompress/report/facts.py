"""What a report shows, read once from the files of a study, and how its numbers are written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from autocompress.config import SearchConfig
from autocompress.errors import InvalidStudy
from autocompress.records import Attribution, Baseline, Inspection, LayerInfo, Machine, Measurement, Part, Survey, Target, TrialResult
from autocompress.runs import RunPaths
from autocompress.study import pareto
from autocompress.study.summary import gate_savings

Row = Mapping[str, Any]
UNKNOWN = "-"
PERCENT = "%"
MOST_LINES = 10  # of a recipe in words, beside the mark of a figure
OUTCOMES = {
    "measured": "ran to the end",
    "gated": "stopped on the way: it could not reach the front within the bounds",
    "infeasible": "this model or target cannot realize it",
    "out_of_memory": "ran out of memory",
    "diverged": "the loss was no longer finite",
    "timed_out": "took too long",
    "died": "its process died",
}


@dataclass(frozen=True)
class Facts:
    """All that a report shows, read once. ``summary`` is what ``show --json`` prints."""

    summary: Row
    config: SearchConfig
    baseline: Baseline
    machine: Machine
    layers: tuple[LayerInfo, ...]
    results: list[TrialResult]
    holdouts: dict[int, Measurement]
    inspections: dict[int, Inspection]
    attributions: dict[int, Attribution]
    survey: Survey | None = None

    @property
    def chosen(self) -> Row | None:
        """The best, or where no recipe met both bounds the nearest."""
        return self.summary.get("best") or self.summary.get("nearest")

    @property
    def unit(self) -> str:
        """That of the task's metric."""
        return self.baseline.metric_unit

    def lost_by(self, part: Part) -> float:
        """How much worse the metric is on a part of the samples, in its unit."""
        fell = part.baseline_score - part.score
        return fell if self.baseline.higher_is_better else -fell

    @property
    def word(self) -> str:
        """What the chosen trial is."""
        return "best" if self.summary.get("best") else "nearest"

    @property
    def trial(self) -> int:
        """Number of the chosen trial; -1 where there is none."""
        return int(self.chosen["trial"]) if self.chosen else -1

    @cached_property
    def measured(self) -> dict[int, Measurement]:
        """Search measurements, by trial number."""
        return {result.number: result.measurement for result in self.results if result.measurement is not None}

    @cached_property
    def front(self) -> list[int]:
        """Trials of the front, as `show` has them."""
        return [row["trial"] for row in self.summary.get("front") or []]

    @cached_property
    def recipes(self) -> dict[int, str]:
        """Every trial's recipe in words, a line a changed layer or run of equal ones."""
        return {result.number: cut(pareto.describe(result.recipe, self.layers)) for result in self.results}

    @property
    def gate(self) -> str:
        """What stopping trials on their way saved and may have lost; an empty string where it stopped and audited none."""
        savings = gate_savings(self.results, pareto.bounds_of(self.config))
        return str(savings) if savings.gated or savings.audits else ""

    @property
    def inspection(self) -> Inspection | None:
        return self.inspections.get(self.trial)


def read_facts(paths: RunPaths, summary: Row) -> Facts:
    """Raises InvalidStudy where the study does not exist, has no finished trial, or a file of it does not read."""
    config, results = paths.read_config(), paths.results()
    if not results:
        raise InvalidStudy(
            f"study {paths.study!r} has no finished trial, so there is nothing to report. "
            f"Go on with `autocompress resume {paths.study}`."
        )
    baseline, machine, layers = paths.read_baseline(), paths.read_machine(), paths.read_layers()
    also = paths.holdouts(), paths.inspections(), paths.attributions()
    return Facts(summary, config, baseline, machine, layers, results, *also, paths.read_survey())


def cut(lines: Sequence[str]) -> str:
    """At most MOST_LINES and a line that counts the rest; the last two stay, for they tell of the training."""
    rest = len(lines) - MOST_LINES
    return "\n".join(lines if rest <= 0 else [*lines[: MOST_LINES - 2], f"and {rest} lines more", *lines[-2:]])


def told(facts: Facts, trial: int, row: Row | None = None) -> str:
    """What the mark of a trial says: its numbers (those of ``row``, where it is given), then its recipe in words."""
    point = facts.measured.get(trial)
    if row is None and point is None:
        result = next(result for result in facts.results if result.number == trial)
        how = "as predicted" if result.gate_predicted else "before training"
        speed = "" if result.gate_speedup is None else f", {result.gate_speedup:.2f}x {how}"
        return f"trial {trial}: {OUTCOMES[result.outcome]}{speed}\n{facts.recipes[trial]}"
    shown = row or (point.model_dump(include={"speedup", "speedup_low", "speedup_high", "drop", "size_bytes"}) if point else {})
    weight = f", {size(shown['size_bytes'])}" if shown.get("size_bytes") is not None else ""
    return f"trial {trial}: {interval(shown)}, drop {lost(shown['drop'], facts.unit)}{weight}\n{facts.recipes[trial]}"


def within(facts: Facts, point: Measurement) -> bool:
    """Does it keep both bounds, and the constraints?"""
    return pareto.bounds_of(facts.config).hold(point)


def number(value: float | None, digits: int, unit: str = "") -> str:
    """Trailing zeros stay: they say how much was measured. Never "-0.00"."""
    return UNKNOWN if value is None else f"{value:z.{digits}f}{unit}"


def signed(value: float | None, digits: int, unit: str = "") -> str:
    return UNKNOWN if value is None else f"{value:+z.{digits}f}{unit}"


def lost(drop: float | None, unit: str) -> str:
    """A drop with its unit: ``0.50 points``, of percent; ``0.0312 nats``."""
    return number(drop, 2, " points") if unit == PERCENT or drop is None else f"{drop + 0.0:.3g} {unit}".rstrip()


def score(value: float | None, unit: str) -> str:
    """A metric with its unit where that is not percent."""
    return number(value, 2) if unit == PERCENT or value is None else f"{value + 0.0:.4g} {unit}".rstrip()


def counted(unit: str) -> str:
    """What a drop is counted in: a drop of percent in points."""
    return "points" if unit == PERCENT else unit


def drop_title(baseline: Baseline) -> str:
    """``drop of accuracy in points``; ``rise of perplexity`` where lower is better."""
    unit = counted(baseline.metric_unit)
    return f"{'drop' if baseline.higher_is_better else 'rise'} of {baseline.metric}" + (f" in {unit}" if unit else "")


def size(amount: float | None) -> str:
    """Bytes in decimal units."""
    if amount is None:
        return UNKNOWN
    return f"{amount / 1e6:.2f} MB" if abs(amount) >= 1e6 else f"{amount / 1e3:.1f} kB"


def interval(row: Row | None) -> str:
    """``4.12x (3.90 to 4.31)``: a ratio with its 95 % interval."""
    if not row or row.get("speedup") is None:
        return UNKNOWN
    return f"{row['speedup']:.2f}x ({number(row.get('speedup_low'), 2)} to {number(row.get('speedup_high'), 2)})"


def drop_interval(point: Measurement | None, unit: str) -> str:
    """``0.50 (0.10 to 0.90)``: what was lost, with the paired 95 % interval where it was measured."""
    if point is None:
        return UNKNOWN
    known = point.drop_low is not None and point.drop_high is not None
    low, high = (score(end, unit) for end in (point.drop_low, point.drop_high))
    return score(point.drop, unit) + (f" ({low} to {high})" if known else "")


def where(target: Target) -> str:
    threads = "1 thread" if target.threads == 1 else f"{target.threads} threads"
    return f"{target.runtime} on {target.device} at batch {target.batches}, {threads}"


def reference(facts: Facts) -> str:
    return f"the same model in fp32 in {where(facts.baseline.target)}"


def bounds(facts: Facts) -> str:
    config, unit = facts.config, facts.baseline.metric_unit
    most = f"{config.max_drop:g} {counted(unit)}".rstrip()
    kept = f", {', '.join(config.constraints)}," if config.constraints else ""
    return f"at most {most} of {facts.baseline.metric} lost{kept} and at least {config.min_speedup:g} times faster"
