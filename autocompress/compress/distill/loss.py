"""Knowledge distillation from the logits of teachers (Hinton, Vinyals, Dean 2015), and what a training step reads."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) -> one number
SoftLoss = Callable[[Tensor, Tensor, float], Tensor]  # (outputs of the student, of the teachers, temperature) -> one number
TrainingStep = Callable[[nn.Module, Tensor, Tensor, Tensor | None], Tensor]  # (model, inputs, targets, teachers' outputs) -> loss


class Mixed(NamedTuple):
    """The other half of mixed samples: targets (N, ...), and the share of the first ones in the loss."""

    targets: Tensor
    share: float


class Sample(NamedTuple):
    """A training batch: inputs (N, ...), targets (N, ...), the teachers' outputs (N, ...), what it was mixed with."""

    inputs: Tensor
    targets: Tensor
    teacher: Tensor | None = None
    mixed: Mixed | None = None


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), mean over the batch; logits (N, classes).

    Further axes, (N, classes, ...) as in segmentation, are averaged over too, as ``cross_entropy`` does.
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    places = student.numel() // student.shape[1]
    return F.kl_div(log_student, log_teacher, reduction="sum", log_target=True) * (temperature**2 / places)
