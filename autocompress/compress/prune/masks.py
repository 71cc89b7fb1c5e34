"""Masks: which single weights are 0 and stay so. A masked layer has a buffer ``weight_mask`` (bool, like its weight) that is not saved.

The weight itself is multiplied by the mask, so nothing else needs to know of it; training puts the zeros back after every step.
"""

import torch
from torch import Tensor, nn

NAME = "weight_mask"


@torch.no_grad()
def mask_(layer: nn.Module, mask: Tensor) -> None:
    """Set ``layer.weight`` to 0 where ``mask`` (bool, like it) is False, and remember the mask in place of an earlier one."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if mask.dtype != torch.bool or mask.shape != weight.shape:
        raise ValueError(f"a mask is bool and of the shape {tuple(weight.shape)}; got {mask.dtype}, {tuple(mask.shape)}")
    layer.register_buffer(NAME, mask.to(weight.device, copy=True), persistent=False)
    _apply_(weight, mask.to(weight.device))


@torch.no_grad()
def reapply_masks_(model: nn.Module) -> None:
    """Set the masked weights of every layer to 0 again: after every step of an optimizer, whose momentum and decay move them."""
    for module in model.modules():
        mask = getattr(module, NAME, None)
        if isinstance(mask, Tensor):
            _apply_(module.weight, mask)  # type: ignore[arg-type]


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """Name of every masked layer -> its mask."""
    found = {name: getattr(module, NAME, None) for name, module in model.named_modules()}
    return {name: mask for name, mask in found.items() if isinstance(mask, Tensor)}


def _apply_(weight: Tensor, mask: Tensor) -> None:
    weight.masked_fill_(~mask, 0.0)  # a product would keep NaN and leave -0.0
