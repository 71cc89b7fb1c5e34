"""Which optimizer, and how its learning rate runs over the steps.

AdamW (Loshchilov and Hutter 2019) or SGD with Nesterov momentum 0.9; one-cycle (Smith and Topin 2018), half a cosine (Loshchilov and Hutter
2017, without restarts) or constant.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from autocompress.blocks import FakeQuantized
from autocompress.recipe import Recovery

WARM_UP = 0.1  # share of the steps in which the learning rate rises
MOMENTUM = 0.9
IN_PROPORTION = "in_proportion"  # key of the groups whose learning rate follows their size
SCALE_RATE = 10.0  # AdamW moves every number by about the learning rate; of a weight, around 0.1, that is a tenfold share


def cycle(progress: float) -> float:
    """Share of the peak learning rate at ``progress`` in 0..1: a linear rise, then half a cosine down to 0."""
    if progress < WARM_UP:
        return progress / WARM_UP
    return half_cosine((progress - WARM_UP) / (1 - WARM_UP))


def half_cosine(progress: float) -> float:
    """1 at 0, 0 at 1."""
    return 0.5 * (1 + math.cos(progress * math.pi))


SCHEDULES: dict[str, Callable[[float], float]] = {"one_cycle": cycle, "cosine": half_cosine, "constant": lambda progress: 1.0}


def rate_share(schedule: str, progress: float) -> float:
    """Share of the peak learning rate at ``progress`` in 0..1 of the steps."""
    return SCHEDULES[schedule](progress)


def optimizer_for(model: nn.Module, adapters: Sequence[nn.Parameter], settings: Recovery) -> torch.optim.Optimizer:
    """Over the parameters that are not frozen, and the adapters; ``set_rates_`` gives it its learning rates.

    Scales of quantizers are a group of its own each, and do not decay.
    """
    scales = scales_of(model)
    own = {id(scale) for scale in scales}
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in own]
    groups: list[dict[str, Any]] = [{"params": [*weights, *adapters], "weight_decay": settings.weight_decay}]
    groups += [{"params": [scale], "weight_decay": 0.0, IN_PROPORTION: settings.optimizer == "adamw"} for scale in scales]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    return torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True, fused=True)


@torch.no_grad()
def set_rates_(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """``rate`` for all weights. Learned scales (Esser et al. 2020) differ in size by orders of magnitude, and AdamW moves every number by
    about its learning rate: there each scale gets one in proportion to itself.
    """
    scales = [group for group in optimizer.param_groups if group.get(IN_PROPORTION)]
    sizes = torch.stack([group["params"][0].abs().mean() for group in scales]).tolist() if scales else []
    for group in optimizer.param_groups:
        group["lr"] = rate
    for group, size in zip(scales, sizes, strict=True):
        group["lr"] = rate * SCALE_RATE * size


def scales_of(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of the quantizers: what a fake-quantized model has beside the parameters of the model inside."""
    if not isinstance(model, FakeQuantized):
        return []
    inner = {id(parameter) for parameter in model.model.parameters()}
    return [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in inner]
