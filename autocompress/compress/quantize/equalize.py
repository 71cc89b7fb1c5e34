"""Cross-layer equalization (Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction", section 4.1).

For f with f(s x) = s f(x), s > 0: W2 f(W1 x + b1) = (W2 S) f(S^-1 W1 x + S^-1 b1). With S = diag(s), s_i = sqrt(r1_i r2_i) / r2_i (eq. 11)
channel i has the same range in both weights, so that one scale for a tensor serves all channels. A layer has two neighbours: pairs are
gone through until the scales settle. The function of the float model stays what it was.
"""

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from autocompress.blocks import SILENT, scopes

ROUNDS, SETTLED = 50, 1e-3
DEAD = 1e-6  # of the largest range in the layer: such a channel carries nothing, and its bias must not be blown up
ELEMENTWISE = ("relu", "relu_", "leaky_relu", "leaky_relu_", "prelu", "dropout", "dropout2d", "identity", "contiguous", "clone", "detach")
POOLS = ("max_pool2d", "_max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "_adaptive_max_pool2d")
FLATTENING = ("flatten", "reshape", "view", "squeeze")


@dataclass(frozen=True)
class Pair:
    """``second`` alone reads what ``first`` makes; each output channel of ``first`` is ``repeat`` neighbouring inputs of ``second``."""

    first: str
    second: str
    repeat: int


def equalize(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy of ``model`` (eval mode, batch norm folded) with equal weight ranges on both sides of every channel; example (1, ...).

    A clipped activation (ReLU6) is not homogeneous, so the layers around it are no pair; channels without range stay as they are.
    """
    result = copy.deepcopy(model).eval()
    found = pairs(result, example)
    with torch.no_grad():
        for _ in range(ROUNDS):
            changes = [_equalize_(result.get_submodule(pair.first), result.get_submodule(pair.second), pair.repeat) for pair in found]
            if max(changes, default=0.0) < SETTLED:
                break
    return result


def pairs(model: nn.Module, example: Tensor) -> list[Pair]:
    """In the order in which the first layers ran."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    uses = Counter(id(value) for value in dict(model.named_parameters(remove_duplicate=False)).values())
    follower = _Follower(layers)
    with torch.no_grad(), scopes(model, follower.stack), follower:
        out = model(example)
    follower.close(out)
    own = {
        name: layer.weight
        for name, layer in layers.items()
        if all(uses[id(value)] == 1 and follower.reads[id(value)] == 1 for value in layer.parameters())
    }
    found = (Pair(line.first, line.second, line.repeat) for line in follower.lines if line.second and not line.broken)
    return [pair for pair in found if pair.first in own and pair.second in own]


@dataclass
class _Line:
    """What a layer made, on its way to its reader: ``last`` is the one tensor of it that may still be read."""

    first: str
    channels: int
    is_map: bool  # (N, C, H, W); otherwise the last axis holds the channels, each ``repeat`` times
    last: tuple[int, int] | None
    second: str = ""
    repeat: int = 1
    broken: bool = False


class _Follower(TorchFunctionMode):
    """Follows tensors by the memory they lie in, so that a view or an operator in place is another step of the same line."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.layers = layers
        self.stack: list[str] = []
        self.lines: list[_Line] = []
        self.at: dict[int, _Line] = {}  # address of memory -> the line that it belongs to
        self.reads: Counter[int] = Counter()
        self.alive: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in SILENT and name != "detach":
            return func(*args, **kwargs)
        read = [(value, self._line(value)) for value in tensors((args, kwargs))]
        for value, line in read:
            self.reads[id(value)] += 1
            if line is not None and line.last != (id(value), value._version):
                line.broken = True
        before = args[0].shape if args and isinstance(args[0], Tensor) else torch.Size()
        is_spatial = name == "mean" and spatial(args, kwargs)
        out = func(*args, **kwargs)
        self.alive += [args, kwargs, out]
        lines = [line for _, line in read if line is not None]
        if func in (torch.conv2d, F.linear) and len(args) > 1:
            self._layer(func, args, out, lines)
        elif len(lines) == 1 and isinstance(args[0], Tensor) and lines[0] is self._line(args[0]) and isinstance(out, Tensor):
            self._step(name, before, is_spatial, out, lines[0])
        else:
            for line in lines:
                line.broken = True
        return out

    def _line(self, value: Tensor) -> _Line | None:
        return self.at.get(value.untyped_storage().data_ptr())

    def _layer(self, func: Any, args: Any, out: Tensor, lines: list[_Line]) -> None:
        scope, is_conv = self.stack[-1] if self.stack else "", func is torch.conv2d
        is_own = scope in self.layers and args[1] is self.layers[scope].weight
        for line in lines:
            line.last, line.second = None, scope  # whoever reads it again finds no last and breaks the line
            is_input = len(lines) == 1 and line is self._line(args[0])  # not a computed weight or bias
            line.broken |= not is_own or not is_input or line.is_map != is_conv
        if is_own:
            line = _Line(scope, args[1].shape[0], is_conv, (id(out), out._version))
            self.lines.append(line)
            self.at[out.untyped_storage().data_ptr()] = line

    def _step(self, name: str, before: torch.Size, is_spatial: bool, out: Tensor, line: _Line) -> None:
        """One function of one tensor: does each channel stay itself, and is the function homogeneous?"""
        fits = name in ELEMENTWISE and out.shape == before
        fits |= name in POOLS and line.is_map and len(before) == out.dim() == 4
        fits |= name == "mean" and line.is_map and is_spatial
        fits |= name in FLATTENING and out.shape == before
        if name in FLATTENING and line.is_map and out.dim() == 2 and out.shape == (before[0], before[1:].numel()):
            fits, line.repeat = True, out.shape[1] // line.channels
        line.is_map &= out.dim() == len(before)
        line.broken |= not fits
        line.last = (id(out), out._version)
        self.at[out.untyped_storage().data_ptr()] = line

    def close(self, out: Any) -> None:
        """What the model returns is read by somebody else."""
        for value in tensors(out):
            line = self._line(value)
            if line is not None:
                line.broken = True


def spatial(args: Any, kwargs: Any) -> bool:
    """Is it a mean over height and width of (N, C, H, W)?"""
    dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
    return args[0].dim() == 4 and isinstance(dims, list | tuple) and sorted(dim % 4 for dim in dims) == [2, 3]


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


def _equalize_(first: Any, second: Any, repeat: int) -> float:
    """Scale one pair; returns the largest |log s|."""
    groups = getattr(second, "groups", 1)
    # (out, in / groups, ...) -> (groups, out / groups, in / groups, k)
    blocks = second.weight.reshape(groups, -1, second.weight.shape[1], second.weight[0, 0].numel())
    outer = first.weight.abs().flatten(1).amax(1)  # (channels,)
    inner = blocks.abs().amax((1, 3)).reshape(-1, repeat).amax(1)  # (in,) -> (channels,)
    is_alive = (outer > DEAD * outer.max()) & (inner > DEAD * inner.max())
    scale = torch.where(is_alive, (outer / inner).sqrt(), torch.ones_like(outer))  # sqrt(r1 r2) / r2
    first.weight.div_(scale.reshape(-1, *[1] * (first.weight.dim() - 1)))
    if first.bias is not None:
        first.bias.div_(scale)
    scaled = blocks * scale.repeat_interleave(repeat).reshape(groups, 1, -1, 1)
    second.weight.copy_(scaled.reshape(second.weight.shape))
    return float(scale.log().abs().max())
