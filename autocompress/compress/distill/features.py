"""Inner outputs of the student compared with the teacher's: hints (Romero et al. 2015, "FitNets", eq. 3) and attention maps.

A hint is the mean square of ``adapter(student's features) - teacher's features``; the adapter is a linear map of the channels (a 1x1
convolution on images) where widths differ, trained with the student and thrown away after. The teacher runs beside the student, without
gradients and in eval mode, on the same inputs; hooks keep the outputs of the named modules alone, and only for the step.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.blocks import FakeQuantized
from autocompress.compress.distill.attention import attention_distance, attention_map
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import Distillation
from autocompress.tasks.task import evaluating

LENGTHWISE = (nn.Conv1d, nn.BatchNorm1d)  # they make (N, C, length); other modules with three axes (N, length, C)
POOLS: dict[int, Callable[[Tensor, list[int]], Tensor]] = {4: F.adaptive_avg_pool2d, 5: F.adaptive_avg_pool3d}  # type: ignore[dict-item]


def named_pairs(features: Sequence[str]) -> list[tuple[str, str]]:
    """``"name"`` or ``"student=teacher"`` -> (name in the student, name in the teacher)."""
    parts = [name.partition("=") for name in features]
    return [(student.strip(), (teacher or student).strip()) for student, _, teacher in parts]


@contextlib.contextmanager
def listening(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """While it lasts, the dict holds the last output of every named module that ran (of a tuple its first element).

    Where a later layer works in place, it holds what that made of the output.
    """
    heard: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            output = output[0] if isinstance(output, list | tuple) and output else output
            if isinstance(output, Tensor):
                heard[name] = output

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in dict.fromkeys(names)]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, eq=False)
class Pair:
    """Two modules that are compared: their names, the axis of their channels, and what fits the student's width to the teacher's."""

    student: str
    teacher: str
    axis: int
    adapter: nn.Module | None

    def hint(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean square of the adapted difference."""
        student, teacher = self._same_size(student, teacher)
        if isinstance(self.adapter, nn.Linear):
            student = self.adapter(student.movedim(self.axis, -1)).movedim(-1, self.axis)
        elif self.adapter is not None:
            student = self.adapter(student)
        return F.mse_loss(student, teacher)

    def attention(self, student: Tensor, teacher: Tensor) -> Tensor:
        return attention_distance(*(attention_map(one, self.axis) for one in self._same_size(student, teacher)))

    def _same_size(self, *features: Tensor) -> tuple[Tensor, ...]:
        """Maps of different heights and widths, averaged to the smaller ones."""
        sizes = [tuple(one.shape[2:]) for one in features]
        if self.axis != 1 or sizes[0] == sizes[1] or features[0].dim() not in POOLS:
            return features
        smaller = [min(pair) for pair in zip(*sizes, strict=True)]
        return tuple(one if list(one.shape[2:]) == smaller else POOLS[one.dim()](one, smaller) for one in features)


class Comparison:
    """Student and teacher, side by side. In every step: ``ask`` the teacher, run the student, take ``distance``."""

    def __init__(self, settings: Distillation, teacher: nn.Module, heard: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
        self.settings, self.teacher = settings, teacher
        self.heard = heard  # of the student, of the teacher
        self.pairs: list[Pair] = []

    @torch.no_grad()
    def ask(self, inputs: Tensor) -> None:
        """Run the teacher; inputs (N, ...)."""
        with evaluating(self.teacher):
            self.teacher(inputs)

    def distance(self) -> Tensor:
        """feature_weight * mean hint of the pairs + attention_weight * sum of their attention distances; forgets what was heard.

        In float32 at least: squares of half floats leave their range.
        """
        losses = []
        for pair in self.pairs:
            student, teacher = (_widened(heard[name]) for heard, name in zip(self.heard, (pair.student, pair.teacher), strict=True))
            if self.settings.feature_weight:
                losses.append(self.settings.feature_weight / len(self.pairs) * pair.hint(student, teacher))
            if self.settings.attention_weight:
                losses.append(self.settings.attention_weight * pair.attention(student, teacher))
        for heard in self.heard:
            heard.clear()
        return torch.stack(losses).sum()

    def parameters(self) -> list[nn.Parameter]:
        """Those of the adapters."""
        return [parameter for pair in self.pairs if pair.adapter is not None for parameter in pair.adapter.parameters()]


@contextlib.contextmanager
def compared(student: nn.Module, teacher: nn.Module | None, settings: Distillation | None, example: Tensor) -> Iterator[Comparison | None]:
    """A comparison of the modules named in ``settings.features``, while it lasts; None where features and attention maps have no weight.

    Adapters are made from one pass of ``example`` (N, ...) through both and drawn from torch's global random state. Raises
    InfeasibleRecipe where there is no teacher, a module is absent or does not run, or two outputs cannot be compared.
    """
    if settings is None or not (settings.feature_weight or settings.attention_weight):
        yield None
        return
    if teacher is None:
        raise InfeasibleRecipe("distillation.features: nobody teaches, so there is nothing to compare with. Set both weights to 0.")
    inner = student.model if isinstance(student, FakeQuantized) else student
    names = named_pairs(settings.features)
    for model, side, whose in ((inner, 0, "student"), (teacher, 1, "teacher")):
        _check_names(model, [pair[side] for pair in names], whose)
    with listening(inner, [pair[0] for pair in names]) as own, listening(teacher, [pair[1] for pair in names]) as taught:
        comparison = Comparison(settings, teacher, (own, taught))
        comparison.ask(example)
        with evaluating(student), torch.no_grad():
            student(example)
        for first, second in names:
            for name, heard in ((first, own), (second, taught)):
                if name not in heard:
                    raise InfeasibleRecipe(f"distillation.features: {name} did not run or gave no tensor. Name another module.")
            modules = inner.get_submodule(first), teacher.get_submodule(second)
            comparison.pairs.append(_pair((first, second), modules, (own[first], taught[second]), settings))
        own.clear()
        taught.clear()
        yield comparison


def _check_names(model: nn.Module, names: Sequence[str], whose: str) -> None:
    known = [name for name, _ in model.named_modules() if name]
    for name in names:
        if name not in known:
            listed = ", ".join(known[:40]) + (", ..." if len(known) > 40 else "")
            raise InfeasibleRecipe(f"distillation.features: the {whose} has no module {name!r}. It has {listed}.")


def _pair(names: tuple[str, str], modules: tuple[nn.Module, nn.Module], outputs: tuple[Tensor, Tensor], settings: Distillation) -> Pair:
    """The pair with its adapter. Raises InfeasibleRecipe where the outputs cannot be compared."""
    student, teacher = outputs
    axis = channels_axis(student, teacher, lengthwise=any(isinstance(one, LENGTHWISE) for module in modules for one in module.modules()))
    shapes = f"{tuple(student.shape)} of {names[0]} and {tuple(teacher.shape)} of {names[1]}"
    if axis is None:
        raise InfeasibleRecipe(
            f"distillation.features: outputs must differ in channels or in height and width alone, got {shapes}. Name other modules."
        )
    if settings.attention_weight and student.dim() < 3:
        raise InfeasibleRecipe(f"distillation.attention_weight: an attention map needs positions, got {shapes}. Name other modules.")
    widths = student.shape[axis], teacher.shape[axis]
    adapter: nn.Module | None = None
    if settings.feature_weight and widths[0] != widths[1]:
        adapter = nn.Conv2d(*widths, 1) if student.dim() == 4 and axis == 1 else nn.Linear(*widths)
        adapter.to(student.device, torch.promote_types(student.dtype, torch.float32))
    return Pair(*names, axis, adapter)


def channels_axis(student: Tensor, teacher: Tensor, lengthwise: bool = False) -> int | None:
    """The axis of the channels of two outputs; None where they cannot be compared.

    If one axis alone differs it is that one, but not height or width of (N, C, H, W); if none does, it is 1 of two axes, four and more,
    and of three the last, or 1 if ``lengthwise``.
    """
    axes = student.dim()
    if axes != teacher.dim() or axes < 2 or len(student) != len(teacher):
        return None
    differ = [axis for axis in range(1, axes) if student.shape[axis] != teacher.shape[axis]]
    if axes == 2 or axes in POOLS:
        return axes - 1 if differ == [axes - 1] else 1
    if len(differ) > 1:
        return None
    return differ[0] if differ else (1 if lengthwise and axes == 3 else axes - 1 if axes == 3 else 1)


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
