"""What must be cut together: dependency groups of channels (Fang et al. 2023, DepGraph), from torch-pruning, made safe.

Added to it: convolutions in groups lose the same number of inputs and outputs in every group, a search that does not end is given up,
hooks cannot be left on anything but a throwaway copy, and before a group is offered a cut of it is tried on a copy with random weights.
The cut is right when the model then gives what it gave with the columns that read the removed channels, or the rows that made them,
at 0. LayerNorm and GroupNorm look across channels, so in that copy they only scale and shift.
"""

import copy
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from autocompress.compress.prune.calls import BREAKS, first_line, layout, noise_like

CONVOLUTIONS = nn.modules.conv._ConvNd
BATCH_NORMS = nn.modules.batchnorm._BatchNorm
MIXED = "the other channels do not give the same without one of it (something mixes channels, or reads them by their place)"
STEPS_A_DEPENDENCY = 4  # a search that takes more turns than this for each edge of the graph goes in circles; DenseNet takes 0.5


class EndlessSearch(RuntimeError):
    """The search for what depends on a channel went in circles, as it does on grouped-query attention."""


@dataclass(frozen=True, eq=False)
class Touched:
    """A side of a module that a cut reaches: ``channels`` of it, each a copy of one of the group's own channels (``roots``).

    ``module``: a layer or norm, or a bare parameter, which is cut along ``dim``. ``is_input``: its columns are cut, not its rows.
    """

    name: str
    module: Any
    is_input: bool
    channels: list[int]
    roots: list[int]
    dim: int


class _ConvPruner(tp.function.PrunerBox[tp.ops.OPTYPE.CONV].__class__):  # type: ignore[misc]
    """Cuts the inputs of a convolution in groups where they are; torch-pruning takes those of the first group for all of them."""

    def prune_in_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
        if layer.groups == 1:
            return super().prune_in_channels(layer, idxs)
        if layer.transposed:
            raise ValueError("a transposed convolution in groups is not cut")
        inner, rows, gone = layer.in_channels // layer.groups, layer.out_channels // layer.groups, set(idxs)
        keep = [[i for i in range(inner) if group * inner + i not in gone] for group in range(layer.groups)]
        if len({len(columns) for columns in keep}) > 1:
            raise ValueError("a convolution in groups must keep equally many inputs in each")
        columns = torch.tensor(keep, device=layer.weight.device).repeat_interleave(rows, 0)  # (out, kept of a group)
        columns = columns.view(*columns.shape, *[1] * (layer.weight.dim() - 2)).expand(-1, -1, *layer.weight.shape[2:])
        layer.weight = nn.Parameter(layer.weight.detach().gather(1, columns))
        layer.in_channels -= len(gone)
        return layer


class Dependencies:
    """The dependency graph of ``model``, which goes into eval mode with gradients on; example (1, ...).

    Raises what the model or torch-pruning raises where it cannot be traced.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.model = model.eval().requires_grad_(True)
        self.graph = tp.DependencyGraph()
        pruner = _ConvPruner()
        self.graph.REGISTERED_PRUNERS[tp.ops.OPTYPE.CONV] = pruner
        self.graph._in_channel_pruning_fn.add(pruner.prune_in_channels)
        self.graph._out_channel_pruning_fn.add(pruner.prune_out_channels)
        with torch.enable_grad():
            self.graph.build_dependency(
                model, example, forward_fn=lambda one, x: one(x), output_transform=lambda out: [*_traced(out)], verbose=False
            )
        self.turns = _Turns(STEPS_A_DEPENDENCY * (100 + sum(len(node.dependencies) for node in self.graph.module2node.values())))
        for node in self.graph.module2node.values():
            node.dependencies = _Counted(node.dependencies, self.turns)

    def runs(self, layer: nn.Module) -> bool:
        return layer in self.graph.module2node

    def group(self, layer: nn.Module, channels: Sequence[int]) -> Any:
        """torch-pruning's group of these output channels. Raises EndlessSearch."""
        self.turns.left = self.turns.most
        pruner = self.graph.get_pruner_of_module(layer)
        return self.graph.get_pruning_group(layer, pruner.prune_out_channels, idxs=list(channels))

    def touched(self, group: Any) -> list[Touched]:
        """The sides of layers, norms and bare parameters in a group; operators without parameters are left out."""
        names: dict[int, str] = {id(parameter): name for name, parameter in self.model.named_parameters()}
        names |= {id(module): name for name, module in self.model.named_modules()}
        found = []
        for item in group.items:
            module, handler = item.dep.target.module, item.dep.handler
            if id(module) in names:
                is_input = handler.__func__.__name__ == "prune_in_channels"  # an alias of the other where both sides go together
                found.append(Touched(names[id(module)], module, is_input, item.idxs, item.root_idxs, item.dep.target.pruning_dim))
        return found

    def cut_(self, group: Any) -> None:
        group.prune(record_history=False)
        for item in self.touched(group):
            if isinstance(item.module, nn.RNNBase):
                item.module.flatten_parameters()  # on CUDA their weights lie in one piece


class _Turns:
    def __init__(self, most: int) -> None:
        self.most = self.left = most


class _Counted(list):  # type: ignore[type-arg]
    """Dependencies of a node: the search walks over them at every step, so this is where it can be stopped, in any thread."""

    def __init__(self, items: Sequence[Any], turns: _Turns) -> None:
        super().__init__(items)
        self.turns = turns

    def __iter__(self) -> Iterator[Any]:
        self.turns.left -= 1
        if self.turns.left < 0:
            raise EndlessSearch("the search for what depends on it goes in circles")
        return super().__iter__()


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of floats in a model's output."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        yield from tensors(list(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors(item)


def _traced(out: Any) -> Iterator[Tensor]:
    return (value for value in tensors(out) if value.grad_fn is not None)


def is_depthwise(module: Any) -> bool:
    return isinstance(module, CONVOLUTIONS) and module.groups > 1 and module.groups == module.in_channels == module.out_channels


def unfit(touched: Sequence[Touched], shared: set[int]) -> str:
    """Why a cut may not reach these modules, or an empty string; ``shared``: ids of parameters that several modules own."""
    for item in touched:
        module, name = item.module, item.name
        if isinstance(module, nn.MultiheadAttention):
            return f"it shares its width with the attention {name}, of which only heads are cut"
        if isinstance(module, nn.RNNBase) and not item.is_input:
            return f"it shares its width with the recurrent {name}, of which only hidden units are cut"
        if isinstance(module, CONVOLUTIONS) and 1 < module.groups == module.out_channels != module.in_channels:
            return f"the grouped convolution {name} makes one channel of {module.in_channels // module.groups}, which is not cut"
        if any(root is None for root in item.roots):
            return f"it is not clear which channels of {name} depend on it"
        if isinstance(module, nn.Module):
            if any(id(parameter) in shared for parameter in module.parameters(recurse=False)):
                return f"the weight of {name} is tied to another module's"
            if torch.nn.utils.parametrize.is_parametrized(module):
                return f"the weight of {name} is parametrized"
    return ""


def blocks_of(touched: Sequence[Touched], width: int) -> tuple[int, str]:
    """Into how many runs of neighbours the channels fall that must all keep equally many, and why that is not possible ("" if it is)."""
    blocks = 1
    for item in touched:
        groups = _groups(item.module)
        if groups == 1:
            continue
        if item.channels != list(range(width)) or item.roots != item.channels or _channels(item) != width:
            return 1, f"the groups of {item.name} hold channels of several layers"
        kind = "inputs" if item.is_input else "channels"
        if width == groups:
            return 1, f"each group of {item.name} has 1 of these {kind}, and groups are not cut"
        blocks = math.lcm(blocks, groups)
    if width % blocks or width == blocks:
        return 1, f"{width} channels cannot be cut evenly in the {blocks} groups that convolutions and norms make of them"
    return blocks, ""


def _groups(module: Any) -> int:
    if isinstance(module, nn.GroupNorm):
        return module.num_groups
    return module.groups if isinstance(module, CONVOLUTIONS) and not is_depthwise(module) else 1


def _channels(item: Touched) -> int:
    if isinstance(item.module, nn.GroupNorm):
        return item.module.num_channels
    return int(item.module.in_channels if item.is_input else item.module.out_channels)


class Trial:
    """Cuts on a copy with random weights, one after the other; a copy that one of them broke is replaced."""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.model, self.example = model, example
        self.dependencies: Dependencies | None = None

    def refusal(self, name: str, width: int, blocks: int) -> str:
        """Cut one channel in every block of the layer ``name`` and look: why its group may not be cut, or an empty string."""
        size = width // blocks
        channels = [block * size + (size // 2 + block) % size for block in range(blocks)]
        reason = self._try(name, channels, makers_too=False)
        if reason == MIXED:  # or nothing reads them in columns, as the queries and keys of attention
            reason = self._try(name, channels, makers_too=True)
        return reason

    def _begin(self) -> None:
        work = copy.deepcopy(self.model)
        self.dependencies = Dependencies(work, self.example)
        _stir(work)
        for module in work.modules():
            if type(module) in STAND_INS:
                module.forward = types.MethodType(STAND_INS[type(module)], module)
        self.x = self.example
        if self.example.is_floating_point():
            self.x = self.example + noise_like(self.example, 0)  # zeros, as examples often are, would show little
            try:
                work(self.x)
            except BREAKS:  # an input that means something else, such as indices in floats
                self.x = self.example

    def _try(self, name: str, channels: Sequence[int], makers_too: bool) -> str:
        if self.dependencies is None:
            self._begin()
        dependencies, self.dependencies = self.dependencies, None  # back once the cut is found to be right
        assert dependencies is not None
        work = dependencies.model
        try:
            group = dependencies.group(work.get_submodule(name), channels)
            touched = dependencies.touched(group)
            if any(len(item.channels) != len(channels) for item in touched if item.name == name and not item.is_input):
                return "a cut of one of its channels takes others of it along, as halves that meet again do"
            for item in touched:
                if item.is_input or makers_too:
                    silence_(item)
            wanted = work(self.x)
            dependencies.cut_(group)
            out = work(self.x)
        except BREAKS as error:
            return f"the model does not run after a cut of it ({first_line(error)})"
        if layout(out) != layout(wanted):
            return "its width is that of the model's output"
        if not any(_is_own_norm(item, work) for item in touched) and not _agree([*tensors(out)], [*tensors(wanted)]):
            return MIXED
        self.dependencies = dependencies
        return ""


@torch.no_grad()
def silence_(item: Touched) -> None:
    """Set to 0 what a cut would take from one side of a module."""
    module, gone = item.module, item.channels
    if isinstance(module, nn.Parameter):
        module.index_fill_(item.dim, torch.tensor(gone, device=module.device), 0.0)
    elif isinstance(module, nn.RNNBase):
        for name, parameter in module.named_parameters():
            if name.startswith("weight_ih_l0"):
                parameter[:, gone] = 0
    elif item.is_input and isinstance(module, CONVOLUTIONS) and module.groups > 1:
        inner, rows = module.in_channels // module.groups, module.out_channels // module.groups
        for channel in gone:
            group = channel // inner
            module.weight[group * rows : (group + 1) * rows, channel % inner] = 0
    elif isinstance(getattr(module, "weight", None), Tensor):
        turned = isinstance(module, nn.Embedding) or getattr(module, "transposed", False)
        if module.weight.dim() > 1 and item.is_input != turned:
            module.weight[:, gone] = 0
        elif module.weight.shape[0] > 1:  # a PReLU may have one slope for all
            module.weight[gone] = 0
            if isinstance(getattr(module, "bias", None), Tensor) and not item.is_input:
                module.bias[gone] = 0


def _stir(model: nn.Module) -> None:
    """Random parameters: trained ones may be 0 or so small that a wrong cut would not show."""
    for seed, parameter in enumerate(model.parameters()):
        noise = noise_like(parameter, seed)
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
        parameter.data = noise / fan_in**0.5 if parameter.dim() > 1 else parameter.data + 0.3 * noise


def _is_own_norm(item: Touched, model: nn.Module) -> bool:
    """A norm that the user wrote: it may look across channels in a way that nobody knows."""
    if not isinstance(item.module, nn.Parameter):
        return False
    return "norm" in type(model.get_submodule(item.name.rpartition(".")[0])).__name__.lower()


def _agree(out: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    for a, b in zip(out, wanted, strict=True):
        a, b = a.detach().double(), b.detach().double()
        if not bool(torch.isfinite(b).all()):
            continue  # random weights and no norm can overflow: nothing to see
        tolerance = 1e-4 if wanted[0].dtype in (torch.float32, torch.float64) else 3e-2
        if a.numel() and not bool((a - b).abs().max() <= tolerance * b.abs().max()):
            return False
    return True


def _scale_last(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """nn.LayerNorm without its statistics."""
    if tuple(x.shape[-len(norm.normalized_shape) :]) != tuple(norm.normalized_shape):
        raise ValueError(f"LayerNorm over {tuple(norm.normalized_shape)} got {tuple(x.shape)}")
    return _scaled(x, norm.weight, norm.bias)


def _scale_channels(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """nn.GroupNorm without its statistics."""
    if x.shape[1] != norm.num_channels or norm.num_channels % norm.num_groups:
        raise ValueError(f"GroupNorm of {norm.num_channels} channels in {norm.num_groups} groups got {tuple(x.shape)}")
    shape = (-1, *[1] * (x.dim() - 2))
    return _scaled(x, *(None if value is None else value.view(shape) for value in (norm.weight, norm.bias)))


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


STAND_INS: dict[type[nn.Module], Any] = {nn.LayerNorm: _scale_last, nn.GroupNorm: _scale_channels}
