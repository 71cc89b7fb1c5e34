"""What may be done to each layer on this target, and what it costs: the facts that proposals are made from."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.compress.factorize import refusal, shared
from autocompress.compress.prune import Attention, attention_modules, recurrent_modules, residual_blocks, structure
from autocompress.recipe import FLOAT_BITS, HALF_BITS, Scheme
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
