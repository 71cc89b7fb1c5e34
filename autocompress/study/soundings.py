"""What the survey is asked to try before any trial: every choice of the space alone, and structures to time. Plain recipes, no torch."""

import random
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from autocompress.config import Space
from autocompress.recipe import FLOAT_BITS, Recipe
from autocompress.records import LayerInfo, Tried
from autocompress.study.points import recipe_of
from autocompress.study.rules import DENSE
from autocompress.study.space import (
    ACTIVATION,
    BITS,
    DROP,
    ENERGY,
    GIVEN,
    HEADS,
    KEEP,
    RANK,
    SPARSITY,
    Dimension,
    middle,
)

UNTOUCHED: dict[str, Any] = {KEEP: DENSE, HEADS: DENSE, DROP: 0, SPARSITY: 0.0, RANK: DENSE, ENERGY: DENSE, BITS: FLOAT_BITS}
KINDS = get_args(Tried.model_fields["kind"].annotation)
UNIFORM = ((1.0, 0.0), (0.5, 1.0), (0.5, 0.0), (0.0, 1.0), (0.0, 0.0), (0.3, 0.0))  # kept share, bits: 1 the most, 0 the fewest
ALIKE = 4  # every so-manieth random structure has its bits in common, as those that are proposed often do
PROBE_SEED = 0  # the same structures in every study of a model: times that are known need not be taken again
RANKED = 0.5  # share of the layers of a random structure that may have a rank of their own


def alone(dims: Sequence[Dimension], space: Space, layers: Sequence[LayerInfo]) -> list[tuple[Tried, Recipe]]:
    """Every choice that changes something, and the recipe that makes this choice and leaves all else as it is."""
    fixed = _settings(dims)
    found = []
    for dim in dims:
        for value in dim.choices if dim.kind in KINDS else ():
            if value != UNTOUCHED[dim.kind]:
                kind, _, name = dim.name.partition(":")
                recipe = recipe_of({}, (Dimension(dim.name, (value,)), *fixed), space, layers, seed=0)
                found.append((Tried.model_validate({"kind": kind, "name": name, "value": value}), recipe))
    return found


def structures(dims: Sequence[Dimension], space: Space, layers: Sequence[LayerInfo], count: int) -> list[Recipe]:
    """Up to ``count`` different recipes to time, the most telling first: uniform ones, then random ones, as a search would try them."""
    found: dict[str, Recipe] = {}
    for chosen in _points(dims):
        one = recipe_of({}, (*chosen, *_settings(dims, chosen)), space, layers, seed=0)
        found.setdefault(one.digest, one)
        if len(found) == count:
            break
    return list(found.values())


def _points(dims: Sequence[Dimension]) -> Iterator[list[Dimension]]:
    varied = [dim for dim in dims if dim.kind in (KEEP, HEADS, DROP, RANK, BITS)]
    for keep, bits in UNIFORM:
        targets = {KEEP: keep, HEADS: max(keep, 0.5), DROP: 0, RANK: DENSE, BITS: FLOAT_BITS * bits}
        yield [Dimension(dim.name, (dim.choices[dim.nearest(targets[dim.kind])],)) for dim in varied]
    draw = random.Random(PROBE_SEED)
    for number in range(100 * len(UNIFORM)):
        common = draw.random()
        point = []
        for dim in (*varied, *(dim for dim in dims if dim.name == "quantization.activations")):
            value = draw.choice(dim.choices)
            if dim.kind == BITS and number % ALIKE == 0:
                value = dim.choices[int(common * len(dim.choices))]
            if dim.kind == RANK and draw.random() > RANKED:
                value = dim.choices[-1]
            point.append(Dimension(dim.name, (value,)))
        yield point


def _settings(dims: Sequence[Dimension], chosen: Sequence[Dimension] = ()) -> list[Dimension]:
    """What else a recipe needs, at the middle of its ladder: settings of the whole model, and bits of inputs, the fewest of them."""
    known = {dim.name for dim in chosen}
    found = []
    for dim in dims:
        if dim.name in known or dim.kind in KINDS:
            continue
        value = GIVEN if dim.name == "student.width" else dim.choices[0] if dim.kind == ACTIVATION else middle(dim.choices)
        value = 0.0 if dim.name == "pruning.global_sparsity" else value
        found.append(Dimension(dim.name, (value,)))
    return found
