"""The latency model, fitted to probes: non-negative costs of layers by shape, and a correction of their sum (see ``latency_model``).

Layers of one shape (kind, kernel, stride, positions, scheme) share their costs: milliseconds a kernel, a channel read, a channel
written and a multiply-add. What a profile gives to no layer (reordering, sums, pooling) goes with the number of layers of each scheme,
with what they write, and with the places where integers and floats meet.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autocompress.latency_model import Load, changes, loads_of, predict_ms
from autocompress.recipe import Recipe, Scheme
from autocompress.records import LatencyModel, LayerCost, LayerInfo
from autocompress.survey.probes import Probe, Row, Shape, Site, shape_of

Vector = NDArray[np.float64]
Taken = tuple[Recipe, Probe]
FEWEST = 5  # probes of this model that a fit needs: three numbers of the correction, and something to be wrong about
NINE_IN_TEN = 0.9
USUAL, REWEIGHTED = 0.1, 4
EASE = 0.03  # of the correction towards none, as a share of the weight of one probe


def fit(site: Site, taken: Sequence[Taken], rows: Sequence[Row]) -> LatencyModel | None:
    """None where there are too few probes. ``rows``: of all models, as `probes.probed` gives them; those of ``taken`` are among them.

    ``error`` by leave-one-out: the model is fitted without a probe's rows and total, and asked for its total.
    """
    if len(taken) < FEWEST:
        return None
    foreign = _without(rows, [row for _, probe in taken for row in probe.rows])
    wrong = []
    for index, (recipe, probe) in enumerate(taken):
        others = [*taken[:index], *taken[index + 1 :]]
        predicted = predict_ms(_fitted(site, others, foreign), recipe, site.layers)
        assert predicted is not None
        wrong.append(abs(predicted / probe.total_ms - 1))
    fitted = _fitted(site, taken, foreign)
    return fitted.model_copy(update={"error": float(np.quantile(wrong, NINE_IN_TEN))})


def _fitted(site: Site, taken: Sequence[Taken], foreign: Sequence[Row]) -> LatencyModel:
    elements = {layer.name: float(layer.out_channels * shape_of(layer, "none").positions) for layer in site.layers}
    loads = [loads_of(recipe, site.layers) for recipe, _ in taken]
    rest = _rest_costs(loads, elements, np.array([max(probe.rest_ms, 0.0) for _, probe in taken]))
    model = LatencyModel(
        costs=layer_costs(site.layers, [row for _, probe in taken for row in probe.rows] + [*foreign], rest, elements),
        correction=(0.0, 1.0, 0.0), change_ms=rest.a_change, baseline_ms=site.baseline_ms, error=0.0, probes=len(taken),
        batch_size=site.target.batch_size, input_shape=tuple(site.calibration.shape[1:]),
    )  # fmt: skip
    return model.model_copy(update={"correction": _correction(model, taken, loads, site.layers)})


class _Rest(NamedTuple):
    """What belongs to no layer, in ms: for every layer of a scheme, for all that layers of a scheme write, and for every change."""

    a_layer: dict[Scheme, float]
    an_element: dict[Scheme, float]
    a_change: float


def _rest_costs(loads: Sequence[Mapping[str, Load]], elements: Mapping[str, float], rest: Vector) -> _Rest:
    """Non-negative least squares over probes; what is left of it is for the correction. ``elements``: that a layer writes at full width."""
    schemes = sorted({load.scheme for one in loads for load in one.values()})
    columns = []
    for one in loads:
        by_scheme = [[(name, load) for name, load in one.items() if load.scheme == scheme] for scheme in schemes]
        written = [sum(load.outputs * elements[name] for name, load in found) for found in by_scheme]
        columns.append([*map(len, by_scheme), *written, changes(one.values()), 1.0])
    design = np.array(columns, np.float64)
    scale = np.maximum(design.max(0), 1e-12)
    found = non_negative(design / scale, rest) / scale
    count = len(schemes)
    a_layer, an_element = (dict(zip(schemes, map(float, part), strict=True)) for part in (found[:count], found[count : 2 * count]))
    return _Rest(a_layer, an_element, float(found[2 * count]))


def layer_costs(layers: Sequence[LayerInfo], rows: Sequence[Row], rest: _Rest, elements: Mapping[str, float]) -> tuple[LayerCost, ...]:
    """Costs of every layer under every scheme that a layer of its shape was timed under, its part of the rest included."""
    by_shape: dict[Shape, list[Row]] = defaultdict(list)
    for row in rows:
        by_shape[row.shape].append(row)
    unit = {shape: _unit_costs(found) for shape, found in by_shape.items()}
    schemes = sorted({shape.scheme for shape in unit})
    costs = []
    for layer in layers:
        for scheme in schemes if layer.kind not in ("attention", "block") else ():
            known = unit.get(shape_of(layer, scheme))
            if known is not None:
                full = (1.0, layer.in_channels, layer.out_channels, layer.macs)
                a_kernel, read, wrote, macs = (float(one * amount) for one, amount in zip(known, full, strict=True))
                a_kernel += rest.a_layer.get(scheme, 0.0)
                wrote += rest.an_element.get(scheme, 0.0) * elements[layer.name]
                costs.append(LayerCost(name=layer.name, scheme=scheme, terms=(a_kernel, read, wrote, macs)))
    return tuple(costs)


def _unit_costs(rows: Sequence[Row]) -> Vector:
    """Milliseconds a kernel, a channel read, a channel written, a multiply-add: (4,), none below 0; small layers weigh as much as large.

    A row that is off by more than USUAL weighs less (Huber 1964, by reweighting): some were timed while others used the machine.
    """
    amounts = np.array([(row.kernels, row.inner, row.outer, row.macs) for row in rows], np.float64)
    times = np.array([row.ms for row in rows], np.float64)
    scale = np.maximum(amounts.max(0), 1e-12)
    times = np.maximum(times, 1e-6)
    weight, found = 1 / np.sqrt(times), np.zeros(4)
    for _ in range(REWEIGHTED):
        found = non_negative(amounts / scale * weight[:, None], times * weight) / scale
        off = np.abs(amounts @ found / times - 1)
        weight = np.sqrt(np.minimum(1.0, USUAL / np.maximum(off, 1e-9)) / times)
    return found


def non_negative(design: Vector, wanted: Vector) -> Vector:
    """argmin ||design @ x - wanted|| over x >= 0; design (rows, columns) -> (columns,). Active set method of Lawson and Hanson (1974)."""
    columns = design.shape[1]
    x, free = np.zeros(columns), np.zeros(columns, bool)
    tolerance = 1e-10 * max(float(np.abs(design.T @ wanted).max(initial=0.0)), 1e-30)
    for _ in range(10 * columns):
        slope = design.T @ (wanted - design @ x)
        if free.all() or slope[~free].max() <= tolerance:
            break
        free[np.argmax(np.where(free, -np.inf, slope))] = True
        while True:
            trial = np.zeros(columns)
            trial[free] = np.linalg.lstsq(design[:, free], wanted, rcond=None)[0]
            if trial[free].min(initial=1.0) > 0:
                break
            below = free & (trial <= 0)
            x = x + float((x[below] / np.maximum(x[below] - trial[below], 1e-300)).min()) * (trial - x)
            free &= x > 1e-14
            x[~free] = 0.0
        x = trial
    return x


def _correction(
    model: LatencyModel, taken: Sequence[Taken], loads: Sequence[Mapping[str, Load]], layers: Sequence[LayerInfo]
) -> tuple[float, float, float]:
    """Least squares of relative errors, drawn a little towards (0, 1, 0): three numbers from a dozen probes would follow their noise."""
    sums, shares, totals = [], [], []
    for (recipe, probe), one in zip(taken, loads, strict=True):
        predicted = predict_ms(model, recipe, layers)
        assert predicted is not None
        sums.append(predicted)
        shares.append(sum(load.outputs for load in one.values()) / max(len(one), 1))
        totals.append(probe.total_ms)
    total = np.array(totals)
    design = np.stack([np.ones(len(total)), np.array(sums), np.array(shares)], 1)
    scale = np.array([total.mean(), 1.0, total.mean()])
    design = design * np.array([scale[0], 1.0, scale[2]]) / total[:, None]
    ease = np.sqrt(EASE) * np.eye(3)
    wanted = np.concatenate([np.ones(len(total)), ease @ np.array([0.0, 1.0, 0.0])])
    found = np.linalg.lstsq(np.concatenate([design, ease]), wanted, rcond=None)[0]
    first, each, rest = found * scale
    return float(first), float(each), float(rest)


def _without(rows: Sequence[Row], mine: Sequence[Row]) -> list[Row]:
    known = {id(row) for row in mine}
    return [row for row in rows if id(row) not in known]
