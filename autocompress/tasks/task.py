"""Task = trained model + data splits + loss + metric: what the user brings. Found by name, checked before anything is spent on it."""

import contextlib
import hashlib
import importlib
import math
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.errors import InvalidTask
from autocompress.progress import Progress
from autocompress.tasks import TASKS

Batch = tuple[Tensor, Tensor]
CALIBRATION_SAMPLES = 512


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Percent of samples whose largest logit is the target; outputs (N, classes), targets (N,)."""
    return 100.0 * (outputs.argmax(1) == targets).float().mean().item()


@dataclass(frozen=True, eq=False)
class Task:
    """A trained model with its data, loss and metric.

    ``train``, ``search``, ``holdout``: anything that yields batches (inputs (N, ...), targets (N, ...)) each time it is iterated, a
    DataLoader for example; they must be disjoint. Without ``holdout`` it is cut from ``search`` (half of each class, by seed).
    ``calibration``: batches without augmentation for the ranges of activations; by default the first 512 samples of ``train``.
    ``metric(outputs, targets)`` gets all outputs of a split at once and returns points of 100, higher is better.
    """

    name: str
    model: nn.Module
    train: Iterable[Batch]
    search: Iterable[Batch]
    holdout: Iterable[Batch] | None = None
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    metric: Callable[[Tensor, Tensor], float] = accuracy
    metric_name: str = "accuracy"
    calibration: Iterable[Batch] | None = None
    notes: tuple[str, ...] = field(default=())


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
    outside = _states()
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        _restore(outside)


def _states() -> tuple[Any, Any, Tensor]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _restore(states: tuple[Any, Any, Tensor]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def find_task(name: str, cache: Path, progress: Progress) -> Task:
    """The task called ``name``, built in or ``package.module:factory``. Raises InvalidTask in one line for whatever is wrong with it."""
    if name in TASKS:
        module, _, factory = TASKS[name].partition(":")
        built: Task = getattr(importlib.import_module(module), factory)(cache, progress)
        return built
    module, colon, factory = name.partition(":")
    if not colon or not module or not factory:
        raise InvalidTask(f"--task: {name!r} is neither a built-in task ({', '.join(TASKS)}) nor of the form package.module:factory")
    return _call(name, _import(name, module), factory)


def _import(name: str, module: str) -> object:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does: a task file lies beside the user, not in site-packages
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        is_it = f"{module}.".startswith(f"{missing}.")
        rule = f"there is no module {missing!r}" if is_it else f"{module} imports {missing!r}, which is not installed"
        raise InvalidTask(f"--task {name}: {rule} (looked in {os.getcwd()} and the Python path)") from None
    except (Exception, SystemExit) as error:  # whatever a user's module raises while it is imported
        raise InvalidTask(f"--task {name}: importing {module} failed: {_line(error)}") from error


def _call(name: str, module: object, factory: str) -> Task:
    make = getattr(module, factory, None)
    if not callable(make):
        raise InvalidTask(f"--task {name}: {getattr(module, '__name__', module)} has no function {factory!r}")
    try:
        task = make()
    except (Exception, SystemExit) as error:  # whatever a user's factory raises
        raise InvalidTask(f"--task {name}: {factory}() failed: {_line(error)}") from error
    if not isinstance(task, Task):
        raise InvalidTask(f"--task {name}: {factory}() must return an autocompress.Task, it returned {type(task).__name__}")
    return task


def _line(error: BaseException) -> str:
    """One line: the type, the message, and the deepest line of the user's code."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})" if trace is not None else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{place}"


def gather(split: Iterable[Batch], what: str) -> Batch:
    """A whole split as two tensors. Raises InvalidTask where it is empty or does not yield (inputs, targets)."""
    with seeded(0):
        pairs = list(checked(split, what))
    return torch.cat([inputs for inputs, _ in pairs]).cpu(), torch.cat([targets for _, targets in pairs]).cpu()


def checked(split: Iterable[Batch], what: str) -> Iterator[Batch]:
    """The batches of a loader that are not empty. Raises InvalidTask where it raises, yields none, or something else than pairs."""
    iterator, index, found = iter(split), 0, False
    while True:
        try:
            batch = next(iterator, None)
        except Exception as error:  # whatever a user's loader raises
            raise InvalidTask(f"task: {what}: the loader failed at batch {index}: {_line(error)}") from error
        if batch is None:
            break
        if not (isinstance(batch, list | tuple) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)):
            raise InvalidTask(f"task: {what}: batch {index} must be a pair of tensors (inputs, targets), got {type(batch).__name__}")
        inputs, targets = batch
        if len(inputs) != len(targets):
            raise InvalidTask(f"task: {what}: batch {index} has {len(inputs)} inputs and {len(targets)} targets; there must be as many")
        index += 1
        if len(inputs):
            found = True
            yield inputs, targets
    if not found:
        raise InvalidTask(f"task: {what}: the loader yields no batch; check its dataset and drop_last")


def with_holdout(task: Task, seed: int) -> Task:
    """The task with three gathered splits; without a holdout the search split is cut in two, class by class, and a note says so."""
    x, y = gather(task.search, "search")
    if task.holdout is not None:
        holdout, notes = gather(task.holdout, "holdout"), task.notes
    else:
        if len(x) < 2:
            raise InvalidTask(f"task: search: {len(x)} sample is too few to set a holdout aside from; give a holdout split")
        first, second = _halves(y, seed)
        x, y, holdout = x[first], y[first], (x[second], y[second])
        notes = (*task.notes, f"no holdout split given: {len(second)} of {len(first) + len(second)} search samples were set aside for it")
    size = len(x)
    return replace(
        task, search=Batches(x, y, size, shuffle=False), holdout=Batches(*holdout, len(holdout[0]), shuffle=False), notes=notes
    )


def _halves(targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of two halves; stratified where the targets are class numbers (integers, one a sample)."""
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    if targets.dim() == 1 and not targets.is_floating_point():
        order = order[torch.argsort(targets[order], stable=True)]
    return order[0::2].sort().values, order[1::2].sort().values


def calibration(task: Task) -> Tensor:
    """Inputs (N, ...) for the ranges of activations: ``task.calibration``, or the first samples of ``train``."""
    source = task.calibration if task.calibration is not None else task.train
    parts: list[Tensor] = []
    with seeded(0):
        for inputs, _ in checked(source, "calibration" if task.calibration is not None else "train"):
            parts.append(inputs)
            if sum(map(len, parts)) >= CALIBRATION_SAMPLES:
                break
    return torch.cat(parts)[:CALIBRATION_SAMPLES].cpu()


def stream(task: Task, steps: int, seed: int) -> Iterator[Batch]:
    """``steps`` training batches in an order fixed by ``seed``, whatever else draws random numbers between two of them."""
    source = _epochs(task)
    with seeded(seed):
        own = _states()
    for _ in range(steps):
        outside = _states()
        _restore(own)
        try:
            batch = next(source)
            own = _states()
        finally:
            _restore(outside)
        yield batch


def _epochs(task: Task) -> Iterator[Batch]:
    """Training batches without end; those of one sample are left out, for batch norm cannot train on them."""
    while True:
        found = False
        for inputs, targets in checked(task.train, "train"):
            if len(inputs) > 1:
                found = True
                yield inputs, targets
        if not found:
            raise InvalidTask("task: train: the loader yields no batch of two or more samples; recovery cannot train on it")


@torch.no_grad()
def outputs_of(model: nn.Module, inputs: Tensor, batch_size: int = 256) -> Tensor:
    """Outputs (N, ...) on the CPU of ``model`` in eval mode; its mode is given back."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    was_training = model.training
    model.eval()
    try:
        return torch.cat([model(part.to(device)).cpu() for part in torch.split(inputs, batch_size)])
    finally:
        model.train(was_training)


def score(task: Task, outputs: Tensor, targets: Tensor) -> float:
    """The task's metric over a whole split. Raises InvalidTask where it is no finite number."""
    try:
        value = float(task.metric(outputs, targets))
    except Exception as error:  # whatever a user's metric raises
        raise InvalidTask(f"task: metric {task.metric_name!r} failed on outputs {tuple(outputs.shape)}: {_line(error)}") from error
    if not math.isfinite(value):
        raise InvalidTask(f"task: metric {task.metric_name!r} returned {value} on {len(outputs)} samples; it must be a finite number")
    return value


def check(task: Task) -> None:
    """Run the model and its loss on its own first samples. Raises InvalidTask in one line."""
    if not isinstance(task.model, nn.Module):
        raise InvalidTask(f"task: model must be a torch.nn.Module, got {type(task.model).__name__}")
    x, y = gather(task.search, "search")
    x, y = x[:2], y[:2]
    calibration(task)
    try:
        outputs = outputs_of(task.model, x)
    except Exception as error:  # whatever a user's model raises
        raise InvalidTask(f"task: the model fails on its own example, inputs {tuple(x.shape)} {x.dtype}: {_line(error)}") from error
    if not isinstance(outputs, Tensor) or len(outputs) != len(x):
        got = getattr(outputs, "shape", type(outputs).__name__)
        raise InvalidTask(f"task: the model must return one tensor (N, ...), got {got} for N = {len(x)}")
    if not torch.isfinite(outputs).all():
        raise InvalidTask("task: the model's outputs are not finite on its own example; are its weights loaded?")
    try:
        loss = task.loss(outputs, y)
    except Exception as error:  # whatever a user's loss raises
        raise InvalidTask(f"task: loss failed on outputs {tuple(outputs.shape)}, targets {tuple(y.shape)}: {_line(error)}") from error
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = getattr(loss, "shape", type(loss).__name__)
        raise InvalidTask(f"task: the loss must be one number a batch, got {got}; reduction='mean' is what training wants")
    if not torch.isfinite(loss).all():
        raise InvalidTask(f"task: the loss of the trained model on its own example is {loss}; it must be finite")


def digest(task: Task) -> str:
    """Hex digest of the weights, the architecture as printed, and the search and holdout data: equal digests, comparable results."""
    sha = hashlib.sha256(repr(task.model).encode())
    for name, value in task.model.state_dict().items():
        sha.update(name.encode())
        sha.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    for split in (task.search, task.holdout):
        for part in gather(split or (), "split"):
            sha.update(part.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    sha.update(task.metric_name.encode())
    return sha.hexdigest()[:16]
