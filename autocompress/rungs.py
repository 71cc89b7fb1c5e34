"""Looks at a model on its way through recovery: the drop on a fixed part of the search split, and the end of a trial that has no hope.

A look takes the outputs of the PyTorch model in eval mode, draws no random number and leaves the model as it was, so that training goes
on as if nobody had looked.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocompress.errors import InvalidTask
from autocompress.gate import RUNGS, Gate
from autocompress.records import CurvePoint
from autocompress.tasks.task import Batch, Task, lost, outputs_of, score

SAMPLES = 160  # on digits 60 ms a look, where a trial takes 4 s


class Hopeless(Exception):
    """Ends the work on a trial that the gate stops on its way."""


@dataclass(frozen=True, eq=False)
class Part:
    """Samples of the search split that every look is taken on, inputs (N, ...), and the baseline's score on them."""

    inputs: Tensor
    targets: Tensor
    reference: float


class Looks:
    """The looks at one trial, at the rungs that tell anything: ``curve``, and what the gate said first, if it said anything."""

    def __init__(self, task: Task, part: Part, gate: Gate, steps: int, high: float) -> None:
        """``steps``: of the float recovery; ``high``: the speedup of the trial at the most."""
        self.task, self.part, self.gate, self.high = task, part, gate, high
        self.rungs = {rung for rung in {round(share * steps) for share in RUNGS} if gate.is_telling(rung)}
        self.curve: list[CurvePoint] = []
        self.reason, self.hoped = "", 0.0

    def __call__(self, model: nn.Module, step: int) -> None:
        """Raises Hopeless where the gate stops the trial here and it is no audit."""
        if step not in self.rungs:
            return
        try:
            reached = score(self.task, outputs_of(model, self.part.inputs), self.part.targets, "search")
        except InvalidTask:
            return  # a perplexity of a wrecked model may be infinite; what the end is worth is measured at the end
        point = CurvePoint(step=step, drop=lost(self.task, self.part.reference, reached))
        self.curve.append(point)
        found = None if self.reason else self.gate.hopeless(step, point.drop, self.high)
        if found is not None:
            self.hoped, self.reason = found
            if not self.gate.audit:
                raise Hopeless(self.reason)


def part_of(task: Task, split: Batch, outputs: Tensor) -> Part | None:
    """Evenly spread samples of a split with the baseline's ``outputs`` for all of it; None where the metric needs the whole split."""
    inputs, targets = split
    count = min(SAMPLES, len(targets))
    picks = torch.arange(count) * len(targets) // count
    try:
        reference = score(task, outputs[picks], targets[picks], "search")
    except InvalidTask:
        return None
    return Part(inputs[picks], targets[picks], reference)
