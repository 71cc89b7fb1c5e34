"""Structured pruning: whole output channels leave, and with them everything that depends on them.

Dependencies come from torch-pruning (Fang et al. 2023, DepGraph). Which channels go is for `importance` to say: by default the L2 norm
over the whole group. Where convolutions or norms work in groups, each group keeps equally many channels.
"""

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from autocompress.compress.prune.calls import BREAKS, first_line, shapes_of
from autocompress.compress.prune.groups import Dependencies, Touched, Trial, blocks_of, is_depthwise, unfit
from autocompress.compress.prune.heads import attention_modules
from autocompress.compress.prune.importance import ChannelScorer, Scoring
from autocompress.compress.prune.masks import masks_of
from autocompress.errors import InfeasibleRecipe

Layer = nn.Conv2d | nn.Linear
LAYERS = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class Group:
    """Layers whose output widths are one width (``members``), and layers whose input widths follow it (``readers``, LSTM too).

    Its channels are ``blocks`` runs of neighbours that all keep equally many (1: no such rule), because a grouped convolution or a
    GroupNorm is among them.
    """

    name: str
    width: int
    members: tuple[str, ...]
    readers: tuple[str, ...]
    blocks: int = 1


@dataclass(frozen=True)
class Structure:
    """The prune groups of a model, and for every layer without one the reason."""

    groups: tuple[Group, ...]
    reasons: Mapping[str, str]


def structure(model: nn.Module, example: Tensor) -> Structure:
    """The prune groups of ``model``; example (1, ...) is one input. The model is not changed.

    Found once a model and remembered, for every trial asks again.
    """
    shapes = shapes_of(model, example)
    known = _known.get(model)
    if known is None or known[0] != shapes:
        _known[model] = known = (shapes, _find_structure(model, example))
    return known[1]


_known: WeakKeyDictionary[nn.Module, tuple[tuple[object, ...], Structure]] = WeakKeyDictionary()


def _find_structure(model: nn.Module, example: Tensor) -> Structure:
    layers = layers_of(model)
    reasons = _attention_layers(model, example)
    groups: list[Group] = []
    work = copy.deepcopy(model)
    try:
        dependencies = Dependencies(work, example)
    except BREAKS as error:
        return Structure((), {name: f"the model cannot be traced ({first_line(error)})" for name in layers})
    trial, shared, copies = Trial(model, example), _shared(work), layers_of(work)
    for name in sorted(layers, key=lambda name: is_depthwise(layers[name])):  # these follow the widths of others
        if name in reasons or any(name in group.members for group in groups):
            continue
        if not dependencies.runs(copies[name]):
            reasons[name] = "it does not run"
            continue
        try:
            found = dependencies.touched(dependencies.group(copies[name], range(_width(layers[name]))))
        except BREAKS as error:
            reasons[name] = f"what depends on it cannot be found ({first_line(error)})"
            continue
        group, reason, followers = _group(name, found, layers)
        owner = next((member for member in group.members if member in reasons), None)
        if owner is not None:
            reason = f"it shares its width with {owner}: {reasons[owner]}"
        reason = reason or unfit(found, shared) or trial.refusal(name, group.width, group.blocks)
        if reason:
            reasons.update({member: reason for member in group.members if member not in reasons})
        else:
            groups.append(group)
            reasons.update(dict.fromkeys(followers, "its width follows that of others, which it reads side by side"))
    return Structure(tuple(sorted(groups, key=lambda group: list(layers).index(group.name))), reasons)


def prune(
    model: nn.Module, keep: Mapping[str, float], example: Tensor, scoring: Scoring | None = None, widths: Mapping[str, int] | None = None
) -> nn.Module:
    """A copy of ``model`` with ``round(keep * width)`` output channels, at least one, in every named layer's group: the most important.

    example: one input (1, ...). ``scoring``: how channels are scored; by the L2 norm over the group without it. ``widths``: what
    ``keep`` counts from, the channels of the layers before earlier cuts (see the function ``widths``); those of ``model`` without it.
    No group ever grows. Where a group has blocks the number is rounded for each of them.
    Raises InfeasibleRecipe where keep is not in (0, 1] or differs inside one group, or a layer is not prunable.
    """
    pruned = copy.deepcopy(model)
    _check(model, keep)
    if all(share == 1.0 for share in keep.values()):
        return pruned
    found = structure(model, example)
    for name, share in keep.items():
        if name in found.reasons and share < 1.0:
            raise InfeasibleRecipe(f"{name}: keep {share:g} is not possible: {found.reasons[name]}. Set keep to 1 or leave it out.")
    counts = {group.name: channels_left(group, keep, widths) for group in found.groups}
    cut = [group for group in found.groups if counts[group.name] < group.width]
    if cut:
        _cut_(pruned, model, cut, counts, example, scoring)
    narrower = tuple(replace(group, width=counts[group.name]) for group in found.groups)
    _known[pruned] = (shapes_of(pruned, example), replace(found, groups=narrower))
    return pruned


def widths(model: nn.Module) -> dict[str, int]:
    """Output channels of every Conv2d and Linear, by name."""
    return {name: _width(layer) for name, layer in layers_of(model).items()}


def layers_of(model: nn.Module) -> dict[str, Layer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}


def _check(model: nn.Module, keep: Mapping[str, float]) -> None:
    known = layers_of(model)
    for name, share in keep.items():
        if name not in known:
            raise InfeasibleRecipe(f"{name}: the model has no Conv2d or Linear of this name. It has: {', '.join(known) or 'none'}.")
        if not 0.0 < share <= 1.0:
            raise InfeasibleRecipe(f"{name}: keep must be above 0 and at most 1, got {share:g}. It is the share of channels that stay.")
    masked = next(iter(masks_of(model)), None)
    if masked is not None and any(share < 1.0 for share in keep.values()):
        raise InfeasibleRecipe(f"{masked}: it has a mask, and masked layers are not cut. Prune channels first, then single weights.")


def _cut_(
    pruned: nn.Module, model: nn.Module, groups: list[Group], counts: Mapping[str, int], example: Tensor, scoring: Scoring | None
) -> None:
    dependencies, layers = Dependencies(pruned, example), layers_of(pruned)
    scorer = ChannelScorer(model, scoring)
    least = {}
    for group in groups:
        whole = dependencies.touched(dependencies.group(layers[group.name], range(group.width)))
        scores = scorer(group.name, whole, group.width)
        least[group.name] = least_important(scores, counts[group.name], group.blocks)
    for name, channels in least.items():
        dependencies.cut_(dependencies.group(layers[name], channels))
    for parameter, original in zip(pruned.parameters(), model.parameters(), strict=True):
        parameter.requires_grad_(original.requires_grad)
    for module, original_module in zip(pruned.modules(), model.modules(), strict=True):
        module.training = original_module.training


def _width(layer: Layer) -> int:
    return layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features


def _group(name: str, found: list[Touched], layers: Mapping[str, Layer]) -> tuple[Group, str, list[str]]:
    """The group of a layer, why it cannot be one, and the depthwise convolutions that hold its channels among others."""
    width = _width(layers[name])
    makers = [item for item in found if item.name in layers and not item.is_input]
    beside = [item.name for item in makers if is_depthwise(item.module) and not _is_whole(item, width) and item.name != name]
    members = tuple(dict.fromkeys(item.name for item in makers if item.name not in beside))
    readers = tuple(dict.fromkeys(item.name for item in found if item.is_input and isinstance(item.module, (*LAYERS, nn.RNNBase))))
    others = sorted({_width(layers[member]) for member in members})
    blocks, reason = blocks_of(found, width)
    if len(others) > 1:
        reason = f"layers of different widths ({', '.join(map(str, others))}) depend on it, as they do on padded or joined shortcuts"
    elif width < 2:
        reason = "it has a single output channel"
    return Group(name, width, members, readers, blocks), reason, beside


def _is_whole(item: Touched, width: int) -> bool:
    return _width(item.module) == width and item.channels == list(range(width))


def _attention_layers(model: nn.Module, example: Tensor) -> dict[str, str]:
    return {
        layer: f"it belongs to the attention {name}, of which heads are pruned"
        for name, attention in attention_modules(model, example).items()
        for layer in attention.layers
    }


def _shared(model: nn.Module) -> set[int]:
    """Ids of the parameters that go by more than one name."""
    names = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return {one for one, count in names.items() if count > 1}


def channels_left(group: Group, keep: Mapping[str, float], widths: Mapping[str, int] | None = None) -> int:
    """How many channels of a group stay."""
    shares = {name: keep.get(name, 1.0) for name in group.members}
    if len(set(shares.values())) > 1:
        listed = ", ".join(f"{name}: {share:g}" for name, share in shares.items())
        raise InfeasibleRecipe(f"keep must be equal inside one prune group, got {listed}. They share one width: give all one value.")
    width = group.width if widths is None else widths.get(group.name, group.width)
    in_block = max(1, round(shares[group.members[0]] * (width // group.blocks)))
    return min(group.width, group.blocks * in_block)


def least_important(scores: Tensor, kept: int, blocks: int) -> list[int]:
    """Indices of the channels that go: the lowest scores (width,) of every block, of equal ones the first."""
    table = scores.view(blocks, -1)
    order = torch.argsort(table, dim=1, stable=True)[:, : table.shape[1] - kept // blocks]
    offsets = torch.arange(blocks, device=scores.device)[:, None] * table.shape[1]
    return sorted(int(index) for index in (order + offsets).flatten())
