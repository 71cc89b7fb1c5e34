"""Which operators a quantized model distinguishes, and in which module one runs."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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


LAYERS: tuple[Callable[..., Any], ...] = (torch.conv2d, F.linear, torch.lstm, torch.gru)
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


def tensors_in(args: Any) -> Iterator[Tensor]:
    """All tensors among arguments, those in lists and tuples included."""
    for value in args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


def is_integer(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether integer kernels have this operator beside the layers: concatenation, sums of two activations, spatial pooling."""
    return func is torch.cat or (func in JOINS and _is_join(args)) or (func in POOLS and _is_spatial(func.__name__, args, kwargs))


def _is_join(args: Any) -> bool:
    """A sum of two activations, not one with a scalar or a bias."""
    return all(isinstance(arg, Tensor) and arg.is_floating_point() and arg.dim() > 1 for arg in args[:2])


def _is_spatial(name: str, args: Any, kwargs: Any) -> bool:
    """A mean counts as pooling only over height and width of a (N, C, H, W) tensor."""
    if name != "mean":
        return True
    dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
    return args[0].dim() == 4 and isinstance(dims, list | tuple) and sorted(dim % 4 for dim in dims) == [2, 3]
