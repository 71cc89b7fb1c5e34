"""What flows through a model in one forward pass: which module was called, in which order, with what, and what it gave back."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# What code raises around a module that was cut, replaced or run by itself and does not bear it.
BREAKS = (RuntimeError, IndexError, ValueError, AssertionError, AttributeError, TypeError, KeyError, NotImplementedError)


@dataclass
class Call:
    """One call of a module; tensors among the arguments are copies from before it (a layer may work in place)."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any = None


@torch.no_grad()
def record_calls(model: nn.Module, watch: Callable[[nn.Module], bool], *args: Any, **kwargs: Any) -> list[Call]:
    """The calls of the modules that ``watch`` picks, in the order in which they began, while ``model`` (in eval mode) runs."""
    calls: list[Call] = []
    running: list[Call] = []
    names = {id(module): name for name, module in model.named_modules()}

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        running.append(Call(names[id(module)], copied(args), copied(kwargs)))
        calls.append(running[-1])

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        running.pop().output = copied(output)

    hooks = []
    for module in filter(watch, model.modules()):
        hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        hooks.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def copied(value: Any) -> Any:
    """``value`` with copies of the tensors in it; what else it holds is shared."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) in (tuple, list):
        return type(value)(copied(item) for item in value)
    if type(value) is dict:
        return {key: copied(item) for key, item in value.items()}
    return value


@contextlib.contextmanager
def seen_modules() -> Iterator[None]:
    """While it lasts, transformer layers call their parts, and no fused kernel (or nested tensor) runs past them."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def own_copy(model: nn.Module) -> nn.Module:
    """A deep copy whose recurrent weights lie in one piece again, as cuDNN wants them."""
    work = copy.deepcopy(model)
    for cell in (module for module in work.modules() if isinstance(module, nn.RNNBase)):
        cell.flatten_parameters()
    return work


def eval_copy(model: nn.Module) -> nn.Module:
    return own_copy(model).eval()


def shapes_of(model: nn.Module, example: Tensor) -> tuple[object, ...]:
    """What a finding about the structure of a model depends on, so that it may be remembered."""
    modules = tuple((name, type(module)) for name, module in model.named_modules())
    return tuple(example.shape), example.dtype, modules, tuple(tuple(parameter.shape) for parameter in model.parameters())


def noise_like(x: Tensor, seed: int) -> Tensor:
    """Standard normal numbers in the shape, type and place of ``x``."""
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x.device, x.dtype)


def is_close(a: Any, b: Any) -> bool:
    """Equal to 1e-5 of the largest value of ``b`` (to 1e-2 in half precision); False for other shapes and for NaN."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape):
        return False
    tolerance = 1e-5 if b.dtype in (torch.float32, torch.float64) else 1e-2
    difference, largest = (a.double() - b.double()).abs().amax(), b.double().abs().amax()
    return bool(difference <= tolerance * largest.clamp(min=1.0))


def first_line(error: BaseException) -> str:
    return f"{str(error).splitlines()[0]:.80}" if str(error) else type(error).__name__


def changes(model: nn.Module, example: Tensor, before: Any) -> str:
    """Why ``model``, cut, cannot take the place of what gave ``before``, or an empty string: it fails, or its output differs in shape."""
    try:
        with torch.no_grad():
            after = model(example)
    except BREAKS as error:
        return f"the model does not run after the cut ({first_line(error)})"
    return "" if layout(after) == layout(before) else "the shape of the model's output depends on it"


def layout(value: Any) -> Any:
    """The shapes of the tensors in a model's output."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, Mapping):
        return {key: layout(item) for key, item in value.items()}
    return [layout(item) for item in value] if isinstance(value, tuple | list) else None
