"""Task = trained model + data splits + loss + metric: what the user brings. Found by name, checked before anything is spent on it."""

import contextlib
import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.errors import InvalidTask
from autocompress.tasks.batches import (
    Batch,
    Batches,
    TrainBatch,
    checked,
    gather,
    halves,
    one_line,
    random_states,
    restore_random_states,
    seeded,
)

__all__ = [
    "CALIBRATION_SAMPLES", "Batch", "Batches", "Task", "TrainBatch", "accuracy", "calibration", "check", "checked", "digest", "evaluating",
    "floor_drop", "gather", "labelled", "lost", "outputs_of", "score", "seeded", "stream", "with_holdout",
]  # fmt: skip

CALIBRATION_SAMPLES = 512
GIVEN = "model"  # how a recipe names the task's own model among the teachers


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Percent of samples whose largest logit is the target; outputs (N, classes), targets (N,)."""
    return 100.0 * (outputs.argmax(1) == targets).float().mean().item()


@dataclass(frozen=True, eq=False)
class Task:
    """A trained model with its data, loss and metric.

    ``train``, ``search``, ``holdout``: anything that yields batches (inputs (N, ...), targets (N, ...)) each time it is iterated, a
    DataLoader for example; they must be disjoint. Without ``holdout`` it is cut from ``search`` (half of each class, by seed).
    ``calibration``: batches without augmentation for the ranges of activations; by default the first 512 samples of ``train``.
    ``metric(outputs, targets)`` gets all outputs of a split at once and returns a number in ``metric_unit``; where a lower one is better
    (perplexity) ``higher_is_better`` is False. The unit "%" promises 0 to 100. ``sample_scores(outputs, targets) -> (N,)``: the metric of
    each sample, where the metric is their mean, so that intervals are drawn over samples and parts of a split have a score.

    Teaching. ``build_student(width, depth)``: an untrained network of the task's own, at multipliers of its usual widths and depths.
    ``teachers``: trained networks beside the model, by the names that a recipe calls them; where ``train`` yields a third tensor
    (N, ...), it is what they read in place of the inputs. ``distillation_loss(student's outputs, teachers' outputs, temperature)``:
    for outputs that are no class logits (N, classes, ...). ``training_step(model, inputs, targets, teachers' outputs or None) -> loss``
    stands in for ``loss`` and ``distillation_loss`` together; ``loss`` is still what importances are derived from.

    Around the model, for times from end to end; nothing is scored with them. ``preprocess(samples)``: a list of samples as they arrive
    (of ``raw``, a sequence of some of them: bytes, images, texts) -> the model's inputs (N, ...). ``postprocess(outputs)``: the model's
    outputs (N, ...) -> the answer, whatever that is.
    """

    name: str
    model: nn.Module
    train: Iterable[TrainBatch]
    search: Iterable[TrainBatch]
    holdout: Iterable[TrainBatch] | None = None
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    metric: Callable[[Tensor, Tensor], float] = accuracy
    metric_name: str = "accuracy"
    calibration: Iterable[TrainBatch] | None = None
    notes: tuple[str, ...] = field(default=())
    build_student: Callable[[float, float], nn.Module] | None = None
    teachers: Mapping[str, nn.Module] = field(default_factory=lambda: MappingProxyType({}))
    distillation_loss: Callable[[Tensor, Tensor, float], Tensor] | None = None
    training_step: Callable[[nn.Module, Tensor, Tensor, Tensor | None], Tensor] | None = None
    raw: Sequence[Any] | None = None
    preprocess: Callable[[Sequence[Any]], Tensor] | None = None
    postprocess: Callable[[Tensor], object] | None = None
    metric_unit: str = "%"
    higher_is_better: bool = True
    sample_scores: Callable[[Tensor, Tensor], Tensor] | None = None


def with_holdout(task: Task, seed: int) -> Task:
    """The task with three gathered splits; without a holdout the search split is cut in two, class by class, and a note says so."""
    x, y = gather(task.search, "search")
    if task.holdout is not None:
        holdout, notes = gather(task.holdout, "holdout"), task.notes
    else:
        if len(x) < 2:
            raise InvalidTask(f"task: search: {len(x)} sample is too few to set a holdout aside from; give a holdout split")
        first, second = halves(y, seed)
        x, y, holdout = x[first], y[first], (x[second], y[second])
        notes = (*task.notes, f"no holdout split given: {len(second)} of {len(first) + len(second)} search samples were set aside for it")
    size = len(x)
    return replace(task, search=Batches(x, y, size, shuffle=False), holdout=Batches(*holdout, len(holdout[0]), shuffle=False), notes=notes)


def calibration(task: Task) -> Tensor:
    """Inputs (N, ...) for the ranges of activations: ``task.calibration``, or the first samples of ``train``."""
    return labelled(task)[0]


def labelled(task: Task) -> Batch:
    """The calibration inputs with their targets, (N, ...) each."""
    source, parts = task.calibration if task.calibration is not None else task.train, []
    with seeded(0):
        for batch in checked(source, "calibration" if task.calibration is not None else "train"):
            parts.append(batch)
            if sum(len(part[0]) for part in parts) >= CALIBRATION_SAMPLES:
                break
    inputs, targets = (torch.cat([part[side] for part in parts])[:CALIBRATION_SAMPLES].cpu() for side in (0, 1))
    return inputs, targets


def stream(task: Task, steps: int, seed: int) -> Iterator[TrainBatch]:
    """``steps`` training batches in an order fixed by ``seed``, whatever else draws random numbers between two of them."""
    source = _epochs(task)
    with seeded(seed):
        own = random_states()
    for _ in range(steps):
        outside = random_states()
        restore_random_states(own)
        try:
            batch = next(source)
            own = random_states()
        finally:
            restore_random_states(outside)
        yield batch


def _epochs(task: Task) -> Iterator[TrainBatch]:
    """Training batches without end; those of one sample are left out, for batch norm cannot train on them."""
    while True:
        found = False
        for batch in checked(task.train, "train"):
            if len(batch[0]) > 1:
                found = True
                yield batch
        if not found:
            raise InvalidTask("task: train: the loader yields no batch of two or more samples; recovery cannot train on it")


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """``model`` in eval mode; the mode of every module in it is given back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield model
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def outputs_of(model: nn.Module, inputs: Tensor, batch_size: int = 256) -> Tensor:
    """Outputs (N, ...) on the CPU of ``model`` in eval mode; its modes are given back."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with evaluating(model):
        return torch.cat([model(part.to(device)).cpu() for part in torch.split(inputs, batch_size)])


def score(task: Task, outputs: Tensor, targets: Tensor, split: str = "") -> float:
    """The task's metric over a whole split, in its unit. Raises InvalidTask, with the split, where it is no finite number."""
    where = f" of the {split} split" if split else ""
    what = f"task {task.name!r}: metric {task.metric_name!r}"
    try:
        value = float(task.metric(outputs, targets))
    except Exception as error:  # whatever a user's metric raises
        raise InvalidTask(f"{what} failed on outputs {tuple(outputs.shape)}{where}: {one_line(error)}") from error
    if not math.isfinite(value):
        broken = int((~outputs.isfinite()).sum()) if outputs.is_floating_point() else 0
        seen = f" ({broken} of these outputs are not finite themselves)" if broken else ""
        raise InvalidTask(f"{what} returned {value} on {len(outputs)} samples{where}{seen}; it must be a finite number")
    return value


def lost(task: Task, before: float, after: float) -> float:
    """How much worse ``after`` is than ``before``, in the unit of the metric; negative where it is better."""
    return before - after if task.higher_is_better else after - before


def floor_drop(task: Task, reference: float) -> float:
    """The drop of a model without mistakes. -inf where nobody knows its metric: only percentages have an end that they cannot pass."""
    if task.metric_unit != "%" or not 0 <= reference <= 100:
        return -math.inf
    return lost(task, reference, 100.0 if task.higher_is_better else 0.0)


def check(task: Task) -> None:
    """Run the model and its loss on its own first samples. Raises InvalidTask in one line."""
    if not isinstance(task.model, nn.Module):
        raise InvalidTask(f"task: model must be a torch.nn.Module, got {type(task.model).__name__}")
    x, labels = gather(task.search, "search")
    x, y = x[:2], labels[:2]
    calibration(task)
    try:
        outputs = outputs_of(task.model, x)
    except Exception as error:  # whatever a user's model raises
        raise InvalidTask(f"task: the model fails on its own example, inputs {tuple(x.shape)} {x.dtype}: {one_line(error)}") from error
    if not isinstance(outputs, Tensor) or len(outputs) != len(x):
        got = getattr(outputs, "shape", type(outputs).__name__)
        raise InvalidTask(f"task: the model must return one tensor (N, ...), got {got} for N = {len(x)}")
    if not torch.isfinite(outputs).all():
        raise InvalidTask("task: the model's outputs are not finite on its own example; are its weights loaded?")
    _check_labels(task, labels, outputs)
    _check_loss("loss", lambda: task.loss(outputs, y), f"outputs {tuple(outputs.shape)}, targets {tuple(y.shape)}")
    _check_scores(task, outputs, y)
    _check_teaching(task, x, outputs)
    _check_around(task, x, outputs)


def _check_labels(task: Task, searched: Tensor, outputs: Tensor) -> None:
    """Class numbers that cross entropy would fail on: of the whole search split, and of train where it lies in memory or in its first
    batch. -100 is left out of the loss by torch, and is fine.
    """
    if task.loss is not F.cross_entropy or searched.is_floating_point() or outputs.dim() < 2:
        return
    with seeded(0):
        trained = task.train.y if isinstance(task.train, Batches) else next(checked(task.train, "train"))[1]
    for split, labels in (("search", searched), ("train", trained)):
        wrong = ((labels < 0) & (labels != -100)) | (labels >= outputs.shape[1])
        if not labels.is_floating_point() and wrong.any():
            place = int(wrong.reshape(len(labels), -1).any(1).nonzero()[0])
            raise InvalidTask(
                f"task: {split}: sample {place} has label {int(labels[wrong][0])}; the model's outputs have {outputs.shape[1]} classes, "
                f"so labels are 0 to {outputs.shape[1] - 1}"
            )


def _check_scores(task: Task, outputs: Tensor, targets: Tensor) -> None:
    """The scores of samples, where the task gives them, average to its metric."""
    if task.sample_scores is None:
        return
    try:
        scores = task.sample_scores(outputs, targets)
    except Exception as error:  # whatever a user's function raises
        raise InvalidTask(f"task: sample_scores failed on outputs {tuple(outputs.shape)}: {one_line(error)}") from error
    if not isinstance(scores, Tensor) or scores.shape != (len(outputs),):
        got = getattr(scores, "shape", type(scores).__name__)
        raise InvalidTask(f"task: sample_scores must give one number a sample, a tensor ({len(outputs)},), got {got}")
    mean, value = float(scores.double().mean()), score(task, outputs, targets)
    if not math.isclose(mean, value, rel_tol=1e-3, abs_tol=1e-6):
        raise InvalidTask(
            f"task: sample_scores average to {mean:g} where metric {task.metric_name!r} is {value:g}; leave them out for a metric "
            "that is no mean over samples"
        )


def _check_loss(name: str, take: Callable[[], Tensor], what: str) -> None:
    try:
        loss = take()
    except Exception as error:  # whatever a user's loss raises
        raise InvalidTask(f"task: {name} failed on {what}: {one_line(error)}") from error
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = getattr(loss, "shape", type(loss).__name__)
        raise InvalidTask(f"task: the {name} must be one number a batch, got {got}; reduction='mean' is what training wants")
    if not torch.isfinite(loss).all():
        raise InvalidTask(f"task: the {name} of the trained model on its own example is {loss}; it must be finite")


def _check_teaching(task: Task, x: Tensor, outputs: Tensor) -> None:
    """The fields for recovery and distillation, each on the example x (2, ...) or the first two samples of ``train``."""
    with seeded(0):
        batch = [part[:2] for part in next(checked(task.train, "train"))]
    expected = outputs
    if len(batch) == 3:
        expected = outputs_of(task.model, batch[0])
    for name, teacher in task.teachers.items():
        if name == GIVEN:
            raise InvalidTask(f"task: teachers: {GIVEN!r} is the name of the task's own model; call this one otherwise")
        shape = expected.shape if task.distillation_loss is None and task.training_step is None else None
        _check_outputs(f"teachers: {name!r}", teacher, batch[2] if len(batch) == 3 else x, shape)
    if task.distillation_loss is not None:
        soft = task.distillation_loss
        _check_loss("distillation_loss", lambda: soft(outputs, outputs, 1.0), f"twice the outputs {tuple(outputs.shape)}")
    if task.training_step is not None:
        _check_training_step(task.training_step, task.model, batch)
    if task.build_student is not None:
        try:
            with seeded(0):
                student = task.build_student(1.0, 1.0)
        except Exception as error:  # whatever a user's function raises
            raise InvalidTask(f"task: build_student(1.0, 1.0) failed: {one_line(error)}") from error
        _check_outputs("build_student(1.0, 1.0)", student, x, outputs.shape)


def _check_around(task: Task, x: Tensor, outputs: Tensor) -> None:
    """``preprocess`` makes of raw samples what the model reads, inputs like x (2, ...), and ``postprocess`` takes its outputs."""
    if (task.preprocess is None) != (task.raw is None):
        raise InvalidTask("task: preprocess and raw need each other: raw holds the samples, as they arrive, that preprocess is timed on")
    if task.preprocess is not None and task.raw is not None:
        if not len(task.raw):
            raise InvalidTask("task: raw: no sample; preprocess is timed on samples as they arrive, give one at least")
        samples = [task.raw[index] for index in range(min(len(task.raw), 2))]
        try:
            with seeded(0):
                inputs = task.preprocess(samples)
        except Exception as error:  # whatever a user's function raises
            raise InvalidTask(f"task: preprocess failed on {len(samples)} samples of raw: {one_line(error)}") from error
        wanted = (len(samples), *x.shape[1:])
        if not isinstance(inputs, Tensor) or inputs.dtype != x.dtype or tuple(inputs.shape) != wanted:
            got = f"{inputs.dtype} {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
            raise InvalidTask(f"task: preprocess must give the model's inputs, {x.dtype} {wanted} for {len(samples)} samples, got {got}")
    if task.postprocess is not None:
        try:
            with seeded(0):
                task.postprocess(outputs)
        except Exception as error:  # whatever a user's function raises
            raise InvalidTask(f"task: postprocess failed on outputs {tuple(outputs.shape)}: {one_line(error)}") from error


def _check_outputs(what: str, model: object, inputs: Tensor, shape: torch.Size | None) -> None:
    """A module whose outputs are a tensor (N, ...), and of this shape where one is given: that of the task's model."""
    if not isinstance(model, nn.Module):
        raise InvalidTask(f"task: {what} must be a torch.nn.Module, got {type(model).__name__}")
    try:
        got = outputs_of(model, inputs)
    except Exception as error:  # whatever a user's model raises
        raise InvalidTask(f"task: {what} fails on inputs {tuple(inputs.shape)} {inputs.dtype}: {one_line(error)}") from error
    if shape is not None and got.shape != shape:
        raise InvalidTask(
            f"task: {what} must give outputs of the model's shape {tuple(shape)}, got {tuple(got.shape)}; teachers of other outputs need "
            "a distillation_loss of the task's own"
        )
    if len(got) != len(inputs):
        raise InvalidTask(f"task: {what} must give one tensor (N, ...), got {tuple(got.shape)} for N = {len(inputs)}")


def _check_training_step(own: Callable[[nn.Module, Tensor, Tensor, Tensor | None], Tensor], model: nn.Module, batch: list[Tensor]) -> None:
    """One step of it on a copy of the model in train mode, with a gradient, once with and once without a teacher."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    inputs, targets, shape = batch[0].to(device), batch[1].to(device), tuple(batch[0].shape)
    copied = copy.deepcopy(model).train().requires_grad_(True)
    for teacher in (outputs_of(model, inputs).to(device), None):

        def step(teacher: Tensor | None = teacher) -> Tensor:
            loss = own(copied, inputs, targets, teacher)
            if isinstance(loss, Tensor) and not loss.requires_grad:
                raise ValueError("the loss has no gradient; do not detach it")
            return loss

        with seeded(0):
            _check_loss("training_step", step, f"inputs {shape} {'without' if teacher is None else 'with'} a teacher")


def digest(task: Task) -> str:
    """Hex digest of the weights, the architectures as printed, and the search and holdout data: equal digests, comparable results."""
    sha = hashlib.sha256(repr(task.model).encode())
    _add_weights(sha, task.model)
    for split in (task.search, task.holdout):
        for part in gather(split or (), "split"):
            sha.update(part.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    sha.update(task.metric_name.encode())
    if task.metric_unit != "%" or not task.higher_is_better:  # left out where usual: digests of earlier studies stay what they were
        sha.update(f"{task.metric_unit} {task.higher_is_better}".encode())
    for name, teacher in sorted(task.teachers.items()):
        sha.update(f"{name} {teacher!r}".encode())
        _add_weights(sha, teacher)
    return sha.hexdigest()[:16]


def _add_weights(sha: "hashlib._Hash", model: nn.Module) -> None:
    for name, value in model.state_dict().items():
        sha.update(name.encode())
        sha.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
