"""The latency of a recipe, predicted from the survey's fitted costs: pure arithmetic, so that thousands of candidates can be asked about.

A sum of layers is off by 5 to 10 % (fusions, memory traffic between layers), so a learned correction follows it; ``LatencyModel.error``
says how far predictions are off on structures that the fit did not see.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from autocompress.recipe import LayerPlan, Quantization, Recipe, Scheme, scheme_of
from autocompress.records import LatencyModel, LayerInfo


class Load(NamedTuple):
    """What a layer's cost is a sum over: kernels, kept shares of inputs, of outputs, of multiply-adds; and its scheme."""

    scheme: Scheme
    kernels: int
    inputs: float
    outputs: float
    macs: float


Costs = Mapping[tuple[str, Scheme], tuple[float, float, float, float]]


def predict_ms(latency: LatencyModel, recipe: Recipe, layers: Sequence[LayerInfo]) -> float | None:
    """Milliseconds a batch; None for a student, whose layers are not those that were profiled."""
    if recipe.student is not None:
        return None
    costs = terms_of(latency)
    loads = loads_of(recipe, layers)
    total = latency.change_ms * changes(loads.values()) + sum(layer_ms(costs, name, load) for name, load in loads.items())
    written = sum(load.outputs for load in loads.values())
    first, scale, rest = latency.correction
    return first + scale * total + rest * written / max(len(loads), 1)


def terms_of(latency: LatencyModel) -> Costs:
    """What each layer costs under each scheme, by (name, scheme)."""
    return {(cost.name, cost.scheme): cost.terms for cost in latency.costs}


def layer_ms(costs: Costs, name: str, load: Load) -> float:
    """One layer's share of the sum; under a scheme that was not fitted, what it costs in float."""
    terms = costs.get((name, load.scheme)) or costs.get((name, "none"), (0.0, 0.0, 0.0, 0.0))
    return sum(term * amount for term, amount in zip(terms, load[1:], strict=True))


def loads_of(recipe: Recipe, layers: Sequence[LayerInfo]) -> dict[str, Load]:
    """What every layer of the recipe costs by, in the order of ``layers``; layers of a dropped block are gone.

    Where a rank is chosen by energy it is not known before the weights are seen: such a layer counts as dense.
    """
    plans = recipe.plans
    shares = {layer.group: plans[layer.name].keep for layer in layers if layer.group is not None and layer.name in plans}
    dropped = [f"{layer.name}." for layer in layers if layer.name in plans and plans[layer.name].drop]
    heads = {f"{layer.name}.": shares.get(layer.group or "", 1.0) for layer in layers if layer.kind == "attention"}
    loads = {}
    for layer in layers:
        if layer.kind in ("attention", "block") or any(layer.name.startswith(block) for block in dropped):
            continue
        plan = plans.get(layer.name, LayerPlan(name=layer.name))
        owner = next((share for prefix, share in heads.items() if layer.name.startswith(prefix)), None)
        inputs = shares.get(layer.in_group, 1.0) if layer.in_group is not None else 1.0
        outputs = plan.keep
        if owner is not None:  # heads narrow what the projections in write and what the one out reads
            is_last = layer.name == last_of(layer, layers)
            inputs, outputs = (owner, outputs) if is_last else (inputs, owner)
        loads[layer.name] = load_of(layer, plan, recipe.quantization, inputs, outputs)
    return loads


def load_of(layer: LayerInfo, plan: LayerPlan, settings: Quantization, inputs: float, outputs: float) -> Load:
    """One layer's load, once the kept shares of its inputs and outputs are known."""
    kernels, macs = _work(layer, plan, inputs, outputs)
    return Load(scheme_of(plan.weight_bits, plan.activation_bits, settings), kernels, inputs, outputs, macs)


def changes(loads: Iterable[Load]) -> int:
    """How often static integers and floats meet between one layer and the next, where values are rounded or reordered."""
    return sum((one.scheme == "static") != (other.scheme == "static") for one, other in pairwise(loads))


def low_rank_macs(out: int, inner: int, kernel: tuple[int, int], stride: tuple[int, int], rank: int, method: str = "auto") -> int:
    """Multiply-adds of a low-rank layer per output position; the dense one has out * inner * kh * kw.

    SVD: rank * (in + out). Tucker-2 with r_in = min(rank, in), r_out = min(rank, out): in * r_in + r_in * r_out * kh * kw + r_out * out.
    CP: rank * (in + kh * kw + out). Spatial SVD: rank * (in * kh + out * kw). What runs before the stride runs stride times as often.
    """
    (height, width), (down, across) = kernel, stride
    area, before = height * width, inner * down * across
    if area == 1:
        return rank * (inner + out)
    if method == "cp":
        return rank * (before + area + out)
    if method == "spatial_svd":
        return rank * (inner * height * across + out * width)
    return rank * (before + out) + rank * rank * area


def _work(layer: LayerInfo, plan: LayerPlan, inputs: float, outputs: float) -> tuple[int, float]:
    """Kernels and the share of the dense layer's multiply-adds at full width; a grouped convolution's grow with its outputs only."""
    share = outputs if layer.conv_groups > 1 else inputs * outputs
    if plan.rank is None:
        return 1, share
    out, inner = max(1, round(layer.out_channels * outputs)), max(1, round(layer.in_channels * inputs))
    spent = low_rank_macs(out, inner, layer.kernel, layer.stride, plan.rank, plan.factorization)
    pieces = 2 if layer.kernel == (1, 1) or plan.factorization == "spatial_svd" else 3
    return pieces, spent / (layer.out_channels * layer.in_channels * math.prod(layer.kernel))


def last_of(layer: LayerInfo, layers: Sequence[LayerInfo]) -> str:
    """The last projection of the attention that a layer belongs to: the one that reads its heads."""
    owner = next(other.name for other in layers if other.kind == "attention" and layer.name.startswith(f"{other.name}."))
    return [other.name for other in layers if other.kind != "attention" and other.name.startswith(f"{owner}.")][-1]
