"""Batch norm statistics for weights that have moved away from them: taken anew as plain averages over training batches.

As after stochastic weight averaging (Izmailov et al. 2018, section 3.2); a running average still remembers other weights.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from autocompress.tasks.task import evaluating

Norm = nn.modules.batchnorm._BatchNorm


@torch.no_grad()
def recalibrate_(model: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """Means and variances of every batch norm: averages over those of the ``batches`` (N, ...), N > 1. Modes are given back."""
    norms = [module for module in model.modules() if isinstance(module, Norm) and module.running_mean is not None]
    given = list(batches)
    if not norms or not given:
        return model
    momenta = [norm.momentum for norm in norms]
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # all batches count alike
            norm.train()
        for batch in given:
            model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model
