"""Knowledge distillation from the logits of the uncompressed model (Hinton, Vinyals, Dean 2015)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from autocompress.recipe import Distillation

Loss = Callable[[Tensor, Tensor], Tensor]


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), mean over the batch; logits (N, classes)."""
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


def combined_loss(settings: Distillation | None, task_loss: Loss, student: Tensor, teacher: Tensor | None, targets: Tensor) -> Tensor:
    """hard_weight * task loss + soft_weight * distillation loss; the task loss alone without settings or teacher."""
    if settings is None or teacher is None:
        return task_loss(student, targets)
    loss = torch.zeros((), device=student.device)
    if settings.hard_weight:
        loss = loss + settings.hard_weight * task_loss(student, targets)
    if settings.soft_weight:
        loss = loss + settings.soft_weight * distillation_loss(student, teacher, settings.temperature)
    return loss
