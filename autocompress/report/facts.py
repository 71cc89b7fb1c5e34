"""What a report shows, read once from the files of a study, and how its numbers are written."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autocompress.config import SearchConfig
from autocompress.errors import InvalidStudy
from autocompress.records import Baseline, LayerInfo, Machine, Measurement, Target, TrialResult
from autocompress.runs import RunPaths

Row = Mapping[str, Any]
UNKNOWN = "-"
PERCENT = "%"


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

    @property
    def chosen(self) -> Row | None:
        """The best, or where no recipe met both bounds the nearest."""
        return self.summary.get("best") or self.summary.get("nearest")


def read_facts(paths: RunPaths, summary: Row) -> Facts:
    """Raises InvalidStudy where the study does not exist, has no finished trial, or a file of it does not read."""
    config, results = paths.read_config(), paths.results()
    if not results:
        raise InvalidStudy(
            f"study {paths.study!r} has no finished trial, so there is nothing to report. "
            f"Go on with `autocompress resume {paths.study}`."
        )
    baseline, machine, layers = paths.read_baseline(), paths.read_machine(), paths.read_layers()
    return Facts(summary, config, baseline, machine, layers, results, paths.holdouts())


def number(value: float | None, digits: int, unit: str = "") -> str:
    return UNKNOWN if value is None else f"{value + 0.0:.{digits}f}{unit}"


def lost(drop: float | None, unit: str) -> str:
    """A drop with its unit: ``0.50 points``, of percent; ``0.0312 nats``."""
    return number(drop, 2, " points") if unit == PERCENT or drop is None else f"{drop + 0.0:.3g} {unit}".rstrip()


def score(value: float | None, unit: str) -> str:
    """A metric with its unit where that is not percent."""
    return number(value, 2) if unit == PERCENT or value is None else f"{value + 0.0:.4g} {unit}".rstrip()


def drop_title(baseline: Baseline) -> str:
    """``drop of accuracy in points``; ``rise of perplexity`` where lower is better."""
    unit = "points" if baseline.metric_unit == PERCENT else baseline.metric_unit
    return f"{'drop' if baseline.higher_is_better else 'rise'} of {baseline.metric}" + (f" in {unit}" if unit else "")


def size(amount: float | None) -> str:
    """Bytes in decimal units."""
    if amount is None:
        return UNKNOWN
    return f"{amount / 1e6:.2f} MB" if amount >= 1e6 else f"{amount / 1e3:.1f} kB"


def interval(row: Row | None) -> str:
    """``4.12x (3.90 to 4.31)``: a ratio with its 95 % interval."""
    if not row or row.get("speedup") is None:
        return UNKNOWN
    return f"{row['speedup']:.2f}x ({number(row.get('speedup_low'), 2)} to {number(row.get('speedup_high'), 2)})"


def where(target: Target) -> str:
    threads = "1 thread" if target.threads == 1 else f"{target.threads} threads"
    return f"{target.runtime} on {target.device} at batch {target.batches}, {threads}"


def reference(facts: Facts) -> str:
    return f"the same model in fp32 in {where(facts.baseline.target)}"


def bounds(facts: Facts) -> str:
    config, unit = facts.config, facts.baseline.metric_unit
    most = f"{config.max_drop:g} {'points' if unit == PERCENT else unit}".rstrip()
    kept = f", {', '.join(config.constraints)}," if config.constraints else ""
    return f"at most {most} of {facts.baseline.metric} lost{kept} and at least {config.min_speedup:g} times faster"
