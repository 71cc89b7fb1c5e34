"""Structured pruning: whole output channels leave, and with them everything that depends on them.

Dependencies come from torch-pruning (Fang et al. 2023, DepGraph); importance is the L2 norm over the whole group. A group is
offered only after a trial cut of it left the shape of the model's output unchanged and every layer runnable.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
import torch_pruning as tp
from torch import Tensor, nn

from autocompress.errors import InfeasibleRecipe

Layer = nn.Conv2d | nn.Linear
LAYERS = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class Group:
    """Layers whose output widths are one width (``members``), and layers whose input widths follow it (``readers``)."""

    name: str
    width: int
    members: tuple[str, ...]
    readers: tuple[str, ...]


@dataclass(frozen=True)
class Structure:
    """The prune groups of a model, and for every layer without one the reason."""

    groups: tuple[Group, ...]
    reasons: Mapping[str, str]


def structure(model: nn.Module, example: Tensor) -> Structure:
    """The prune groups of ``model``; example (1, ...) is one input. The model is not changed.

    Found once a model and remembered: a trial cut of every group takes seconds on 50 layers, and every trial asks again.
    """
    shapes = (tuple(example.shape), *((name, tuple(parameter.shape)) for name, parameter in model.named_parameters()))
    known = _known.get(model)
    if known is None or known[0] != shapes:
        _known[model] = known = (shapes, _find_structure(model, example))
    return known[1]


_known: WeakKeyDictionary[nn.Module, tuple[tuple[object, ...], Structure]] = WeakKeyDictionary()


def _find_structure(model: nn.Module, example: Tensor) -> Structure:
    groups: list[Group] = []
    reasons: dict[str, str] = {}
    grouped: set[str] = set()
    graph, layers = _graph(model, example)
    for name, layer in layers.items():
        if name in grouped:
            continue
        if layer not in graph.module2node:
            reasons[name] = "it does not run"
            continue
        members, readers = _reach(graph, layers, layer)
        grouped.update(members)
        reason = _refusal(model, example, name, members, layers)
        if reason:
            reasons.update(dict.fromkeys(members, reason))
        else:
            groups.append(Group(name, _width(layer), members, readers))
    return Structure(tuple(groups), reasons)


def prune(model: nn.Module, keep: Mapping[str, float], example: Tensor) -> nn.Module:
    """A copy of ``model`` with ``round(keep * width)`` output channels in every named layer's group, the most important ones.

    Raises InfeasibleRecipe where keep differs inside one group, or a layer is not prunable.
    """
    wanted = {name: share for name, share in keep.items() if share < 1.0}
    pruned = copy.deepcopy(model)
    if not wanted:
        return pruned
    found = structure(model, example)
    shares = {group.name: _share(group, keep) for group in found.groups}
    for name in wanted:
        if name in found.reasons:
            raise InfeasibleRecipe(f"{name}: keep {keep[name]:g} is not possible: {found.reasons[name]}. Set keep to 1 or leave it out.")
    graph, layers = _graph(pruned, example, copied=True)
    cuts = {group.name: _least(graph, layers[group.name], group, shares[group.name]) for group in found.groups if shares[group.name] < 1}
    for name, channels in cuts.items():
        graph.get_pruning_group(layers[name], _cutter(layers[name]), idxs=channels).prune()
    for parameter, original in zip(pruned.parameters(), model.parameters(), strict=True):
        parameter.requires_grad_(original.requires_grad)
    for module, original_module in zip(pruned.modules(), model.modules(), strict=True):
        module.training = original_module.training
    return pruned


def _graph(model: nn.Module, example: Tensor, copied: bool = False) -> tuple[tp.DependencyGraph, dict[str, Layer]]:
    """Dependency graph over a copy in eval mode with gradients on (torch-pruning traces gradients and changes the mode)."""
    work = model if copied else copy.deepcopy(model)
    work.eval().requires_grad_(True)
    graph = tp.DependencyGraph().build_dependency(work, example_inputs=example, verbose=False)
    return graph, {name: module for name, module in work.named_modules() if isinstance(module, LAYERS)}


def _cutter(layer: nn.Module) -> object:
    return tp.prune_conv_out_channels if isinstance(layer, nn.Conv2d) else tp.prune_linear_out_channels


def _width(layer: Layer) -> int:
    width: int = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
    return width


def _reach(graph: tp.DependencyGraph, layers: Mapping[str, Layer], layer: Layer) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the layers whose outputs are cut together with those of ``layer``, and of those whose inputs are."""
    names = {id(module): name for name, module in layers.items()}
    members: list[str] = []
    readers: list[str] = []
    for dependency, _ in graph.get_pruning_group(layer, _cutter(layer), idxs=[0]):
        name = names.get(id(dependency.target.module))
        if name is None:
            continue
        cuts_output = graph.is_out_channel_pruning_fn(dependency.handler)
        (members if cuts_output else readers).append(name)
    return tuple(dict.fromkeys(members)), tuple(dict.fromkeys(readers))


def _refusal(model: nn.Module, example: Tensor, name: str, members: tuple[str, ...], layers: Mapping[str, Layer]) -> str:
    """Cut one channel on a copy and look: the reason why this group may not be pruned, or an empty string."""
    if any(isinstance(layer, nn.Conv2d) and layer.groups > 1 for layer in map(layers.__getitem__, members)):
        return "it shares its width with a grouped convolution, which is not cut yet"
    widths = {_width(layers[member]) for member in members}
    if len(widths) > 1:
        listed = ", ".join(map(str, sorted(widths)))
        return f"layers of different widths ({listed}) depend on it, as they do on padded or concatenated shortcuts"
    if min(widths) < 2:
        return "it has a single output channel"
    work = copy.deepcopy(model)
    graph, copies = _graph(work, example, copied=True)
    with torch.no_grad():
        before = work(example).shape
        try:
            graph.get_pruning_group(copies[name], _cutter(copies[name]), idxs=[0]).prune()
            after = work(example).shape
        except (RuntimeError, IndexError, ValueError, AssertionError) as error:  # what a wrong cut makes torch raise
            return f"the model does not run after a cut of it ({str(error).splitlines()[0]:.80})"
    return "" if before == after else "its width is that of the model's output"


def _share(group: Group, keep: Mapping[str, float]) -> float:
    shares = {name: keep.get(name, 1.0) for name in group.members}
    if len(set(shares.values())) > 1:
        listed = ", ".join(f"{name}: {share:g}" for name, share in shares.items())
        raise InfeasibleRecipe(f"keep must be equal inside one prune group, got {listed}. They share one width: give all one value.")
    return next(iter(shares.values()))


def _least(graph: tp.DependencyGraph, layer: Layer, group: Group, share: float) -> list[int]:
    """Indices of the channels that go: the lowest L2 norms over the whole group."""
    kept = max(1, round(share * group.width))
    whole = graph.get_pruning_group(layer, _cutter(layer), idxs=list(range(group.width)))
    importance: Tensor = tp.importance.GroupMagnitudeImportance(p=2)(whole)
    order = torch.argsort(importance, stable=True)
    return sorted(int(index) for index in order[: group.width - kept])
