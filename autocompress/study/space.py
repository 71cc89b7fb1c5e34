"""From what a Space wishes and the survey allows to ordered dimensions, and from a point in them to an expanded Recipe."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction

from autocompress.config import Rule, Space, Tie
from autocompress.errors import InvalidSpace
from autocompress.recipe import FLOAT_BITS, Distillation, LayerPlan, Recipe, Recovery
from autocompress.records import LayerInfo

ACTIVATION_LIMIT = 8  # integer kernels take inputs of at most so many bits
MAX_ANCHORS = 6
LISTED = 8  # names or reasons shown in a message
DENSE, KEEP, RANK, BITS, ACTIVATION = 1.0, "keep", "rank", "weight_bits", "activation_bits"

Choices = tuple[float, ...]
Found = dict[str, Choices | None]  # by layer; None: free to vary
Params = Mapping[str, int]
Values = Mapping[str, float]


@dataclass(frozen=True)
class Dimension:
    """One thing that may vary: ``keep:<group>``, ``rank:<layer>``, ``weight_bits:<layer>``, ``learning_rate``, ...

    ``choices`` ascend, and a point in the space is an index into them. One choice: fixed, not sampled, still part of the
    recipe. ``<kind>:*`` is the common one of all layers that have none of their own (``tie: model``).
    """

    name: str
    choices: Choices

    @property
    def is_sampled(self) -> bool:
        return len(self.choices) > 1

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]

    def nearest(self, value: float) -> int:
        """Index of the choice nearest to ``value``; the larger of two equally near."""
        return min(range(len(self.choices)), key=lambda index: (abs(self.choices[index] - value), -index))


def dimensions(space: Space, layers: Sequence[LayerInfo]) -> tuple[Dimension, ...]:
    """Every dimension, fixed ones included. Raises InvalidSpace for a rule that does nothing and a space without a choice."""
    check_rules(space, layers)
    found = (
        *keep_dimensions(space, layers),
        *rank_dimensions(space, layers),
        *bits_dimensions(space, layers),
        *training_dimensions(space),
    )
    if not any(dimension.is_sampled for dimension in found) or all(map(_is_untouched, found)):
        raise InvalidSpace(_why_nothing(space, layers, found))
    return found


def sampled(dims: Iterable[Dimension]) -> tuple[Dimension, ...]:
    return tuple(dimension for dimension in dims if dimension.is_sampled)


def space_size(dims: Iterable[Dimension]) -> int:
    """How many points the space has; some of them may be the same recipe."""
    return math.prod(len(dimension.choices) for dimension in dims)


# ---- rules ----------------------------------------------------------------------------------------------------------


def rule_of(space: Space, layer: LayerInfo) -> Rule | None:
    """The first rule whose pattern matches the layer's name."""
    return next((rule for rule in space.layers if fnmatchcase(layer.name, rule.match)), None)


def check_rules(space: Space, layers: Sequence[LayerInfo]) -> None:
    """Raises InvalidSpace for a pattern that matches no layer, and for a pin that none of its layers can take.

    A pin by wildcard applies to those of its layers that can take it; the others stay as they are in that respect.
    """
    for index, rule in enumerate(space.layers):
        place = f"layers[{index}]"
        matched = [layer for layer in layers if fnmatchcase(layer.name, rule.match)]
        if not matched:
            known = _listed([layer.name for layer in layers])
            raise InvalidSpace(f"{place}.match: no layer is named {rule.match!r}. Layers that may be named: {known}.")
        first = matched[0]
        bits = rule.weight_bits or FLOAT_BITS
        checks = (
            (KEEP, rule.keep, (rule.keep or DENSE) < DENSE, [layer.group for layer in matched], first.keep_reason),
            (RANK, rule.rank, (rule.rank or DENSE) < DENSE, [layer.factorizable for layer in matched], first.rank_reason),
            (BITS, bits, bits < FLOAT_BITS, [_can_run(space, layer, bits) for layer in matched], first.bits_reason),
        )
        for field, pin, changes, possible, reason in checks:
            if changes and not any(possible):
                why = f"{first.name}: {reason or 'this target has nothing that realizes it'}"
                raise InvalidSpace(f"{place}.{field}: no layer that {rule.match!r} matches can have {pin:g} ({why}).")


def _can_run(space: Space, layer: LayerInfo, bits: int) -> bool:
    return bits in layer.weight_bits and (bits == FLOAT_BITS or bool(_activations(space)))


def _is_excluded(space: Space, layer: LayerInfo) -> bool:
    rule = rule_of(space, layer)
    return rule is not None and rule.exclude


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
    narrow = min(members, key=lambda layer: layer.out_channels // layer.channel_multiple)
    steps = range(narrow.channel_multiple, narrow.out_channels, narrow.channel_multiple)
    shares = (Fraction(kept, narrow.out_channels) for kept in steps)
    fitting = (share for share in shares if all((share * layer.out_channels) % layer.channel_multiple == 0 for layer in members))
    return (*fitting, Fraction(1))


def snap(share: float, members: Sequence[LayerInfo]) -> float:
    """The valid share nearest to the one asked for; the milder of two equally near."""
    return float(min(valid_shares(members), key=lambda valid: (abs(valid - Fraction(share)), -valid)))


def keep_dimensions(space: Space, layers: Sequence[LayerInfo]) -> list[Dimension]:
    found, tied = [], False
    for group, members in groups_of(layers).items():
        rules = [rule for rule in (rule_of(space, layer) for layer in members) if rule is not None]
        pins = {snap(rule.keep, members) for rule in rules if rule.keep is not None}
        if any(rule.exclude for rule in rules):
            pins = {DENSE}  # its members share their width: one that stays as it is holds all of them
        if len(pins) > 1:
            names = _listed([layer.name for layer in members])
            raise InvalidSpace(f"layers: {names} are one prune group and need one keep, but are pinned to {sorted(pins)}.")
        if not pins and space.keep.tie == "model":
            tied = True
            continue
        choices = pins or {snap(share, members) for share in space.keep.choices}
        found.append(Dimension(f"{KEEP}:{group}", tuple(sorted(choices))))
    return [*found, *([Dimension(f"{KEEP}:*", space.keep.choices)] if tied else [])]


# ---- factorization --------------------------------------------------------------------------------------------------


def rank_dimensions(space: Space, layers: Sequence[LayerInfo]) -> list[Dimension]:
    found: Found = {}
    for layer in layers:
        rule = rule_of(space, layer)
        if not layer.factorizable or (rule is not None and rule.exclude):
            found[layer.name] = (DENSE,)
        else:
            found[layer.name] = (rule.rank,) if rule is not None and rule.rank is not None else None
    return _own_or_tied(RANK, found, lambda name: space.rank.choices, space.rank.choices, space.rank.tie)


def rank_of(layer: LayerInfo, share: float, kept_out: int, kept_in: int) -> int | None:
    """Absolute rank for a share of the full one; None where the factorized form would not save multiply-adds.

    Dense and SVD of (out, in): out * in against rank * (out + in). Tucker-2 of a k x k convolution, per output position:
    in * r_in + r_in * r_out * k * k + r_out * out with r_in = min(rank, in), r_out = min(rank, out) (Kim et al. 2016).
    """
    full = min(kept_out, kept_in)
    rank = max(1, round(share * full))
    if share >= DENSE or rank >= full:
        return None
    area = layer.kernel[0] * layer.kernel[1]
    dense = kept_out * kept_in * area
    small = rank * (kept_out + kept_in) + (rank * rank * area if area > 1 else 0)
    return rank if small < dense else None


# ---- quantization ---------------------------------------------------------------------------------------------------


def bits_dimensions(space: Space, layers: Sequence[LayerInfo]) -> list[Dimension]:
    found: Found = {}
    realized: dict[str, set[int]] = {}
    for layer in layers:
        rule = rule_of(space, layer)
        widths = {bits for bits in space.weight_bits.choices if _can_run(space, layer, bits)}
        pin = rule.weight_bits if rule is not None else None
        if rule is not None and rule.exclude:
            found[layer.name] = (FLOAT_BITS,)
        elif pin is not None:
            found[layer.name] = (pin if _can_run(space, layer, pin) else FLOAT_BITS,)
        elif not widths - {FLOAT_BITS}:
            found[layer.name] = (FLOAT_BITS,)
        else:
            found[layer.name], realized[layer.name] = None, widths
    common = set.intersection(*realized.values()) if realized else set()
    weights = _own_or_tied(BITS, found, lambda name: narrowed(realized[name]), narrowed(common), space.weight_bits.tie)
    integer = {dim.name.partition(":")[2] for dim in weights if dim.choices[0] < FLOAT_BITS}
    return [*weights, *_activation_dimensions(space, integer)]


def narrowed(widths: Iterable[int]) -> tuple[int, ...]:
    """The widest integer width, and float where it is among them; float alone where nothing is left.

    Integer widths up to 8 run in the same kernel, so a narrower one is no faster and only loses accuracy.
    """
    integer = [bits for bits in widths if bits < FLOAT_BITS]
    return (*([max(integer)] if integer else []), *([FLOAT_BITS] if FLOAT_BITS in widths or not integer else []))


def _activations(space: Space) -> tuple[int, ...]:
    return tuple(bits for bits in space.activation_bits.choices if bits <= ACTIVATION_LIMIT)


def _activation_dimensions(space: Space, integer: set[str]) -> list[Dimension]:
    """Bits of the input of layers with integer weights: the widest, unless the space asks to choose among several."""
    choices = _activations(space)
    names = {"*"} if space.activation_bits.tie == "model" or len(choices) == 1 else integer
    return [Dimension(f"{ACTIVATION}:{name}", choices) for name in sorted(names)] if integer else []


def _own_or_tied(kind: str, found: Found, free: Callable[[str], Choices], common: Choices, tie: Tie) -> list[Dimension]:
    """One dimension a layer; with ``tie: model`` the layers that are free (None) share the one named ``*``."""
    tied = tie == "model"
    own = [(name, choices or free(name)) for name, choices in found.items() if choices or not tied]
    shared = [("*", common)] if tied and None in found.values() else []
    return [Dimension(f"{kind}:{name}", choices) for name, choices in (*own, *shared)]


# ---- training -------------------------------------------------------------------------------------------------------


def training_dimensions(space: Space) -> list[Dimension]:
    """Distillation and learning rate; fixed at the middle of each ladder where there is no training that they could change."""
    ladders = {"learning_rate": space.recovery.learning_rate}
    if space.distillation is not None:
        ladders = {"temperature": space.distillation.temperature, "soft_weight": space.distillation.soft_weight, **ladders}
    trained = space.recovery.steps + space.recovery.quantized_steps > 0
    ordered = ((name, tuple(sorted(set(ladder)))) for name, ladder in ladders.items())
    return [Dimension(name, ladder if trained else (ladder[len(ladder) // 2],)) for name, ladder in ordered]


# ---- points and recipes ---------------------------------------------------------------------------------------------


def values_of(params: Params, dims: Iterable[Dimension]) -> dict[str, float]:
    """The chosen value of every dimension; ``params`` holds an index for each that is sampled."""
    return {dim.name: dim.choices[params[dim.name] if dim.is_sampled else 0] for dim in dims}


def recipe_of(params: Params, dims: Iterable[Dimension], space: Space, layers: Sequence[LayerInfo], seed: int) -> Recipe:
    """The expanded recipe of a point: a plan for every layer. The seed is the study's: all trials see the data in one order."""
    values = values_of(params, dims)
    shares = {group: snap(_look_up(values, KEEP, group, DENSE), members) for group, members in groups_of(layers).items()}
    return Recipe(
        layers=tuple(_plan(layer, values, shares) for layer in layers),
        distillation=_distillation(space, values),
        recovery=Recovery(
            steps=space.recovery.steps,
            quantized_steps=space.recovery.quantized_steps,
            learning_rate=values["learning_rate"],
            seed=seed,
        ),
    )


def _plan(layer: LayerInfo, values: Values, shares: Mapping[str, float]) -> LayerPlan:
    keep = shares[layer.group] if layer.group is not None else DENSE
    kept_in = round(layer.in_channels * (shares.get(layer.in_group, DENSE) if layer.in_group is not None else DENSE))
    bits = int(_look_up(values, BITS, layer.name, FLOAT_BITS))
    activation = _look_up(values, ACTIVATION, layer.name, FLOAT_BITS) if bits < FLOAT_BITS else FLOAT_BITS
    return LayerPlan(
        name=layer.name,
        keep=keep,
        rank=rank_of(layer, _look_up(values, RANK, layer.name, DENSE), round(layer.out_channels * keep), kept_in),
        weight_bits=bits,
        activation_bits=int(activation),
    )


def _distillation(space: Space, values: Values) -> Distillation | None:
    if space.distillation is None or values["soft_weight"] == 0:
        return None  # no weight on the teacher is the task's loss alone, and saves running the teacher
    soft = values["soft_weight"]
    return Distillation(temperature=values["temperature"], soft_weight=soft, hard_weight=round(1 - soft, 6))


def _look_up(values: Values, kind: str, name: str, otherwise: float) -> float:
    return values.get(f"{kind}:{name}", values.get(f"{kind}:*", otherwise))


def anchors(dims: Sequence[Dimension]) -> list[dict[str, int]]:
    """Uniform points to start from, mild to hard: keep near 0.5, near 0.25, smallest, each in float and with the fewest bits.

    Ranks stay full, the other ladders stand in the middle; the point that changes nothing is left out.
    """
    points: list[dict[str, int]] = []
    for keep in (0.5, 0.25, 0.0):
        for bits in (FLOAT_BITS, 0):
            targets = {KEEP: keep, RANK: DENSE, BITS: bits, ACTIVATION: FLOAT_BITS}
            point = {d.name: d.nearest(targets[d.kind]) if d.kind in targets else len(d.choices) // 2 for d in sampled(dims)}
            values = values_of(point, dims)
            if point not in points and not all(_is_untouched(Dimension(name, (value,))) for name, value in values.items()):
                points.append(point)
    return points[:MAX_ANCHORS]


# ---- messages -------------------------------------------------------------------------------------------------------


def _is_untouched(dimension: Dimension) -> bool:
    """Does it leave every layer as it is, whatever is chosen? Settings of training do not change a layer."""
    untouched = {KEEP: DENSE, RANK: DENSE, BITS: FLOAT_BITS}.get(dimension.kind)
    return untouched is None or dimension.choices == (untouched,)


def _why_nothing(space: Space, layers: Sequence[LayerInfo], dims: Sequence[Dimension]) -> str:
    if not all(map(_is_untouched, dims)):
        return "the space holds one recipe only: nothing to search. Give choices, or replay it with `autocompress apply`."
    reasons = []
    for layer in layers:
        own = [layer.keep_reason, layer.rank_reason, layer.bits_reason]
        given = ["excluded by a rule"] if _is_excluded(space, layer) else list(dict.fromkeys(filter(None, own)))
        reasons.append(f"{layer.name}: {', '.join(given) or 'the space offers no choice'}")
    return f"nothing in this model may change: {_listed(reasons, '; ')}. Widen --space or change the target."


def _listed(names: Sequence[str], separator: str = ", ") -> str:
    more = [f"and {len(names) - LISTED} more"] if len(names) > LISTED else []
    return separator.join([*names[:LISTED], *more]) or "none"
