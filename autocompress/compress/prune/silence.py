"""Cuts shown in advance: the channels, units and heads that a cut would take give 0, and what reads them reads nothing, in place.

That equals the cut itself (`groups.Trial` found so for every group that is offered). Only a GroupNorm's statistics would still count
the channels that are 0; a LayerNorm is made to look at the others alone. What a cut reaches is found once a group, for searching a
dependency graph takes longer than running the model.
"""

import types
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.compress.prune.calls import eval_copy
from autocompress.compress.prune.channels import channels_left, least_important, structure
from autocompress.compress.prune.cuts import UnitScorer, most_important, wanted_counts
from autocompress.compress.prune.groups import Dependencies, Touched, silence_
from autocompress.compress.prune.heads import opened
from autocompress.compress.prune.importance import ChannelScorer, Scoring
from autocompress.compress.prune.projections import scores_by_input as heads_by_input
from autocompress.compress.prune.projections import scores_by_weight as heads_by_weight
from autocompress.compress.prune.recurrent import recurrent_modules
from autocompress.compress.prune.recurrent import scores_by_input as units_by_input
from autocompress.compress.prune.recurrent import scores_by_weight as units_by_weight


def keep_(undo: ExitStack, parameters: Iterable[Tensor]) -> None:
    """Give the parameters the values that they have now back when ``undo`` closes."""
    for parameter in parameters:
        undo.callback(_restore_, parameter, parameter.detach().clone())


@torch.no_grad()
def _restore_(parameter: Tensor, value: Tensor) -> None:
    parameter.copy_(value)


class Channels:
    """Silences channels of Conv2d and Linear in ``work``, a copy of ``model`` in eval mode; example (1, ...)."""

    def __init__(self, model: nn.Module, work: nn.Module, example: Tensor, scoring: Scoring | None = None) -> None:
        self.work = work
        self.groups = {member: group for group in structure(model, example).groups for member in group.members}
        self.dependencies = Dependencies(work, example)
        self.scorer = ChannelScorer(model, scoring)
        self.wholes: dict[str, tuple[list[Touched], Tensor]] = {}

    @torch.no_grad()
    def silence_(self, keep: Mapping[str, float], undo: ExitStack) -> set[str]:
        """The channels that `prune` would take leave until ``undo`` closes -> names of the modules and parameters that this changed.

        Raises InfeasibleRecipe where keep differs inside one group.
        """
        changed: set[str] = set()
        for group in {self.groups[name] for name in keep if name in self.groups}:
            whole, scores = self._whole(group.name, group.width)
            gone = set(least_important(scores, channels_left(group, keep), group.blocks))
            for item in whole if gone else []:
                picked = [index for index, root in enumerate(item.roots) if root in gone]
                part = replace(item, channels=[item.channels[index] for index in picked], roots=[item.roots[index] for index in picked])
                keep_(undo, [item.module] if isinstance(item.module, nn.Parameter) else item.module.parameters(recurse=False))
                silence_(part)
                if isinstance(item.module, nn.LayerNorm) and part.channels:
                    _narrow_norm_(item.module, part.channels, undo)
                changed.add(item.name)
        return changed

    def _whole(self, name: str, width: int) -> tuple[list[Touched], Tensor]:
        if name not in self.wholes:
            with torch.enable_grad():
                whole = self.dependencies.touched(self.dependencies.group(self.work.get_submodule(name), range(width)))
            self.wholes[name] = whole, self.scorer(name, whole, width)
        return self.wholes[name]


def _narrow_norm_(norm: nn.LayerNorm, gone: list[int], undo: ExitStack) -> None:
    """Until ``undo`` closes its statistics are those of the channels that stay; the others come out as 0."""
    stay = torch.tensor([index for index in range(norm.normalized_shape[-1]) if index not in set(gone)], device=norm.weight.device)

    def forward(self: nn.LayerNorm, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias[stay]
        return torch.zeros_like(x).index_copy(-1, stay, F.layer_norm(x[..., stay], (len(stay),), self.weight[stay], bias, self.eps))

    if norm.elementwise_affine and len(norm.normalized_shape) == 1:
        norm.forward = types.MethodType(forward, norm)  # type: ignore[method-assign]
        undo.callback(vars(norm).pop, "forward")


class Units:
    """Silences hidden units of one-layer LSTM and GRU in ``work``, a copy of ``model``: with its rows at 0 a unit stays at 0 for ever."""

    def __init__(self, model: nn.Module, work: nn.Module, example: Tensor, scoring: Scoring | None = None) -> None:
        self.model, self.work, self.found = model, work, recurrent_modules(model, example)
        self.scoring = scoring

    @cached_property
    def scorer(self) -> UnitScorer:
        return UnitScorer(self.model, self.scoring)

    @torch.no_grad()
    def silence_(self, keep: Mapping[str, float], undo: ExitStack) -> set[str]:
        present, reasons = ({name: getattr(item, field) for name, item in self.found.items()} for field in ("hidden", "reason"))
        counts = wanted_counts(keep, present, reasons, "LSTM or GRU", None)
        for name, count in counts.items():
            item, cell = self.found[name], self.work.get_submodule(name)
            scores = self.scorer(name, item.hidden, partial(units_by_weight, self.model, item), partial(units_by_input, item))
            kept = set(most_important(scores, count))
            keep_(undo, cell.parameters())
            for parameter in cell.parameters():
                rows = parameter.view(-1, item.hidden, *parameter.shape[1:])  # (gates, hidden, ...)
                rows[:, [unit for unit in range(item.hidden) if unit not in kept]] = 0
        return set(counts)


class Heads:
    """Silences attention heads in ``work``: a copy of ``model`` in which attention that is closed was opened, as `prune_heads` does."""

    def __init__(self, model: nn.Module, example: Tensor, scoring: Scoring | None = None) -> None:
        self.work = eval_copy(model)
        self.present, self.reasons, self.cuts = opened(model, self.work, example)
        self.scorer = UnitScorer(self.work, scoring)

    @torch.no_grad()
    def silence_(self, keep: Mapping[str, float], undo: ExitStack) -> set[str]:
        counts = wanted_counts(keep, self.present, self.reasons, "attention module", None)
        changed = set()
        for name, count in counts.items():
            cut = self.cuts[name]
            kept = most_important(self.scorer(name, cut.heads, partial(heads_by_weight, cut), partial(heads_by_input, cut)), count)
            output = self.work.get_submodule(cut.layers[-1])
            weight = output.get_parameter("weight")
            keep_(undo, [weight])
            weight[:, cut.columns([head for head in range(cut.heads) if head not in kept])] = 0
            changed.add(cut.layers[-1])
        return changed
