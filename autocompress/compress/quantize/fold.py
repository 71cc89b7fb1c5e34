"""Batch-norm folding: a batch norm that is the only reader of a layer moves into its weight and bias (Jacob et al. 2018, section 3.2)."""

import copy
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.overrides import TorchFunctionMode

from autocompress.blocks import SILENT, scopes

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


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
        if isinstance(fused.bias, nn.Parameter) and isinstance(layer.weight, nn.Parameter):
            fused.bias.requires_grad_(layer.weight.requires_grad)  # torch leaves the bias of a layer that had none frozen
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
