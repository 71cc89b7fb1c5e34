"""Questions to the stored trials of a study, also while it runs: the fastest within these bounds, or the nearest. Nothing is trained."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autocompress.bounds import Constraint
from autocompress.errors import InvalidStudy, UserError
from autocompress.records import Measurement, TrialResult
from autocompress.runs import RunPaths, is_running
from autocompress.study.pareto import Bounds, describe, measured
from autocompress.study.summary import row

UNITS = {"": 1, "B": 1, "K": 10**3, "KB": 10**3, "M": 10**6, "MB": 10**6, "G": 10**9, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class Wishes(NamedTuple):
    """Bounds of a question, None where there is none: points of the metric, times, bytes of the weights file; the study's constraints."""

    max_drop: float | None = None
    min_speedup: float | None = None
    max_bytes: int | None = None
    constraints: tuple[Constraint, ...] = ()


def parse_size(text: str | int) -> int:
    """``200KB``, ``1.5MB``, ``200000``, ``64KiB`` -> bytes; KB, MB and GB are decimal. Raises UserError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(text).strip())
    unit = UNITS.get(found[2].upper()) if found else None
    amount = round(float(found[1]) * unit) if found and unit else 0
    if amount < 1:
        raise UserError(f"--max-size: must be bytes (200000) or a size (200KB, 1.5MB, 64KiB), above 0, got {text!r}")
    return amount


def ask(
    study: str,
    *,
    max_drop: float | None = None,
    min_speedup: float | None = None,
    max_size: str | int | None = None,
    runs: str | Path = "runs",
) -> dict[str, Any]:
    """What `autocompress ask --json` prints: see ``answer``. The constraints that the study was asked to keep count as well.

    Raises InvalidStudy where no trial is measured, UserError for a wrong bound.
    """
    for option, bound in (("--max-drop", max_drop), ("--min-speedup", min_speedup)):
        if bound is not None and not math.isfinite(bound):
            raise UserError(f"{option}: must be a finite number, got {bound}; leave it out where there is no bound")
    paths = RunPaths(Path(runs), study)
    max_bytes = None if max_size is None else parse_size(max_size)
    config, results = paths.read_config(), paths.results()
    wishes = Wishes(max_drop, min_speedup, max_bytes, config.limits)
    if not measured(results):
        raise InvalidStudy(
            f"study {study!r} has no measured trial yet, so there is nothing to ask ({len(results)} finished). "
            f"Wait for it, or go on with `autocompress resume {study}`."
        )
    found = answer(results, paths.holdouts(), wishes)
    number = found["trial"]["trial"]
    recipe = next(result.recipe for result in results if result.number == number)
    baseline = paths.read_baseline().model_dump(mode="json") if paths.baseline.exists() else None
    more = {
        "study": study,
        "running": is_running(paths),
        "finished": len(results),
        "target": config.target.model_dump(mode="json"),
        "baseline": baseline,
    }
    return more | found | {"words": describe(recipe, paths.read_layers())}


def answer(results: Sequence[TrialResult], holdouts: Mapping[int, Measurement], wishes: Wishes) -> dict[str, Any]:
    """The fastest measured trial within the wishes on the search split, or with ``fits`` false the nearest and by how much it misses.

    ``holdout_fits``: do the holdout numbers keep the wishes too; None where it was not measured there. At least one trial is measured.
    """

    def order(pair: tuple[TrialResult, Measurement]) -> tuple[float, float, float, int, int]:
        result, point = pair
        return distance(point, wishes), -point.speedup, point.drop, point.size_bytes, result.number

    result, point = min(measured(results), key=order)
    missed, holdout = misses(point, wishes), holdouts.get(result.number)
    return {
        "asked": wishes._asdict() | {"constraints": [str(one) for one in wishes.constraints]},
        "fits": not missed,
        "trial": row(result, holdout, _bounds(wishes)),
        "misses": missed,
        "holdout_fits": None if holdout is None else not misses(holdout, wishes),
    }


def _bounds(wishes: Wishes) -> Bounds:
    return Bounds(math.inf if wishes.max_drop is None else wishes.max_drop, wishes.min_speedup or 0.0, wishes.constraints)


def misses(point: Measurement, wishes: Wishes) -> dict[str, float | None]:
    """By how much a measurement misses each wish, in the wish's own unit; None: not measured. Empty where it keeps them all."""
    gaps: dict[str, float | None] = {
        "max_drop": None if wishes.max_drop is None else point.drop - wishes.max_drop,
        "min_speedup": None if wishes.min_speedup is None else wishes.min_speedup - point.speedup,
        "max_bytes": None if wishes.max_bytes is None else point.size_bytes - wishes.max_bytes,
    }
    missed = {name: gap for name, gap in gaps.items() if gap is not None and gap > 0}
    own = [(one, one.value(point)) for one in wishes.constraints if one.excess(point) > 0]
    return missed | {str(one): None if value is None else abs(value - one.limit) for one, value in own}


def distance(point: Measurement, wishes: Wishes) -> float:
    """The misses, each as a share of its wish (a drop of one point, where the wish is less), added; inf where one was not measured."""
    scale = {"max_drop": max(wishes.max_drop or 0, 1.0), "min_speedup": wishes.min_speedup or 1, "max_bytes": wishes.max_bytes or 1}
    scale |= {str(one): abs(one.limit) or 1.0 for one in wishes.constraints}
    return sum(math.inf if gap is None else gap / scale[name] for name, gap in misses(point, wishes).items())
