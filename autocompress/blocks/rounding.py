"""Rounding to a grid and back, and the gradients that training takes through it.

x -> (clip(round(x / scale) + zero_point, lowest, highest) - zero_point) * scale (Jacob et al. 2018, eq. 1), to the bit as
``torch.fake_quantize_*`` computes it, in a few operators that work in place: torch's own took 3 to 5 times as long. The gradient passes
straight through where nothing was clipped (Bengio et al. 2013), or trains the scale too (LSQ: Esser et al. 2020, eq. 3 and section 2.2).
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

TINY = 1e-8  # the least scale: what has no range stays finite
HUGE = 1e36  # the largest one: its inverse is no subnormal number
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}

Bound = Any  # int, or a tensor


def is_traced() -> bool:
    """Whether a graph is being recorded for export, for which ``torch.fake_quantize_*`` become QuantizeLinear and DequantizeLinear."""
    return torch.onnx.is_in_onnx_export() or bool(torch._C._is_tracing())


def grid_of(low: Tensor, high: Tensor, lowest: int, highest: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero point (int32) of codes ``lowest``..``highest`` for the range ``low`` <= 0 <= ``high``, all of one shape.

    Jacob et al. 2018, section 3: zero is exactly representable. A symmetric grid has its zero in the middle of the codes.
    """
    if symmetric:
        zero = (lowest + highest + 1) // 2
        scale = torch.maximum(low / (lowest - zero), high / (highest - zero)).clamp(TINY, HUGE)
        return scale, torch.full_like(scale, zero, dtype=torch.int32)
    scale = ((high - low) / (highest - lowest)).clamp(TINY, HUGE)
    return scale, (lowest - low / scale).round().clamp(lowest, highest).to(torch.int32)


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor | int, lowest: int, highest: int) -> Tensor:
    """x on its grid; ``scale`` and ``zero_point`` broadcast to it. Straight-through gradient; one bool an element is kept for it."""
    low, high = _bounds(zero_point, lowest, highest)
    if torch.is_grad_enabled() and x.requires_grad:
        out: Tensor = _StraightThrough.apply(x, scale.detach(), low, high)  # type: ignore[no-untyped-call]
        return out
    return _steps(x, scale).clamp_(low, high).mul_(scale).to(x.dtype)


def learned_fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor | int, levels: tuple[int, int], sharing: int, lean: bool
) -> Tensor:  # fmt: skip
    """x on its grid, with a gradient for ``scale`` too; ``sharing``: numbers that share one scale, N of LSQ's factor 1 / sqrt(N * Qmax).

    For the gradient x is kept, which costs nothing where it is a parameter; ``lean``: two bytes an element, and the slope of the scale
    with three digits.
    """
    low, high = _bounds(zero_point, *levels)
    most = torch.maximum(*(torch.as_tensor(end, dtype=scale.dtype, device=scale.device).abs() for end in (low, high))).clamp(min=1)
    factor = (sharing * most).rsqrt()
    function = _LeanLearnedStep if lean else _LearnedStep
    out: Tensor = function.apply(x, scale, low, high, factor)  # type: ignore[no-untyped-call]
    return out


def dynamic_parameters(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point of uint8 codes for this very tensor, as ONNX DynamicQuantizeLinear defines them."""
    low, high = torch.aminmax(x.detach().float())
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, 1.0, scale)
    return scale, (-low / scale).round().clamp(0, 255)


def dynamic_rounding(x: Tensor) -> Tensor:
    """x on the uint8 grid of its own range; the gradient passes, since nothing is clipped. An exported graph gets it from its runtime."""
    if is_traced() or x.numel() == 0:
        return x
    scale, zero_point = dynamic_parameters(x)
    codes = (x.detach().float() / scale).round_().add_(zero_point).clamp_(0, 255)
    return _passed(x, codes.sub_(zero_point).mul_(scale).to(x.dtype))


def half_rounding(x: Tensor, half: str) -> Tensor:
    """x rounded to the type called ``half`` and back; beyond its range it is infinite, as it would be there. The gradient passes."""
    return x if is_traced() else _passed(x, x.detach().to(HALF[half]).to(x.dtype))


def rectified(func: Any, args: Any, kwargs: Any) -> Tensor:
    """ReLU, ReLU6 or hard tanh, whichever way it is written, that keeps one bool an element for the gradient instead of its result."""
    x = args[0]
    trains = torch.is_grad_enabled() and x.requires_grad and not x.is_leaf and not x._is_view()
    if is_traced() or not trains:
        out: Tensor = func(*args, **kwargs)
        return out
    least, most, in_place = _hardtanh(*args, **kwargs) if func is F.hardtanh else _relu(*args, **kwargs)
    if func is F.relu6:
        most = 6.0
    in_place = in_place or func.__name__.endswith("_")
    out = _Clipped.apply(x, least, most, in_place)  # type: ignore[no-untyped-call]
    return out


def _relu(x: Tensor, inplace: bool = False) -> tuple[float, float, bool]:
    return 0.0, math.inf, inplace


def _hardtanh(x: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> tuple[float, float, bool]:
    return min_val, max_val, inplace


def _passed(x: Tensor, rounded: Tensor) -> Tensor:
    if not (torch.is_grad_enabled() and x.requires_grad):
        return rounded
    out: Tensor = _Passed.apply(x, rounded)  # type: ignore[no-untyped-call]
    return out


def _bounds(zero_point: Tensor | int, lowest: int, highest: int) -> tuple[Bound, Bound]:
    """Steps from zero to both ends: numbers where reading them costs nothing (clamping by a tensor is slow on a CPU)."""
    low, high = lowest - zero_point, highest - zero_point
    if isinstance(low, Tensor) and (low.dim() or not low.is_cpu):
        return low, high
    return int(low), int(high)


def _steps(x: Tensor, scale: Tensor) -> Tensor:
    """round(x * (1 / scale)): torch multiplies by the inverse, and so must we."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    return (wide * (1 / scale)).round_()


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: Bound, high: Bound) -> Tensor:
        steps = _steps(x, scale)
        inside = steps >= low
        inside &= steps <= high
        ctx.save_for_backward(inside)
        return steps.clamp_(low, high).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return torch.where(inside, grad, 0.0), None, None, None


class _LearnedStep(torch.autograd.Function):
    """LSQ, eq. 3: d out / d scale = round(v) - v inside the range (v = x / scale), and the bound that v is clipped to outside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: Bound, high: Bound, factor: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale, factor)
        ctx.low, ctx.high = low, high
        return _steps(x, scale).clamp_(low, high).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x, scale, factor = ctx.saved_tensors
        exact = x.to(scale.dtype) * (1 / scale)
        inside = exact > ctx.low
        inside &= exact < ctx.high
        slope = exact.round().clamp_(ctx.low, ctx.high).sub_(exact.mul_(inside))
        to_scale = slope.mul_(grad).sum_to_size(scale.shape) * factor
        return torch.where(inside, grad, 0.0), to_scale, None, None, None


class _LeanLearnedStep(torch.autograd.Function):
    """The same from the slope in half floats, infinite where x was clipped: x itself need not live on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: Bound, high: Bound, factor: Tensor) -> Tensor:
        exact = x.to(scale.dtype) * (1 / scale)
        steps = exact.round().clamp_(low, high)
        slope = (steps - exact).to(torch.float16)
        slope.masked_fill_(exact <= low, -math.inf).masked_fill_(exact >= high, math.inf)
        ctx.save_for_backward(slope, factor)
        ctx.low, ctx.high, ctx.shape = low, high, scale.shape
        return steps.mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        half, factor = ctx.saved_tensors
        slope = half.to(factor.dtype)
        slope = torch.where(half == -math.inf, ctx.low, slope)
        slope = torch.where(half == math.inf, ctx.high, slope)
        to_scale = slope.mul_(grad).sum_to_size(ctx.shape) * factor
        return torch.where(half.isfinite(), grad, 0.0), to_scale, None, None, None


class _Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, least: float, most: float, in_place: bool) -> Tensor:
        passes = x > least
        if most < math.inf:
            passes &= x < most
        ctx.save_for_backward(passes)
        if in_place:
            ctx.mark_dirty(x)
            return x.clamp_(least, most)
        return x.clamp(least, most)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (passes,) = ctx.saved_tensors
        return torch.where(passes, grad, 0.0), None, None, None


class _Passed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
