"""Which rule of a space holds for a layer, and rules that no layer can follow."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from autocompress.config import Rule, Space
from autocompress.errors import InvalidSpace
from autocompress.recipe import FLOAT_BITS, HALF_BITS
from autocompress.records import LayerInfo

DENSE = 1.0
ACTIVATION_LIMIT = 8  # integer kernels take inputs of at most so many bits
LISTED = 8  # names or reasons shown in a message


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
            known = listed([layer.name for layer in layers])
            raise InvalidSpace(f"{place}.match: no layer is named {rule.match!r}. Layers that may be named: {known}.")
        first = matched[0]
        bits = rule.weight_bits or FLOAT_BITS
        checks = (
            ("keep", rule.keep, (rule.keep or DENSE) < DENSE, [layer.group for layer in matched], first.keep_reason),
            ("drop", rule.drop, bool(rule.drop), [layer.droppable for layer in matched], first.drop_reason),
            ("sparsity", rule.sparsity, bool(rule.sparsity), [is_weighted(layer) for layer in matched], "it has no weights of its own"),
            ("rank", rule.rank, (rule.rank or DENSE) < DENSE, [layer.factorizable for layer in matched], first.rank_reason),
            ("weight_bits", bits, bits < FLOAT_BITS, [can_run(space, layer, bits) for layer in matched], first.bits_reason),
        )
        for field, pin, changes, possible, reason in checks:
            if changes and not any(possible):
                why = f"{first.name}: {reason or 'this target has nothing that realizes it'}"
                raise InvalidSpace(f"{place}.{field}: no layer that {rule.match!r} matches can have {pin:g} ({why}).")


def is_weighted(layer: LayerInfo) -> bool:
    """Is it a layer whose single weights may become 0?"""
    return layer.kind in ("conv2d", "linear")


def is_excluded(space: Space, layer: LayerInfo) -> bool:
    rule = rule_of(space, layer)
    return rule is not None and rule.exclude


def activations(space: Space) -> tuple[int, ...]:
    """Bits that the inputs of a layer with integer weights may have; 32: its weights alone are integers."""
    return tuple(bits for bits in space.activation_bits.choices if bits <= ACTIVATION_LIMIT or bits == FLOAT_BITS)


def can_run(space: Space, layer: LayerInfo, bits: int) -> bool:
    """Does the target run a layer with weights of these bits under a scheme that the space allows?"""
    if bits == FLOAT_BITS:
        return True
    if bits == HALF_BITS:
        return HALF_BITS in layer.schemes.get("half", ())
    if not layer.schemes:
        return bits in layer.weight_bits and bool(activations(space))
    allowed = [scheme for scheme in space.quantization.activations if min(activations(space), default=FLOAT_BITS) <= ACTIVATION_LIMIT]
    if FLOAT_BITS in activations(space):
        allowed.append("weight_only")
    realized = layer.weight_bits if space.weight_bits.real and allowed == ["static"] else None
    return any(bits in runs for scheme, runs in layer.schemes.items() if scheme in allowed) and (realized is None or bits in realized)


def listed(names: Sequence[str], separator: str = ", ") -> str:
    more = [f"and {len(names) - LISTED} more"] if len(names) > LISTED else []
    return separator.join([*names[:LISTED], *more]) or "none"
