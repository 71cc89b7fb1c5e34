"""Fake-quantized models, and their grids by torch's own kernels. Imported as ``tests.blocks.grids``."""

from typing import Any

import torch
from torch import Tensor, nn

from autocompress.blocks import FakeQuantized
from autocompress.recipe import Quantization


def calibrated(model: nn.Module, bits: dict[str, tuple[int, int]], *batches: Tensor, **options: Any) -> FakeQuantized:
    wrapped = FakeQuantized(model, bits, Quantization(**options)).eval()
    with torch.no_grad():
        for batch in batches:
            wrapped(batch)
    wrapped.phase = "quantize"
    return wrapped


def all_layers(model: nn.Module, pair: tuple[int, int] = (7, 8)) -> dict[str, tuple[int, int]]:
    return {name: pair for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}


def rounded_like(x: Tensor, seen: Tensor) -> Tensor:
    """x on the affine uint8 grid of Jacob et al. 2018 for the range of ``seen``, by torch's own kernel."""
    low, high = seen.min().clamp(max=0), seen.max().clamp(min=0)
    scale = (high - low) / 255
    return torch.fake_quantize_per_tensor_affine(x, scale, (-low / scale).round().int(), 0, 255)


def rounded_weight(weight: Tensor, bits: int = 7) -> Tensor:
    scale = weight.detach().abs().flatten(1).amax(1) / (2 ** (bits - 1) - 1)
    return torch.fake_quantize_per_channel_affine(weight, scale, torch.zeros(len(weight), dtype=torch.int32), 0, -128, 127)
