"""What may be done to each layer on this target, and what it costs: the facts that proposals are made from."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.compress.factorize import cost, refusal, shared, unfit
from autocompress.compress.prune import Attention, attention_modules, recurrent_modules, residual_blocks, structure
from autocompress.errors import InvalidRecipe
from autocompress.recipe import FLOAT_BITS, HALF_BITS, LayerPlan, Recipe, Scheme, scheme_of
from autocompress.records import LayerInfo, Machine
from autocompress.runtimes.runtime import Runtime

INTEGERS = range(2, 9)
SCHEMES: tuple[Scheme, ...] = ("static", "dynamic", "weight_only", "half")
RECURRENT = {nn.LSTM: "lstm", nn.GRU: "gru"}
WIDTHS = {"conv2d": "out_channels", "linear": "out_features", "lstm": "hidden_size", "gru": "hidden_size"}
INPUTS = {"conv2d": "in_channels", "linear": "in_features", "lstm": "input_size", "gru": "input_size"}


def survey(model: nn.Module, example: Tensor, runtime: Runtime, machine: Machine) -> tuple[LayerInfo, ...]:
    """Every Conv2d, Linear, LSTM and GRU that runs, in order of execution, then attention modules and residual blocks; example (1, ...).

    The model is not changed.
    """
    found, heads = structure(model, example), attention_modules(model, example)
    owner = {layer: name for name, attention in heads.items() for layer in attention.layers}
    group_of = {member: group.name for group in found.groups for member in group.members}
    blocks_of = {member: group.blocks for group in found.groups for member in group.members}
    in_group_of = {reader: group.name for group in found.groups for reader in group.readers}
    units = recurrent_modules(model, example)
    infos = []
    for name, (layer, macs) in _costs(model, example).items():
        kind = _kind(layer)
        keep_reason = found.reasons.get(name, "")
        group = group_of.get(name)
        if name in owner:
            group, keep_reason = None, f"it belongs to the attention {owner[name]}, of which heads are pruned"
        if name in units:
            group, keep_reason = (name if not units[name].reason else None), units[name].reason
        facts = _bits_of(kind, runtime, machine)
        rank_reason = refusal(layer) or shared(model, name)
        infos.append(
            LayerInfo(
                name=name,
                kind=kind,
                macs=macs,
                params=sum(parameter.numel() for parameter in layer.parameters(recurse=False)),
                in_channels=getattr(layer, INPUTS[kind]),
                out_channels=getattr(layer, WIDTHS[kind]),
                kernel=tuple(layer.kernel_size) if kind == "conv2d" else (1, 1),
                stride=tuple(layer.stride) if kind == "conv2d" else (1, 1),
                conv_groups=layer.groups if kind == "conv2d" else 1,
                group=group,
                in_group=in_group_of.get(name),
                channel_multiple=math.lcm(runtime.channel_multiple, blocks_of.get(name, 1)),
                factorizable=not rank_reason,
                keep_reason=keep_reason,
                rank_reason=rank_reason,
                **facts,
            )
        )
    return (*infos, *_attentions(heads), *_blocks(model, example, heads))


def _kind(layer: nn.Module) -> Any:
    return "conv2d" if isinstance(layer, nn.Conv2d) else "linear" if isinstance(layer, nn.Linear) else RECURRENT[type(layer)]


def _bits_of(kind: Any, runtime: Runtime, machine: Machine) -> dict[str, Any]:
    """Widths of weights by scheme that the target runs; those with a kernel of their own; why 7 and 8 bits have none where they do not."""
    asked = [(scheme, bits) for scheme in SCHEMES for bits in ((HALF_BITS,) if scheme == "half" else INTEGERS)]
    support = {(scheme, bits): runtime.support(kind, scheme, bits, machine) for scheme, bits in asked}
    schemes = {scheme: tuple(bits for other, bits in asked if other == scheme and support[scheme, bits].runs) for scheme in SCHEMES}
    real = tuple(bits for bits in INTEGERS if support["static", bits].real)
    reasons = sorted({support["static", bits].reason for bits in (7, 8) if not support["static", bits].real})
    return {
        "weight_bits": (*real, FLOAT_BITS),
        "schemes": {scheme: widths for scheme, widths in schemes.items() if widths},
        "bits_reason": "; ".join(reasons),
    }


def _attentions(heads: Mapping[str, Attention]) -> tuple[LayerInfo, ...]:
    return tuple(
        LayerInfo(
            name=name, kind="attention", macs=0, params=0, in_channels=attention.heads, out_channels=attention.heads,
            group=None if attention.reason or attention.heads < 2 else name,
            keep_reason=attention.reason or ("" if attention.heads > 1 else "it has a single head"),
            rank_reason="its projections are factorized", bits_reason="its projections are quantized",
        )
        for name, attention in heads.items()
    )  # fmt: skip


def _blocks(model: nn.Module, example: Tensor, heads: Mapping[str, Attention]) -> tuple[LayerInfo, ...]:
    return tuple(
        LayerInfo(
            name=name, kind="block", macs=0, params=0, in_channels=0, out_channels=0, droppable=not reason, drop_reason=reason,
            keep_reason="its layers are pruned", rank_reason="its layers are factorized", bits_reason="its layers are quantized",
        )
        for name, reason in residual_blocks(model, example).items()
        if name not in heads
    )  # fmt: skip


def multiply_adds(model: nn.Module, example: Tensor) -> int:
    """Of convolutions, linear and recurrent layers for one sample, example (1, ...); products of two activations are not counted."""
    return sum(macs for _, macs in _costs(model, example).values())


def _costs(model: nn.Module, example: Tensor) -> dict[str, tuple[Any, int]]:
    """Layer name -> (layer, multiply-adds of one sample), in order of execution."""
    costs: dict[str, tuple[Any, int]] = {}
    hooks = []

    def record(name: str) -> Any:
        def hook(layer: nn.Module, args: Any, out: Any) -> None:
            costs[name] = (layer, costs.get(name, (layer, 0))[1] + _macs(layer, out))

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) or type(module) in RECURRENT:
            hooks.append(module.register_forward_hook(record(name)))
    modes = {module: module.training for module in model.modules()}  # one by one: some may be frozen in eval mode
    try:
        with torch.no_grad():
            model.eval()(example)
    finally:
        for module, training in modes.items():
            module.training = training
        for handle in hooks:
            handle.remove()
    return costs


def _macs(layer: nn.Module, out: Any) -> int:
    """Every weight is used once an output position; a recurrent layer uses each of its matrices once a step."""
    if type(layer) in RECURRENT:
        steps = out[0].numel() // out[0].shape[-1]  # of a batch of one
        return int(steps) * sum(weight.numel() for name, weight in layer.named_parameters() if name.startswith("weight"))
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return int(out[0].numel() // weight.shape[0] * weight.numel())


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
