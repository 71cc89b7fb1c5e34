"""What may be bounded or made an objective: numeric fields of a Measurement and its checks, and the bounds that a user gives on them."""

import math
import re
from collections.abc import Sequence
from itertools import combinations
from typing import Literal, NamedTuple

from autocompress.records import CHECKS, Measurement

OBJECTIVES: dict[str, Literal["maximize", "minimize"]] = {  # what a front may be about, and which way is better
    "speedup": "maximize",
    "drop": "minimize",
    "size_bytes": "minimize",
    "deployed_bytes": "minimize",
    "latency_ms": "minimize",
    "p90_ms": "minimize",
    "p99_ms": "minimize",
    "macs": "minimize",
    "params": "minimize",
    "worst_class_drop": "minimize",
    "hard_drop": "minimize",
    "rare_drop": "minimize",
    "calibration_error_rise": "minimize",
}


def value_of(name: str, point: Measurement) -> float | None:
    """A measured quantity by its name; None where it was not measured."""
    found = point.checks.get(name) if name in CHECKS else getattr(point, name)
    return None if found is None else float(found)


class Constraint(NamedTuple):
    """A bound of the user's own on what is measured: a numeric field of Measurement, or one of its checks.

    A hard one decides who may be best; a soft one only costs: `pareto.best` counts a speedup less by the share that it is missed by.
    """

    name: str
    sign: Literal["<=", ">="]
    limit: float
    soft: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.sign} {self.limit:.15g}" + (" soft" if self.soft else "")

    def value(self, point: Measurement) -> float | None:
        """What was measured; None where it was not."""
        return value_of(self.name, point)

    def excess(self, point: Measurement) -> float:
        """By how much it is missed, as a share of the limit, of 1 where that is 0; at most 0 where it holds, inf where not measured."""
        value = self.value(point)
        return math.inf if value is None else self.missed_by(value)

    def missed_by(self, value: float) -> float:
        return (value - self.limit) * (1 if self.sign == "<=" else -1) / (abs(self.limit) or 1.0)


def constrainable() -> list[str]:
    """Names that a constraint may have."""
    fields = Measurement.model_fields.items()
    numeric = [name for name, field in fields if field.annotation in (int, float, float | None) and not name.startswith("baseline_")]
    return [*CHECKS, *numeric]


def parse_constraint(text: str) -> Constraint:
    """``worst_class_drop <= 5``, ``p99_ms<=2`` or ``size_bytes <= 9000 soft``. Raises ValueError with the rule, and the names where
    that is what is wrong.
    """
    found = re.fullmatch(r"\s*(\w+)\s*(<=|>=)\s*(\S+?)\s*(\s(?:soft|hard)\s*)?", text)
    try:
        limit = float(found[3]) if found else math.nan
    except ValueError:
        limit = math.nan
    if not found or not math.isfinite(limit):
        raise ValueError("a constraint is NAME <= NUMBER or NAME >= NUMBER, like worst_class_drop <= 5, or worst_class_drop <= 5 soft")
    if found[1] not in constrainable():
        raise ValueError(f"nothing called {found[1]} is measured; known: {', '.join(constrainable())}")
    return Constraint(found[1], "<=" if found[2] == "<=" else ">=", limit, (found[4] or "").strip() == "soft")


def contradiction(constraints: Sequence[Constraint]) -> str:
    """Which two hard bounds no number can keep together, or an empty string."""
    for one, other in combinations([each for each in constraints if not each.soft], 2):
        low, high = (one, other) if one.sign == ">=" else (other, one)
        if one.name == other.name and one.sign != other.sign and low.limit > high.limit:
            return f"{low} and {high} contradict each other: no recipe can keep both. Change one of them, or make it soft."
    return ""
