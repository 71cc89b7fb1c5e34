"""The operands that a layer's kernel really gets: rounded input, rounded weight, bias; and a say in what comes out."""

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from autocompress.blocks import FakeQuantized, scopes

Meet = Callable[[str, Callable[..., Tensor], tuple[Any, ...]], Tensor]  # (layer, function, its arguments) -> what the layer returns


@contextlib.contextmanager
def met(model: nn.Module, names: Collection[str], meet: Meet) -> Iterator[None]:
    """While it lasts, convolutions and products of the layers ``names`` of ``model`` are computed by ``meet``.

    Around a fake-quantized pass it stands outside of the rounding, so that ``meet`` sees operands on their grids.
    """
    mode = _Met(frozenset(names), meet)
    with scopes(model, mode.stack), mode:
        yield


class _Met(TorchFunctionMode):
    def __init__(self, names: frozenset[str], meet: Meet) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.names, self.meet = names, meet

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        scope = self.stack[-1] if self.stack else ""
        if func in (torch.conv2d, F.linear) and scope in self.names and not kwargs:  # nn.Conv2d and nn.Linear name no argument
            return self.meet(scope, func, args)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def rounding(wrapped: FakeQuantized) -> Iterator[None]:
    """Eval mode, no gradients, rounding on; module modes and phase are given back."""
    modes, phase = [(module, module.training) for module in wrapped.modules()], wrapped.phase
    wrapped.eval()
    wrapped.phase = "quantize"
    try:
        with torch.no_grad():
            yield
    finally:
        wrapped.phase = phase
        for module, training in modes:
            module.training = training


def layers_of(wrapped: FakeQuantized, most_weight_bits: int = 8) -> dict[str, nn.Conv2d | nn.Linear]:
    """Its convolutions and linear layers with integer weights of at most that many bits, by name."""
    modules = dict(wrapped.model.named_modules())
    found = {name: modules[name] for name, pair in wrapped.bits.items() if pair[0] <= most_weight_bits}
    return {name: layer for name, layer in found.items() if isinstance(layer, nn.Conv2d | nn.Linear)}
