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
    config = facts.config
    return f"at most {config.max_drop:g} points of {facts.baseline.metric} lost and at least {config.min_speedup:g} times faster"
