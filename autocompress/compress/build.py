"""The stages of a recipe in its order, from the given model to what a runtime lowers; and the same structure again without training.

Given model or student -> prune -> factorize -> sparsify -> distill -> quantize, or in another order that makes sense.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from autocompress.blocks import FakeQuantized
from autocompress.compress.distill import Lesson, Sample, retaught
from autocompress.compress.distill.assistant import make_assistant
from autocompress.compress.factorize import factorize, ranks_from_state
from autocompress.compress.prune import (
    Scoring,
    attention_modules,
    cubic,
    drop_blocks,
    keeps_at,
    prune,
    prune_heads,
    prune_recurrent,
    recurrent_modules,
    sparsify,
    widths,
)
from autocompress.compress.quantize import fold_batch_norm, layer_bits, quantize
from autocompress.compress.recover import Look, recover_
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import LayerPlan, Pruning, Recipe

FEW = 64  # inputs that create every quantizer; their ranges come from the stored weights
CALIBRATION_BATCH = 128
RECURRENT = (nn.LSTM, nn.GRU)

BuildStudent = Callable[[float, float], nn.Module]
StageTimer = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True, eq=False)
class Materials:
    """What the stages work with beside the model, on its device: ``samples`` are ``training_steps`` batches with the teachers' outputs,
    ``scoring`` a few batches for importances that look at data, ``calibration`` inputs (N, ...). ``look(model, step)`` is called before
    the float recovery (step 0) and after each of its steps; it must leave the model as it is, and what it raises ends the work.
    """

    calibration: Tensor
    lesson: Lesson
    samples: Iterator[Sample] = field(default_factory=lambda: iter(()))
    scoring: tuple[Sample, ...] = ()
    build_student: BuildStudent | None = None
    look: Look | None = None

    @property
    def example(self) -> Tensor:
        """One input, (1, ...)."""
        return self.calibration[:1]


def compress(model: nn.Module, recipe: Recipe, given: Materials, timed: StageTimer | None = None) -> nn.Module:
    """A new model, compressed, recovered, frozen, in eval mode; ``timed(name)`` is entered around every piece of work.

    Raises InfeasibleRecipe where the model cannot take the recipe, Diverged where its training does.
    """
    line = _Line(model, recipe, given, timed or (lambda name: contextlib.nullcontext()))
    return line.run()


def training_steps(recipe: Recipe) -> int:
    """Batches that the stages of a recipe train on, all in all."""
    pruning, recovery = recipe.pruning, recipe.recovery
    steps = recovery.steps if "distill" in recipe.order else 0
    if pruning.schedule == "cubic":
        staged = (any(plan.keep < 1 for plan in recipe.layers), _has_zeros(recipe))
        steps += sum(staged) * pruning.iterations * pruning.steps_between
    if recipe.distillation is not None and recipe.distillation.assistant is not None:
        steps += recipe.distillation.assistant.steps
    return steps + (recovery.quantized_steps if recipe.is_quantized else 0)


class _Line:
    """One run through the stages."""

    def __init__(self, model: nn.Module, recipe: Recipe, given: Materials, timed: StageTimer) -> None:
        self.model, self.recipe, self.given, self.timed = model, recipe, given, timed
        self.samples, self.lesson = given.samples, given.lesson
        self.lessons_left, self.steps_done = recipe.order.count("distill"), 0
        importance = {str(name): weight for name, weight in recipe.pruning.importance.items()}
        self.scoring = Scoring(importance, given.scoring, given.lesson.loss, recipe.pruning.seed)

    def run(self) -> nn.Module:
        work = start(self.model, self.recipe, self.given.build_student)
        if self.recipe.distillation is not None and self.recipe.distillation.assistant is not None:
            self._hire_assistant()
        stages = {
            "prune": self.prune, "factorize": self.factorize, "sparsify": self.sparsify,
            "distill": self.distill, "quantize": self.quantize,
        }  # fmt: skip
        for name in self.recipe.order:
            work = stages[name](work)
        if not isinstance(work, FakeQuantized):
            work = fold_batch_norm(work, self.given.example)
        return work.eval()

    def _hire_assistant(self) -> None:
        """From here on the assistant teaches, on the same inputs."""
        assert self.recipe.distillation is not None
        settings = self.recipe.distillation.assistant
        assert settings is not None
        with self.timed("recover"):
            assistant = make_assistant(self.model, settings, self.recipe, self.given.example, self.samples, self.given.lesson)
        self.samples, self.lesson = retaught(self.samples, assistant), replace(self.lesson, teacher=assistant)

    def train(self, model: nn.Module, steps: int | None = None, look: Look | None = None) -> nn.Module:
        if model is self.model:  # no stage before made a copy
            model = copy.deepcopy(model)
        with self.timed("recover"):
            return recover_(model, self.recipe, self.samples, self.lesson, steps, look)

    def prune(self, model: nn.Module) -> nn.Module:
        """Blocks first; then heads, hidden units and channels, at once or along the cubic schedule."""
        example = self.given.example
        with self.timed("shrink"):
            work = without_blocks(model, self.recipe, example)
            keep = shares_of(work, self.recipe)
            if not keep or self.recipe.pruning.schedule == "one_shot":
                return cut(work, keep, example, self.scoring)
            full = counts(work, example)
        for share in cubic(self.recipe.pruning.iterations):
            with self.timed("shrink"):
                work = cut(work, keeps_at(keep, share), example, self.scoring, full)
            work = self.train(work, self.recipe.pruning.steps_between)
        return work

    def factorize(self, model: nn.Module) -> nn.Module:
        with self.timed("shrink"):
            return factorize(model, plans_of(model, self.recipe), self.given.calibration)

    def sparsify(self, model: nn.Module) -> nn.Module:
        if not _has_zeros(self.recipe):
            return model
        if self.recipe.pruning.schedule == "one_shot":
            with self.timed("shrink"):
                return sparsify(model, self.recipe, self.scoring)
        for share in cubic(self.recipe.pruning.iterations):
            with self.timed("shrink"):
                model = sparsify(model, self.recipe, self.scoring, share)
            model = self.train(model, self.recipe.pruning.steps_between)
        return model

    def distill(self, model: nn.Module) -> nn.Module:
        """An equal share of the steps for each of these stages; the last takes what is left over."""
        count, steps = self.recipe.order.count("distill"), self.recipe.recovery.steps
        self.lessons_left -= 1
        own = steps // count + (steps % count if self.lessons_left == 0 else 0)
        done, self.steps_done, look = self.steps_done, self.steps_done + own, self.given.look
        if look is None:
            return self.train(model, own)
        if done == 0:
            with self.timed("recover"):
                look(model, 0)
        return self.train(model, own, lambda work, step: look(work, done + step))

    def quantize(self, model: nn.Module) -> nn.Module:
        if not self.recipe.is_quantized:
            return model
        with self.timed("quantize"):
            work = settle(model, self.recipe, self.given.calibration)
        if isinstance(work, FakeQuantized):
            self.train(work)
            work.freeze_()
        return work


def start(model: nn.Module, recipe: Recipe, build_student: BuildStudent | None) -> nn.Module:
    """The model that the stages begin with. Raises InfeasibleRecipe where the task cannot build the student, or plans name none of it."""
    work = model
    if recipe.student is not None:
        if build_student is None:
            raise InfeasibleRecipe("student: the task has no build_student(width, depth). Give the Task one, or leave the student out.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.recovery.seed)  # its weights are drawn here
            work = build_student(recipe.student.width, recipe.student.depth)
        work.to(next(model.parameters()).device)
    known = {name for name, _ in work.named_modules()}
    strangers = [plan.name for plan in recipe.layers if plan.name not in known]
    if strangers:
        whose = "student" if recipe.student is not None else "model"
        raise InfeasibleRecipe(f"{', '.join(strangers[:8])}: the {whose} has no such layer. Take these plans out of the recipe.")
    return work


def without_blocks(model: nn.Module, recipe: Recipe, example: Tensor) -> nn.Module:
    """The model without the blocks that a recipe leaves out; the given one, not a copy, where there are none."""
    drops = [plan.name for plan in recipe.layers if plan.drop]
    return drop_blocks(model, drops, example) if drops else model  # prune groups are remembered by model


def shares_of(model: nn.Module, recipe: Recipe) -> dict[str, float]:
    """What stays of the channels, hidden units and heads that are to be cut; the rest went with its block."""
    present = dict(model.named_modules())
    return {plan.name: plan.keep for plan in recipe.layers if plan.keep < 1 and plan.name in present}


def counts(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Output channels of every layer, units of every recurrent layer, heads of every attention module: what shares count from."""
    units = {name: item.hidden for name, item in recurrent_modules(model, example).items()}
    heads = {name: attention.heads for name, attention in attention_modules(model, example).items()}
    return widths(model) | units | heads


def cut(
    model: nn.Module, keep: Mapping[str, float], example: Tensor, scoring: Scoring | None = None, full: Mapping[str, int] | None = None
) -> nn.Module:
    """A copy with fewer heads, hidden units and channels; ``full``: what the shares count from, where the model was cut before.

    Raises InfeasibleRecipe for a name that is none of these.
    """
    work, present = model, dict(model.named_modules())
    units = {name: share for name, share in keep.items() if isinstance(present[name], RECURRENT)}
    layers = {name: share for name, share in keep.items() if isinstance(present[name], nn.Conv2d | nn.Linear)}
    heads = {name: share for name, share in keep.items() if name not in units and name not in layers}
    if heads:
        known = attention_modules(work, example)
        strangers = [name for name in heads if name not in known]
        if strangers:
            name = strangers[0]
            raise InfeasibleRecipe(f"{name}: keep {heads[name]:g}, but it is no layer and no attention module. Set keep to 1.")
        work = prune_heads(work, heads, example, scoring, full)
    if units:
        work = prune_recurrent(work, units, example, scoring, full)
    return prune(work, layers, example, scoring, full)


def shrink(model: nn.Module, recipe: Recipe, inputs: Tensor, build_student: BuildStudent | None = None) -> nn.Module:
    """The untrained structure of a recipe, from inputs (N, ...): what its speed depends on, channels chosen by their norm."""
    work = without_blocks(start(model, recipe, build_student), recipe, inputs[:1])
    return factorize(cut(work, shares_of(work, recipe), inputs[:1]), plans_of(work, recipe), inputs)


def plans_of(model: nn.Module, recipe: Recipe) -> dict[str, LayerPlan]:
    """The plans of layers that are there: those of a dropped block went with it."""
    present = dict(model.named_modules())
    return {name: plan for name, plan in recipe.plans.items() if name in present}


def settle(model: nn.Module, recipe: Recipe, inputs: Tensor) -> nn.Module:
    """What a runtime lowers: fake-quantized with ranges from ``inputs`` (N, ...), or in float with batch norm folded."""
    if layer_bits(model, recipe):
        return quantize(model, recipe, torch.split(inputs, CALIBRATION_BATCH))
    return fold_batch_norm(model, inputs[:1])


def freeze_(model: nn.Module) -> None:
    """Fix what a runtime needs fixed; a float model has nothing to fix."""
    if isinstance(model, FakeQuantized):
        model.freeze_()


def provisional(recipe: Recipe) -> Recipe:
    """A recipe of the same structure without what takes time to find better values: criteria, adaptive rounding, slow observers."""
    fast = {"adaround_steps": 0, "observer": "minmax", "weight_observer": "minmax", "equalize": False}
    return recipe.model_copy(update={"pruning": Pruning(), "quantization": recipe.quantization.model_copy(update=fast)})


def rebuild(
    model: nn.Module, recipe: Recipe, inputs: Tensor, state: Mapping[str, Tensor], build_student: BuildStudent | None = None
) -> nn.Module:
    """The module of a recipe with its stored weights, frozen, in eval mode; inputs (N, ...) create the quantizers."""
    ranked = ranks_from_state(recipe.plans, {name.removeprefix("model."): value for name, value in state.items()})
    same = provisional(recipe).model_copy(update={"layers": tuple(ranked.values())})
    settled = settle(shrink(model, same, inputs, build_student), same, inputs[:FEW])
    freeze_(settled)
    settled.load_state_dict(dict(state))
    return settled.eval()


def _has_zeros(recipe: Recipe) -> bool:
    return recipe.pruning.global_sparsity > 0 or any(plan.is_sparse for plan in recipe.layers)
