"""Attention maps of a layer, and their distance (Zagoruyko and Komodakis 2017, "Paying more attention to attention", section 3.1).

The map of activations A is Q = sum over channels of A^2, one number a position (F_sum^2 of the paper), divided by its norm over the
positions (eq. 2). The distance of two maps is half the *squared* norm of their difference, as in the authors' code: a compressed model
begins close to its teacher, where the plain norm has no gradient, and it vanishes there.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def attention_map(features: Tensor, axis: int = 1) -> Tensor:
    """features (N, C, ...) with channels on ``axis`` -> (N, 1, ...): the sum of squares over channels, not normalised."""
    return features.square().sum(axis, keepdim=True).movedim(axis, 1)


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1/2 * ||q_student - q_teacher||^2 of maps (N, 1, ...) as ``attention_map`` gives them, q their unit vectors; mean over the batch."""
    first, second = (F.normalize(one.flatten(1), dim=1) for one in (student, teacher))
    return 0.5 * torch.sum((first - second).square(), 1).mean()
