"""Grids for one tensor: which scale and zero point it has, when they may move, and how a float is rounded to them."""

import math

import torch
from torch import Tensor, nn

from autocompress.blocks.observers import MovingAverage, observer_of
from autocompress.blocks.rounding import HUGE, TINY, fake_quantize, grid_of, half_rounding, is_traced, learned_fake_quantize
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import Quantization, Scheme

UINT8, INT8 = (0, 255), (-128, 127)
USUAL = Quantization()
SHARES = [1 - step / 100 for step in range(81)]  # of the full range of weights, where the least error is searched


class ActivationQuantizer(nn.Module):
    """Affine uint8 grid of one activation: q = clip(round(x / scale) + zero_point, 0, 255) (Jacob et al. 2018, eq. 1).

    Fewer than 8 bits come through a coarser scale. ``observe_`` shows it a batch, ``settle_`` makes the grid from all that were seen.
    While training a moving average goes on, and a learned scale (LSQ) has a gradient, until ``hold_``.
    """

    low: Tensor
    high: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, bits: int, settings: Quantization = USUAL) -> None:
        super().__init__()
        self.bits, self.symmetric, self.learned = bits, settings.symmetric_activations, settings.learned_step
        self.following = True
        self.observer = observer_of(settings, bits)
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        _register_scale(self, torch.ones(()), self.learned)
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))

    def observe_(self, x: Tensor) -> None:
        self.observer.see(x)

    @torch.no_grad()
    def settle_(self) -> None:
        low, high = self.observer.range()
        self.low.copy_(low)
        self.high.copy_(high)
        scale, zero_point = grid_of(self.low, self.high, 0, 2**self.bits - 1, self.symmetric)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    def hold_(self) -> None:
        """From now on the grid stands still."""
        _hold_(self)

    def forward(self, x: Tensor) -> Tensor:
        if is_traced():
            out: Tensor = torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, *UINT8)
            return out
        if self.training and self.following and self.learned:
            _keep_positive_(self.scale)
            return learned_fake_quantize(x, self.scale, self.zero_point, UINT8, math.prod(x.shape[1:]), lean=True)
        if self.training and self.following and isinstance(self.observer, MovingAverage):
            self.observe_(x)
            self.settle_()
        return fake_quantize(x, self.scale, self.zero_point, *UINT8)


class WeightQuantizer(nn.Module):
    """Grid of one weight (out, ...), of 2 to 8 bits: a scale and a zero point a tensor (), a channel (out,) or a group (out, groups).

    Codes of a symmetric grid lie around 0: -(2^(bits-1) - 1) to 2^(bits-1) - 1 (7 bits: -63..63), for weights alone one more below;
    those of an asymmetric one from 0 to 2^bits - 1. While training the scale follows the weights, or is trained (LSQ), until ``hold_``.
    """

    scale: Tensor
    zero_point: Tensor
    shrink: Tensor | None  # share of the full range with the least error, of the shape of the scale

    def __init__(self, weight: Tensor, bits: int, settings: Quantization = USUAL, scheme: Scheme = "static", name: str = "weight") -> None:
        super().__init__()
        self.bits = self.target_bits = bits
        self.granularity, self.group_size, self.symmetric = settings.granularity, settings.group_size, settings.symmetric
        self.scheme, self.learned, self.searches = scheme, settings.learned_step, settings.weight_observer == "mse"
        self.following = True
        self.shape = tuple(weight.shape)
        inner = math.prod(self.shape[1:])
        if self.granularity == "group" and inner % self.group_size:
            raise InfeasibleRecipe(
                f"{name}: group_size {self.group_size} does not divide the {inner} inputs of an output. Choose one that does, or channel."
            )
        self.register_buffer("shrink", None, persistent=False)
        with torch.no_grad():
            scale, zero_point = self._grid(weight.detach())
        _register_scale(self, scale, self.learned)
        self.register_buffer("zero_point", zero_point)

    @property
    def lowest(self) -> int:
        if not self.symmetric:
            return 0
        return -(1 << self.bits - 1) + (self.scheme != "weight_only")

    @property
    def highest(self) -> int:
        return (1 << self.bits - self.symmetric) - 1

    def codes(self, weight: Tensor) -> Tensor:
        """Integers ``lowest``..``highest`` (int32) of the shape of ``weight``."""
        zero = self._wide(self.zero_point)
        steps = (self._rows(weight.detach()) * (1 / self._wide(self.scale.detach()))).round_()
        return steps.add_(zero).clamp_(self.lowest, self.highest).to(torch.int32).reshape(weight.shape)

    def dequantize(self, codes: Tensor) -> Tensor:
        """The float32 weight that ``codes`` stand for: (codes - zero_point) * scale; to the bit what ``forward`` makes of it again."""
        steps = (self._rows(codes) - self._wide(self.zero_point)).to(torch.float32)
        return (steps * self._wide(self.scale.detach())).reshape(codes.shape)

    def hold_(self) -> None:
        """From now on the grid stands still."""
        _hold_(self)

    @torch.no_grad()
    def fit_(self, weight: Tensor) -> None:
        """Take the grid from ``weight``."""
        scale, zero_point = self._grid(weight.detach())
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    @torch.no_grad()
    def anneal_(self, bits: int, weight: Tensor) -> None:
        """Go on with ``bits`` bits: a learned grid over the same range as before, any other one fitted to ``weight``."""
        if bits == self.bits:
            return
        before = self.highest
        self.bits, self.shrink = bits, None
        if not self.learned:
            self.fit_(weight)
            return
        ratio = before / self.highest
        self.scale.mul_(ratio)
        self.zero_point.copy_((self.zero_point / ratio).round())

    @torch.no_grad()
    def freeze_(self, weight: Tensor) -> None:
        """Fix the grid: as it is where it was held or learned, or ``weight`` lies on it already; else the one that fits ``weight`` best."""
        self.anneal_(self.target_bits, weight)
        _keep_positive_(self.scale)
        moves = self.following and not self.learned
        if moves and not torch.equal(self.dequantize(self.codes(weight)), weight):
            self.shrink = None
            self.fit_(weight)
        self.hold_()

    def forward(self, weight: Tensor) -> Tensor:
        if is_traced():
            return self._traced(weight)
        learns = self.training and self.following and self.learned
        if learns:
            _keep_positive_(self.scale)
        elif self.training and self.following:
            self.fit_(weight)
        rows, scale, zero = self._rows(weight), self._wide(self.scale), 0 if self.symmetric else self._wide(self.zero_point)
        if learns:
            sharing = weight.numel() // self.scale.numel()
            return learned_fake_quantize(rows, scale, zero, (self.lowest, self.highest), sharing, lean=False).reshape(weight.shape)
        return fake_quantize(rows, scale, zero, self.lowest, self.highest).reshape(weight.shape)

    def _traced(self, weight: Tensor) -> Tensor:
        """In a graph for export only static layers have a mark; the weight of every other one is on its grid, and stays a constant."""
        if self.scheme != "static":
            if self.following:
                raise RuntimeError("freeze_ a fake-quantized model before it is exported: its weights are not on their grids yet")
            return weight
        levels = INT8 if self.symmetric else UINT8  # of any number of bits: the exporter knows no other, the scale is coarser
        if self.granularity == "tensor":
            out: Tensor = torch.fake_quantize_per_tensor_affine(weight, self.scale, self.zero_point, *levels)
            return out
        rows = weight.reshape(-1, self.group_size) if self.granularity == "group" else weight
        return torch.fake_quantize_per_channel_affine(
            rows, self.scale.reshape(-1), self.zero_point.reshape(-1), 0, *levels
        ).reshape(weight.shape)  # fmt: skip

    def _grid(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self._range(weight)
        if self.searches and self.shrink is None:
            self.shrink = self._least_error(weight, low, high)
        if self.shrink is not None:
            low, high = low * self.shrink, high * self.shrink
        return grid_of(low, high, self.lowest, self.highest, self.symmetric)

    def _range(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        if self.granularity == "tensor":
            low, high = torch.aminmax(weight.float())
        else:
            low, high = torch.aminmax(self._rows(weight.float()).flatten(1 if self.granularity == "channel" else 2), dim=-1)
        return low.clamp(max=0), high.clamp(min=0)

    def _least_error(self, weight: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Share of the range with the least squared error, for each scale."""
        rows = self._rows(weight.float())
        best, least = torch.ones_like(low), torch.full_like(low, math.inf)
        for share in SHARES:
            scale, zero = grid_of(low * share, high * share, self.lowest, self.highest, self.symmetric)
            rounded = fake_quantize(rows, self._wide(scale), self._wide(zero), self.lowest, self.highest)
            error = (rounded - rows).square_().sum_to_size(self._wide(low).shape).reshape(low.shape)
            best, least = torch.where(error < least, share, best), torch.minimum(error, least)
        return best

    def _rows(self, weight: Tensor) -> Tensor:
        """(out, ...) -> (out, groups, group_size) where groups have scales."""
        return weight.reshape(weight.shape[0], -1, self.group_size) if self.granularity == "group" else weight

    def _wide(self, value: Tensor) -> Tensor:
        """A value a scale, of a shape that broadcasts to the rows."""
        if self.granularity == "group":
            return value.unsqueeze(-1)
        return value.reshape(-1, *[1] * (len(self.shape) - 1)) if self.granularity == "channel" else value


class HalfQuantizer(nn.Module):
    """Rounds to half floats ("fp16" or "bf16") and back, with a straight-through gradient; in a graph for export it leaves no mark."""

    bits = 16

    def __init__(self, half: str) -> None:
        super().__init__()
        self.kind = half

    def forward(self, x: Tensor) -> Tensor:
        return half_rounding(x, self.kind)


def _register_scale(module: nn.Module, scale: Tensor, learned: bool) -> None:
    if learned:
        module.register_parameter("scale", nn.Parameter(scale))
    else:
        module.register_buffer("scale", scale)


def _hold_(quantizer: ActivationQuantizer | WeightQuantizer) -> None:
    quantizer.following = False
    if quantizer.learned:
        quantizer.scale.requires_grad_(False)


def _keep_positive_(scale: Tensor) -> None:
    scale.data.clamp_(TINY, HUGE)  # of the data: a layer may run twice in one pass, whose graph holds the scale
