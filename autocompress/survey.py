"""What may be done to each layer on this target, and what it costs: the facts that proposals are made from."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.compress.factorize import cost, refusal
from autocompress.compress.prune import structure
from autocompress.errors import InvalidRecipe
from autocompress.recipe import FLOAT_BITS, LayerPlan, Recipe
from autocompress.records import LayerInfo, Machine
from autocompress.runtimes.runtime import Runtime


def survey(model: nn.Module, example: Tensor, runtime: Runtime, machine: Machine) -> tuple[LayerInfo, ...]:
    """Every Conv2d and Linear that runs, in order of execution; example (1, ...). The model is not changed."""
    found = structure(model, example)
    group_of = {member: group.name for group in found.groups for member in group.members}
    in_group_of = {reader: group.name for group in found.groups for reader in group.readers}
    bits = runtime.weight_bits(machine)
    infos = []
    for name, (layer, macs) in _costs(model, example).items():
        is_conv = isinstance(layer, nn.Conv2d)
        reasons = sorted({reason for width, reason in bits.items() if reason and width in (7, 8)})
        infos.append(
            LayerInfo(
                name=name,
                kind="conv2d" if is_conv else "linear",
                macs=macs,
                params=sum(parameter.numel() for parameter in layer.parameters(recurse=False)),
                in_channels=layer.in_channels if is_conv else layer.in_features,
                out_channels=layer.out_channels if is_conv else layer.out_features,
                kernel=tuple(layer.kernel_size) if is_conv else (1, 1),
                conv_groups=layer.groups if is_conv else 1,
                group=group_of.get(name),
                in_group=in_group_of.get(name),
                channel_multiple=runtime.channel_multiple,
                weight_bits=tuple(width for width, reason in bits.items() if not reason),
                factorizable=not refusal(layer),
                keep_reason=found.reasons.get(name, ""),
                rank_reason=refusal(layer),
                bits_reason="; ".join(reasons),
            )
        )
    return tuple(infos)


def _costs(model: nn.Module, example: Tensor) -> dict[str, tuple[Any, int]]:
    """Layer name -> (layer, multiply-adds of one sample), in order of execution."""
    costs: dict[str, tuple[Any, int]] = {}
    hooks = []

    def record(name: str) -> Any:
        def hook(layer: nn.Module, args: Any, out: Tensor) -> None:
            weight = layer.weight
            assert isinstance(weight, Tensor)
            positions = out[0].numel() // weight.shape[0]
            costs[name] = (layer, costs.get(name, (layer, 0))[1] + positions * weight.numel())

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
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


def check_recipe(recipe: Recipe, layers: Sequence[LayerInfo], source: str) -> None:
    """Raises InvalidRecipe with the path of every field that does not fit this model or target."""
    known = {layer.name: layer for layer in layers}
    plans = recipe.plans
    complaints = []
    for index, plan in enumerate(recipe.layers):
        path = f"{source}: layers[{index}]"
        if plan.name not in known:
            complaints.append(f"{path}.name: the model has no layer {plan.name!r}; its layers are {', '.join(known)}")
            continue
        layer = known[plan.name]
        lines = (_keep(plan, layer, layers, plans), _rank(plan, layer, layers, plans), _bits(plan, layer))
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
    if plan.rank is None:
        return ""
    if not layer.factorizable:
        return f"rank: {plan.rank} is not possible for {plan.name}: {layer.rank_reason}; leave it out"
    source = next((other.name for other in layers if layer.in_group is not None and other.group == layer.in_group), "")
    out, inner = round(layer.out_channels * plan.keep), round(layer.in_channels * _share(plans, source))
    kernel = layer.kernel[0] * layer.kernel[1]
    if plan.rank >= max(out, inner) or cost(out, inner, kernel, plan.rank) >= out * inner * kernel:
        wide = f"{plan.name} of {out} x {inner} channels"
        return f"rank: {plan.rank} is too large for {wide}: it would need no fewer multiply-adds than the dense layer; lower it"
    return ""


def _bits(plan: LayerPlan, layer: LayerInfo) -> str:
    for field in ("weight_bits", "activation_bits"):
        bits = getattr(plan, field)
        if bits not in layer.weight_bits and not (field == "activation_bits" and bits in (7, 8)):
            reason = layer.bits_reason or "no kernel of this target realizes it"
            return f"{field}: {bits} is not possible here ({reason}); this target runs {', '.join(map(str, layer.weight_bits))}"
    if (plan.weight_bits == FLOAT_BITS) != (plan.activation_bits == FLOAT_BITS):
        pair = f"{plan.activation_bits} with weight_bits {plan.weight_bits}"
        return f"activation_bits: {pair}: an integer kernel needs both in integers; set both or neither"
    return ""


def _share(plans: dict[str, LayerPlan], name: str) -> float:
    return plans[name].keep if name in plans else 1.0
