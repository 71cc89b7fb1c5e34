"""From what a Space wishes and the survey allows to ordered dimensions; `points` makes a Recipe of a point in them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from autocompress.config import Settings, Space, Tie
from autocompress.errors import InvalidSpace
from autocompress.recipe import FLOAT_BITS
from autocompress.records import LayerInfo
from autocompress.study.rules import DENSE, activations, can_run, check_rules, is_excluded, is_weighted, listed, rule_of

KEEP, HEADS, DROP, SPARSITY, RANK, ENERGY = "keep", "heads", "drop", "sparsity", "rank", "energy"
BITS, ACTIVATION = "weight_bits", "activation_bits"
GIVEN = 0.0  # as the width of a student: the given model
SHORT_NAMES = {
    "distillation.temperature": "temperature",
    "distillation.soft_weight": "soft_weight",
    "recovery.learning_rate": "learning_rate",
}
SETTINGS = ("pruning", "quantization", "distillation", "recovery", "student")  # parts of a recipe with one value for the whole model
TRAINING = ("distillation", "recovery")

Value = Any  # a number, a name, or what a field of the recipe holds; numbers ascend
Choices = tuple[Value, ...]
Found = dict[str, Choices | None]  # by layer; None: free to vary


@dataclass(frozen=True)
class Dimension:
    """One thing that may vary: ``keep:<group>``, ``rank:<layer>``, ``weight_bits:<layer>``, ``learning_rate``, ``pruning.importance``, ...

    ``choices`` ascend where they are numbers, and a point in the space is an index into them. One choice: fixed, not sampled, still
    part of the recipe. ``<kind>:*`` is the common one of all layers that have none of their own (``tie: model``); one that some layers
    or groups share (``tie: block`` or ``class``) names them as ``members``.
    """

    name: str
    choices: Choices
    members: tuple[str, ...] = ()

    @property
    def is_sampled(self) -> bool:
        return len(self.choices) > 1

    @property
    def is_numeric(self) -> bool:
        return all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in self.choices)

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]

    @property
    def place(self) -> str:
        """The layer, the group, or ``*``; empty for a setting of the whole model."""
        return self.name.partition(":")[2]

    def nearest(self, value: float) -> int:
        """Index of the choice nearest to ``value``; the larger of two equally near."""
        return min(range(len(self.choices)), key=lambda index: (abs(self.choices[index] - value), -index))


def dimensions(space: Space, layers: Sequence[LayerInfo]) -> tuple[Dimension, ...]:
    """Every dimension, fixed ones included, narrowed to what ``space.near`` leaves.

    Raises InvalidSpace for a rule that does nothing and a space without a choice.
    """
    found = narrowed_to(whole_dimensions(space, layers), space.near)
    if not any(dimension.is_sampled for dimension in found) or (space.student is None and all(map(is_untouched, found))):
        raise InvalidSpace(_why_nothing(space, layers, found))
    check_orders(space, found)
    return found


def whole_dimensions(space: Space, layers: Sequence[LayerInfo]) -> tuple[Dimension, ...]:
    """Every dimension with all its choices, whatever ``space.near`` says."""
    check_rules(space, layers)
    return (
        *keep_dimensions(space, layers),
        *drop_dimensions(space, layers),
        *sparsity_dimensions(space, layers),
        *rank_dimensions(space, layers),
        *bits_dimensions(space, layers),
        *settings_dimensions(space),
    )


def narrowed_to(dims: Iterable[Dimension], near: Mapping[str, int]) -> tuple[Dimension, ...]:
    """Each dimension that ``near`` names with its choice there and the neighbours of that, of names that choice alone; others as they are.

    Raises InvalidSpace for a dimension or a choice that the space does not have.
    """
    known = {dim.name: dim for dim in dims}
    for name, index in near.items():
        if name not in known or not 0 <= index < len(known[name].choices):
            raise InvalidSpace(f"near.{name}: this space has no dimension of that name with a choice {index}; take it out of `near`.")
        reach = 1 if known[name].is_numeric else 0
        known[name] = Dimension(name, known[name].choices[max(0, index - reach) : index + reach + 1])
    return tuple(known.values())


def sampled(dims: Iterable[Dimension]) -> tuple[Dimension, ...]:
    return tuple(dimension for dimension in dims if dimension.is_sampled)


def space_size(dims: Iterable[Dimension]) -> int:
    """How many points the space has; some of them may be the same recipe."""
    return math.prod(len(dimension.choices) for dimension in dims)


def check_orders(space: Space, dims: Sequence[Dimension]) -> None:
    """Raises InvalidSpace where an order lacks a stage that the space's layers need."""
    stages = {KEEP: "prune", HEADS: "prune", DROP: "prune", SPARSITY: "sparsify", RANK: "factorize", ENERGY: "factorize", BITS: "quantize"}
    needed = {stages[dim.kind] for dim in dims if dim.kind in stages and not is_untouched(dim)}
    if max(space.pruning.global_sparsity) > 0:
        needed.add("sparsify")
    for index, order in enumerate(space.order):
        missing = sorted(needed - set(order))
        if missing:
            raise InvalidSpace(f"order[{index}]: {' -> '.join(order)} lacks {', '.join(missing)}, which this space asks for; add it.")


# ---- pruning --------------------------------------------------------------------------------------------------------


def groups_of(layers: Sequence[LayerInfo]) -> dict[str, list[LayerInfo]]:
    """Members of every prune group, in the order of the model."""
    groups: dict[str, list[LayerInfo]] = {}
    for layer in layers:
        if layer.group is not None:
            groups.setdefault(layer.group, []).append(layer)
    return groups


def valid_shares(members: Sequence[LayerInfo]) -> tuple[Fraction, ...]:
    """Shares that leave every member a whole multiple of its ``channel_multiple``, ascending; all channels always fit."""
    return _valid_shares(_widths(members))


def snap(share: float, members: Sequence[LayerInfo]) -> float:
    """The valid share nearest to the one asked for; the milder of two equally near."""
    return _snap(share, _widths(members))


Widths = frozenset[tuple[int, int]]  # (channels, multiple) of the members of a group; many groups of a model have the same


def _widths(members: Sequence[LayerInfo]) -> Widths:
    return frozenset((layer.out_channels, layer.channel_multiple) for layer in members)


@lru_cache(maxsize=4096)
def _valid_shares(widths: Widths) -> tuple[Fraction, ...]:
    channels, multiple = min(widths, key=lambda width: (width[0] // width[1], width))
    shares = (Fraction(kept, channels) for kept in range(multiple, channels, multiple))
    fitting = (share for share in shares if all((share * width) % step == 0 for width, step in widths))
    return (*fitting, Fraction(1))


@lru_cache(maxsize=65536)
def _snap(share: float, widths: Widths) -> float:
    return float(min(_valid_shares(widths), key=lambda valid: (abs(valid - Fraction(share)), -valid)))


def share_kind(members: Sequence[LayerInfo]) -> str:
    """By which name its share goes: attention modules keep heads, everything else channels."""
    return HEADS if members[0].kind == "attention" else KEEP


def keep_dimensions(space: Space, layers: Sequence[LayerInfo]) -> list[Dimension]:
    found, tied = [], set()
    for group, members in groups_of(layers).items():
        kind = share_kind(members)
        offered = space.heads if kind == HEADS else space.keep
        rules = [rule for rule in (rule_of(space, layer) for layer in members) if rule is not None]
        pins = {snap(rule.keep, members) for rule in rules if rule.keep is not None}
        if any(rule.exclude for rule in rules):
            pins = {DENSE}  # its members share their width: one that stays as it is holds all of them
        if len(pins) > 1:
            names = listed([layer.name for layer in members])
            raise InvalidSpace(f"layers: {names} are one prune group and need one keep, but are pinned to {sorted(pins)}.")
        if not pins and offered.tie == "model":
            tied.add(kind)
            continue
        choices = pins or {snap(share, members) for share in offered.choices}
        found.append(Dimension(f"{kind}:{group}", tuple(sorted(choices))))
    common = {KEEP: space.keep.choices, HEADS: space.heads.choices}
    return [*found, *(Dimension(f"{kind}:*", common[kind]) for kind in (KEEP, HEADS) if kind in tied)]


def drop_dimensions(space: Space, layers: Sequence[LayerInfo]) -> list[Dimension]:
    """Whether a residual block stays (0) or is left out (1)."""
    found = []
    for layer in layers:
        rule = rule_of(space, layer)
        if not layer.droppable:
            continue
        if rule is not None and (rule.exclude or rule.drop is not None):
            found.append(Dimension(f"{DROP}:{layer.name}", (int(bool(rule.drop) and not rule.exclude),)))
        elif space.drop:
            found.append(Dimension(f"{DROP}:{layer.name}", (0, 1)))
    return found


def sparsity_dimensions(space: Space, layers: Sequence[LayerInfo]) -> list[Dimension]:
    found: Found = {}
    for layer in filter(is_weighted, layers):
        rule = rule_of(space, layer)
        if rule is not None and rule.exclude:
            found[layer.name] = (0.0,)
        else:
            found[layer.name] = (rule.sparsity,) if rule is not None and rule.sparsity is not None else None
    return _own_or_tied(SPARSITY, found, lambda name: space.sparsity.choices, space.sparsity.choices, space.sparsity.tie)


# ---- factorization --------------------------------------------------------------------------------------------------


def rank_dimensions(space: Space, layers: Sequence[LayerInfo]) -> list[Dimension]:
    """Ranks as shares of the full one; ranks by kept energy where the space offers that and the share leaves the layer dense."""
    ranks: Found = {}
    energies: Found = {}
    for layer in filter(is_weighted, layers):
        rule = rule_of(space, layer)
        if not layer.factorizable or (rule is not None and rule.exclude):
            ranks[layer.name] = energies[layer.name] = (DENSE,)
        else:
            ranks[layer.name] = (rule.rank,) if rule is not None and rule.rank is not None else None
            energies[layer.name] = ranks[layer.name] and (DENSE,)
    found = _own_or_tied(RANK, ranks, lambda name: space.rank.choices, space.rank.choices, space.rank.tie)
    if space.energy.choices != (DENSE,):
        found += _own_or_tied(ENERGY, energies, lambda name: space.energy.choices, space.energy.choices, space.energy.tie)
    varied = any(not is_untouched(dim) for dim in found) and len(space.factorization) > 1
    return [*found, *([Dimension("factorization", space.factorization)] if varied else [])]


# ---- quantization ---------------------------------------------------------------------------------------------------


def bits_dimensions(space: Space, layers: Sequence[LayerInfo]) -> list[Dimension]:
    found: Found = {}
    realized: dict[str, set[int]] = {}
    for layer in (layer for layer in layers if layer.kind not in ("attention", "block")):
        rule = rule_of(space, layer)
        widths = {bits for bits in space.weight_bits.choices if can_run(space, layer, bits)}
        pin = rule.weight_bits if rule is not None else None
        if rule is not None and rule.exclude:
            found[layer.name] = (FLOAT_BITS,)
        elif pin is not None:
            found[layer.name] = (pin if can_run(space, layer, pin) else FLOAT_BITS,)
        elif not widths - {FLOAT_BITS}:
            found[layer.name] = (FLOAT_BITS,)
        else:
            found[layer.name], realized[layer.name] = None, widths
    common = set.intersection(*realized.values()) if realized else set()
    narrow = narrowed if space.weight_bits.real else _ascending
    weights = _own_or_tied(BITS, found, lambda name: narrow(realized[name]), narrow(common), space.weight_bits.tie)
    integer = {dim.name.partition(":")[2] for dim in weights if dim.choices[0] < FLOAT_BITS}
    return [*weights, *_activation_dimensions(space, integer)]


def narrowed(widths: Iterable[int]) -> tuple[int, ...]:
    """The widest integer width, and float where it is among them; float alone where nothing is left.

    Integer widths up to 8 run in the same kernel, so a narrower one is no faster and only loses accuracy.
    """
    integer = [bits for bits in widths if bits < FLOAT_BITS]
    return (*([max(integer)] if integer else []), *([FLOAT_BITS] if FLOAT_BITS in widths or not integer else []))


def _ascending(widths: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(widths)) or (FLOAT_BITS,)


def _activation_dimensions(space: Space, integer: set[str]) -> list[Dimension]:
    """Bits of the input of layers with integer weights: one for all, unless the space asks to choose among several."""
    choices = activations(space)
    names = {"*"} if space.activation_bits.tie == "model" or len(choices) == 1 else integer
    return [Dimension(f"{ACTIVATION}:{name}", choices) for name in sorted(names)] if integer and choices else []


def _own_or_tied(kind: str, found: Found, free: Callable[[str], Choices], common: Choices, tie: Tie) -> list[Dimension]:
    """One dimension a layer; with ``tie: model`` the layers that are free (None) share the one named ``*``."""
    tied = tie == "model"
    own = [(name, choices or free(name)) for name, choices in found.items() if choices or not tied]
    shared = [("*", common)] if tied and None in found.values() else []
    return [Dimension(f"{kind}:{name}", choices) for name, choices in (*own, *shared)]


# ---- settings of the whole model ------------------------------------------------------------------------------------


def settings_dimensions(space: Space) -> list[Dimension]:
    """Pruning, quantization, distillation, recovery, student, order: what has several values, and the three that every report shows.

    Settings of training are fixed where there is none that they could change.
    """
    trained = space.recovery.steps + space.recovery.quantized_steps > 0
    found = []
    for part in SETTINGS:
        settings: Settings | None = getattr(space, part)
        for name, ladder in settings.ladders.items() if settings is not None else ():
            choices = ascending((GIVEN, *ladder) if (part, name) == ("student", "width") else ladder)
            if part in TRAINING and not trained:
                choices = (middle(choices),)
            if len(choices) > 1 or setting(part, name) in SHORT_NAMES.values():
                found.append(Dimension(setting(part, name), choices))
    return [*found, *([Dimension("order", space.order)] if len(space.order) > 1 else [])]


def setting(part: str, name: str) -> str:
    """What the dimension of a field of a part of the recipe is called."""
    return SHORT_NAMES.get(f"{part}.{name}", f"{part}.{name}")


def ascending(ladder: Sequence[Value]) -> Choices:
    """Each value once; numbers in order, names as they were given."""
    once = [value for index, value in enumerate(ladder) if value not in ladder[:index]]
    return tuple(sorted(once)) if all(isinstance(value, int | float) for value in once) else tuple(once)


def middle(choices: Choices) -> Value:
    """The middle of a ladder of numbers, the first of a list of names."""
    return choices[middle_index(choices)]


def middle_index(choices: Choices) -> int:
    return len(choices) // 2 if Dimension("any", tuple(choices)).is_numeric else 0


# ---- messages -------------------------------------------------------------------------------------------------------


def is_untouched(dimension: Dimension) -> bool:
    """Does it leave every layer as it is, whatever is chosen? Settings of training do not change a layer."""
    untouched = {KEEP: DENSE, HEADS: DENSE, DROP: 0, SPARSITY: 0.0, RANK: DENSE, ENERGY: DENSE, BITS: FLOAT_BITS}.get(dimension.kind)
    if dimension.kind == "pruning.global_sparsity":
        untouched = 0.0
    return untouched is None or dimension.choices == (untouched,)


def _why_nothing(space: Space, layers: Sequence[LayerInfo], dims: Sequence[Dimension]) -> str:
    if not all(map(is_untouched, dims)):
        return "the space holds one recipe only: nothing to search. Give choices, or replay it with `autocompress apply`."
    reasons = []
    for layer in layers:
        own = [layer.keep_reason, layer.rank_reason, layer.bits_reason, layer.drop_reason]
        given = ["excluded by a rule"] if is_excluded(space, layer) else list(dict.fromkeys(filter(None, own)))
        reasons.append(f"{layer.name}: {', '.join(given) or 'the space offers no choice'}")
    return f"nothing in this model may change: {listed(reasons, '; ')}. Widen --space or change the target."
