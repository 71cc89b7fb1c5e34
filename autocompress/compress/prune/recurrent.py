"""Structured pruning of the hidden units of one-layer LSTM and GRU.

A unit is a row in every gate of weight_ih, weight_hh and the biases, a column of weight_hh, and an input of what reads the outputs
(intrinsic sparse structures, Wen et al. 2018). A unit whose rows are all 0 stays at 0 for ever (LSTM: c' = f * c + i * tanh(0); GRU:
h' = z * h + (1 - z) * tanh(0), both from 0), so a cut is right when it equals a copy with these rows at 0. torch-pruning cuts the gates
at wrong indices, hence this pruner.

Who reads a unit is found by moving the outputs of some units and looking which inputs of which layers move: two passes for every binary
digit of a unit's number, one that moves the units where it is 1 and one those where it is 0. An input that is moved by one unit alone
spells its number; one that is moved in both passes is fed by several.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from autocompress.compress.prune.calls import (
    BREAKS,
    changes,
    eval_copy,
    first_line,
    is_close,
    layout,
    noise_like,
    own_copy,
    record_calls,
    shapes_of,
)
from autocompress.compress.prune.cuts import UnitScorer, cut_linear_, cut_parameter_, most_important, wanted_counts
from autocompress.compress.prune.importance import Scoring
from autocompress.errors import InfeasibleRecipe

CELLS = (nn.LSTM, nn.GRU)
NONE, SEVERAL = -1, -2


@dataclass(frozen=True)
class Recurrent:
    """An LSTM or GRU: its hidden units, and ``reason`` why none can go ("" where they can).

    ``readers``: layer that reads its outputs -> for every input of that layer the unit it holds, or ``NONE``.
    """

    name: str
    hidden: int
    reason: str = ""
    readers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def recurrent_modules(model: nn.Module, example: Tensor) -> dict[str, Recurrent]:
    """The LSTM and GRU modules of ``model`` by name; example: one input (1, ...). The model is not changed."""
    shapes = shapes_of(model, example)
    known = _known.get(model)
    if known is None or known[0] != shapes:  # found once a model and remembered, for every trial asks again
        _known[model] = known = (shapes, _find_recurrent(model, example))
    return dict(known[1])


_known: WeakKeyDictionary[nn.Module, tuple[tuple[object, ...], dict[str, Recurrent]]] = WeakKeyDictionary()


def prune_recurrent(
    model: nn.Module, keep: Mapping[str, float], example: Tensor, scoring: Scoring | None = None, hidden: Mapping[str, int] | None = None
) -> nn.Module:
    """A copy of ``model`` with ``round(keep * hidden)`` units, at least one, in every named LSTM or GRU: the most important ones.

    example: one input (1, ...). ``scoring``: how units are scored; by squared weights without it. ``hidden``: what ``keep`` counts from,
    the units before earlier cuts; those of ``model`` without it. Raises InfeasibleRecipe for a name that is no LSTM or GRU, one that
    cannot be cut, and a share outside (0, 1].
    """
    found = recurrent_modules(model, example)
    present, reasons = ({name: getattr(item, field) for name, item in found.items()} for field in ("hidden", "reason"))
    counts = wanted_counts(keep, present, reasons, "LSTM or GRU", hidden)
    work = own_copy(model)
    if not counts:
        return work
    scorer = UnitScorer(work, scoring)
    cuts = []
    for name, count in counts.items():
        item = found[name]
        scores = scorer(name, item.hidden, partial(scores_by_weight, model, item), partial(scores_by_input, item))
        cuts.append((item, most_important(scores, count)))
    cut_units_(work, cuts)
    with torch.no_grad():
        reason = changes(eval_copy(work), example, eval_copy(model)(example))
    if reason:
        raise InfeasibleRecipe(f"{', '.join(counts)}: keep is not possible together: {reason}. Cut fewer of them.")
    return work


def scores_by_weight(model: nn.Module, item: Recurrent, of: Callable[[str], Tensor]) -> Tensor:
    """Scores (hidden,): the sum over a unit's rows in all gates, its column of weight_hh, and the columns of the readers that hold it.

    ``of``: parameter -> scores like it.
    """
    into, back = of(f"{item.name}.weight_ih_l0"), of(f"{item.name}.weight_hh_l0")  # (gates * hidden, input or hidden)
    total = (into.sum(1) + back.sum(1)).view(-1, item.hidden).sum(0) + back.sum(0)
    for reader, held in item.readers.items():
        total = total + _by_unit(item, held, of(f"{reader}.{_inward(model.get_submodule(reader))[0]}").sum(0))
    return total


def scores_by_input(item: Recurrent, of: Callable[[str], Tensor]) -> Tensor:
    """Scores (hidden,): the sum over what the readers read of a unit; ``of``: layer -> scores of its inputs."""
    return torch.stack([_by_unit(item, held, of(reader)) for reader, held in item.readers.items()]).sum(0)


def _by_unit(item: Recurrent, held: Sequence[int], values: Tensor) -> Tensor:
    units = torch.tensor(held, device=values.device)
    return values.new_zeros(item.hidden).index_add(0, units[units != NONE], values[units != NONE])


def _inward(reader: nn.Module) -> list[str]:
    """The parameters of a reader that multiply its inputs."""
    return [name for name, _ in reader.named_parameters() if name == "weight" or name.startswith("weight_ih_l0")]


def cut_units_(model: nn.Module, cuts: Sequence[tuple[Recurrent, Sequence[int]]]) -> None:
    """Leave only these units of every LSTM and GRU, and of the inputs of their readers those that hold them, or nothing of them."""
    stay: dict[str, Tensor] = {}
    for item, kept in cuts:
        for reader, held in item.readers.items():  # one layer may read several cells side by side: collect first, cut once
            wanted = torch.tensor([unit == NONE or unit in kept for unit in held])
            stay[reader] = wanted if reader not in stay else stay[reader] & wanted
        cell = model.get_submodule(item.name)
        assert isinstance(cell, CELLS)
        units = torch.tensor(kept)
        rows = torch.arange(cell.get_parameter("weight_hh_l0").shape[0]).view(-1, item.hidden)[:, units].flatten()  # of every gate
        for name in [name for name, _ in cell.named_parameters()]:
            cut_parameter_(cell, name, 0, rows)
        cut_parameter_(cell, "weight_hh_l0", 1, units)
        cell.hidden_size = len(kept)
        cell.flatten_parameters()
    for reader, mask in stay.items():
        _cut_inputs_(model.get_submodule(reader), mask.nonzero()[:, 0])


def _cut_inputs_(reader: nn.Module, columns: Tensor) -> None:
    if isinstance(reader, nn.Linear):
        return cut_linear_(reader, columns=columns)
    assert isinstance(reader, CELLS)
    for name in _inward(reader):  # of both directions
        cut_parameter_(reader, name, 1, columns)
    reader.input_size = len(columns)
    return reader.flatten_parameters()


def _find_recurrent(model: nn.Module, example: Tensor) -> dict[str, Recurrent]:
    work = eval_copy(model)
    cells = {name: module for name, module in work.named_modules() if isinstance(module, CELLS)}
    calls = record_calls(work, lambda module: isinstance(module, CELLS), example)
    times = Counter(call.name for call in calls)
    first = {call.name: call for call in reversed(calls)}
    found: dict[str, Recurrent] = {}
    for name, cell in cells.items():
        reason = _unfit(cell, times[name])
        if not reason and (len(first[name].args) + len(first[name].kwargs) > 1 or not isinstance(first[name].args[0], Tensor)):
            reason = "it is called with a first state of its own or with packed sequences"
        found[name] = Recurrent(name, cell.hidden_size, reason) if reason else _with_readers(work, name, example)
    return found


def _unfit(cell: nn.LSTM | nn.GRU, times: int) -> str:
    if times != 1:
        return f"it is called {times} times in one pass" if times else "it does not run"
    if cell.bidirectional:
        return "it is bidirectional; only one direction is cut"
    if cell.num_layers > 1:
        return f"it has {cell.num_layers} layers in one module; only one-layer modules are cut"
    if cell.proj_size:
        return f"it projects its outputs (proj_size {cell.proj_size})"
    if type(cell) not in CELLS or any(not name.endswith("_l0") for name, _ in cell.named_parameters()):
        return "it is no plain nn.LSTM or nn.GRU"
    return "it has a single hidden unit" if cell.hidden_size == 1 else ""


def _with_readers(model: nn.Module, name: str, example: Tensor) -> Recurrent:
    """Find who reads the units, cut on copies and compare."""
    hidden = _hidden(model, name)
    readers: dict[str, tuple[int, ...]] = {}
    try:
        for layer, units in _fed(model, name, example):
            module = model.get_submodule(layer)
            known = next(module.parameters(), None) is None or isinstance(module, nn.Linear | nn.LSTM | nn.GRU)
            mixed = SEVERAL in units or not set(range(hidden)) <= set(units)
            if (mixed and not readers) or not (mixed or known) or (layer in readers and units != readers[layer]):
                return Recurrent(
                    name, hidden, f"{layer} ({type(module).__name__}) is no Linear, LSTM or GRU that reads its units one by one"
                )
            if not mixed and next(module.parameters(), None) is not None:  # what mixes behind a reader reads that one
                readers[layer] = units
        if not readers:
            return Recurrent(name, hidden, "no Linear, LSTM or GRU reads its units one by one")
        return Recurrent(name, hidden, _differs(model, Recurrent(name, hidden, "", readers), example), readers)
    except BREAKS as error:
        return Recurrent(name, hidden, f"the model does not run while its outputs are followed ({first_line(error)})")


def _hidden(model: nn.Module, name: str) -> int:
    cell = model.get_submodule(name)
    assert isinstance(cell, CELLS)
    return cell.hidden_size


def _fed(model: nn.Module, name: str, example: Tensor) -> list[tuple[str, tuple[int, ...]]]:
    """Calls of layers behind the recurrent one: the layer, and for each of its inputs the unit that moves it, NONE or SEVERAL."""
    numbers = torch.arange(_hidden(model, name))
    digits = range((len(numbers) - 1).bit_length())
    still = _inputs(model, name, example, torch.zeros(len(numbers)))
    moved = [[_inputs(model, name, example, (numbers >> digit & 1) == value) for value in (0, 1)] for digit in digits]
    fed = []
    for call, (layer, before) in enumerate(still):
        zero, one = (torch.stack([_moves(after[value][call][1], before) for after in moved]) for value in (0, 1))  # (digits, inputs)
        units = (one * 2 ** torch.arange(len(moved))[:, None]).sum(0)
        units[(zero == one).any(0)] = SEVERAL
        units[~(zero | one).any(0)] = NONE
        if bool((units != NONE).any()):
            fed.append((layer, tuple(units.tolist())))
    return fed


def _inputs(model: nn.Module, name: str, example: Tensor, chosen: Tensor) -> list[tuple[str, Tensor]]:
    """What every call of a layer read, when all outputs and last states of the ``chosen`` (hidden,) units are raised by 1 and more."""
    cell = model.get_submodule(name)

    def raised(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(raised, value))
        return value + chosen.to(value.device, value.dtype) * (1 + value.abs())

    hook = cell.register_forward_hook(lambda module, args, output: raised(output))
    try:
        calls = record_calls(model, lambda module: module is not cell and next(module.children(), None) is None, example)
    finally:
        hook.remove()
    read = ((call.name, call.args[0]) for call in calls if call.args and isinstance(call.args[0], Tensor) and call.args[0].dim())
    return [(layer, x) for layer, x in read if x.is_floating_point()]


def _moves(after: Tensor, before: Tensor) -> Tensor:
    """Which of the last dimension's entries are not the same, (..., inputs) -> (inputs,)."""
    same = torch.isclose(after, before, rtol=1e-5, atol=1e-5)
    return ~same.reshape(-1, before.shape[-1]).all(0).cpu()


def _differs(model: nn.Module, item: Recurrent, example: Tensor) -> str:
    """Why the model without some units is not the same as with the rows of these at 0, or an empty string. Weights are random for it."""
    stirred = own_copy(model)
    for name in (item.name, *item.readers):
        for seed, parameter in enumerate(stirred.get_submodule(name).parameters()):
            parameter.data.copy_(noise_like(parameter, seed) / parameter.shape[-1] ** 0.5)
    for kept in {tuple(range(1, item.hidden)), (item.hidden - 1,)}:
        whole, narrow = own_copy(stirred), own_copy(stirred)
        gone = [unit for unit in range(item.hidden) if unit not in kept]
        for parameter in whole.get_submodule(item.name).parameters():
            parameter.data.view(-1, item.hidden, *parameter.shape[1:])[:, gone] = 0
        cut_units_(narrow, [(item, kept)])
        expected, found = _gives(whole, item, example), _gives(narrow, item, example)
        if len(expected) != len(found) or not all(map(_same, found, expected)):
            return "the units that stay do not compute the same without the others (something besides its readers looks at all of them)"
    return ""


def _gives(model: nn.Module, item: Recurrent, example: Tensor) -> list[Any]:
    """What the readers give, call by call, and then the model."""
    reading = {id(model.get_submodule(name)) for name in item.readers}
    calls = record_calls(model, lambda module: module is model or id(module) in reading, example)
    return [call.output for call in calls]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    return is_close(a, b) if isinstance(b, Tensor) else layout(a) == layout(b)
