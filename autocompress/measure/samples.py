"""What is known of each sample: its score, whether its answer is right, how sure the model was. (N,) numpy arrays of tensors (N, ...)."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.errors import InvalidTask
from autocompress.tasks.batches import one_line
from autocompress.tasks.task import Task, accuracy

PROBABLY = 1e-3  # a row that sums to 1 up to this is one of probabilities
Numbers = NDArray[np.float64]  # (N,)


def sample_scores(task: Task, outputs: Tensor, targets: Tensor) -> Numbers | None:
    """The metric of each sample (N,), where the metric is their mean; None for a metric of a whole split.

    Raises InvalidTask where the task's own function fails or gives something else.
    """
    if task.sample_scores is None and task.metric is accuracy:
        right = (outputs.argmax(1) == targets).double()
        return _array(100 * right.reshape(len(right), -1).mean(1))
    if task.sample_scores is None:
        return None
    what = f"task {task.name!r}: sample_scores"
    try:
        scores = _array(task.sample_scores(outputs, targets))
    except Exception as error:  # whatever a user's function raises
        raise InvalidTask(f"{what} failed on outputs {tuple(outputs.shape)}: {one_line(error)}") from error
    if scores.shape != (len(outputs),) or not np.isfinite(scores).all():
        broken = int((~np.isfinite(scores)).sum())
        raise InvalidTask(f"{what} gave {scores.shape}, {broken} of them not finite; it must be ({len(outputs)},), all finite")
    return scores


def no_classes(task: Task, outputs: Tensor, targets: Tensor) -> str:
    """Why the outputs are not one logit a class, or an empty string: outputs (N, classes), targets (N,) of class numbers."""
    if task.metric is not accuracy and not (task.distillation_loss is None and task.training_step is None):
        return "the task teaches by a loss of its own, so its outputs are not taken for class logits"
    if outputs.dim() != 2 or outputs.shape[1] < 2 or targets.dim() != 1 or targets.is_floating_point() or not len(targets):
        return f"outputs {tuple(outputs.shape)} with targets {tuple(targets.shape)} {targets.dtype} are no class logits"
    if targets.dtype == torch.bool or int(targets.min()) < 0 or int(targets.max()) >= outputs.shape[1]:
        return f"targets outside 0 to {outputs.shape[1] - 1} are no class numbers"
    return ""


def is_right(outputs: Tensor, targets: Tensor) -> NDArray[np.bool_]:
    """Is the largest logit that of the target; outputs (N, classes), targets (N,)."""
    right: NDArray[np.bool_] = (outputs.argmax(1) == targets).cpu().numpy()
    return right


def margins(outputs: Tensor) -> Numbers:
    """Largest logit minus the next one (N,): small where the model could not decide. It looks at no target, so it favours no model."""
    first, second = outputs.nan_to_num().topk(2, dim=1).values.double().unbind(1)
    return _array(first - second)


def confidence(outputs: Tensor) -> Numbers:
    """Largest probability (N,): of the softmax of logits or of their logarithms; what is probabilities already, rows of sum 1, stays."""
    values = outputs.float().nan_to_num()
    largest = values.amax(1)
    if bool(values.amin() >= 0) and bool(((values.sum(1) - 1).abs() < PROBABLY).all()):
        return _array(largest)
    return _array((largest - values.logsumexp(1)).exp())


def _array(values: Tensor) -> Numbers:
    return values.detach().cpu().double().numpy()
