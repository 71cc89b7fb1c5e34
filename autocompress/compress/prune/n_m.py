"""N:M sparsity: of every M neighbouring inputs of an output, the N most important weights stay (Mishra et al. 2021, 2:4).

A weight (out, in, ...) is read as (out, in * kh * kw), in runs of M.
"""

import torch
from torch import Tensor

from autocompress.errors import InfeasibleRecipe


def parts_of(pattern: str) -> tuple[int, int]:
    """Of "2:4": (2, 4)."""
    n, m = pattern.split(":")
    return int(n), int(m)


def n_of_m(scores: Tensor, n: int, m: int, name: str = "layer") -> Tensor:
    """Mask (bool, like ``scores`` (out, in, ...)) with ``n`` True in every run of ``m``: the highest scores, of equal ones the first.

    Raises InfeasibleRecipe, with the layer's ``name``, where the inputs of an output do not divide into runs of ``m``.
    """
    inputs = scores[0].numel()
    if inputs % m:
        raise InfeasibleRecipe(
            f"{name}: pattern {n}:{m} needs inputs that divide by {m}, got {inputs} (in * kernel). Use a sparsity, or leave it out."
        )
    runs = scores.reshape(scores.shape[0], inputs // m, m)
    order = torch.argsort(runs, dim=2, descending=True, stable=True)
    mask = torch.zeros_like(runs, dtype=torch.bool).scatter_(2, order[:, :, :n], True)
    return mask.view(scores.shape)
