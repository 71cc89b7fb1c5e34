"""Accuracy of the artifact itself, and how far it is from the PyTorch model that it was lowered from."""

import numpy as np
import torch
from torch import Tensor

from autocompress.runtimes.runtime import Deployed

BATCH = 64


def predict(deployed: Deployed, inputs: Tensor) -> Tensor:
    """Outputs (N, ...) of the artifact for inputs (N, ...), a batch at a time."""
    parts = [deployed.run(np.ascontiguousarray(part.cpu().numpy())) for part in torch.split(inputs, BATCH)]
    return torch.from_numpy(np.concatenate(parts))


def agreement(outputs: Tensor, reference: Tensor) -> tuple[float, float]:
    """Share of samples (0..1) with equal largest output, and the largest absolute difference; both (N, classes).

    Of outputs with places, (N, classes, ...), every place counts for itself.
    """
    both = [one.reshape(len(one), -1) if one.dim() < 2 else one for one in (outputs, reference)]
    same = (both[0].argmax(1) == both[1].argmax(1)).float().mean().item()
    return same, (outputs - reference).abs().max().item()
