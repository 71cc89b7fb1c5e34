"""Integer quantization: fold batch norm, collect ranges on calibration data, freeze scales. The training between is recover's.

Scales and zero points as in Jacob et al. 2018; weights symmetric per output channel, activations affine per tensor.
"""

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.overrides import TorchFunctionMode

from autocompress.blocks import SILENT, FakeQuantized, scopes
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import FLOAT_BITS, LayerPlan

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def quantize(model: nn.Module, plans: Mapping[str, LayerPlan], calibration: Iterable[Tensor]) -> FakeQuantized:
    """A fake-quantized copy of ``model``, batch norm folded, ranges from the ``calibration`` inputs (N, ...), ready to train or freeze.

    Raises InfeasibleRecipe where calibration data are not finite or a layer has only one of its two widths in integers.
    """
    batches = list(calibration)
    for batch in batches:
        if not torch.isfinite(batch).all():
            raise InfeasibleRecipe("calibration: the data hold NaN or infinite values; ranges cannot be taken from them. Clean the data.")
    folded = fold_batch_norm(model, batches[0][:1])
    wrapped = FakeQuantized(folded, layer_bits(folded, plans)).eval()
    with torch.no_grad():
        for batch in batches:
            wrapped(batch)
    wrapped.phase = "quantize"
    return wrapped


def layer_bits(model: nn.Module, plans: Mapping[str, LayerPlan]) -> dict[str, tuple[int, int]]:
    """(weight bits, activation bits) of every Conv2d and Linear that a plan quantizes, the factors of a low-rank layer included."""
    bits: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        plan = next((plans[owner] for owner in _owners(name) if owner in plans), None)
        if plan is None or not plan.is_quantized:
            continue
        if plan.weight_bits == FLOAT_BITS or plan.activation_bits == FLOAT_BITS:
            raise InfeasibleRecipe(
                f"{plan.name}: weight_bits {plan.weight_bits} with activation_bits {plan.activation_bits}: an integer kernel needs both "
                "in integers (8 or 7 each). Set both or neither."
            )
        bits[name] = (plan.weight_bits, plan.activation_bits)
    return bits


def _owners(name: str) -> Iterable[str]:
    """``a.b.c`` -> ``a.b.c``, ``a.b``, ``a``: a factor of a low-rank layer belongs to that layer's plan."""
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(len(parts), 0, -1))


def fold_batch_norm(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy in eval mode where every batch norm that is the only reader of a convolution or linear layer is folded into it."""
    folded = copy.deepcopy(model).eval()
    readers = _Readers()
    with torch.no_grad(), scopes(folded, readers.stack), readers:
        folded(example)
    for layer_name, norm_name in readers.pairs():
        layer, norm = folded.get_submodule(layer_name), folded.get_submodule(norm_name)
        if not isinstance(norm, NORMS) or norm.running_mean is None:
            continue
        fused = fuse_conv_bn_eval(layer, norm) if isinstance(layer, nn.Conv2d) else fuse_linear_bn_eval(layer, norm)  # type: ignore[type-var]
        _replace_(folded, layer_name, fused)
        _replace_(folded, norm_name, nn.Identity())
    return folded


def _replace_(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


class _Readers(TorchFunctionMode):
    """Who reads what a layer made, by identity of tensors, which are kept alive so that no identity is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.made: dict[tuple[int, int], str] = {}
        self.readers: dict[tuple[int, int], list[tuple[Any, str]]] = defaultdict(list)
        self.calls: dict[str, int] = defaultdict(int)
        self.alive: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in SILENT:
            return out
        scope = self.stack[-1] if self.stack else ""
        for value in [*args, *(kwargs or {}).values()]:
            for item in value if isinstance(value, list | tuple) else [value]:
                if isinstance(item, Tensor):
                    self.readers[id(item), item._version].append((func, scope))
        self.alive += [args, out]
        if isinstance(out, Tensor) and func in (torch.conv2d, F.linear, F.batch_norm):
            self.calls[scope] += 1
            if func is torch.conv2d or (func is F.linear and out.dim() == 2):  # else a norm is over another axis than the features
                self.made[id(out), out._version] = scope
        return out

    def pairs(self) -> list[tuple[str, str]]:
        """(layer, batch norm) where the norm alone reads the layer's output and both run once."""
        found = []
        for key, layer in self.made.items():
            readers = self.readers[key]
            if len(readers) == 1 and readers[0][0] is F.batch_norm and self.calls[layer] == self.calls[readers[0][1]] == 1:
                found.append((layer, readers[0][1]))
        return found
