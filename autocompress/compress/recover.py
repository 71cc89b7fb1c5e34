"""Short training that repairs a compressed model, with the uncompressed one as its teacher."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from autocompress.blocks import FakeQuantized
from autocompress.compress.distill import Loss, combined_loss
from autocompress.errors import Diverged
from autocompress.recipe import Recipe

Sample = tuple[Tensor, Tensor, Tensor | None]  # inputs (N, ...), targets (N, ...), teacher's outputs (N, ...)
WARM_UP = 0.1  # share of the steps in which the learning rate rises
QUANTIZED_RATE = 0.1  # learning rate of the fake-quantized steps, relative to the float ones: the weights only settle on the grid


def recover_(model: nn.Module, recipe: Recipe, samples: Iterator[Sample], task_loss: Loss) -> nn.Module:
    """Train ``model`` in place on the next ``recovery.steps`` samples (``quantized_steps`` when fake-quantized); ends in eval mode.

    AdamW with a one-cycle learning rate (Smith and Topin 2018). Raises Diverged, with the step, where the loss is not finite.
    """
    quantized = isinstance(model, FakeQuantized)
    steps = recipe.recovery.quantized_steps if quantized else recipe.recovery.steps
    if steps == 0:
        return model.eval()
    rate = recipe.recovery.learning_rate * (QUANTIZED_RATE if quantized else 1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cycle((step + 1) / (steps + 1)))
    device = next(model.parameters()).device
    training_mode_(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # dropout
        torch.manual_seed(recipe.recovery.seed)
        for step in range(steps):
            inputs, targets, teacher = next(samples)
            loss = combined_loss(recipe.distillation, task_loss, model(inputs), teacher, targets)
            if not torch.isfinite(loss):
                raise Diverged(f"recovery: the loss is {loss.item()} at step {step + 1} of {steps}; lower the learning rate ({rate:g})")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            if not torch.isfinite(norm):
                raise Diverged(f"recovery: the gradient is {norm.item()} at step {step + 1} of {steps}; lower the learning rate ({rate:g})")
            optimizer.step()
            schedule.step()
    return model.eval()


def training_mode_(model: nn.Module) -> None:
    """Train mode; batch norm that could not be folded keeps its statistics while the model is fake-quantized."""
    model.train()
    if isinstance(model, FakeQuantized):
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def cycle(progress: float) -> float:
    """Share of the peak learning rate at ``progress`` in 0..1: a linear rise, then half a cosine down to 0."""
    if progress < WARM_UP:
        return progress / WARM_UP
    return 0.5 * (1 + float(torch.cos(torch.tensor((progress - WARM_UP) / (1 - WARM_UP) * torch.pi))))
