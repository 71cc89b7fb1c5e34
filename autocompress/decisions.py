"""What was decided in a recipe, one decision at a time, and the recipe without it. Pure and plain: a report may use it too.

A decision is what somebody could have left out: a prune group's width, a layer's rank, bits or zeros, a block that is gone, the
teacher, a setting that is not the usual one. Amounts (steps, learning rate, temperature, weights of the losses, seeds) are none.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from autocompress.recipe import FLOAT_BITS, ORDER, Distillation, LayerPlan, Pruning, Quantization, Recipe, Recovery, Student
from autocompress.records import LayerInfo

MOST = 12  # more decisions than these are undone in groups of neighbours: every one costs a whole evaluation
SHOWN = 3  # different values of a group that are named
Path = tuple[str, ...]  # ("layers", name, field), ("layers", name): the whole plan, (part, field), (part,)

PLAIN = LayerPlan(name="any").model_dump(mode="json")
LAYER_FIELDS = {
    "drop": ("drop",),
    "keep": ("keep",),
    "sparsity": ("sparsity", "pattern"),
    "rank": ("rank", "energy", "factorization"),
    "bits": ("weight_bits", "activation_bits"),
}
USUAL: dict[str, dict[str, Any]] = {
    part.__name__.lower(): part().model_dump(mode="json") for part in (Student, Pruning, Quantization, Distillation, Recovery)
}
# Settings of the whole model, each with those that mean something only beside it.
SETTINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "pruning": {"importance": (), "schedule": ("iterations", "steps_between"), "global_sparsity": ()},
    "quantization": {
        "activations": (), "half": (), "granularity": ("group_size",), "symmetric": (), "symmetric_activations": (),
        "observer": ("percentile",), "weight_observer": (), "equalize": (), "bias_correction": (), "adaround_steps": (),
        "learned_step": (), "progressive": (), "freeze_after": (),
    },
    "distillation": {"feature_weight": (), "attention_weight": (), "teachers": (), "ramp": (), "augmentation": (), "assistant": ()},
    "recovery": {"optimizer": (), "schedule": (), "weight_decay": (), "ema": (), "batch_norm_batches": ()},
}  # fmt: skip


@dataclass(frozen=True)
class Decision:
    """``layers`` it is about, none where it is about the whole model; ``places`` in the recipe that go back to what they usually are."""

    words: str
    layers: tuple[str, ...]
    places: tuple[Path, ...]
    without: Recipe


@dataclass(frozen=True)
class _Unit:
    """One layer's or prune group's share in a kind of decision."""

    words: str
    layers: tuple[str, ...]
    places: tuple[Path, ...]


def decisions(recipe: Recipe, layers: Sequence[LayerInfo]) -> tuple[Decision, ...]:
    """Every decision of a recipe with the recipe without it, those about layers first, in the order of the model.

    Of more than ``MOST`` neighbouring ones of a kind go together. What cannot be undone alone, because the rest would make no sense,
    is left out.
    """
    settings = [*_whole(recipe, layers), *_settings(recipe)]
    by_kind = {kind: list(_units(kind, recipe, layers)) for kind in LAYER_FIELDS}
    count = sum(map(len, by_kind.values()))
    room = max(MOST - len(settings), 1)
    found: list[_Unit] = []
    for units in by_kind.values():
        groups = len(units) if count <= room else max(1, room * len(units) // count)
        found += [_together(part) for part in _parts(units, groups)]
    return tuple(_possible(recipe, [*found, *settings]))


def undo(recipe: Recipe, places: Iterable[Path]) -> Recipe:
    """The recipe with these places as they usually are. Raises ValueError where what is left makes no sense."""
    content = recipe.model_dump(mode="json")
    plans: dict[str, dict[str, Any]] = {plan["name"]: plan for plan in content["layers"]}
    for place in places:
        if place[0] == "layers" and len(place) == 2:
            plans.pop(place[1], None)
        elif place[0] == "layers":
            plans[place[1]][place[2]] = PLAIN[place[2]]
        elif len(place) == 1:
            content[place[0]] = list(ORDER) if place[0] == "order" else None
        elif content[place[0]] is not None:
            content[place[0]][place[1]] = USUAL[place[0]][place[1]]
    return Recipe.model_validate(content | {"layers": list(plans.values())})


def _possible(recipe: Recipe, units: Iterable[_Unit]) -> Iterator[Decision]:
    for unit in units:
        try:
            without = undo(recipe, unit.places)
        except ValueError:  # such as a loss of which no term is left
            continue
        yield Decision(unit.words, unit.layers, unit.places, without)


def _units(kind: str, recipe: Recipe, layers: Sequence[LayerInfo]) -> Iterator[_Unit]:
    """The layers of one kind of decision in the model's order; those of one prune group share a width, so they are one."""
    known = {layer.name: layer for layer in layers}
    place = {name: index for index, name in enumerate(known)}
    chosen = [plan for plan in recipe.layers if _decided(plan, kind)]
    groups: dict[str, list[LayerPlan]] = {}
    for plan in sorted(chosen, key=lambda plan: place.get(plan.name, len(place))):
        layer = known.get(plan.name)
        group = f"group {layer.group}" if kind == "keep" and layer is not None and layer.group is not None else plan.name
        groups.setdefault(group, []).append(plan)
    for plans in groups.values():
        names = tuple(plan.name for plan in plans)
        layer = known.get(names[0])
        places = tuple(("layers", name, field) for name in names for field in LAYER_FIELDS[kind])
        yield _Unit(_in_words(plans[0], kind, layer.kind if layer is not None else ""), names, places)


def _decided(plan: LayerPlan, kind: str) -> bool:
    if kind == "rank":
        return plan.is_factorized  # a method without a rank does nothing
    content = plan.model_dump(mode="json", include=set(LAYER_FIELDS[kind]))
    return any(value != PLAIN[field] for field, value in content.items())


def _parts(units: Sequence[_Unit], count: int) -> list[Sequence[_Unit]]:
    """``count`` runs of neighbours of nearly equal length."""
    edges = [round(index * len(units) / count) for index in range(count + 1)] if count else [0]
    return [units[start:end] for start, end in pairwise(edges) if end > start]


def _together(units: Sequence[_Unit]) -> _Unit:
    words = list(dict.fromkeys(unit.words for unit in units))
    text = " or ".join(words) if len(words) <= SHOWN else f"{' or '.join(words[:SHOWN])} or others"
    layers = tuple(name for unit in units for name in unit.layers)
    return _Unit(text, layers, tuple(place for unit in units for place in unit.places))


def _whole(recipe: Recipe, layers: Sequence[LayerInfo]) -> Iterator[_Unit]:
    """Student, teacher and order."""
    student = recipe.student
    if student is not None:
        known = {layer.name for layer in layers}
        own = tuple(("layers", plan.name) for plan in recipe.layers if plan.name not in known)
        yield _Unit(f"a student of its own: {student.width:g} x width, {student.depth:g} x depth", (), (("student",), *own))
        if min(student.weight_bits, student.activation_bits) < FLOAT_BITS:
            words = f"student: {_bits(student.weight_bits, student.activation_bits)}"
            yield _Unit(words, (), (("student", "weight_bits"), ("student", "activation_bits")))
    if recipe.distillation is not None:
        yield _Unit("distillation", (), (("distillation",),))
    if recipe.order != ORDER:
        yield _Unit(f"order: {' -> '.join(recipe.order)}", (), (("order",),))


def _settings(recipe: Recipe) -> Iterator[_Unit]:
    """Settings that are not the usual ones, of the parts that do something in this recipe."""
    cut = any(plan.is_cut or plan.is_sparse for plan in recipe.layers) or recipe.pruning.global_sparsity > 0
    idle = {"pruning": not cut, "quantization": not recipe.is_quantized, "distillation": recipe.distillation is None, "recovery": False}
    content = recipe.model_dump(mode="json")
    for part, fields in SETTINGS.items():
        for field, beside in fields.items() if not idle[part] else ():
            value = content[part][field]
            if value != USUAL[part][field]:
                places = tuple((part, name) for name in (field, *beside))
                yield _Unit(f"{part}: {field.replace('_', ' ')} {_value(value)}", (), places)


def _in_words(plan: LayerPlan, kind: str, layer: str) -> str:
    if kind == "drop":
        return "left out"
    if kind == "keep":
        what = {"attention": "heads", "lstm": "hidden units", "gru": "hidden units"}.get(layer, "channels")
        return f"{100 * plan.keep:.0f} % of {what}"
    if kind == "sparsity":
        return f"{plan.pattern} zeros" if plan.pattern else f"{100 * plan.sparsity:.0f} % zeros"
    if kind == "bits":
        return _bits(plan.weight_bits, plan.activation_bits)
    rank = f"rank {plan.rank}" if plan.rank is not None else f"rank for {100 * (plan.energy or 0):.0f} % of the energy"
    return rank if plan.factorization == "auto" else f"{rank}, {plan.factorization.replace('_', ' ')}"


def _bits(weight_bits: int, activation_bits: int) -> str:
    if activation_bits == FLOAT_BITS:
        return f"{weight_bits} bit weights"
    return f"{weight_bits} bit" if weight_bits == activation_bits else f"{weight_bits} bit weights, {activation_bits} bit inputs"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(part)}" for name, part in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
