"""What data tells about a model before it is cut: gradients of the loss, their squares, and the signals that layers read.

All of it is measured on a copy in eval mode, so the model's modes, gradients and hooks stay what they were and batch norm learns nothing.
"""

import contextlib
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from autocompress.errors import InfeasibleRecipe

if TYPE_CHECKING:
    from autocompress.compress.distill import Loss, Sample


@dataclass
class Signal:
    """Of the inputs of a layer, by channel: sum of |a| over all positions, their number, and the mean over positions of each sample."""

    total: Tensor  # (channels,)
    positions: int
    pooled: list[Tensor]  # of (N, channels)

    @property
    def magnitude(self) -> Tensor:
        """Mean |a|, (channels,)."""
        return self.total / self.positions


def gradients(model: nn.Module, samples: "Sequence[Sample]", loss: "Loss") -> dict[str, Tensor]:
    """Parameter name -> gradient of the mean loss over all inputs, like the parameter."""
    work = _copy(model)
    count = sum(len(sample.inputs) for sample in samples)
    with torch.enable_grad(), _recurrent_in_eval_mode(work):
        for sample in samples:
            (_loss(work, sample, loss) * (len(sample.inputs) / count)).backward()  # type: ignore[no-untyped-call]
    return {name: _finite(name, "gradient", _gradient(parameter)) for name, parameter in _parameters(work)}


def squared_gradients(model: nn.Module, samples: "Sequence[Sample]", loss: "Loss") -> dict[str, Tensor]:
    """Parameter name -> mean over the inputs of the squared gradient of each one's loss: the diagonal of the empirical Fisher matrix."""
    work = _copy(model)
    sums = {name: torch.zeros_like(parameter) for name, parameter in _parameters(work)}
    count = sum(len(sample.inputs) for sample in samples)
    with torch.enable_grad(), _recurrent_in_eval_mode(work):
        for sample in samples:
            for index in range(len(sample.inputs)):
                work.zero_grad(set_to_none=True)
                _loss(work, _one(sample, index), loss).backward()  # type: ignore[no-untyped-call]
                for name, parameter in _parameters(work):
                    if parameter.grad is not None:
                        sums[name] += parameter.grad.square()
    return {name: _finite(name, "gradient", total / count) for name, total in sums.items()}


def signals(model: nn.Module, samples: "Sequence[Sample]") -> dict[str, Signal]:
    """Name of every convolution, Linear and recurrent layer that runs -> what it reads on the samples."""
    work = _copy(model)
    found: dict[str, Signal] = {}

    def look(name: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            if not isinstance(args[0], Tensor):  # a packed sequence
                return
            x = args[0].detach()
            if isinstance(layer, nn.RNNBase) and not layer.batch_first and x.dim() == 3:
                x = x.transpose(0, 1)
            spatial = len(getattr(layer, "kernel_size", ()))
            x = x.movedim(x.dim() - 1 - spatial, -1)  # (N, ..., channels)
            x = x.reshape(x.shape[0] if x.dim() > 1 else 1, -1, x.shape[-1])
            signal = found.setdefault(name, Signal(torch.zeros_like(x[0, 0]), 0, []))
            signal.total += x.abs().sum((0, 1))
            signal.positions += x.shape[0] * x.shape[1]
            signal.pooled.append(x.mean(1))

        return hook

    for name, module in work.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear | nn.RNNBase):
            module.register_forward_pre_hook(look(name))
    with torch.no_grad():
        for sample in samples:
            work(sample.inputs)
    for name, signal in found.items():
        _finite(name, "input", signal.total)
    return found


def _copy(model: nn.Module) -> nn.Module:
    work = copy.deepcopy(model).eval().requires_grad_(True)
    work.zero_grad(set_to_none=True)
    return work


def _parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(model.named_parameters(remove_duplicate=False))


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _loss(model: nn.Module, sample: "Sample", loss: "Loss") -> Tensor:
    out = model(sample.inputs)
    value = loss(out, sample.targets)
    if sample.mixed is not None:
        value = sample.mixed.share * value + (1 - sample.mixed.share) * loss(out, sample.mixed.targets)
    return value


def _one(sample: "Sample", index: int) -> "Sample":
    pick = slice(index, index + 1)
    mixed = None if sample.mixed is None else sample.mixed._replace(targets=sample.mixed.targets[pick])
    return sample._replace(inputs=sample.inputs[pick], targets=sample.targets[pick], mixed=mixed)


def _finite(name: str, what: str, value: Tensor) -> Tensor:
    if not bool(torch.isfinite(value).all()):
        raise InfeasibleRecipe(f"{name}: its {what} is not finite on the scoring samples. Check the samples and the loss, or use l2.")
    return value


@contextlib.contextmanager
def _recurrent_in_eval_mode(model: nn.Module) -> Any:
    """The kernels of cuDNN have no backward pass for recurrent layers in eval mode."""
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        with torch.backends.cudnn.flags(enabled=False):
            yield
    else:
        yield
