"""Adaptive rounding (Nagel et al. 2020, "Up or down? Adaptive rounding for post-training quantization").

Every weight goes to one of its two neighbours on the grid: w = s * clip(floor(w / s) + h(V), n, p) with the rectified sigmoid
h(V) = clip(sigmoid(V) * (zeta - gamma) + gamma, 0, 1) (eqs. 22, 23). V minimizes

    mean |f(W x) - f(W~ x~)|^2 + lambda * mean(1 - |2 h(V) - 1|^beta)        (eqs. 24, 25: asymmetric, f the activation that follows)

layer after layer with Adam; x comes through the float model, x~ through the quantized one with all layers before it already rounded.
beta falls from 20 to 2, which lets h move freely at first and drives it to 0 or 1 in the end; during the first fifth of the steps there
is no regularizer. Here the error is divided by that of rounding to nearest and the regularizer is a mean, so that one lambda suits layers
of any size and bits, and the rate of Adam is higher for few steps, so that every V can cross over; both were chosen on layers of a
ResNet-56 at 4 bits, by the error on outputs that were not trained on.

The quantized model runs once: each layer is solved when the pass reaches it, and the pass goes on with the rounded weights.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from autocompress.blocks import SILENT, FakeQuantized, WeightQuantizer
from autocompress.compress.quantize.layer_calls import layers_of, met, rounding

ZETA, GAMMA = 1.1, -0.1
BETA_FROM, BETA_TO, FREE = 20.0, 2.0, 0.2
LAMBDA = 10.0
RATE, WAY = (1e-2, 1e-1), 30.0  # learning rate: WAY / steps within these bounds
ROWS, BATCH = 8192, 1024  # output positions that a layer is solved on, and those of one step
MEMORY_BYTES, HELD = 2 * 2**30, 8  # of one pass, during which so many tensors are taken to be alive at once
CHUNK = 16  # samples whose patches are laid out at a time
ON_GRID = 1e-3  # of a step: a weight that near a grid value has nothing to choose (zeros of a mask, the largest weight of a channel)
OPEN = (-math.inf, math.inf)
CLIPS = {"relu": (0.0, math.inf), "relu_": (0.0, math.inf), "relu6": (0.0, 6.0)}


def adaround_(wrapped: FakeQuantized, batches: Sequence[Tensor], steps: int, seed: int) -> None:
    """Move the weights of every integer layer of ``wrapped`` to the grid values that ``steps`` steps choose on inputs (N, ...).

    The weights must still be float. As many inputs are used as one pass holds in MEMORY_BYTES.
    """
    if steps == 0:
        return
    layers, draw = layers_of(wrapped), torch.Generator().manual_seed(seed)
    with rounding(wrapped):
        inputs = chosen(wrapped, batches, draw)
        targets = _Targets(draw)
        with targets, met(wrapped.model, layers, targets.note):
            wrapped.model(inputs)
        solver = _Solver(wrapped, targets.found, steps, draw)
        with met(wrapped.model, layers, solver.solve):
            wrapped(inputs)


def chosen(wrapped: FakeQuantized, batches: Sequence[Tensor], draw: torch.Generator) -> Tensor:
    """Some of the inputs at random, as many as one pass may hold."""
    inputs = torch.cat(list(batches))
    counter = _Bytes()
    with counter:
        wrapped(inputs[:1])
    count = max(1, min(len(inputs), MEMORY_BYTES // (HELD * counter.largest)))
    return inputs[torch.randperm(len(inputs), generator=draw)[:count].to(inputs.device)]


class _Bytes(TorchFunctionMode):
    """Bytes of the largest result of a pass."""

    largest = 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.largest = max(self.largest, out.numel() * out.element_size())
        return out


@dataclass
class _Target:
    """Positions (B, p) among the outputs (B, positions, channels) of a layer, and what it computes there in float (B * p, channels)."""

    places: Tensor
    values: Tensor
    readers: list[str] = field(default_factory=list)

    @property
    def clip(self) -> tuple[float, float]:
        """The range to which the activation clips it, where that alone reads it."""
        return CLIPS.get(self.readers[0], OPEN) if len(self.readers) == 1 else OPEN


class _Targets(TorchFunctionMode):
    """Collects the targets of every layer in a pass of the float model; of a layer that runs several times, those of its first run."""

    def __init__(self, draw: torch.Generator) -> None:
        super().__init__()
        self.draw = draw
        self.found: dict[str, _Target] = {}
        self.by_output = WeakTensorKeyDictionary()  # -> (version, target)

    def note(self, name: str, func: Callable[..., Tensor], args: tuple[Any, ...]) -> Tensor:
        out = func(*args)
        if name not in self.found:
            rows = by_position(out, func)
            few = -(-ROWS // rows.shape[0])
            drawn = torch.randint(rows.shape[1], (rows.shape[0], few), generator=self.draw)
            places = (drawn if few < rows.shape[1] else torch.arange(rows.shape[1]).expand(rows.shape[0], -1)).to(out.device)
            self.found[name] = _Target(places, picked(rows, places))
            self.by_output[out] = (out._version, self.found[name])
        return out

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        for value in args if name not in SILENT else ():
            if isinstance(value, Tensor) and value in self.by_output:
                version, target = self.by_output[value]
                target.readers += [name] if version == value._version else []
        return func(*args, **(kwargs or {}))


def by_position(out: Tensor, func: Callable[..., Tensor]) -> Tensor:
    """(B, C, H, W) of a convolution -> (B, H * W, C); (B, ..., F) of a linear layer -> (B, positions, F)."""
    return out.flatten(2).transpose(1, 2) if func is torch.conv2d else out.reshape(out.shape[0], -1, out.shape[-1])


def picked(rows: Tensor, places: Tensor) -> Tensor:
    """rows (B, positions, channels), places (B, p) -> (B * p, channels)."""
    return rows.gather(1, places[:, :, None].expand(-1, -1, rows.shape[2])).flatten(0, 1)


class _Solver:
    """Rounds each layer when the quantized pass reaches it first."""

    def __init__(self, wrapped: FakeQuantized, targets: dict[str, _Target], steps: int, draw: torch.Generator) -> None:
        self.wrapped, self.targets, self.steps, self.draw = wrapped, targets, steps, draw

    def solve(self, name: str, func: Callable[..., Tensor], args: tuple[Any, ...]) -> Tensor:
        """args: rounded input, rounded weight, bias, and what else conv2d or linear takes."""
        weight, quantizer = self.wrapped.model.get_submodule(name).weight, self.wrapped.weights[name.replace(".", "/")]
        assert isinstance(weight, Tensor)
        assert isinstance(quantizer, WeightQuantizer)
        target = self.targets.pop(name, None)
        if target is not None:
            problem = Problem(quantizer, weight.detach(), args[2], rows_of(func, args, target.places), target.values, target.clip)
            weight.copy_(problem.solved(self.steps, self.draw))
        return func(args[0], quantizer(weight), *args[2:])


def rows_of(func: Callable[..., Tensor], args: tuple[Any, ...], places: Tensor) -> Tensor:
    """What the weight is multiplied with at the given output positions (B, p): (B * p, groups, K)."""
    if func is F.linear:
        return picked(by_position(args[0], func), places)[:, None]
    x, weight, _, stride, padding, dilation, groups = args
    kernel = weight.shape[2:]
    if isinstance(padding, str):
        rows, columns = (step * (size - 1) if padding == "same" else 0 for step, size in zip(dilation, kernel, strict=True))
        x, padding = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)), 0
    found = []
    for part, where in zip(torch.split(x, CHUNK), torch.split(places, CHUNK), strict=True):
        patches = F.unfold(part, kernel, dilation, padding, stride)  # (n, channels * kh * kw, positions)
        found.append(picked(patches.transpose(1, 2), where))
    return torch.cat(found).reshape(places.numel(), groups, -1)


class Problem:
    """Which way to round the weight of one layer, (out, ...), so that ``inputs`` (R, groups, K) give ``values`` (R, out)."""

    def __init__(
        self, quantizer: WeightQuantizer, weight: Tensor, bias: Tensor | None, inputs: Tensor, values: Tensor, clip: tuple[float, float]
    ) -> None:
        self.quantizer, self.inputs, self.clip = quantizer, inputs, clip
        self.bias = None if bias is None else bias.detach()
        self.wanted = values.clamp(*clip)
        self.shape = weight.shape
        self.scale = quantizer.scale.detach().reshape(-1, 1)  # one for each of n equal stretches of the weight in memory
        self.zero = quantizer.zero_point.detach().reshape(-1, 1).to(weight.dtype)
        steps = weight.reshape(len(self.scale), -1) * (1 / self.scale)
        self.nearest, self.floor = steps.round(), steps.floor()
        self.rest = steps - self.floor
        self.is_free = (steps - self.nearest).abs() >= ON_GRID

    def codes(self, steps: Tensor) -> Tensor:
        """Steps from zero (n, stretch) -> codes."""
        return (steps + self.zero).clamp(self.quantizer.lowest, self.quantizer.highest)

    def weight(self, steps: Tensor) -> Tensor:
        """Steps from zero (n, stretch) -> the weight that they stand for, in its shape."""
        return ((self.codes(steps) - self.zero) * self.scale).reshape(self.shape)

    def error(self, weight: Tensor, rows: slice | Tensor = slice(None)) -> Tensor:
        """Mean over positions of the squared distance to what the float layer computes, activation included (eq. 25)."""
        inputs = self.inputs[rows]
        if inputs.shape[1] == 1:
            out = inputs[:, 0] @ weight.flatten(1).T
        else:
            out = torch.einsum("rgk,gok->rgo", inputs, weight.reshape(inputs.shape[1], -1, inputs.shape[2])).flatten(1)
        out = out if self.bias is None else out + self.bias
        return (out.clamp(*self.clip) - self.wanted[rows]).square().sum(1).mean()

    def solved(self, steps: int, draw: torch.Generator) -> Tensor:
        """The weight on its grid, on these inputs never further from the float outputs than with rounding to nearest."""
        chosen, unit = self.nearest, self.error(self.weight(self.nearest))
        if self.is_free.any() and unit > 0:
            with torch.enable_grad():
                up = rectified(self._trained(steps, draw, unit)).detach() >= 0.5
            adapted = torch.where(self.is_free, self.floor + up, self.nearest)
            chosen = adapted if self.error(self.weight(adapted)) < unit else chosen
        return self.quantizer.dequantize(self.codes(chosen).reshape(self.shape))

    def _trained(self, steps: int, draw: torch.Generator, unit: Tensor) -> Tensor:
        """V after Adam; it starts where h(V) is the rest of w / s, so that the first weight is the float one."""
        v = (-torch.log((ZETA - GAMMA) / (self.rest - GAMMA) - 1)).requires_grad_()
        optimizer = torch.optim.Adam([v], min(max(WAY / steps, RATE[0]), RATE[1]))
        for step in range(steps):
            rows = torch.randint(len(self.wanted), (BATCH,), generator=draw).to(v.device)
            h = rectified(v)
            loss = self.error(self.weight(torch.where(self.is_free, self.floor + h, self.nearest)), rows) / unit
            beta = annealed(step / steps)
            if beta is not None:
                loss = loss + LAMBDA * (1 - (2 * h - 1).abs().pow(beta))[self.is_free].mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return v


def rectified(v: Tensor) -> Tensor:
    """h(V), 0 to 1 (eq. 23)."""
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def annealed(progress: float) -> float | None:
    """beta at this share of the steps, along a cosine; None while there is no regularizer."""
    if progress < FREE:
        return None
    return BETA_TO + (BETA_FROM - BETA_TO) * (1 + math.cos(math.pi * (progress - FREE) / (1 - FREE))) / 2
