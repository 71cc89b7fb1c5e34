"""What a point would take, and what its choices would harm, before any trial: thousands of points a second.

The survey's latency model, asked layer by layer and kept in a table by the few dimensions that a layer depends on, so that no recipe
is made of a candidate. Without a survey multiply-adds stand in for time and usual shares for harm: only an order, which the finished
trials correct.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.latency_model import last_of, layer_ms, load_of, terms_of
from autocompress.recipe import FLOAT_BITS, LayerPlan, Quantization
from autocompress.records import LatencyModel, LayerCost, LayerInfo
from autocompress.study.points import bits_of, method_of, rank_of
from autocompress.study.question import Question
from autocompress.study.rules import DENSE, is_weighted
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
    groups_of,
    sampled,
    share_kind,
    snap,
)

Points = NDArray[np.int64]  # (points, sampled dimensions): indices of choices
Floats = NDArray[np.float64]
HARMFUL = (KEEP, HEADS, DROP, SPARSITY, RANK, ENERGY, BITS)

FLOAT, STATIC, ABSENT = 0.0, 1.0, -1.0
GUESSED_ERROR = 0.4  # relative error of a time that is guessed from multiply-adds
OVERHEAD = 0.1  # of a layer's guessed time that no choice makes go away, as a share of the mean layer's
INTEGER_SHARE = 0.5  # guessed time of an integer layer over that of the same in float
GUESSED_HARM = {8: 0.01, 7: 0.01, 6: 0.02, 5: 0.05, 4: 0.1, 3: 0.3, 2: 1.0}  # of integer weights, in nats of loss


@dataclass
class LayerTable:
    """One layer's (ms, kept outputs, multiply-adds, kind) by the choices that it depends on; filled as it is asked.

    ``kind``: FLOAT, STATIC (integers with static ranges), or ABSENT where its block is left out.
    """

    place: int  # among the layers
    layer: LayerInfo
    owner: LayerInfo | None  # the attention that it is a projection of
    blocks: tuple[str, ...]  # that may be left out with it inside
    columns: tuple[int, ...]  # of the dimensions that it depends on
    steps: NDArray[np.int64]  # index of an entry = columns @ steps
    entries: Floats = field(repr=False)  # (entries, 4), NaN where not asked yet


class Forecast:
    """Predicted time, multiply-adds and harm of points of one question's space. Points are arrays (points, sampled dimensions)."""

    def __init__(self, question: Question) -> None:
        self.question, self.dims = question, sampled(question.dimensions)
        self.column = {dim.name: place for place, dim in enumerate(self.dims)}
        self.sizes = np.array([len(dim.choices) for dim in self.dims], dtype=np.int64)
        survey = question.survey
        self.is_measured = survey is not None and survey.latency is not None
        self.latency = survey.latency if survey is not None and survey.latency is not None else guessed_latency(question.layers)
        self.error = max(self.latency.error, 0.02)
        self._terms = terms_of(self.latency)
        self._owner = {f"{dim.kind}:{name}": dim for dim in question.dimensions for name in (dim.place, *dim.members)}
        self._groups = groups_of(question.layers)
        self._shares: dict[tuple[str, float], float] = {}
        self._attentions = [layer for layer in question.layers if layer.kind == "attention"]
        self._blocks = [layer.name for layer in question.layers if layer.droppable]
        self._last = {owner.name: last for owner in self._attentions if (last := _last_projection(owner, question.layers))}
        real = [layer for layer in question.layers if layer.kind not in ("attention", "block")]
        self._tables = [self._table(place, layer) for place, layer in enumerate(real)]
        self.layers = len(self._tables)
        self.touched = [[table for table in self._tables if place in table.columns] for place in range(len(self.dims))]
        self._known: dict[tuple[str, str], dict[float | str, float]] = {}
        for one in survey.tried if survey is not None else ():
            if one.harm is not None:
                self._known.setdefault((one.kind, one.name), {})[one.value] = max(one.harm, 0.0)
        self.harms = [self._harms(dim) for dim in self.dims]  # by dimension, of each choice

    def point(self, params: Mapping[str, int]) -> Points:
        return np.array([params[dim.name] for dim in self.dims], dtype=np.int64)

    def params(self, point: Points) -> dict[str, int]:
        return {dim.name: int(index) for dim, index in zip(self.dims, point, strict=True)}

    def look(self, points: Points) -> Floats:
        """Predicted milliseconds a batch and multiply-adds of each point, (points, 2)."""
        total, kinds = np.zeros((len(points), 3)), []
        for table in self._tables:
            found = self.layer(table, points)
            total += found[:, :3]
            kinds.append(found[:, 3])
        total[:, 0] += self.latency.change_ms * changes_of(kinds)
        first, scale, rest = self.latency.correction
        ms = first + scale * total[:, 0] + rest * total[:, 1] / max(self.layers, 1)
        found = np.column_stack([np.maximum(ms, 1e-3 * self.latency.baseline_ms), total[:, 2]])
        return self._students(points, found)

    def speedup(self, points: Points) -> Floats:
        return np.asarray(self.latency.baseline_ms / self.look(points)[:, 0])

    def harm(self, points: Points) -> dict[str, Floats]:
        """Predicted rise of the loss by kind of choice: the sum over the choices, each clipped at 0."""
        found: dict[str, Floats] = {}
        for place, dim in enumerate(self.dims):
            if dim.kind in HARMFUL:
                found[dim.kind] = found.get(dim.kind, np.zeros(len(points))) + self.harms[place][points[:, place]]
        return found

    def around(self, tables: Sequence[LayerTable], points: Points) -> Floats:
        """Milliseconds for changes between integers and floats at these layers and their neighbours, (points,)."""
        if not self.latency.change_ms:
            return np.zeros(len(points))
        places = {place for table in tables for place in range(table.place - 1, table.place + 2) if 0 <= place < self.layers}
        return self.latency.change_ms * changes_of([self.layer(self._tables[place], points)[:, 3] for place in sorted(places)])

    def layer(self, table: LayerTable, points: Points) -> Floats:
        """(points, 4) of one layer."""
        places = points[:, table.columns] @ table.steps if table.columns else np.zeros(len(points), dtype=np.int64)
        unknown = np.isnan(table.entries[places, 0])
        if unknown.any():
            firsts = dict(zip(places[unknown].tolist(), np.flatnonzero(unknown).tolist(), strict=True))
            for place, row in firsts.items():
                table.entries[place] = self._entry(table, points[row])
        return table.entries[places]

    def _table(self, place: int, layer: LayerInfo) -> LayerTable:
        wanted = [(RANK, layer.name), (BITS, layer.name), (ACTIVATION, layer.name)]
        wanted += [(share_kind(self._groups[group]), group) for group in (layer.group, layer.in_group) if group in self._groups]
        owner = next((one for one in self._attentions if layer.name.startswith(f"{one.name}.")), None)
        blocks = tuple(name for name in self._blocks if layer.name.startswith(f"{name}."))
        wanted += [(HEADS, owner.group)] if owner is not None and owner.group is not None else []
        wanted += [(DROP, name) for name in blocks]
        dims = [dim for kind, name in wanted if (dim := self.dimension(kind, name)) is not None]
        dims += [dim for name in ("factorization", "quantization.activations") if (dim := self._owner.get(f"{name}:")) is not None]
        names = tuple(dict.fromkeys(dim.name for dim in dims if dim.is_sampled))
        columns = tuple(self.column[name] for name in names)
        sizes = self.sizes[list(columns)]
        steps = np.concatenate([[1], np.cumprod(sizes)[:-1]]).astype(np.int64) if columns else np.zeros(0, dtype=np.int64)
        return LayerTable(place, layer, owner, blocks, columns, steps, np.full((math.prod(sizes.tolist()), 4), np.nan))

    def dimension(self, kind: str, name: str) -> Dimension | None:
        """The dimension that a layer's or group's choice of a kind comes from: its own, one it is tied to, or that of all layers."""
        return self._owner.get(f"{kind}:{name}") or self._owner.get(f"{kind}:*")

    def _entry(self, table: LayerTable, point: Points) -> tuple[float, float, float, float]:
        """As `latency_model.loads_of` counts the layer of the recipe at this point."""
        layer = table.layer

        def chosen(kind: str, name: str, otherwise: Any) -> Any:
            dim = self.dimension(kind, name)
            return otherwise if dim is None else dim.choices[point[self.column[dim.name]] if dim.is_sampled else 0]

        def share(group: str | None) -> float:
            if group is None or group not in self._groups:
                return DENSE
            return self._snapped(group, chosen(share_kind(self._groups[group]), group, DENSE))

        if any(chosen(DROP, name, 0) for name in table.blocks):
            return 0.0, 0.0, 0.0, ABSENT
        keep, inputs = share(layer.group), share(layer.in_group)
        settings = Quantization.model_construct(activations=self._setting("quantization.activations", point))
        wanted = {f"{BITS}:{layer.name}": chosen(BITS, layer.name, FLOAT_BITS)}
        wanted[f"{ACTIVATION}:{layer.name}"] = chosen(ACTIVATION, layer.name, FLOAT_BITS)
        bits, activation = bits_of(layer, wanted, settings)
        rank, method = None, "auto"
        if is_weighted(layer):
            method = method_of(layer, self._setting("factorization", point))
            kept = round(layer.out_channels * keep), round(layer.in_channels * inputs)
            rank = rank_of(layer, chosen(RANK, layer.name, DENSE), *kept, method)
        plan = LayerPlan.model_construct(
            name=layer.name, rank=rank, factorization=method if rank is not None else "auto", weight_bits=bits, activation_bits=activation
        )
        owner, outputs = table.owner, keep
        if owner is not None:
            inputs, outputs = (share(owner.group), outputs) if layer.name == self._last[owner.name] else (inputs, share(owner.group))
        load = load_of(layer, plan, settings, inputs, outputs)
        kind = STATIC if load.scheme == "static" else FLOAT
        return layer_ms(self._terms, layer.name, load), outputs, layer.macs * load.macs, kind

    def _setting(self, name: str, point: Points) -> Any:
        dim = self._owner.get(f"{name}:")
        if dim is not None:
            return dim.choices[point[self.column[dim.name]] if dim.is_sampled else 0]
        return self.question.space.factorization[0] if name == "factorization" else self.question.space.quantization.activations[0]

    def _snapped(self, group: str, share: float) -> float:
        key = (group, share)
        if key not in self._shares:
            self._shares[key] = snap(share, self._groups[group])
        return self._shares[key]

    def _students(self, points: Points, found: Floats) -> Floats:
        """Points of a student have no layers of the given model: width squared times depth stands in for both numbers."""
        place = self.column.get("student.width")
        if place is None:
            return found
        widths = np.array(self.dims[place].choices, dtype=float)[points[:, place]]
        deep = self.column.get("student.depth")
        depths = np.ones(len(points)) if deep is None else np.array(self.dims[deep].choices, dtype=float)[points[:, deep]]
        whole = np.array([self.latency.baseline_ms, sum(layer.macs for layer in self.question.layers)])
        return np.where((widths != GIVEN)[:, None], (widths**2 * depths)[:, None] * whole, found)

    def _harms(self, dim: Dimension) -> Floats:
        if dim.kind not in HARMFUL:
            return np.zeros(len(dim.choices))
        whole = np.zeros(len(dim.choices))
        names = dim.members or ([dim.place] if dim.place != "*" else self._free(dim.kind))
        for name in names:
            known = self._known.get((dim.kind, name), {})
            whole += [harm_of(dim.kind, choice, known) for choice in dim.choices]
        return whole

    def _free(self, kind: str) -> list[str]:
        """Names of the layers, or groups, that a dimension of a kind named ``*`` speaks for."""
        if kind in (KEEP, HEADS):
            names = [group for group, members in self._groups.items() if share_kind(members) == kind]
        else:
            names = [table.layer.name for table in self._tables]
        return [name for name in names if f"{kind}:{name}" not in self._owner]


def changes_of(kinds: Sequence[Floats]) -> Floats:
    """How often each point changes between integers and floats from layer to layer, as `latency_model.changes` counts."""
    before = np.full(len(kinds[0]), ABSENT) if kinds else np.zeros(0)
    count = np.zeros(len(before))
    for kind in kinds:
        count += (kind != ABSENT) & (before != ABSENT) & (kind != before)
        before = np.where(kind == ABSENT, before, kind)
    return count


def harm_of(kind: str, choice: Any, known: Mapping[float | str, float]) -> float:
    """The measured harm of a choice, a line between its measured neighbours, or else what such a choice usually costs."""
    if choice in known:
        return float(known[choice])
    numbers = sorted((float(value), harm) for value, harm in known.items() if not isinstance(value, str))
    if numbers and not isinstance(choice, str) and kind != BITS:
        untouched = 0.0 if kind == SPARSITY else DENSE
        numbers = sorted({untouched: 0.0, **dict(numbers)}.items())
        return float(np.interp(choice, [value for value, _ in numbers], [harm for _, harm in numbers]))
    if kind == BITS:
        return 0.0 if choice > 8 else GUESSED_HARM[choice]
    if kind == DROP:
        return 0.5 * float(choice)
    if kind == SPARSITY:
        gone = 1 - int(choice.partition(":")[0]) / int(choice.partition(":")[2]) if isinstance(choice, str) else choice
        return float(0.05 * gone / (1 - gone))
    return float(0.05 * (1 / float(choice) - 1))


def guessed_latency(layers: Sequence[LayerInfo]) -> LatencyModel:
    """Time in proportion to multiply-adds, an integer layer half of it; the baseline takes 1 ms."""
    real = [layer for layer in layers if layer.kind not in ("attention", "block")]
    whole, mean = sum(layer.macs for layer in real) or 1, OVERHEAD / max(len(real), 1)
    costs = []
    for layer in real:
        for scheme, factor in (("none", 1.0), ("half", 1.0), ("weight_only", 1.0), ("dynamic", INTEGER_SHARE), ("static", INTEGER_SHARE)):
            terms = (mean, 0.0, 0.0, (1 - OVERHEAD) * factor * layer.macs / whole)
            costs.append(LayerCost.model_validate({"name": layer.name, "scheme": scheme, "terms": terms}))
    return LatencyModel(
        costs=tuple(costs), correction=(0.0, 1.0, 0.0), baseline_ms=1.0, error=GUESSED_ERROR, probes=0, batch_size=1, input_shape=()
    )


def _last_projection(owner: LayerInfo, layers: Sequence[LayerInfo]) -> str:
    inside = next((one for one in layers if one.kind != "attention" and one.name.startswith(f"{owner.name}.")), None)
    return last_of(inside, layers) if inside is not None else ""
