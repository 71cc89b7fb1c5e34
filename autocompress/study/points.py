"""A point in the space, an index into every sampled dimension, as an expanded Recipe; and the points to start from."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from autocompress.config import Settings, Space
from autocompress.latency_model import low_rank_macs
from autocompress.recipe import (
    FLOAT_BITS,
    HALF_BITS,
    Distillation,
    LayerPlan,
    Pruning,
    Quantization,
    Recipe,
    Recovery,
    Student,
    scheme_of,
)
from autocompress.records import LayerInfo
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
    is_untouched,
    middle,
    middle_index,
    sampled,
    setting,
    share_kind,
    snap,
)

MAX_ANCHORS = 6

Params = Mapping[str, int]
Values = Mapping[str, Any]


def values_of(params: Params, dims: Iterable[Dimension]) -> dict[str, Any]:
    """The chosen value of every dimension, and of every layer that is tied to it; ``params`` holds an index for each that is sampled."""
    found = {}
    for dim in dims:
        found[dim.name] = dim.choices[params[dim.name] if dim.is_sampled else 0]
        found |= {f"{dim.kind}:{member}": found[dim.name] for member in dim.members}
    return found


def recipe_of(params: Params, dims: Iterable[Dimension], space: Space, layers: Sequence[LayerInfo], seed: int) -> Recipe:
    """The expanded recipe of a point: a plan for every layer. The seed is the study's: all trials see the data in one order."""
    values = {"factorization": space.factorization[0], **values_of(params, dims)}
    quantization = Quantization.model_validate(_chosen(space.quantization, "quantization", values))
    student = _student(space, values, layers)
    return Recipe(
        student=student,
        layers=() if student is not None else _plans(layers, values, quantization),  # plans name layers of the given model
        pruning=Pruning.model_validate({**_chosen(space.pruning, "pruning", values), "seed": seed}),
        quantization=quantization,
        distillation=_distillation(space, values),
        recovery=Recovery.model_validate({**_chosen(space.recovery, "recovery", values), "seed": seed}),
        order=values.get("order", space.order[0]),
    )


def _plans(layers: Sequence[LayerInfo], values: Values, settings: Quantization) -> tuple[LayerPlan, ...]:
    shares = {
        group: snap(_look_up(values, share_kind(members), group, DENSE), members) for group, members in groups_of(layers).items()
    }
    return tuple(_plan(layer, values, shares, settings) for layer in layers)


def _plan(layer: LayerInfo, values: Values, shares: Mapping[str, float], settings: Quantization) -> LayerPlan:
    keep = shares[layer.group] if layer.group is not None else DENSE
    if not is_weighted(layer) and layer.kind not in ("lstm", "gru"):
        return LayerPlan(name=layer.name, keep=keep, drop=bool(_look_up(values, DROP, layer.name, 0)))
    kept_in = round(layer.in_channels * (shares.get(layer.in_group, DENSE) if layer.in_group is not None else DENSE))
    bits, activation = bits_of(layer, values, settings)
    zeros = _look_up(values, SPARSITY, layer.name, 0.0)
    share, method = _look_up(values, RANK, layer.name, DENSE), method_of(layer, values["factorization"])
    rank = rank_of(layer, share, round(layer.out_channels * keep), kept_in, method) if is_weighted(layer) else None
    energy = _look_up(values, ENERGY, layer.name, DENSE) if is_weighted(layer) and rank is None else DENSE
    return LayerPlan(
        name=layer.name,
        keep=keep,
        sparsity=0.0 if isinstance(zeros, str) else zeros,
        pattern=zeros if isinstance(zeros, str) else None,
        rank=rank,
        energy=energy if energy < DENSE else None,
        factorization=method if rank is not None or energy < DENSE else "auto",
        weight_bits=bits,
        activation_bits=activation,
    )


def bits_of(layer: LayerInfo, values: Values, settings: Quantization) -> tuple[int, int]:
    """Bits of weights and inputs; float where the target does not run the layer under the chosen scheme."""
    bits = int(_look_up(values, BITS, layer.name, FLOAT_BITS))
    if bits in (FLOAT_BITS, HALF_BITS):
        return bits, FLOAT_BITS
    activation = int(_look_up(values, ACTIVATION, layer.name, FLOAT_BITS))
    scheme = scheme_of(bits, activation, settings)
    return (FLOAT_BITS, FLOAT_BITS) if layer.schemes and bits not in layer.schemes.get(scheme, ()) else (bits, activation)


def method_of(layer: LayerInfo, method: str) -> Any:
    """The chosen factorization where it is one for this kernel, else the usual one."""
    return method if (method in ("svd", "activation_svd")) == (layer.kernel == (1, 1)) else "auto"


def rank_of(layer: LayerInfo, share: float, kept_out: int, kept_in: int, method: str = "auto") -> int | None:
    """Absolute rank for a share of the full one; None where the factorized form would not save multiply-adds."""
    full = min(kept_out, kept_in)
    rank = max(1, round(share * full))
    if share >= DENSE or rank >= full:
        return None
    spent = low_rank_macs(kept_out, kept_in, layer.kernel, layer.stride, rank, method)
    return rank if spent < kept_out * kept_in * math.prod(layer.kernel) else None


def _chosen(settings: Settings, part: str, values: Values) -> dict[str, Any]:
    """Fields of a part of the recipe: the chosen value of every ladder, the rest as the space fixes it."""
    fixed = {name: value for name, value in settings if name not in settings.ladders}
    return {**fixed, **{name: values.get(setting(part, name), middle(ladder)) for name, ladder in settings.ladders.items()}}


def _distillation(space: Space, values: Values) -> Distillation | None:
    if space.distillation is None:
        return None
    fields = _chosen(space.distillation, "distillation", values)
    soft = fields["soft_weight"]
    if soft + fields["feature_weight"] + fields["attention_weight"] == 0 and fields["augmentation"] == "none":
        return None  # no weight on the teacher is the task's loss alone, and saves running the teacher
    return Distillation.model_validate({**fields, "hard_weight": round(1 - soft, 6)})


def _student(space: Space, values: Values, layers: Sequence[LayerInfo]) -> Student | None:
    """The student of a point; integer layers of the kind that the space offers for the layers of the given model."""
    width = values.get("student.width", GIVEN)
    if space.student is None or width == GIVEN:
        return None
    depth = values.get("student.depth", middle(space.student.depth))
    chosen = [bits_of(layer, values, Quantization()) for layer in layers if is_weighted(layer)]
    weight_bits, activation_bits = min(chosen, default=(FLOAT_BITS, FLOAT_BITS))
    return Student(width=width, depth=depth, weight_bits=weight_bits, activation_bits=activation_bits)


def _look_up(values: Values, kind: str, name: str, otherwise: float) -> Any:
    return values.get(f"{kind}:{name}", values.get(f"{kind}:*", otherwise))


def starts(dims: Sequence[Dimension], near: Mapping[str, int]) -> list[dict[str, int]]:
    """Points to begin with: the one that a narrowed space lies around, or the anchors."""
    return [{dim.name: min(near[dim.name], 1) for dim in sampled(dims)}] if near else anchors(dims)


def anchors(dims: Sequence[Dimension]) -> list[dict[str, int]]:
    """Uniform points to start from, mild to hard: keep near 0.5, near 0.25, smallest, each with the fewest bits and in float.

    Ranks and heads stay full, blocks and weights stay, the other ladders stand in the middle; the point that changes nothing is left out.
    """
    points: list[dict[str, int]] = []
    for keep in (0.5, 0.25, 0.0):
        for bits in (0, FLOAT_BITS):
            targets = {KEEP: keep, HEADS: DENSE, DROP: 0, RANK: DENSE, ENERGY: DENSE, BITS: bits, ACTIVATION: 8, "student.width": GIVEN}
            first = {SPARSITY, "pruning.global_sparsity"}  # 0 comes first
            point = {
                dim.name: dim.nearest(targets[dim.kind]) if dim.kind in targets else 0 if dim.kind in first else middle_index(dim.choices)
                for dim in sampled(dims)
            }
            values = values_of(point, dims)
            if point not in points and not all(is_untouched(Dimension(name, (value,))) for name, value in values.items()):
                points.append(point)
    return points[:MAX_ANCHORS]
