"""The summary of a study, which `show --json` prints: what the trials amount to, who proposed them, what the gate saved."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from autocompress.config import SearchConfig
from autocompress.errors import InvalidStudy
from autocompress.records import Baseline, GateSavings, Measurement, TrialResult
from autocompress.study.contenders import equals
from autocompress.study.pareto import TWO, Bounds, best, bounds_of, front, hypervolume, measured, nearest


def sources(results: Sequence[TrialResult], max_drop: float, objectives: Sequence[str] = TWO) -> dict[str, dict[str, float]]:
    """What each source of proposals earned: its trials, those measured, those on the front, the hypervolume lost without them all."""
    whole, on_front = hypervolume(results, max_drop), {result.number for result in front(results, objectives)}
    names = list(dict.fromkeys(result.source for result in results))
    own = {name: [result for result in results if result.source == name] for name in names}
    return {
        name: {
            "trials": len(own[name]),
            "measured": len(measured(own[name])),
            "front": sum(result.number in on_front for result in own[name]),
            "lost_without": whole - hypervolume([result for result in results if result.source != name], max_drop),
        }
        for name in names
    }


def outcomes(results: Iterable[TrialResult]) -> dict[str, int]:
    """How many trials ended how, most frequent first."""
    ended = [result.outcome for result in results]
    return dict(sorted(((name, ended.count(name)) for name in set(ended)), key=lambda item: (-item[1], item[0])))


def gate_savings(results: Sequence[TrialResult], bounds: Bounds) -> GateSavings:
    """What the gate saved, and which audits are front members that it would have lost."""
    gated = [result for result in results if result.outcome == "gated"]
    whole = [sum(result.seconds.values()) for result, _ in measured(results)]
    usual = sum(whole) / len(whole) if whole else 0.0
    audits = [result for result, _ in measured(results) if result.audit]
    lost = [result for result in front(within_bounds(results, bounds)) if result.audit]
    seconds = sum(max(0.0, usual - sum(result.seconds.values())) for result in gated)
    return GateSavings(gated=len(gated), audits=len(audits), seconds=seconds, lost=len(lost))


def within_bounds(results: Iterable[TrialResult], bounds: Bounds) -> list[TrialResult]:
    return [result for result, point in measured(results) if bounds.hold(point)]


def row(result: TrialResult, holdout: Measurement | None, bounds: Bounds) -> dict[str, Any]:
    """One line of the front: numbers of the search split, and those of the holdout split where it was measured.

    ``batches`` are empty and ``worst`` is None where one batch size was asked. ``failed``: the bounds and constraints that do not hold
    there, with what was measured.
    """
    point = result.measurement
    if point is None:
        raise InvalidStudy(f"trial {result.number} has no measurement, it ended as {result.outcome}.")
    shown = {"speedup", "speedup_low", "speedup_high", "drop"}
    return {
        "trial": result.number,
        **point.model_dump(mode="json", include=shown | {"size_bytes", "latency_ms", "accuracy", "batches"}),
        "worst": point.worst.model_dump(mode="json") if point.worst else None,
        "failed": bounds.failed(point),
        "holdout": None if holdout is None else {**holdout.model_dump(mode="json", include=shown), "failed": bounds.failed(holdout)},
    }


def confirmed(holdout: Measurement | None, bounds: Bounds) -> bool | None:
    """Does the holdout split agree that all bounds hold? None while it was not measured."""
    return None if holdout is None else bounds.hold(holdout)


def summary(
    config: SearchConfig,
    baseline: Baseline | None,
    results: Sequence[TrialResult],
    holdouts: Mapping[int, Measurement],
    *,
    state: str,
    stopped: str | None = None,
) -> dict[str, Any]:
    """What `show --json` prints; a contract. Every number is finite, what is missing is None.

    ``equals``: neighbours on the front whose intervals of speed overlap, the faster one first.
    """
    bounds = bounds_of(config)
    chosen = best(results, bounds)
    near = nearest(results, bounds) if chosen is None else None
    shown = front(results, config.space.objectives)

    def judged(result: TrialResult | None) -> dict[str, Any] | None:
        holdout = holdouts.get(result.number) if result is not None else None
        return None if result is None else {**row(result, holdout, bounds), "confirmed": confirmed(holdout, bounds)}

    return {
        "study": config.study,
        "state": state,
        "finished": len(results),
        "budget": config.budget.trials,
        "budget_seconds": config.budget.seconds,
        "stopped": stopped,
        "outcomes": outcomes(results),
        "gate": gate_savings(results, bounds).model_dump(mode="json"),
        "target": config.target.model_dump(mode="json"),
        "max_drop": config.max_drop,
        "min_speedup": config.min_speedup,
        "constraints": list(config.constraints),
        "baseline": baseline.model_dump(mode="json") if baseline is not None else None,
        "equals": [list(pair) for pair in equals(results, bounds) if set(pair) <= {result.number for result in shown}],
        "front": [row(result, holdouts.get(result.number), bounds) for result in shown],
        "best": judged(chosen),
        "nearest": judged(near),
        "objectives": list(config.space.objectives),
        "hypervolume": hypervolume(results, config.max_drop),
        "sources": sources(results, config.max_drop, config.space.objectives),
    }
