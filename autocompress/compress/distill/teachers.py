"""Training batches with what their teachers say of them: one network or several, weighted, each of an architecture of its own.

Several teachers speak as one (Hinton et al. 2015, section 5; You et al. 2017). For class logits the softened probabilities are averaged,
p = sum_i w_i * softmax(z_i / T), and handed on as z = T * log p, whose softmax at T is p again. The loss on p has the gradient of the
weighted sum of the single losses, and differs from it by what does not depend on the student:

    sum_i w_i * KL(p_i || q) = KL(p || q) + sum_i w_i * KL(p_i || p)

Other outputs are averaged as they are. Where a batch brings a third tensor, it is what the teachers of another modality read.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.compress.distill.augment import augmented
from autocompress.compress.distill.loss import Sample
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import Distillation
from autocompress.tasks.task import evaluating


class Teacher(NamedTuple):
    """Who teaches, and at which weight among the others. ``reads_inputs``: of a batch of three it reads what the student reads (first)."""

    model: nn.Module
    weight: float = 1.0
    reads_inputs: bool = False


def taught(
    batches: Iterator[tuple[Tensor, ...]],
    teachers: Sequence[Teacher],
    settings: Distillation | None,
    seed: int,
    device: torch.device,
    are_logits: bool = True,
) -> Iterator[Sample]:
    """Batches (inputs, targets) or (inputs, targets, teachers' inputs) on ``device``, augmented, with the outputs of the teachers.

    ``are_logits``: average softened probabilities; else outputs. No teacher runs without settings, without ``soft_weight``, or at a
    weight of 0. The teachers are on ``device``. Raises InfeasibleRecipe from each ``next`` where the batches do not bear the settings.
    """
    return _Taught(batches, teachers, settings, torch.Generator(device).manual_seed(seed), are_logits)


class _Taught(Iterator[Sample]):
    """Not a generator, for that would be over after the first error and end the next trial without a word."""

    def __init__(
        self,
        batches: Iterator[tuple[Tensor, ...]],
        teachers: Sequence[Teacher],
        settings: Distillation | None,
        random: torch.Generator,
        are_logits: bool,
    ) -> None:
        self.batches, self.settings, self.random, self.are_logits = batches, settings, random, are_logits
        self.teachers = [one for one in teachers if one.weight > 0] if settings is not None and settings.soft_weight else []

    def __next__(self) -> Sample:
        inputs, targets, *other = (part.to(self.random.device) for part in next(self.batches))
        settings = self.settings
        if settings is None:
            return Sample(inputs, targets)
        if other and settings.augmentation != "none":
            raise InfeasibleRecipe(
                f"distillation.augmentation: {settings.augmentation} would change the student's inputs, and the teachers read others "
                f"{tuple(other[0].shape)}. Set it to none."
            )
        if other and (settings.feature_weight or settings.attention_weight):
            raise InfeasibleRecipe(
                "distillation.features: teachers that read other inputs than the student cannot be compared with it layer by layer. "
                "Set feature_weight and attention_weight to 0."
            )
        inputs, mixed = augmented(settings.augmentation, inputs, targets, self.random)
        if not self.teachers:
            return Sample(inputs, targets, None, mixed)
        said = [outputs_on(one.model, inputs if one.reads_inputs or not other else other[0]) for one in self.teachers]
        weights = [one.weight for one in self.teachers]
        return Sample(inputs, targets, averaged(said, weights, settings.temperature if self.are_logits else None), mixed)


@torch.no_grad()
def outputs_on(model: nn.Module, inputs: Tensor) -> Tensor:
    """Outputs (N, ...) of ``model`` in eval mode, on its device; its modes are given back."""
    with evaluating(model):
        out: Tensor = model(inputs)
    return out


def averaged(outputs: Sequence[Tensor], weights: Sequence[float], temperature: float | None) -> Tensor:
    """One output for several, weighted: of logits (N, classes, ...) at ``temperature``, or the mean of other outputs without one.

    Raises InfeasibleRecipe where their shapes differ.
    """
    shapes = [tuple(one.shape) for one in outputs]
    if len(set(shapes)) > 1:
        raise InfeasibleRecipe(
            f"distillation.teachers: their outputs must be of one shape to be averaged, got {', '.join(map(str, shapes))}. Choose teachers "
            "of the same classes."
        )
    if len(outputs) == 1:
        return outputs[0]
    shares = torch.tensor(weights, dtype=torch.float64).div(sum(weights)).tolist()
    if temperature is None or outputs[0].dim() < 2:
        return torch.stack([share * one for share, one in zip(shares, outputs, strict=True)]).sum(0)
    each = torch.tensor(shares, dtype=outputs[0].dtype, device=outputs[0].device).log()
    said = torch.stack([share + F.log_softmax(one / temperature, dim=1) for share, one in zip(each, outputs, strict=True)])
    return temperature * torch.logsumexp(said, 0)


def retaught(samples: Iterator[Sample], teacher: nn.Module) -> Iterator[Sample]:
    """The same samples with the outputs of ``teacher`` alone, where they had any."""
    for sample in samples:
        yield sample if sample.teacher is None else sample._replace(teacher=outputs_on(teacher, sample.inputs))
