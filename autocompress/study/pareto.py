"""What the finished trials amount to: front, best, nearest, knee, hypervolume, and recipes in words. Pure functions."""

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from autocompress.bounds import OBJECTIVES, Constraint, value_of
from autocompress.config import SearchConfig
from autocompress.errors import InvalidStudy
from autocompress.recipe import FLOAT_BITS, ORDER, LayerPlan, Pruning, Quantization, Recipe, Recovery
from autocompress.records import LayerInfo, Measurement, TrialResult

SHORT_RUN = 2  # neighbours with equal words up to which each has a line of its own
UNMEASURED = "not measured"
TWO = ("speedup", "drop")  # what a front is about unless the space names more
NAMED_PICKS = ("best", "fastest", "smallest", "knee")


class Bounds(NamedTuple):
    """What the user accepts: drop in the unit of the metric at most, speedup over the fp32 baseline at least, and constraints."""

    max_drop: float
    min_speedup: float
    constraints: tuple[Constraint, ...] = ()

    def hold(self, point: Measurement) -> bool:
        """Does it keep all that is hard? A soft constraint excludes nothing."""
        return not self._replace(constraints=hard(self.constraints)).failed(point)

    def failed(self, point: Measurement) -> list[str]:
        """What does not hold, soft ones included, a line each with what was measured: ``worst_class_drop <= 5 (7.5)``."""
        own = (Constraint("drop", "<=", self.max_drop), Constraint("speedup", ">=", self.min_speedup))
        missed = [(one, one.value(point)) for one in (*own, *self.constraints) if one.excess(point) > 0]
        return [f"{one} ({UNMEASURED if value is None else f'{value:.4g}'})" for one, value in missed]

    def excess(self, point: Measurement) -> float:
        """By how much all of them are missed together, each as a share of its bound.

        A drop counts as a share of ``max_drop``, or of a hundredth of the baseline's metric where that is more: of one point of 100.
        """
        over = max(0.0, point.drop - self.max_drop) / (max(self.max_drop, abs(point.baseline_accuracy) / 100) or 1.0)
        under = max(0.0, self.min_speedup - point.speedup) / self.min_speedup
        return over + under + sum(max(0.0, one.excess(point)) for one in self.constraints)

    def penalised(self, point: Measurement) -> float:
        """The speedup, less by the shares that soft constraints are missed by: 10x that misses one by 25 % counts as 8x."""
        return point.speedup / (1 + sum(max(0.0, one.excess(point)) for one in self.constraints if one.soft))


def hard(constraints: Iterable[Constraint]) -> tuple[Constraint, ...]:
    return tuple(one for one in constraints if not one.soft)


def bounds_of(config: SearchConfig) -> Bounds:
    return Bounds(config.max_drop, config.min_speedup, config.limits)


def within(results: Iterable[TrialResult], constraints: Sequence[Constraint]) -> list[TrialResult]:
    """Measured trials that keep all hard constraints, whatever their drop and speed."""
    return [result for result, point in measured(results) if all(one.excess(point) <= 0 for one in hard(constraints))]


def measured(results: Iterable[TrialResult]) -> list[tuple[TrialResult, Measurement]]:
    return [(result, result.measurement) for result in results if result.outcome == "measured" and result.measurement is not None]


def _fastest_first(pair: tuple[TrialResult, Measurement]) -> tuple[float, float, int, int]:
    result, point = pair
    return -point.speedup, point.drop, point.size_bytes, result.number


def front(results: Iterable[TrialResult], objectives: Sequence[str] = TWO) -> list[TrialResult]:
    """Measured trials that no other beats on all objectives, fastest first.

    Of trials that are equal in all of them, the one with the smaller artifact stays, then the one with the lower number.
    """
    found: list[TrialResult] = []
    kept: list[tuple[float, ...]] = []
    for result, point in sorted(measured(results), key=_fastest_first):
        own = losses(point, objectives)
        if not any(all(other <= one for other, one in zip(best, own, strict=True)) for best in kept):
            found.append(result)
            kept = [*kept, own] if len(objectives) > len(TWO) else [own]  # with two, the slowest so far has the lowest drop
    return found


def losses(point: Measurement, objectives: Sequence[str]) -> tuple[float, ...]:
    """The objectives turned so that less is better; what was not measured is worst."""
    values = [(value_of(name, point), -1 if OBJECTIVES[name] == "maximize" else 1) for name in objectives]
    return tuple(math.inf if value is None else sign * value for value, sign in values)


def points(results: Iterable[TrialResult]) -> tuple[tuple[float, float], ...]:
    """(speedup, drop) of the front, fastest first."""
    return tuple((one.speedup, one.drop) for _, one in measured(front(results)))


def best(results: Iterable[TrialResult], bounds: Bounds) -> TrialResult | None:
    """The fastest measured trial within all hard bounds on the search split, where a soft one that is missed counts as speed lost."""
    inside = [pair for pair in measured(results) if bounds.hold(pair[1])]
    return min(inside, key=lambda pair: (-bounds.penalised(pair[1]), *_fastest_first(pair)), default=(None, None))[0]


def nearest(results: Iterable[TrialResult], bounds: Bounds) -> TrialResult | None:
    """The measured trial that misses the bounds by least, as `Bounds.excess` counts."""

    def violation(pair: tuple[TrialResult, Measurement]) -> tuple[float, float, int]:
        return bounds.excess(pair[1]), pair[1].drop, pair[0].number

    return min(measured(results), key=violation, default=(None, None))[0]


def knee(results: Iterable[TrialResult]) -> TrialResult | None:
    """The trial of the front where both objectives, each scaled to 0..1 over the front, are good together.

    That is the one farthest from the chord between the ends of the front; the smaller drop wins a tie.
    """
    points = measured(front(results))
    if not points:
        return None
    speeds, drops = [point.speedup for _, point in points], [point.drop for _, point in points]
    width, height = max(speeds) - min(speeds) or 1.0, max(drops) - min(drops) or 1.0

    def gain(pair: tuple[TrialResult, Measurement]) -> tuple[float, float]:
        return round(pair[1].speedup / width - pair[1].drop / height, 9), -pair[1].drop

    return max(points, key=gain)[0]


def pick(results: Sequence[TrialResult], which: str | int, bounds: Bounds) -> TrialResult:
    """The trial that ``--trial`` names: best, fastest, smallest, knee or a number.

    best keeps both bounds; fastest and smallest are taken over all measured trials, whatever they lose. Raises InvalidStudy.
    """
    points = measured(results)
    if not points:
        raise InvalidStudy("--trial: no trial of this study has been measured yet; `autocompress resume` goes on with it.")
    if which == "best":
        found = best(results, bounds)
        if found is None:
            other = nearest(results, bounds)
            kept = "".join(f", with {one}" for one in bounds.constraints)
            raise InvalidStudy(
                f"--trial best: no measured trial drops at most {bounds.max_drop:g} points and is at least "
                f"{bounds.min_speedup:g}x faster{kept}. The nearest is trial {other.number if other else '-'}: name it by its number."
            )
        return found
    if which == "fastest":
        return front(results)[0]
    if which == "smallest":
        return min(points, key=lambda pair: (pair[1].size_bytes, pair[1].drop, pair[0].number))[0]
    if which == "knee" and (found := knee(results)) is not None:
        return found
    return _by_number(results, which)


def _by_number(results: Sequence[TrialResult], which: str | int) -> TrialResult:
    numbers = [result.number for result, _ in measured(results)]
    known = f"Measured trials: {', '.join(map(str, numbers))}."
    found = next((result for result in results if str(result.number) == str(which).strip()), None)
    if found is None:
        raise InvalidStudy(f"--trial: must be {', '.join(NAMED_PICKS)} or the number of a trial, got {which!r}. {known}")
    if found.number not in numbers:
        why = f" ({found.message})" if found.message else ""
        raise InvalidStudy(f"--trial {which}: this trial has no measurement, it ended as {found.outcome}{why}. {known}")
    return found


def hypervolume(results: Iterable[TrialResult], max_drop: float) -> float:
    """Area that the front dominates, from the reference point (speedup 1, drop ``max_drop``); in the unit of the metric."""
    area, reached = 0.0, 1.0
    for _, point in reversed(measured(front(results))):  # smallest drop first, so speedup ascends
        if point.drop < max_drop and point.speedup > reached:
            area += (point.speedup - reached) * (max_drop - point.drop)
            reached = point.speedup
    return area


def describe(recipe: Recipe, layers: Sequence[LayerInfo]) -> list[str]:
    """The recipe in words: one line a changed layer or run of equal ones, in the model's order, then what holds for all of it."""
    plans = recipe.plans
    changes = [(layer.name, _in_words(plans[layer.name], layer.kind)) for layer in layers if layer.name in plans]
    lines = []
    for words, run in groupby(changes, key=lambda change: change[1]):
        names = [name for name, _ in run]
        if words and len(names) > SHORT_RUN:
            lines.append(f"{names[0]} to {names[-1]} ({len(names)} layers): {words}")
        elif words:
            lines += [f"{name}: {words}" for name in names]
    if recipe.student is not None:
        student = recipe.student
        bits = f", {_bits_in_words(student.weight_bits, student.activation_bits)}" if student.weight_bits < FLOAT_BITS else ""
        lines.insert(0, f"a student of its own: {student.width:g} x width, {student.depth:g} x depth{bits}")
    return [*(lines or ["no layer is changed"]), *_settings_in_words(recipe), *_training_in_words(recipe)]


def _settings_in_words(recipe: Recipe) -> list[str]:
    """What differs from the usual settings of pruning and quantization, and an order that is not the usual one."""
    lines = []
    for name, part, usual in (("pruning", recipe.pruning, Pruning()), ("quantization", recipe.quantization, Quantization())):
        changed = [f"{field} {_value(value)}" for field, value in part if field != "seed" and value != getattr(usual, field)]
        if changed:
            lines.append(f"{name}: {', '.join(changed)}")
    if recipe.order != ORDER:
        lines.append(f"order: {' -> '.join(recipe.order)}")
    return lines


def _value(value: object) -> str:
    if isinstance(value, dict):
        return " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in value.items())
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _training_in_words(recipe: Recipe) -> list[str]:
    recovery, teacher = recipe.recovery, recipe.distillation
    steps = f"recovery: {recovery.steps} steps, {recovery.quantized_steps} quantized, learning rate {recovery.learning_rate:g}"
    for field in ("optimizer", "schedule", "ema", "batch_norm_batches"):
        if getattr(recovery, field) != getattr(Recovery(), field):
            steps += f", {field.replace('_', ' ')} {_value(getattr(recovery, field))}"
    taught = "no distillation"
    if teacher is not None:
        weights = f"soft {teacher.soft_weight:g}, hard {teacher.hard_weight:g}"
        taught = f"distillation at temperature {teacher.temperature:g}, {weights}"
        for field in ("feature_weight", "attention_weight", "ramp"):
            taught += f", {field.replace('_', ' ')} {getattr(teacher, field):g}" if getattr(teacher, field) else ""
        taught += f", {teacher.augmentation}" if teacher.augmentation != "none" else ""
        taught += f", teachers {_value(teacher.teachers)}" if teacher.teachers else ""
        taught += f", assistant with {100 * teacher.assistant.keep:.0f} % of channels" if teacher.assistant is not None else ""
    return [steps, taught]


def _in_words(plan: LayerPlan, kind: str) -> str:
    """``62 % of channels, rank 8, 8 bit``; bits of weights and of inputs apart where they differ."""
    what = {"attention": "heads", "lstm": "hidden units", "gru": "hidden units"}.get(kind, "channels")
    return ", ".join(
        filter(
            None,
            (
                "left out" if plan.drop else "",
                f"{100 * plan.keep:.0f} % of {what}" if plan.keep < 1 else "",
                f"{100 * plan.sparsity:.0f} % zeros" if plan.sparsity else "",
                f"{plan.pattern} zeros" if plan.pattern else "",
                f"rank {plan.rank}" if plan.rank is not None else "",
                f"rank for {100 * plan.energy:.0f} % of the energy" if plan.energy is not None else "",
                plan.factorization.replace("_", " ") if plan.factorization != "auto" else "",
                _bits_in_words(plan.weight_bits, plan.activation_bits),
            ),
        )
    )


def _bits_in_words(weight_bits: int, activation_bits: int) -> str:
    if weight_bits == activation_bits:
        return f"{weight_bits} bit" if weight_bits < FLOAT_BITS else ""
    if activation_bits == FLOAT_BITS:
        return f"{weight_bits} bit weights"
    return f"{weight_bits} bit weights, {activation_bits} bit inputs"
