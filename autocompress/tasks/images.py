"""Labelled images as a task: bytes in memory, standardised and moved a batch at a time; splits by seed."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.errors import InvalidTask
from autocompress.tasks.batches import Batches
from autocompress.tasks.files import flag
from autocompress.tasks.task import Task

SCORING_BATCH = 1000


@dataclass(frozen=True, eq=False)
class Images:
    """x (N, C, H, W) uint8, y (N,) int64."""

    x: Tensor
    y: Tensor

    def pick(self, indices: Tensor) -> "Images":
        return Images(self.x[indices], self.y[indices])


@dataclass(frozen=True, eq=False)
class Splits:
    """Disjoint parts; ``note`` says how they were made where that is not the usual way."""

    train: Images
    search: Images
    holdout: Images
    notes: tuple[str, ...] = ()


def split_images(train: Images, test: Images, split_test: str, weights: str, share: float, seed: int = 0) -> Splits:
    """Search is ``share`` of the training images and holdout the test images; or the two are halves of the test images, by seed.

    The latter with ``split_test`` yes, and by itself with ``weights``: what has seen all training images may not be selected on them.
    """
    if flag("split_test", split_test) if split_test else bool(weights):
        first, second = halves(test.y, seed)
        why = "asked for" if split_test else "the given weights are taken to have seen all training images; --option split_test=no if not"
        return Splits(train, test.pick(first), test.pick(second), (f"search and holdout are halves of the test images: {why}",))
    order = torch.randperm(len(train.y), generator=torch.Generator().manual_seed(seed))
    searched = max(1, round(share * len(order)))
    return Splits(train.pick(order[:-searched]), train.pick(order[-searched:]), test)


def halves(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of two halves of each class, by seed; labels (N,)."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[torch.argsort(labels[order], stable=True)]
    return order[0::2].sort().values, order[1::2].sort().values


@dataclass(frozen=True, eq=False)
class Look:
    """Mean and deviation of each channel, (C, 1, 1), of pixels in 0..255."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, x: Tensor, mean: str = "", std: str = "") -> "Look":
        """That of images (N, C, H, W), or as asked: a number in 0..1 for each channel, with commas."""
        found = [torch.tensor([part.item() for part in parts]) for parts in zip(*map(_moments, x.unbind(1)), strict=True)]
        for place, (option, text) in enumerate((("mean", mean), ("std", std))):
            if text:
                found[place] = 255 * _numbers(option, text, x.shape[1])
        if not (found[1] > 0).all():
            raise InvalidTask(f"std must be above 0 in every channel, got {(found[1] / 255).tolist()}: are all images the same?")
        return cls(found[0].float().view(-1, 1, 1), found[1].float().view(-1, 1, 1))

    def __repr__(self) -> str:  # it is part of what a baseline is kept by
        return f"Look({self.mean.flatten().tolist()}, {self.deviation.flatten().tolist()})"


def standardised(look: Look, x: Tensor) -> Tensor:
    """x (N, C, H, W) uint8 -> float32"""
    return (x.float() - look.mean) / look.deviation


def moved(look: Look, reach: int, mirror: bool, x: Tensor) -> Tensor:
    """Standardised after a shift by up to ``reach`` pixels in each direction, onto black; every second one mirrored. x (N, C, H, W)."""
    count, height, width = len(x), *x.shape[2:]
    padded = F.pad(x, (reach, reach, reach, reach))
    rows = torch.randint(0, 2 * reach + 1, (count, 1)) + torch.arange(height)
    columns = torch.randint(0, 2 * reach + 1, (count, 1)) + torch.arange(width)
    if mirror:
        columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
    picked = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (N, H, W, C)
    return standardised(look, picked.permute(0, 3, 1, 2)).contiguous()


def training_batches(images: Images, look: Look, batch_size: int, reach: int, mirror: bool) -> Batches:
    return Batches(images.x, images.y, batch_size, partial(moved, look, reach, mirror))


BuildStudent = Callable[[float, float], nn.Module]


def image_task(name: str, model: nn.Module, splits: Splits, train: Batches, look: Look, student: BuildStudent) -> Task:
    """The task of classifying them."""
    plain = partial(standardised, look)
    search, holdout = (Batches(one.x, one.y, SCORING_BATCH, plain, shuffle=False) for one in (splits.search, splits.holdout))
    calibration = replace(train, augment=plain, shuffle=False)
    return Task(name, model, train, search, holdout, calibration=calibration, notes=splits.notes, build_student=student)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of bytes (N, H, W), from how often each value is there: exact, and no float copy of the images."""
    counts, values = torch.bincount(x.flatten().int(), minlength=256).double(), torch.arange(256).double()
    mean = (counts * values).sum() / counts.sum()
    return mean, ((counts * (values - mean) ** 2).sum() / counts.sum()).sqrt()


def _numbers(option: str, text: str, channels: int) -> Tensor:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) != channels or not all(0 <= number <= 1 for number in found):
        raise InvalidTask(f"--option {option}: must be {channels} numbers from 0 to 1 with commas, one a channel, got {text!r}")
    return torch.tensor(found, dtype=torch.float64)
