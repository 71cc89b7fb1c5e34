"""The modules that a compressed model may contain: what compress writes and runtimes read.

``LowRankLinear`` and ``LowRankConv2d`` stand in for one layer and keep its public attributes, because code around a layer reads them.
``FakeQuantized`` wraps a whole model, unmodified, and rounds what flows through it to integer grids (a ``TorchFunctionMode``
inserts ``torch.fake_quantize_*``), so that one module serves calibration, training with straight-through gradients, and export.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

UINT8, INT8 = (0, 255), (-128, 127)


class LowRankLinear(nn.Module):
    """y = expand(reduce(x)): a Linear of rank ``rank``. x (..., in_features) -> (..., rank) -> (..., out_features)."""

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.reduce = nn.Linear(in_features, rank, bias=False)
        self.expand = nn.Linear(rank, out_features, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.expand(self.reduce(x))
        return out

    @property
    def weight(self) -> Tensor:
        """The dense weight that the two factors amount to, (out_features, in_features)."""
        return self.expand.weight @ self.reduce.weight

    @property
    def bias(self) -> Tensor | None:
        return self.expand.bias


class LowRankConv2d(nn.Module):
    """Tucker-2 form of a Conv2d (Kim et al. 2016): 1x1 to ``rank_in`` channels, the kernel, 1x1 to ``out_channels``.

    A 1x1 convolution needs no core: ``reduce`` takes over stride and padding.
    """

    def __init__(self, like: nn.Conv2d, rank_in: int, rank_out: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = like.in_channels, like.out_channels, 1
        self.kernel_size, self.stride, self.padding, self.dilation = like.kernel_size, like.stride, like.padding, like.dilation
        self.padding_mode = like.padding_mode
        self.core: nn.Conv2d | None = None
        if like.weight[0, 0].numel() == 1:
            self.reduce = nn.Conv2d(
                like.in_channels, rank_in, 1, self.stride, self.padding, bias=False, padding_mode=self.padding_mode  # type: ignore[arg-type]
            )
        else:
            self.reduce = nn.Conv2d(like.in_channels, rank_in, 1, bias=False)
            geometry = {name: getattr(like, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
            self.core = nn.Conv2d(rank_in, rank_out, **geometry, bias=False)
        self.expand = nn.Conv2d(rank_out, like.out_channels, 1, bias=like.bias is not None)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        if self.core is not None:
            x = self.core(x)
        out: Tensor = self.expand(x)
        return out

    @property
    def weight(self) -> Tensor:
        """The dense weight that the factors amount to, (out_channels, in_channels, kh, kw)."""
        expand, reduce = self.expand.weight[:, :, 0, 0], self.reduce.weight[:, :, 0, 0]
        if self.core is None:
            return (expand @ reduce)[:, :, None, None]
        return torch.einsum("oa,abhw,bi->oihw", expand, self.core.weight, reduce)

    @property
    def bias(self) -> Tensor | None:
        return self.expand.bias


class ActivationQuantizer(nn.Module):
    """Affine uint8 grid of one activation: q = clip(round(x / scale) + zero_point, 0, 255) (Jacob et al. 2018, eq. 1).

    Fewer than 8 bits come through a coarser scale. While ``observing`` it widens ``low``..``high`` and passes x through.
    """

    low: Tensor
    high: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))

    @torch.no_grad()
    def observe_(self, x: Tensor) -> None:
        """Min-max observer; 0 is always inside the range, so that it is exactly representable."""
        self.low.copy_(torch.minimum(self.low, x.min()))
        self.high.copy_(torch.maximum(self.high, x.max()))
        steps = 2**self.bits - 1
        self.scale.copy_(((self.high - self.low) / steps).clamp(min=1e-8))
        self.zero_point.copy_((-self.low / self.scale).round().clamp(*UINT8).to(torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, *UINT8)
        return out


class WeightQuantizer(nn.Module):
    """Symmetric int8 grid, one scale an output channel: scale = max|w| / (2^(bits-1) - 1); 7 bits use the levels -63..63.

    While training the scale follows the weights; ``freeze_`` fixes it, as export needs it.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("scale", self.scale_of(weight))
        self.register_buffer("zero_point", torch.zeros(weight.shape[0], dtype=torch.int32, device=weight.device))

    def scale_of(self, weight: Tensor) -> Tensor:
        """weight (out, ...) -> (out,)"""
        largest = weight.detach().abs().flatten(1).amax(1)
        scale: Tensor = (largest / (2 ** (self.bits - 1) - 1)).clamp(min=1e-8)
        return scale

    @torch.no_grad()
    def freeze_(self, weight: Tensor) -> None:
        self.scale.copy_(self.scale_of(weight))

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            self.freeze_(weight)
        out: Tensor = torch.fake_quantize_per_channel_affine(weight, self.scale, self.zero_point, 0, *INT8)
        return out


class FakeQuantized(nn.Module):
    """``model`` with the layers named in ``bits`` (weight bits, activation bits) on integer grids, and what lies between them.

    Quantizers are keyed by (scope, operator, ordinal in the scope, argument), so one more call elsewhere shifts none of them.
    Phases: ``observe`` collects ranges and creates quantizers where tensors flow, ``quantize`` rounds.
    """

    def __init__(self, model: nn.Module, bits: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        self.model = model
        self.bits = dict(bits)
        self.phase: Literal["observe", "quantize"] = "observe"
        self.points = nn.ModuleDict()
        self.inputs: dict[str, str] = {}  # layer -> key of the quantizer of its input, as seen in the last forward pass
        modules = dict(model.named_modules())
        self.weights = nn.ModuleDict(
            {name.replace(".", "/"): WeightQuantizer(modules[name].weight, pair[0]) for name, pair in self.bits.items()}
        )

    def forward(self, x: Tensor) -> Tensor:
        flow = _Flow(self)
        with scopes(self.model, flow.stack), flow:
            out = self.model(x)
        result: Tensor = flow.close(out)
        return result

    @torch.no_grad()
    def freeze_(self) -> None:
        """Fix the weight scales and move every bias of an integer layer onto its int32 grid (input scale * weight scale)."""
        self.eval()
        for name in self.bits:
            layer, quantizer = self.model.get_submodule(name), self.weights[name.replace(".", "/")]
            quantizer.freeze_(layer.weight)  # type: ignore[operator]
            key = self.inputs.get(name)
            if key is not None and isinstance(layer.bias, Tensor):
                grid = quantizer.scale * self.points[key].scale  # type: ignore[operator]
                layer.bias.copy_((layer.bias / grid).round() * grid)


@contextlib.contextmanager
def scopes(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """While it lasts, ``stack`` holds the names of the modules of ``model`` whose forward is running, outermost first."""
    names = {id(module): name for name, module in model.named_modules()}

    def enter(module: nn.Module, args: Any) -> None:
        if id(module) in names:
            stack.append(names[id(module)])

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        if id(module) in names:
            stack.pop()

    hooks = (
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


LAYERS: tuple[Callable[..., Tensor], ...] = (torch.conv2d, F.linear)
JOINS = (torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__, torch.Tensor.add_, torch.Tensor.__iadd__)
POOLS = (F.adaptive_avg_pool2d, F.avg_pool2d, torch.mean, torch.Tensor.mean)
ABSORBED = (F.relu, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_, F.relu6, F.hardtanh)
# The values stay on the grid they were on.
RESHAPES = (
    torch.flatten, torch.Tensor.flatten, torch.reshape, torch.Tensor.reshape, torch.Tensor.view, torch.Tensor.contiguous,
    torch.Tensor.squeeze, torch.squeeze, F.max_pool2d, F.dropout,
)  # fmt: skip
# Read while tracing and by user code for shapes: no arithmetic, so never a reason to round.
SILENT = ("size", "dim", "numel", "__get__", "detach", "stride", "is_contiguous", "requires_grad_", "shape")


class _Flow(TorchFunctionMode):
    """One forward pass: follows tensors from integer operator to integer operator and rounds each of them once.

    A result of an integer operator is *pending* until somebody reads it: an activation function is absorbed by the kernel (the result
    stays pending), any other reader makes it rounded. Tensors are known by identity and version and kept alive during the pass.
    """

    def __init__(self, owner: FakeQuantized) -> None:
        super().__init__()
        self.owner = owner
        self.stack: list[str] = []
        self.calls: Counter[tuple[str, str]] = Counter()
        self.pending: dict[tuple[int, int], bool] = {}  # -> whether a float result is realized by the kernel (linear layers)
        self.rounded: dict[tuple[int, int], tuple[Tensor, str]] = {}
        self.alive: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name in SILENT or (not any(self._known(arg) for arg in _tensors(args)) and func not in LAYERS):
            return func(*args, **kwargs)
        scope = self.stack[-1] if self.stack else ""
        place = f"{scope}|{name}|{self.calls[scope, name]}".replace(".", "/")
        self.calls[scope, name] += 1
        if func in LAYERS:
            return self._layer(func, scope, place, args, kwargs)
        if func in ABSORBED and self._is_pending(args[0]):
            float_is_fine = self.pending[_key(args[0])]  # read before the call: in place, it makes a new version
            return self._mark(func(*args, **kwargs), float_is_fine)
        if func in RESHAPES:
            return self._reshape(func, place, args, kwargs)
        is_integer = func is torch.cat or (func in JOINS and _is_join(args)) or (func in POOLS and _is_spatial(name, args, kwargs))
        args = self._round_all(args, place, everything=is_integer)
        out = func(*args, **kwargs)
        return self._mark(out, False) if is_integer and isinstance(out, Tensor) else out

    def _layer(self, func: Any, scope: str, place: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        bits = self.owner.bits.get(scope)
        if bits is None:
            return func(*self._round_all(args, place, everything=False), **kwargs)  # type: ignore[no-any-return]
        x, key = self._round(args[0], f"{place}|0", bits[1])
        self.owner.inputs[scope] = key
        weight = args[1]
        if self.owner.phase == "quantize":
            weight = self.owner.weights[scope.replace(".", "/")](weight)
        return self._mark(func(x, weight, *args[2:], **kwargs), func is F.linear)

    def _reshape(self, func: Any, place: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Rounded before and after with one quantizer, so that the kernels on both sides stay integer."""
        x, key = self._round(args[0], f"{place}|0", 8)
        out: Tensor = func(x, *args[1:], **kwargs)
        leaves_grid = func is F.dropout and self.owner.training  # it scales what it keeps
        rounded = out if leaves_grid else self._apply(key, out)
        self._remember(out, rounded, key)
        return rounded

    def _round_all(self, args: Any, place: str, everything: bool) -> Any:
        """Round the pending tensors among ``args``; with ``everything`` the float ones too, for they meet an integer kernel."""

        def visit(value: Any, index: int) -> Any:
            if isinstance(value, Tensor) and value.is_floating_point() and (everything or self._known(value)):
                return self._round(value, f"{place}|{index}", 8)[0]
            if isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
                return type(value)(visit(item, 100 * index + position) for position, item in enumerate(value))
            return value

        return tuple(visit(value, index) for index, value in enumerate(args))

    def _round(self, x: Tensor, key: str, bits: int) -> tuple[Tensor, str]:
        if _key(x) in self.rounded:
            return self.rounded[_key(x)]
        out = self._apply(key, x, bits)
        self.pending.pop(_key(x), None)
        self._remember(x, out, key)
        return out, key

    def _apply(self, key: str, x: Tensor, bits: int = 8) -> Tensor:
        points = self.owner.points
        if self.owner.phase == "observe":
            if key not in points:
                points[key] = ActivationQuantizer(bits).to(x.device)
            points[key].observe_(x)  # type: ignore[operator]
            return x
        return points[key](x) if key in points else x  # a branch that only training takes was never calibrated

    def _remember(self, x: Tensor, out: Tensor, key: str) -> None:
        self.alive += [x, out]
        self.rounded[_key(x)] = self.rounded[_key(out)] = (out, key)

    def _mark(self, out: Tensor, float_is_fine: bool) -> Tensor:
        self.alive.append(out)
        self.pending[_key(out)] = float_is_fine
        return out

    def _is_pending(self, value: Any) -> bool:
        return isinstance(value, Tensor) and _key(value) in self.pending

    def _known(self, value: Tensor) -> bool:
        return _key(value) in self.pending or _key(value) in self.rounded

    def close(self, out: Any) -> Any:
        """Model outputs: a convolution needs a rounded result to run in integers, a linear layer does not."""
        if self._is_pending(out) and not self.pending[_key(out)]:
            return self._round(out, "output|0", 8)[0]
        return out


def _key(x: Tensor) -> tuple[int, int]:
    return id(x), x._version


def _tensors(args: Any) -> Iterator[Tensor]:
    for value in args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _is_join(args: Any) -> bool:
    """A sum of two activations, not one with a scalar or a bias."""
    return all(isinstance(arg, Tensor) and arg.is_floating_point() and arg.dim() > 1 for arg in args[:2])


def _is_spatial(name: str, args: Any, kwargs: Any) -> bool:
    """A mean counts as pooling only over height and width of a (N, C, H, W) tensor."""
    if name != "mean":
        return True
    dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
    return args[0].dim() == 4 and isinstance(dims, list | tuple) and sorted(dim % 4 for dim in dims) == [2, 3]
