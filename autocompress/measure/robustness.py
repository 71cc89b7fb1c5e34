"""The metric when inputs are not as they were: noise, blur, brightness, contrast, and an attack, before and after compression.

The shifts are after Hendrycks & Dietterich (2019), with strengths in standard deviations (sd) of each channel of the data itself, so that
they mean the same for images in 0..1 and for normalised ones. What is shifted stays within the range of the data.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.errors import InvalidTask
from autocompress.records import Part
from autocompress.tasks.batches import one_line
from autocompress.tasks.task import Task, evaluating, score

MOST_SAMPLES = 2000
NOISE, BRIGHTNESS, CONTRAST, ATTACK = 0.5, 0.5, 0.5, 0.1  # sd; of the contrast the share that is left
BLUR_SIGMA = 0.7  # pixels
ATTACK_BATCH = 128
ATTACKED = f"FGSM {ATTACK:g} sd"
FEW_FLAT = 0.01

Run = Callable[[Tensor], Tensor]


class NoGradient(Exception):
    """A model whose loss has no gradient with respect to its inputs; the message says why."""


class Subject(NamedTuple):
    """One model both ways: ``run`` maps inputs (N, ...) to outputs of the deployed artifact, ``twin`` is its PyTorch module, on a CPU."""

    run: Run
    twin: nn.Module


class Shifted(NamedTuple):
    """A part a shift, and why others are missing: fields of `Inspection`."""

    shifts: tuple[Part, ...]
    notes: tuple[str, ...] = ()


def shifts(task: Task, candidate: Subject, baseline: Subject, x: Tensor, y: Tensor, seed: int = 0) -> Shifted:
    """The metric of both under every shift of x (N, ...) with targets y; at most the first 2,000 samples.

    Images (N, C, H, W) get all of them, other float inputs noise and the attack, integers none. In the attack each model is attacked
    through its own twin, and what came of it runs through its artifact.
    """
    if not x.is_floating_point():
        return Shifted((), (f"no shifted inputs: {x.dtype} has no small changes",))
    x, y = x[:MOST_SAMPLES], y[:MOST_SAMPLES]
    notes = [] if x.dim() == 4 else ["no blur, brightness, contrast: inputs are no images (N, C, H, W)"]
    found = [_scored(task, name, (candidate.run, moved), (baseline.run, moved), y) for name, moved in _moved(x, seed)]
    try:
        (ours, ours_note), (theirs, theirs_note) = (fast_gradient(task, one.twin, x, y) for one in (candidate, baseline))
        found.append(_scored(task, ATTACKED, (candidate.run, ours), (baseline.run, theirs), y))
        notes += [f"{ATTACKED}: {who}: {note}" for who, note in (("compressed", ours_note), ("given", theirs_note)) if note]
    except NoGradient as error:
        notes.append(f"no FGSM: {error}")
    notes += [one for one in found if isinstance(one, str)]
    return Shifted(tuple(one for one in found if isinstance(one, Part)), tuple(notes))


def fast_gradient(task: Task, twin: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, str]:
    """x + eps * sign(grad_x loss(twin(x), y)) (Goodfellow et al. 2015, section 4), eps = 0.1 sd of each channel; x (N, ...).

    Through rounding the gradient goes straight. With a warning where many samples have none: the loss of a very sure model is flat, and
    such a sample is not attacked. Raises NoGradient where no sample has one.
    """
    signs = []
    for part, targets in zip(torch.split(x, ATTACK_BATCH), torch.split(y, ATTACK_BATCH), strict=True):
        inputs = part.detach().clone().requires_grad_(True)
        try:
            with torch.enable_grad(), evaluating(twin):
                (slope,) = torch.autograd.grad(task.loss(twin(inputs.clone()), targets), inputs)  # a clone: the model may write into it
        except RuntimeError as error:
            raise NoGradient(one_line(error)) from error
        signs.append(slope.sign().nan_to_num())
    direction = torch.cat(signs)
    flat = float((direction.flatten(1) == 0).all(1).float().mean())
    if flat == 1:
        raise NoGradient("the loss is flat at every input")
    warning = f"{100 * flat:.0f} % of the samples are not attacked, for the loss is flat there" if flat > FEW_FLAT else ""
    return _within(x + ATTACK * _spread(x) * direction, x), warning


def _moved(x: Tensor, seed: int) -> Iterator[tuple[str, Tensor]]:
    """(name with its strength, shifted inputs) of shifts that ask no model; x (N, C, H, W), or (N, ...) for noise alone."""
    spread, generator = _spread(x), torch.Generator().manual_seed(seed)
    yield f"noise {NOISE:g} sd", _within(x + NOISE * spread * torch.randn(x.shape, generator=generator, dtype=x.dtype), x)
    if x.dim() != 4:
        return
    yield f"blur {BLUR_SIGMA:g} px", blurred(x)
    yield f"brightness +{BRIGHTNESS:g} sd", _within(x + BRIGHTNESS * spread, x)
    middle = x.mean((2, 3), keepdim=True)  # of each image and channel
    yield f"contrast {100 * CONTRAST:.0f} %", middle + CONTRAST * (x - middle)


def blurred(x: Tensor) -> Tensor:
    """Images (N, C, H, W) under a Gaussian of 3 x 3 pixels, edges continued."""
    line = torch.exp(-(torch.arange(-1, 2, dtype=x.dtype) ** 2) / (2 * BLUR_SIGMA**2))
    kernel = torch.outer(line, line) / line.sum() ** 2
    channels = x.shape[1]
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel.expand(channels, 1, 3, 3), groups=channels)


def _spread(x: Tensor) -> Tensor:
    """Standard deviation of each channel of images, else of all values; broadcasts to x."""
    return x.std((0, 2, 3), keepdim=True, correction=0) if x.dim() == 4 else x.std(correction=0)


def _within(moved: Tensor, x: Tensor) -> Tensor:
    axes = (0, 2, 3) if x.dim() == 4 else tuple(range(x.dim()))
    return moved.clamp(x.amin(axes, keepdim=True), x.amax(axes, keepdim=True))


def _scored(task: Task, name: str, after: tuple[Run, Tensor], before: tuple[Run, Tensor], y: Tensor) -> Part | str:
    """The metric of both, or why there is none on such inputs."""
    try:
        values = [score(task, run(inputs), y) for run, inputs in (after, before)]
    except InvalidTask as error:
        return f"no {name}: {error}"
    return Part(name=name, samples=len(y), score=values[0], baseline_score=values[1])
