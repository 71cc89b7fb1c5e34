"""The front of another study as points of this space: choices go from layer to layer by name, or else by kind and relative depth.

Another seed or target of the same model maps by name; a similar model (deeper, wider) by role.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from autocompress.config import SearchConfig
from autocompress.errors import InvalidStudy
from autocompress.records import LayerInfo
from autocompress.runs import RunPaths
from autocompress.study import pareto
from autocompress.study.points import values_of
from autocompress.study.space import DROP, SPARSITY, Dimension, dimensions, groups_of, middle_index, sampled

MOST = 6  # points tried early
LEAST_SHARE = 0.5  # of this model's layers that must have a counterpart


def start_from(other: RunPaths, config: SearchConfig, layers: Sequence[LayerInfo]) -> tuple[dict[str, int], ...]:
    """Points of this study's space, fastest of the other's front first. Raises InvalidStudy where it has none or is of another kind.

    Only trials within this study's max_drop are taken.
    """
    theirs, their_layers = other.read_config(), other.read_layers()
    results = pareto.measured(other.results())
    front = pareto.front([result for result, point in results if point.drop <= config.max_drop])
    if not front:
        raise InvalidStudy(
            f"--warm-start: study {other.study!r} has no measured trial within {config.max_drop:g} points. Leave --warm-start out."
        )
    roles = counterparts(layers, their_layers)
    if len(roles) < LEAST_SHARE * len(layers):
        raise InvalidStudy(
            f"--warm-start: study {other.study!r} is of an unrelated model: {len(roles)} of {len(layers)} layers here have one of the same "
            "name or of the same kind at the same depth there, and half of them is the least. Leave --warm-start out."
        )
    dims, their_dims = dimensions(config.space, layers), dimensions(theirs.space, their_layers)
    known = {dim.name for dim in sampled(their_dims)}
    found: list[dict[str, int]] = []
    for result in front:
        if result.params.keys() >= known:
            point = mapped(values_of(result.params, their_dims), dims, names_there(layers, their_layers, roles))
            found += [point] if point not in found else []
    return tuple(found[:MOST])


def counterparts(layers: Sequence[LayerInfo], others: Sequence[LayerInfo]) -> dict[str, str]:
    """Layer here -> layer there: of the same name and kind, or else of the same kind at the same relative depth among those.

    By depth only where both have at least half as many of a kind as the other.
    """
    found: dict[str, str] = {}
    there = {layer.name: layer for layer in others}
    for kind in {layer.kind for layer in layers}:
        ours, same = [layer for layer in layers if layer.kind == kind], [layer for layer in others if layer.kind == kind]
        if all(layer.name in there and there[layer.name].kind == kind for layer in ours):
            found |= {layer.name: layer.name for layer in ours}
        elif same and 0.5 <= len(ours) / len(same) <= 2:
            for place, layer in enumerate(ours):
                found[layer.name] = same[round(place * (len(same) - 1) / max(len(ours) - 1, 1))].name
    return found


def names_there(layers: Sequence[LayerInfo], others: Sequence[LayerInfo], roles: Mapping[str, str]) -> dict[str, str]:
    """What a layer or prune group here is called there; a group by the first of its members that has a counterpart with a group."""
    groups = {layer.name: layer.group for layer in others}
    found = dict(roles)
    for group, members in groups_of(layers).items():
        theirs = [groups[roles[layer.name]] for layer in members if layer.name in roles]
        if theirs and theirs[0] is not None:
            found[group] = theirs[0]
    return found


def mapped(values: Mapping[str, Any], dims: Sequence[Dimension], names: Mapping[str, str]) -> dict[str, int]:
    """The point of this space that is nearest to the values of a point there; what has no counterpart stands at its mildest choice."""
    point = {}
    for dim in sampled(dims):
        told = [values.get(f"{dim.kind}:{names.get(name, name)}", values.get(f"{dim.kind}:*")) for name in dim.members or (dim.place,)]
        if not dim.place:
            told = [values.get(dim.name)]
        known = [value for value in told if value is not None]
        point[dim.name] = _index(dim, known)
    return point


def _index(dim: Dimension, known: Sequence[Any]) -> int:
    if known and known[0] in dim.choices:
        return dim.choices.index(known[0])
    numbers = [value for value in known if isinstance(value, int | float)]
    if numbers and dim.is_numeric:
        return dim.nearest(sum(numbers) / len(numbers))
    if dim.kind in (DROP, SPARSITY):
        return 0
    return len(dim.choices) - 1 if dim.place else middle_index(dim.choices)
