"""Does a recipe fit this model and this target? Every field that does not is named, with the reason that the survey found."""

import math
from collections.abc import Sequence

from autocompress.compress.factorize import cost, unfit
from autocompress.errors import InvalidRecipe
from autocompress.recipe import FLOAT_BITS, LayerPlan, Recipe, scheme_of
from autocompress.records import LayerInfo


def check_recipe(recipe: Recipe, layers: Sequence[LayerInfo], source: str) -> None:
    """Raises InvalidRecipe with the path of every field that does not fit this model or target."""
    known = {layer.name: layer for layer in layers}
    plans = recipe.plans
    complaints = []
    for index, plan in enumerate(recipe.layers if recipe.student is None else ()):  # a student's layers are its own
        path = f"{source}: layers[{index}]"
        if plan.name not in known:
            complaints.append(f"{path}.name: the model has no layer {plan.name!r}; its layers are {', '.join(known)}")
            continue
        layer = known[plan.name]
        lines = (
            _keep(plan, layer, layers, plans),
            _drop(plan, layer),
            _zeros(plan, layer),
            _rank(plan, layer, layers, plans),
            _bits(plan, layer, recipe),
        )
        complaints += [f"{path}.{line}" for line in lines if line]
    if complaints:
        raise InvalidRecipe("\n".join(complaints))


def _keep(plan: LayerPlan, layer: LayerInfo, layers: Sequence[LayerInfo], plans: dict[str, LayerPlan]) -> str:
    if plan.keep < 1 and layer.group is None:
        return f"keep: {plan.keep:g} is not possible for {plan.name}: {layer.keep_reason}; set it to 1"
    others = {other.name: _share(plans, other.name) for other in layers if layer.group is not None and other.group == layer.group}
    if plan.keep < 1 and len(set(others.values())) > 1:
        listed = ", ".join(f"{name} {share:g}" for name, share in others.items())
        return f"keep: must be equal inside one prune group, which shares one width: {listed}; give all of them one value"
    return ""


def _rank(plan: LayerPlan, layer: LayerInfo, layers: Sequence[LayerInfo], plans: dict[str, LayerPlan]) -> str:
    if not plan.is_factorized:
        return ""
    field, value = ("rank", plan.rank) if plan.energy is None else ("energy", plan.energy)
    reason = layer.rank_reason or unfit(layer.kernel, plan.factorization)
    if reason:
        return f"{field}: {value} is not possible for {plan.name}: {reason}; leave it out"
    if plan.rank is None:
        return ""
    source = next((other.name for other in layers if layer.in_group is not None and other.group == layer.in_group), "")
    out, inner = round(layer.out_channels * plan.keep), round(layer.in_channels * _share(plans, source))
    spent, dense = cost(out, inner, layer.kernel, plan.rank, plan.factorization, layer.stride), out * inner * math.prod(layer.kernel)
    if spent >= dense:
        wide = f"{plan.name} of {out} x {inner} channels"
        return f"rank: {plan.rank} is too large for {wide}: it would need no fewer multiply-adds than the dense layer; lower it"
    return ""


def _drop(plan: LayerPlan, layer: LayerInfo) -> str:
    if plan.drop and not layer.droppable:
        reason = layer.drop_reason or "only residual blocks are left out"
        return f"drop: {plan.name} cannot be left out: {reason}; take `drop` away"
    return ""


def _zeros(plan: LayerPlan, layer: LayerInfo) -> str:
    if plan.is_sparse and layer.kind not in ("conv2d", "linear"):
        field = "pattern" if plan.pattern else "sparsity"
        return f"{field}: {plan.name} is of kind {layer.kind}; weights are set to 0 in convolutions and linear layers only; take it away"
    return ""


def _bits(plan: LayerPlan, layer: LayerInfo, recipe: Recipe) -> str:
    scheme = scheme_of(plan.weight_bits, plan.activation_bits, recipe.quantization)
    if scheme == "none":
        return ""
    runs = layer.schemes.get(scheme, ())
    if plan.weight_bits not in (*runs, FLOAT_BITS) or not runs:
        reason = layer.bits_reason or f"no kernel of this target takes it as {scheme.replace('_', '-')}"
        return f"weight_bits: {plan.weight_bits} is not possible here ({reason}); this target runs {_listed(layer)}"
    if plan.weight_bits == FLOAT_BITS:
        return f"activation_bits: {plan.activation_bits} with weight_bits {FLOAT_BITS}: no kernel takes it; give the weights bits as well"
    return ""


def _listed(layer: LayerInfo) -> str:
    schemes = (f"{scheme.replace('_', '-')} {', '.join(map(str, widths))}" for scheme, widths in layer.schemes.items())
    return "; ".join((*schemes, f"float {FLOAT_BITS}"))


def _share(plans: dict[str, LayerPlan], name: str) -> float:
    return plans[name].keep if name in plans else 1.0
