"""Disjoint parts of the samples of a task, by seed."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from autocompress.errors import InvalidTask


def stratified(labels: Tensor, shares: Sequence[float], seed: int = 0) -> list[Tensor]:
    """Indices of disjoint parts, ascending, with about these shares of every class in each; labels (N,) of class numbers.

    Samples are put in order class by class, and every part takes them at even distances. The first part has one of every class at least;
    a class of fewer samples than parts is not in all of them. Raises InvalidTask where a part would be empty.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[torch.argsort(labels[order], stable=True)]
    phase = (torch.arange(len(order)).double() * 0.6180339887498949) % 1  # the golden ratio: even over every stretch (Weyl 1916)
    phase[(torch.diff(labels[order], prepend=labels[order][:1] - 1) != 0)] = 0  # the first of each class
    bounds = (*itertools.accumulate(shares[:-1], initial=0.0), 1.0)
    parts = [order[(phase >= low) & (phase < high)] for low, high in itertools.pairwise(bounds)]
    return _filled([part.sort().values for part in parts], len(labels))


def shuffled(samples: int, shares: Sequence[float], seed: int = 0) -> list[Tensor]:
    """Indices of disjoint parts, ascending, of about these shares. Raises InvalidTask where a part would be empty."""
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    sizes = [round(share * samples) for share in shares[1:]]
    return _filled([part.sort().values for part in torch.split(order, [samples - sum(sizes), *sizes])], samples)


def _filled(parts: list[Tensor], samples: int) -> list[Tensor]:
    if not all(map(len, parts)):
        sizes = ", ".join(str(len(part)) for part in parts)
        raise InvalidTask(f"--data: {samples} samples are too few to split: the parts (train first) would have {sizes}")
    return parts
