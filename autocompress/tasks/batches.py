"""Batches of a split: read with their shape checked, shuffled from tensors, and drawn under random states that are given back."""

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autocompress.errors import InvalidTask

Batch = tuple[Tensor, Tensor]
TrainBatch = tuple[Tensor, ...]  # (inputs, targets) or (inputs, targets, inputs of the teachers), each (N, ...)


@dataclass(frozen=True, eq=False)
class Batches:
    """Tensors as shuffled batches; the order and the augmentation follow torch's global seed. x (N, ...), y (N, ...)."""

    x: Tensor
    y: Tensor
    batch_size: int
    augment: Callable[[Tensor], Tensor] = lambda x: x
    shuffle: bool = True

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(len(self.x)) if self.shuffle else torch.arange(len(self.x))
        for part in torch.split(order, self.batch_size):
            yield self.augment(self.x[part]), self.y[part]


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's, numpy's and torch's global random states, borrowed and given back."""
    outside = random_states()
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        restore_random_states(outside)


def random_states() -> tuple[Any, Any, Tensor]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def restore_random_states(states: tuple[Any, Any, Tensor]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def halves(targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of two halves; stratified where the targets are class numbers (integers, one a sample)."""
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    if targets.dim() == 1 and not targets.is_floating_point():
        order = order[torch.argsort(targets[order], stable=True)]
    return order[0::2].sort().values, order[1::2].sort().values


def gather(split: Iterable[TrainBatch], what: str) -> Batch:
    """A whole split as two tensors; a third one of a batch is left out. Raises InvalidTask where it is empty or yields something else."""
    with seeded(0):
        batches = list(checked(split, what))
    return torch.cat([batch[0] for batch in batches]).cpu(), torch.cat([batch[1] for batch in batches]).cpu()


def checked(split: Iterable[TrainBatch], what: str) -> Iterator[TrainBatch]:
    """The batches of a loader that are not empty: pairs, or triples with what the teachers read. Raises InvalidTask where it raises,
    yields none, or something else.
    """
    iterator, index, found = iter(split), 0, False
    while True:
        try:
            batch = next(iterator, None)
        except Exception as error:  # whatever a user's loader raises
            raise InvalidTask(f"task: {what}: the loader failed at batch {index}: {one_line(error)}") from error
        if batch is None:
            break
        if not (isinstance(batch, list | tuple) and len(batch) in (2, 3) and all(isinstance(part, Tensor) for part in batch)):
            got = type(batch).__name__
            raise InvalidTask(
                f"task: {what}: batch {index} must be a pair of tensors (inputs, targets), got {got}"
                + (f" of {', '.join(type(part).__name__ for part in batch)}"[:80] if isinstance(batch, list | tuple) else "")
            )
        inputs, targets, *other = batch
        if len(inputs) != len(targets):
            raise InvalidTask(f"task: {what}: batch {index} has {len(inputs)} inputs and {len(targets)} targets; there must be as many")
        if other and len(inputs) != len(other[0]):
            raise InvalidTask(
                f"task: {what}: batch {index} has {len(inputs)} inputs and {len(other[0])} of the teachers; there must be as many"
            )
        index += 1
        if len(inputs):
            found = True
            yield tuple(batch)
    if not found:
        raise InvalidTask(f"task: {what}: the loader yields no batch; check its dataset and drop_last")


def one_line(error: BaseException) -> str:
    """The type, the message, and the deepest line of the user's code."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})" if trace is not None else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{place}"
