"""``FakeQuantized`` wraps a whole model, unmodified, and rounds what flows through it to grids (a ``TorchFunctionMode`` does that), so
that one module serves calibration, training with straight-through gradients, and export.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from autocompress.blocks.operators import ABSORBED, LAYERS, RESHAPES, SILENT, is_integer, scopes, tensors_in
from autocompress.blocks.quantizers import USUAL, ActivationQuantizer, HalfQuantizer, WeightQuantizer
from autocompress.blocks.rounding import HALF, dynamic_rounding, half_rounding, is_traced, rectified
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import HALF_BITS, Quantization, Scheme, check_activation_bits, check_bits, scheme_of

Phase = Literal["observe", "quantize"]
INTEGER_BITS = 8


class FakeQuantized(nn.Module):
    """``model`` with the layers named in ``bits`` (weight bits, activation bits) on grids, and what lies between integer ones.

    ``scheme_of`` says what becomes of a layer. Static: its input and what it makes lie on grids found by calibration, keyed by (scope,
    operator, ordinal in the scope, argument), so one more call elsewhere shifts none of them. Dynamic: the input is rounded by its own
    range. Weight-only, half: as the names say. ``weights`` holds the quantizers under the layer's name with / for dots; of an LSTM or GRU
    a ModuleDict by the name of the weight; of a layer with float weights nothing.
    Phases: ``observe`` collects ranges and creates quantizers where tensors flow, ``quantize`` rounds.
    Raises InfeasibleRecipe for a layer that cannot be of its scheme, with its name and the reason.
    """

    def __init__(self, model: nn.Module, bits: Mapping[str, tuple[int, int]], settings: Quantization = USUAL) -> None:
        super().__init__()
        self.model = model
        self.bits = dict(bits)
        self.settings = settings
        self.schemes: dict[str, Scheme] = {name: scheme_of(*pair, settings) for name, pair in self.bits.items()}
        self._phase: Phase = "observe"
        self.points = nn.ModuleDict()
        self.inputs: dict[str, str] = {}  # static layer -> key of the quantizer of its input, as seen in the last forward pass
        self.reached: set[str] = set()  # layers of `bits` that ran
        self.weights = nn.ModuleDict()
        for name, pair in self.bits.items():
            layer = model.get_submodule(name)
            check_layer(name, layer, pair, settings)
            if pair[0] <= HALF_BITS:
                self.weights[name.replace(".", "/")] = _quantizers(name, layer, pair[0], settings, self.schemes[name])

    @property
    def phase(self) -> Phase:
        return self._phase

    @phase.setter
    def phase(self, phase: Phase) -> None:
        """Leaving ``observe``, grids are made of what was seen. Raises InfeasibleRecipe where that was not finite."""
        if phase == "quantize" and self._phase == "observe":
            for key, point in self.points.items():
                assert isinstance(point, ActivationQuantizer)
                point.settle_()
                if not (point.low.isfinite() and point.high.isfinite()):
                    raise InfeasibleRecipe(
                        f"{key.split('|')[0].replace('/', '.')}: calibration: activations from {point.low:g} to {point.high:g} are not "
                        "finite, so they have no grid. Look at the model's outputs on these inputs."
                    )
        self._phase = phase

    def forward(self, x: Tensor) -> Tensor:
        flow = _Flow(self)
        with scopes(self.model, flow.stack), flow:
            out = self.model(x)
        result: Tensor = flow.close(out)
        return result

    def quantizers(self) -> Iterator[tuple[str, str, nn.Module]]:
        """(layer, name of its parameter, quantizer) of every weight that is rounded."""
        for name in self.bits:
            held = dict(self.weights).get(name.replace(".", "/"))
            if isinstance(held, nn.ModuleDict):
                yield from ((name, key, quantizer) for key, quantizer in held.items())
            elif held is not None:
                yield name, "weight", held

    def hold_(self) -> None:
        """Scales, zero points and ranges stand still from now on, also in training."""
        for module in self.modules():
            if isinstance(module, ActivationQuantizer | WeightQuantizer):
                module.hold_()

    @torch.no_grad()
    def freeze_(self) -> None:
        """Fix every grid and move all that lies on one onto it: weights, half biases, and the biases of static layers (int32 grid: input
        scale * weight scale). A weight that is shared with a layer of other bits becomes one of its own first.
        """
        self.eval()
        self.hold_points_()
        self._untie_()
        for name, parameter, quantizer in self.quantizers():
            layer = self.model.get_submodule(name)
            weight = layer.get_parameter(parameter)
            if isinstance(quantizer, WeightQuantizer):
                quantizer.freeze_(weight)
                weight.copy_(quantizer.dequantize(quantizer.codes(weight)))
            else:
                for own in layer.parameters(recurse=False):
                    own.copy_(quantizer(own))
            key = self.inputs.get(name)
            if isinstance(quantizer, WeightQuantizer) and quantizer.granularity != "group" and key is not None:
                _snap_bias_(layer, quantizer.scale * self.points[key].scale)  # type: ignore[operator]

    def hold_points_(self) -> None:
        for point in self.points.values():
            point.hold_()  # type: ignore[operator]

    def _untie_(self) -> None:
        """Give a rounded weight that others read in other bits a copy of its own."""
        rounded = {(name, parameter): quantizer.bits for name, parameter, quantizer in self.quantizers()}
        uses: dict[int, set[Any]] = defaultdict(set)
        for name, module in self.model.named_modules():
            for parameter, value in module.named_parameters(recurse=False):
                uses[id(value)].add(rounded.get((name, parameter)))
        for name, parameter, _ in self.quantizers():
            layer = self.model.get_submodule(name)
            value = layer.get_parameter(parameter)
            if len(uses[id(value)]) > 1 and not isinstance(layer, nn.RNNBase):
                setattr(layer, parameter, nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad))


def check_layer(name: str, layer: nn.Module, bits: tuple[int, int], settings: Quantization) -> None:
    """Raises InfeasibleRecipe where a layer cannot be of the scheme that its bits and the settings ask for."""
    what = f"{name}: weight_bits {bits[0]}, activation_bits {bits[1]}"
    try:
        check_bits(bits[0])
        check_activation_bits(bits[1])
    except ValueError as error:
        raise InfeasibleRecipe(f"{what}: {error}.") from None
    scheme = scheme_of(*bits, settings)
    if not isinstance(layer, nn.Conv2d | nn.Linear | nn.RNNBase) or isinstance(layer, nn.RNN):
        raise InfeasibleRecipe(f"{what}: a {type(layer).__name__} is no Conv2d, Linear, LSTM or GRU. Leave its bits at 32.")
    if scheme == "dynamic" and isinstance(layer, nn.Conv2d):
        why = "no kernel takes the range of a convolution's input at run time and gains by it"
        raise InfeasibleRecipe(f"{what}, activations dynamic: {why}. Use activations static, or activation_bits 32.")
    if scheme == "static" and isinstance(layer, nn.RNNBase):
        why = "the hidden states of a recurrent layer have no range before it runs"
        raise InfeasibleRecipe(f"{what}, activations static: {why}. Use activations dynamic, or activation_bits 32.")
    if bits[0] == HALF_BITS:
        largest = max(float(value.detach().abs().max()) for value in layer.parameters(recurse=False))
        most = torch.finfo(HALF[settings.half]).max
        if largest > most:
            raise InfeasibleRecipe(f"{what}: a weight of {largest:g} is beyond {most:g}, the largest {settings.half}. Use bf16 or 32 bits.")


def _quantizers(name: str, layer: nn.Module, bits: int, settings: Quantization, scheme: Scheme) -> nn.Module:
    def one(parameter: str) -> nn.Module:
        if bits == HALF_BITS:
            return HalfQuantizer(settings.half)
        return WeightQuantizer(layer.get_parameter(parameter), bits, settings, scheme, name)

    if not isinstance(layer, nn.RNNBase):
        return one("weight")
    return nn.ModuleDict({key: one(key) for key, _ in layer.named_parameters(recurse=False) if key.startswith("weight")})


def _snap_bias_(layer: nn.Module, grid: Tensor) -> None:
    bias = getattr(layer, "bias", None)
    if isinstance(bias, Tensor):
        bias.copy_((bias / grid).round() * grid)


class _Flow(TorchFunctionMode):
    """One forward pass: follows tensors from integer operator to integer operator and rounds each of them once.

    A result of an integer operator is *pending* until somebody reads it: an activation function is absorbed by the kernel (the result
    stays pending), any other reader makes it rounded. Tensors are known by identity and version, and no longer than the model holds them.
    """

    def __init__(self, owner: FakeQuantized) -> None:
        super().__init__()
        self.owner = owner
        self.stack: list[str] = []
        self.calls: Counter[tuple[str, str]] = Counter()
        self.pending = WeakTensorKeyDictionary()  # -> (version, whether a float result is realized by the kernel: linear layers)
        self.rounded = WeakTensorKeyDictionary()  # -> (version, its rounded form, None for itself, key of the quantizer)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name in SILENT or (func not in LAYERS and not any(self._known(arg) for arg in tensors_in(args))):
            return func(*args, **kwargs)
        scope = self.stack[-1] if self.stack else ""
        place = f"{scope}|{name}|{self.calls[scope, name]}".replace(".", "/")
        self.calls[scope, name] += 1
        if func in LAYERS:
            return self._layer(func, scope, place, args, kwargs)
        if func in ABSORBED and self._is_pending(args[0]):
            float_is_fine = self.pending[args[0]][1]  # read before the call: in place, it makes a new version
            return self._mark(rectified(func, args, kwargs), float_is_fine)
        if func in RESHAPES:
            return self._reshape(func, place, args, kwargs)
        in_integers = is_integer(func, args, kwargs)
        args = self._round_all(args, place, everything=in_integers)
        out = func(*args, **kwargs)
        return self._mark(out, False) if in_integers and isinstance(out, Tensor) else out

    def _layer(self, func: Any, scope: str, place: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        owner = self.owner
        pair = owner.bits.get(scope)
        if pair is None:
            return func(*self._round_all(args, place, everything=False), **kwargs)
        owner.reached.add(scope)
        scheme = owner.schemes[scope]
        if scheme == "static":
            x, owner.inputs[scope] = self._round(args[0], f"{place}|0")
            args = (x, *args[1:])
        else:
            args = self._round_all(args, place, everything=False)
        if owner.phase == "quantize":
            x = dynamic_rounding(args[0]) if scheme == "dynamic" else args[0]
            x = half_rounding(x, owner.settings.half) if pair[1] == HALF_BITS else x
            args = self._on_grid(scope, (x, *args[1:]))
        out = func(*args, **kwargs)
        return self._mark(out, func is F.linear) if scheme == "static" and pair[0] <= INTEGER_BITS else out

    def _on_grid(self, scope: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of a layer with its weights rounded: the second of a plain layer, the list of all of a recurrent one."""
        name = scope.replace(".", "/")
        if name not in self.owner.weights:
            return args
        held = self.owner.weights[name]
        if not isinstance(held, nn.ModuleDict):
            return (args[0], held(args[1]), *args[2:])
        names: list[str] = self.owner.model.get_submodule(scope)._flat_weights_names  # type: ignore[assignment]
        place = max(index for index, arg in enumerate(args) if isinstance(arg, list))
        weights = [held[key](weight) if key in held else weight for key, weight in zip(names, args[place], strict=True)]
        return (*args[:place], weights, *args[place + 1 :])

    def _reshape(self, func: Any, place: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Values stay on the grid they are on; a graph for export names it on both sides, so that both kernels stay integer."""
        x, key = self._round(args[0], f"{place}|0")
        out: Tensor = func(x, *args[1:], **kwargs)
        leaves_grid = func is F.dropout and self.owner.training  # it scales what it keeps
        rounded = self._apply(key, out) if is_traced() and not leaves_grid else out
        self._remember(out, rounded, key)
        return rounded

    def _round_all(self, args: Any, place: str, everything: bool) -> Any:
        """Round the pending tensors among ``args``; with ``everything`` the float ones too, for they meet an integer kernel."""

        def visit(value: Any, index: int) -> Any:
            if isinstance(value, Tensor) and value.is_floating_point() and (everything or self._known(value)):
                return self._round(value, f"{place}|{index}")[0]
            if isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
                return type(value)(visit(item, 100 * index + position) for position, item in enumerate(value))
            return value

        return tuple(visit(value, index) for index, value in enumerate(args))

    def _round(self, x: Tensor, key: str) -> tuple[Tensor, str]:
        """x on its grid, and the key of that grid: another one than ``key`` where x was rounded before."""
        if self._is_rounded(x):
            _, out, known = self.rounded[x]
            return x if out is None else out, known
        out = self._apply(key, x)
        self.pending.pop(x, None)  # type: ignore[no-untyped-call]
        self._remember(x, out, key)
        return out, key

    def _apply(self, key: str, x: Tensor) -> Tensor:
        points = self.owner.points
        if self.owner.phase == "observe":
            if key not in points:
                points[key] = ActivationQuantizer(INTEGER_BITS, self.owner.settings).to(x.device)
            points[key].observe_(x)  # type: ignore[operator]
            return x
        return points[key](x) if key in points else x  # a branch that only training takes was never calibrated

    def _remember(self, x: Tensor, out: Tensor, key: str) -> None:
        self.rounded[x] = (x._version, None if out is x else out, key)
        self.rounded[out] = (out._version, None, key)

    def _mark(self, out: Tensor, float_is_fine: bool) -> Tensor:
        self.pending[out] = (out._version, float_is_fine)
        return out

    def _is_pending(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value in self.pending and self.pending[value][0] == value._version

    def _is_rounded(self, value: Tensor) -> bool:
        return value in self.rounded and self.rounded[value][0] == value._version

    def _known(self, value: Tensor) -> bool:
        return self._is_pending(value) or self._is_rounded(value)

    def close(self, out: Any) -> Any:
        """Model outputs: a convolution needs a rounded result to run in integers, a linear layer does not."""
        if self._is_pending(out) and not self.pending[out][1]:
            return self._round(out, "output|0")[0]
        return out
