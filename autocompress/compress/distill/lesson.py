"""What a task and a recipe make of one training step: the weighted sum of the task's loss and the distance from the teachers.

Loss = hard_weight * task loss + ramp * soft_weight * distillation loss (Hinton et al. 2015, section 2). Of mixed samples (Zhang et al.
2018; Yun et al. 2019) the task loss is share * L(outputs, targets) + (1 - share) * L(outputs, other targets).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.compress.distill.loss import Loss, Sample, SoftLoss, TrainingStep, distillation_loss
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import Distillation


@dataclass(frozen=True, eq=False)
class Lesson:
    """What does not change from step to step.

    ``soft_loss(student, teachers, temperature)`` compares outputs; the default takes them for class logits (N, classes, ...).
    ``training_step(model, inputs, targets, teachers' outputs or None) -> loss`` is the task's own: it runs the model and stands in for
    the task loss and the distillation loss together, so ``hard_weight``, ``soft_weight`` and ``temperature`` are its own business;
    features and attention maps are compared beside it. ``teacher``: the network that features and attention maps are compared with, live.
    """

    loss: Loss
    soft_loss: SoftLoss = distillation_loss
    training_step: TrainingStep | None = None
    teacher: nn.Module | None = None


def ramp(settings: Distillation | None, progress: float) -> float:
    """Share of the teacher's weight at ``progress`` in 0..1 of the steps: a line from 0 to 1 over the first ``settings.ramp`` of them."""
    if settings is None or settings.ramp == 0:
        return 1.0
    return min(1.0, progress / settings.ramp)


def combined_loss(settings: Distillation | None, lesson: Lesson, outputs: Tensor, sample: Sample, share: float = 1.0) -> Tensor:
    """hard_weight * task loss + share * soft_weight * distillation loss; the task loss alone, at weight 1, where nobody teaches.

    Raises InfeasibleRecipe where the default distillation loss cannot compare the outputs of teacher and student.
    """
    if settings is None or (sample.teacher is None and settings.soft_weight):
        return hard_loss(lesson.loss, outputs, sample)
    loss = torch.zeros((), device=outputs.device)
    if settings.hard_weight:
        loss = loss + settings.hard_weight * hard_loss(lesson.loss, outputs, sample)
    if settings.soft_weight and sample.teacher is not None:
        if lesson.soft_loss is distillation_loss:
            check_logits(outputs, sample.teacher)
        loss = loss + share * settings.soft_weight * lesson.soft_loss(outputs, sample.teacher, settings.temperature)
    return loss


def hard_loss(loss: Loss, outputs: Tensor, sample: Sample) -> Tensor:
    """The task's loss; of mixed samples for both targets, by their shares."""
    if sample.mixed is None:
        return loss(outputs, sample.targets)
    other, share = sample.mixed
    return share * loss(outputs, sample.targets) + (1 - share) * loss(outputs, other)


def check_logits(student: Tensor, teacher: Tensor) -> None:
    """Raises InfeasibleRecipe where these are no logits of the same classes."""
    if student.shape != teacher.shape:
        raise InfeasibleRecipe(
            f"distillation: the teachers' outputs must be like the student's, {_each(student)}, got {_each(teacher)}; logits are compared "
            "class by class. Choose a teacher of the same classes, or give the Task a distillation_loss."
        )
    if student.dim() < 2 or student.shape[1] < 2:
        raise InfeasibleRecipe(
            f"distillation: outputs must be logits (N, classes, ...) of two classes or more, got {_each(student)}; the softmax of one "
            "number is 1. Give the Task a distillation_loss, or set soft_weight to 0."
        )


def _each(outputs: Tensor) -> str:
    return f"({', '.join(['N', *map(str, outputs.shape[1:])])})"
