"""The training itself: one loop for float models, masked models and models on integer grids.

Gradients are clipped to a norm of 5 (Pascanu et al. 2013). Mixed precision is bfloat16 autocast, on CUDA only and not on integer grids,
whose scales need float32; elsewhere the setting changes nothing. Memory: one set of gradients and the optimizer's moments, as any
training; a live teacher runs before the student, without a graph, and leaves only the features that are compared.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from autocompress.blocks import FakeQuantized
from autocompress.compress.distill import Comparison, Lesson, Sample, combined_loss, compared, ramp
from autocompress.compress.prune.masks import reapply_masks_
from autocompress.compress.quantize.progressive import progress_
from autocompress.compress.recover.average import Average
from autocompress.compress.recover.batch_norm import recalibrate_
from autocompress.compress.recover.schedule import optimizer_for, rate_share, set_rates_
from autocompress.compress.recover.watch import Watch
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import Recipe

QUANTIZED_RATE = 0.1  # learning rate of the fake-quantized steps, relative to the float ones: the weights only settle on the grid
LONGEST_GRADIENT = 5.0
Look = Callable[[nn.Module, int], None]
FEW = 2  # samples that the shapes of features are read from


def recover_(
    model: nn.Module, recipe: Recipe, samples: Iterator[Sample], lesson: Lesson, steps: int | None = None, look: Look | None = None
) -> nn.Module:
    """Train ``model`` in place on the next ``steps`` samples, on the device where both are; ends in eval mode.

    Without ``steps``: ``recovery.steps``, or ``quantized_steps`` if the model is fake-quantized; 0 reads no sample and changes nothing.
    ``look(model, step)`` is called after every step, from 1; what it raises ends the training.
    Raises InfeasibleRecipe where the model cannot be trained so, before any step, and Diverged, with the step, where the loss is not finite
    or climbs and stays up.
    """
    settings, quantized = recipe.recovery, isinstance(model, FakeQuantized)
    if steps is None:
        steps = settings.quantized_steps if quantized else settings.steps
    if steps == 0:
        return model.eval()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InfeasibleRecipe(
            "recovery: every parameter is frozen (requires_grad is False). Set the steps to 0, or call requires_grad_()."
        )
    device = next(model.parameters()).device
    first = next(samples)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # dropout, adapters
        torch.manual_seed(settings.seed)
        with compared(model, lesson.teacher, recipe.distillation, first.inputs[:FEW]) as comparison:
            run = _Run(model, recipe, lesson, comparison, steps)
            for step in range(steps):
                run.step_(step, next(samples) if step else first)
                if look is not None:
                    look(model, step + 1)
        run.finish_()
    return model.eval()


class _Run:
    """One recovery: what lives from its first step to its last."""

    def __init__(self, model: nn.Module, recipe: Recipe, lesson: Lesson, comparison: Comparison | None, steps: int) -> None:
        self.model, self.recipe, self.lesson, self.comparison, self.steps = model, recipe, lesson, comparison, steps
        settings = recipe.recovery
        self.rate = settings.learning_rate * (QUANTIZED_RATE if isinstance(model, FakeQuantized) else 1.0)
        adapters = comparison.parameters() if comparison is not None else []
        self.optimizer = optimizer_for(model, adapters, settings)
        self.trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.watch = Watch(steps, self.rate)
        self.average = Average(model, settings.ema) if settings.ema else None
        self.last_inputs: deque[Tensor] = deque(maxlen=settings.batch_norm_batches)

    def step_(self, step: int, sample: Sample) -> None:
        progress = step / self.steps
        share = ramp(self.recipe.distillation, progress)
        self.model.train()
        if isinstance(self.model, FakeQuantized):
            progress_(self.model, progress)
        set_rates_(self.optimizer, self.rate * rate_share(self.recipe.recovery.schedule, (step + 1) / (self.steps + 1)))
        loss = self.loss(sample, share)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.trained, LONGEST_GRADIENT)
        seen, gradient = torch.stack([loss.detach().double().view(()), norm.double()]).tolist()  # one wait for the device
        self.watch.see(step + 1, seen, gradient, settled=share == 1)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)  # here, so that the next forward pass has their memory
        reapply_masks_(self.model)
        if self.average is not None:
            self.average.update()
        self.last_inputs.append(sample.inputs)

    def loss(self, sample: Sample, share: float) -> Tensor:
        if self.comparison is None:
            return self._outputs_loss(sample, share)
        with self._precision():
            self.comparison.ask(sample.inputs)
        loss = self._outputs_loss(sample, share)
        return loss + share * self.comparison.distance()

    def _outputs_loss(self, sample: Sample, share: float) -> Tensor:
        inputs, targets, teacher, mixed = sample
        own = self.lesson.training_step
        if own is not None and mixed is not None:
            raise InfeasibleRecipe(
                "distillation.augmentation: mixes targets, and the task's training_step takes one of each. Set it to none."
            )
        with self._precision():
            if own is not None:
                return own(self.model, inputs, targets, teacher)
            outputs: Tensor = self.model(inputs)
        if outputs.dtype in (torch.bfloat16, torch.float16):
            outputs = outputs.float()
        return combined_loss(self.recipe.distillation, self.lesson, outputs, sample, share)

    def _precision(self) -> AbstractContextManager[object]:
        device = self.trained[0].device.type
        if self.recipe.recovery.precision == "mixed" and device == "cuda" and not isinstance(self.model, FakeQuantized):
            return torch.autocast(device, torch.bfloat16)
        return contextlib.nullcontext()

    def finish_(self) -> None:
        """What remains: the average if asked for, masks, the target's bits, and statistics that belong to these weights."""
        if self.average is not None:
            self.average.settle_()
            reapply_masks_(self.model)
        if isinstance(self.model, FakeQuantized):
            progress_(self.model, 1.0)
        else:
            recalibrate_(self.model, self.last_inputs)
