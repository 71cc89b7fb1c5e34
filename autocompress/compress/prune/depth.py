"""Depth: whole residual blocks leave, and what ran through their shortcut stays.

A network y = x + f(x) still works without some of its f (stochastic depth, Huang et al. 2016; LayerDrop for transformers, Fan et al. 2020;
ShortGPT, Men et al. 2024). Which modules are such blocks is found by doing it: a module is offered when, with the parameters of its
branch set to 0, it gives back its input, exactly (x + f), through a ReLU (ResNet: relu(x + f)), or through its own norms in a row
(post-norm transformer layer: norm(x + f)). The ReLU is left out where the input is never negative; the norms stay, for the layers
behind expect what they give.
"""

import copy
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from autocompress.blocks.skipped import Skipped
from autocompress.compress.prune.calls import (
    BREAKS,
    Call,
    changes,
    eval_copy,
    first_line,
    is_close,
    noise_like,
    own_copy,
    record_calls,
    seen_modules,
    shapes_of,
)
from autocompress.compress.prune.cuts import leave_fused_path_
from autocompress.errors import InfeasibleRecipe

NOT_RESIDUAL = "with its parameters at 0 it does not give back its input, so it has no identity shortcut around all it does"


class _Block:
    """A finding: ``reason`` why the module cannot be dropped, or names of the norms (``relu``: a ReLU) that stay behind its sum."""

    def __init__(self, reason: str = "", after: tuple[str, ...] = (), relu: bool = False) -> None:
        self.reason, self.after, self.relu = reason, after, relu


def residual_blocks(model: nn.Module, example: Tensor) -> dict[str, str]:
    """Every module with parts -> "" where it is a residual block that can be dropped, else the reason why not.

    example: one input (1, ...). Of blocks inside blocks the innermost are offered. The model is not changed.
    """
    return {name: block.reason for name, block in _blocks(model, example).items()}


def drop_blocks(model: nn.Module, names: Iterable[str], example: Tensor) -> nn.Module:
    """A copy of ``model`` without the named residual blocks. Raises InfeasibleRecipe for a name that is no such block."""
    wanted = tuple(dict.fromkeys(names))
    work = own_copy(model)
    found = _blocks(model, example) if wanted else {}
    for name in wanted:
        block = found.get(name)
        if block is None:
            offered = ", ".join(name for name, block in found.items() if not block.reason) or "none"
            raise InfeasibleRecipe(f"{name}: drop is for residual blocks, and the model has none of this name. Blocks: {offered}.")
        if block.reason:
            raise InfeasibleRecipe(f"{name}: drop is not possible: {block.reason}. Set drop to false or leave it out.")
        work.set_submodule(name, _skipped(work.get_submodule(name), block))
    if wanted:
        leave_fused_path_(work)
        with seen_modules():
            reason = changes(eval_copy(work), example, _output(eval_copy(model), example))
        if reason:
            raise InfeasibleRecipe(f"{', '.join(wanted)}: drop is not possible together: {reason}. Drop fewer of them.")
    return work


def skip_(model: nn.Module, work: nn.Module, name: str, example: Tensor) -> nn.Module:
    """Leave one residual block out of ``work``, a copy of ``model``, in place -> the block. Raises InfeasibleRecipe where it cannot go."""
    found = _blocks(model, example).get(name)
    if found is None or found.reason:
        raise InfeasibleRecipe(f"{name}: drop is not possible: {found.reason if found else 'it is no residual block'}. Leave it out.")
    whole = work.get_submodule(name)
    work.set_submodule(name, _skipped(whole, found))
    leave_fused_path_(work)
    return whole


def _output(model: nn.Module, example: Tensor) -> object:
    with torch.no_grad():
        return model(example)


def _skipped(block: nn.Module, found: _Block) -> Skipped:
    after: list[nn.Module] = [nn.ReLU()] if found.relu else [copy.deepcopy(block.get_submodule(name)) for name in found.after]
    return Skipped(block, after).train(block.training)


_known: WeakKeyDictionary[nn.Module, tuple[tuple[object, ...], dict[str, _Block]]] = WeakKeyDictionary()


def _blocks(model: nn.Module, example: Tensor) -> dict[str, _Block]:
    """Found once a model and remembered, for every trial asks again."""
    shapes = shapes_of(model, example)
    known = _known.get(model)
    if known is None or known[0] != shapes:
        with seen_modules():
            _known[model] = known = (shapes, _find_blocks(model, example))
    return known[1]


def _find_blocks(model: nn.Module, example: Tensor) -> dict[str, _Block]:
    work = eval_copy(model)
    calls = record_calls(work, _has_parts, example)
    times = Counter(call.name for call in calls)
    first = {call.name: call for call in reversed(calls)}
    negative = _reads_negative(work, example, calls)
    found: dict[str, _Block] = {}
    for name, module in work.named_modules():
        if name and _has_parts(module):
            reason = _unfit(module, first.get(name), times[name])
            found[name] = _Block(reason) if reason else _try(module, first[name], name in negative)
    for name in [name for name, block in found.items() if not block.reason]:
        parts = [other for other in found if other.startswith(f"{name}.") and not found[other].reason]
        if parts:
            found[name] = _Block(f"its parts {', '.join(parts)} are offered instead")
    before = _output(work, example)
    for name, block in found.items():
        if not block.reason:
            whole = work.get_submodule(name)
            work.set_submodule(name, _skipped(whole, block))
            found[name].reason = changes(work, example, before)
            work.set_submodule(name, whole)
    return found


def _has_parts(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _reads_negative(model: nn.Module, example: Tensor, calls: Sequence[Call]) -> set[str]:
    """Names of the modules whose input was negative somewhere, on the example or on noise of its shape."""
    if example.is_floating_point():
        calls = [*calls, *record_calls(model, _has_parts, noise_like(example, 0))]
    return {call.name for call in calls if call.args and isinstance(call.args[0], Tensor) and bool((call.args[0] < 0).any())}


def _unfit(module: nn.Module, call: Call | None, times: int) -> str:
    """Why a module cannot be a residual block, as far as one looks at it from outside."""
    if call is None:
        return "it does not run"
    if times > 1:
        return f"it is called {times} times in one pass"
    if next(module.parameters(), None) is None:
        return "it has no parameters"
    x = call.args[0] if call.args else None
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return "its first argument is no tensor of floats"
    if not isinstance(call.output, Tensor):
        return f"it gives back a {type(call.output).__name__}, not one tensor"
    if call.output.shape != x.shape:
        return f"it turns the shape {tuple(x.shape)} into {tuple(call.output.shape)}, so nothing can pass it unchanged"
    return ""


def _try(module: nn.Module, call: Call, negative: bool) -> _Block:
    """Set the branch to 0 on a copy and look at what comes out, for the input of the example and for noise."""
    x, noise = call.args[0], noise_like(call.args[0], 1)

    def gives(block: nn.Module, expected: Callable[[Tensor], Tensor]) -> bool:
        return all(is_close(block(value.clone(), *call.args[1:], **call.kwargs), expected(value)) for value in (x, noise))

    try:
        with torch.no_grad():
            empty = _zeroed(module, lambda part: False)
            if gives(empty, lambda value: value):
                return _Block()
            if gives(empty, torch.relu):
                return _Block(relu=negative)
            empty = _zeroed(module, _is_norm)
            chain = _norms_behind(empty, x, call)
            if chain and gives(empty, nn.Sequential(*map(empty.get_submodule, chain))):
                return _Block(after=chain)
    except BREAKS as error:
        return _Block(f"with its parameters at 0 it does not run ({first_line(error)})")
    return _Block(NOT_RESIDUAL)


def _is_norm(module: nn.Module) -> bool:
    return not _has_parts(module) and type(module).__name__.endswith("Norm")


def _zeroed(module: nn.Module, spare: Callable[[nn.Module], bool]) -> nn.Module:
    """A copy whose parameters and running means are 0, but for those of the parts that ``spare`` picks."""
    empty = eval_copy(module)
    for part in empty.modules():
        if not spare(part):
            means = (value for name, value in part.named_buffers(recurse=False) if name == "running_mean")
            for value in itertools.chain(part.parameters(recurse=False), means):
                value.zero_()
    return empty


def _norms_behind(empty: nn.Module, x: Tensor, call: Call) -> tuple[str, ...]:
    """Names of the norms that ``x`` runs through, one after the other, where the branches between them add 0."""
    seen: list[tuple[str, Tensor, Tensor]] = []
    names = {id(part): name for name, part in empty.named_modules()}

    def look(part: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        seen.append((names[id(part)], args[0].clone(), out.clone()))

    hooks = [part.register_forward_hook(look) for part in empty.modules() if _is_norm(part)]
    empty(x.clone(), *call.args[1:], **call.kwargs)
    for hook in hooks:
        hook.remove()
    chain: list[str] = []
    for name, read, gave in seen:
        if is_close(read, x):
            chain, x = [*chain, name], gave
    return tuple(chain)
