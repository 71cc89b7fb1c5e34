"""The harm of every choice alone: how much the task's loss rises, and how far the outputs go from the given model's, untrained.

Measured on calibration samples with their labels, which are training samples (``task.calibration``, by default the first of ``train``):
the search and holdout splits are not looked at. One forward pass a choice, which begins where the choice changes something.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.compress.distill import Sample
from autocompress.compress.rehearse import Rehearsal
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import Recipe
from autocompress.records import Tried
from autocompress.survey.replay import Replay

HARM_SECONDS = 20.0  # what is not tried by then is not tried
SAMPLES = 256
FEWEST_SAMPLES = 64
BATCH = 64
GOLDEN = (math.sqrt(5) - 1) / 2

Asked = tuple[Tried, Recipe]
Advance = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class Judge:
    """What outputs are judged by: samples with their targets, (N, ...) each, and the task's loss. ``of_classes``: outputs are logits of
    classes, whose divergence is KL(given || changed) in nats a sample; else it is the mean square of the difference.
    """

    inputs: Tensor
    targets: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    of_classes: bool


@dataclass(frozen=True)
class Harms:
    """Every choice with its harm, in the order asked, and the samples that they were measured on."""

    tried: tuple[Tried, ...]
    samples: int
    seconds: float


def harms(
    model: nn.Module, asked: Sequence[Asked], judge: Judge, seconds: float = HARM_SECONDS, advance: Advance = lambda steps: None
) -> Harms:
    """Try each choice of ``asked``, with the recipe that makes it alone; choices that end the same (equal plans) are tried once.

    On fewer samples where all choices on all of them would take longer than ``seconds``, and no choice after that.
    """
    started = time.monotonic()
    scene = _Scene(model, judge, seconds / max(len(asked), 1))
    found: dict[int, Tried] = {}
    known: dict[str, Tried] = {}
    for index in _order(asked):
        tried, recipe = asked[index]
        plans = recipe.digest
        if plans not in known:
            if time.monotonic() - started > seconds:
                found[index] = tried.model_copy(update={"reason": f"not tried: {seconds:g} s were over, and others went first"})
                continue
            known[plans] = scene.trial(tried, recipe)
        measured = {name: getattr(known[plans], name) for name in ("harm", "divergence", "reason")}
        found[index] = tried.model_copy(update=measured)
        advance(1)
    return Harms(tuple(found[index] for index in range(len(asked))), len(scene.targets), time.monotonic() - started)


def _order(asked: Sequence[Asked]) -> list[int]:
    """Of every dimension one choice, then of every one the next, the hardest first; dimensions in an order that leaves no stretch of the
    model out, wherever it is cut short (multiples of the golden ratio).
    """
    ranks: dict[str, list[int]] = {}
    for index, (tried, _) in enumerate(asked):
        ranks.setdefault(f"{tried.kind}:{tried.name}", []).append(index)
    spread = sorted(range(len(ranks)), key=lambda place: place * GOLDEN % 1)
    rows = [list(ranks.values())[place] for place in spread]
    return [row[turn] for turn in range(max(map(len, rows), default=0)) for row in rows if turn < len(row)]


class _Scene:
    """The samples, the given model's outputs on them, and its working copies with what their layers gave."""

    def __init__(self, model: nn.Module, judge: Judge, seconds_each: float) -> None:
        self.loss, self.of_classes = judge.loss, judge.of_classes
        inputs, targets = judge.inputs[:SAMPLES], judge.targets[:SAMPLES]
        rehearsal = Rehearsal(model, inputs[:BATCH])
        with torch.no_grad():
            rehearsal.work(inputs[:BATCH])
            before = time.monotonic()
            rehearsal.work(inputs[:BATCH])
        a_sample = (time.monotonic() - before) / len(inputs[:BATCH])
        count = int(seconds_each / max(a_sample, 1e-9))
        count = max(FEWEST_SAMPLES, min(count // BATCH * BATCH, SAMPLES))
        self.batches, self.targets = torch.split(inputs[:count], BATCH), targets[:count]
        self.rehearsal = Rehearsal(model, inputs[:count], (Sample(inputs[:count], targets[:count]),), judge.loss)
        self.replays: dict[int, Replay] = {}
        self.outputs = torch.cat(self._replay(self.rehearsal.work).whole)
        self.before = float(self.loss(self.outputs, self.targets))

    def trial(self, tried: Tried, recipe: Recipe) -> Tried:
        try:
            with self.rehearsal.applied(recipe, self._calibrate) as (module, work, changed):
                outputs = self._run(module, work, changed)
        except InfeasibleRecipe as error:
            return tried.model_copy(update={"reason": str(error).splitlines()[0]})
        if outputs.is_floating_point() and not outputs.isfinite().all():
            return tried.model_copy(update={"reason": "outputs are not finite"})
        harm = float(self.loss(outputs, self.targets)) - self.before
        if not math.isfinite(harm):
            return tried.model_copy(update={"reason": f"the loss is {harm}"})
        return tried.model_copy(update={"harm": harm, "divergence": self._divergence(outputs)})

    def _replay(self, work: nn.Module) -> Replay:
        """What the layers of a working copy give when nothing is changed; first asked for when something is, it asks the given model."""
        if id(work) not in self.replays:
            self.replays[id(work)] = Replay(work, self.batches)
        return self.replays[id(work)]

    def _calibrate(self, module: nn.Module, inputs: Tensor) -> Tensor:
        """Ranges are taken from all samples; the layers before the one that is rounded give what they gave before."""
        return self._run(module, module.model, set(module.bits))  # type: ignore[arg-type]

    def _run(self, module: nn.Module, work: nn.Module, changed: set[str]) -> Tensor:
        parts = []
        with self._replay(work).before(changed) as turn_to, torch.no_grad():
            for index, batch in enumerate(self.batches):
                turn_to(index)
                parts.append(module(batch))
        return torch.cat(parts)

    def _divergence(self, outputs: Tensor) -> float:
        given, new = self.outputs.float(), outputs.float()
        if not self.of_classes:
            return float((given - new).square().mean())
        return float(F.kl_div(new.log_softmax(1), given.log_softmax(1), reduction="batchmean", log_target=True).clamp_min(0))
