"""The model that a built-in task compresses: the user's weights, or trained here once and kept by what its training depends on."""

import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.errors import InvalidTask
from autocompress.progress import Progress
from autocompress.runs import write_atomically
from autocompress.tasks.batches import Batches, one_line, seeded
from autocompress.tasks.checkpoint import load_weights_
from autocompress.tasks.find import made
from autocompress.tasks.task import outputs_of


@dataclass(frozen=True)
class Given:
    """What a user brings beside the data, empty where nothing: a file of weights, package.module:factory of an architecture.

    ``sizes``: what the factory may ask for by the names of its arguments, as ``classes``.
    """

    weights: str = ""
    model: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Training:
    """How a baseline is trained: a one-cycle learning rate (Smith & Topin 2017) up to ``rate``, SGD with momentum or AdamW."""

    batches: Batches
    epochs: int
    rate: float
    adaptive: bool = False
    decay: float = 5e-4
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    seed: int = 0

    @property
    def numbers(self) -> str:
        return repr((self.batches.batch_size, self.epochs, self.rate, self.adaptive, self.decay, self.seed))


def baseline(name: str, build: Callable[[], nn.Module], given: Given, training: Training, cache: Path, progress: Progress) -> nn.Module:
    """The trained model of a task, in eval mode: ``build()`` or the user's architecture, with the user's weights or trained here.

    Raises InvalidTask for an architecture or weights that are none, and for a kept file that does not read.
    """
    with seeded(training.seed):
        model = made("--model", given.model, offered=given.sizes) if given.model else build()
    if not isinstance(model, nn.Module):
        raise InvalidTask(f"--model {given.model}: must return a torch.nn.Module, it returned {type(model).__name__}")
    _check_fit(model, given, training)
    if given.weights:
        load_weights_(model, Path(given.weights).expanduser())
        return model.eval()
    file = cache / f"{name}-{content_of(model, training)}.safetensors"
    if file.exists():
        try:
            model.load_state_dict(load_file(file))
        except (SafetensorError, RuntimeError) as error:
            first = " ".join(str(error).split())[:120]
            raise InvalidTask(f"{file}: the kept baseline does not read ({first}); delete it, and it is trained again") from None
    else:
        train_(model, training, progress, f"training the {name} baseline")
        write_atomically(file, lambda draft: draft.write_bytes(save(model.state_dict())))
    return model.eval()


def _check_fit(model: nn.Module, given: Given, training: Training) -> None:
    """Raises InvalidTask where an architecture does not take the task's inputs, or its outputs are not what the loss takes."""
    if not given.model:
        return
    batches = training.batches
    x, y = batches.augment(batches.x[:2]), batches.y[:2]
    sizes = ", ".join(f"{name} {size}" for name, size in given.sizes.items())
    try:
        float(training.loss(outputs_of(model, x), y))
    except Exception as error:  # whatever a user's model raises
        what = f"inputs {tuple(x.shape)} {x.dtype}, targets {tuple(y.shape)} ({sizes})"
        raise InvalidTask(f"--model {given.model}: it does not fit this task, {what}: {one_line(error)}") from error


def content_of(model: nn.Module, training: Training) -> str:
    """Hex digest of all that the trained weights depend on: sources, architecture, first weights, settings, data, version of torch."""
    augment = training.batches.augment
    functions = (augment, getattr(augment, "func", augment), training.loss)
    modules = {type(module).__module__ for module in model.modules()} | {getattr(one, "__module__", "") for one in functions}
    own = sorted(name for name in {*modules, __name__} if name and name.partition(".")[0] not in ("torch", "functools"))
    sha = hashlib.sha256(f"{model!r} {training.numbers} {getattr(augment, 'args', '')} {torch.__version__}".encode())
    for name in own:
        try:
            sha.update(inspect.getsource(sys.modules[name]).encode())
        except (OSError, TypeError, KeyError):  # typed into an interpreter: the first weights below have to tell it apart
            sha.update(name.encode())
    for value in (*model.state_dict().values(), training.batches.x, training.batches.y):
        sha.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:12]


def train_(model: nn.Module, training: Training, progress: Progress, what: str) -> None:
    """Train in place, on the GPU where there is one; seeded. The weights end contiguous, on the CPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps = training.epochs * -(-len(training.batches.x) // training.batches.batch_size)
    with seeded(training.seed), progress.stage(what, steps) as advance:
        model.to(device)
        lay_out_(model, torch.channels_last)  # 1.4 times faster on a CPU
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer: torch.optim.Optimizer
        if training.adaptive:
            optimizer = torch.optim.AdamW(parameters, training.rate, weight_decay=training.decay)
        else:
            optimizer = torch.optim.SGD(parameters, training.rate, momentum=0.9, weight_decay=training.decay, nesterov=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.rate, total_steps=steps)
        model.train()
        for _ in range(training.epochs):
            for x, y in training.batches:
                if len(x) > 1:  # batch norm cannot train on a single sample
                    loss = training.loss(model(x.to(device)), y.to(device))
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                schedule.step()
                advance(1)
        lay_out_(model, torch.contiguous_format)
        model.cpu()


def lay_out_(model: nn.Module, form: torch.memory_format) -> None:
    """Weights of convolutions in another order in memory; what they compute follows them."""
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.to(memory_format=form)
