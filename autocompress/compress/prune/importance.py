"""How important a channel or a single weight is: the criteria that ``Pruning.importance`` names, alone or added up.

=========== ===================================================== =======================================================
criterion   of a weight w, with g the gradient of the loss        source
=========== ===================================================== =======================================================
l1, l2      |w|, w^2                                              Han et al. 2015; Li et al. 2017
random      uniform, seeded                                       the one to beat
gradient    |g|
taylor      |w g|: first-order change of the loss without it      Molchanov et al. 2017 (2019 for weights), eq. 8
hessian     w^2 E[g^2] / 2: second-order change, Fisher diagonal  LeCun et al. 1990 (OBD); Theis et al. 2018
bn_scale    channels only: |gamma| of the batch norm behind       Liu et al. 2017 (network slimming)
activation  channels only: mean |a| that the next layers read     Molchanov et al. 2017, section 2.2
entropy     channels only: entropy over samples of the channel's  Luo and Wu 2017
            mean, in bins between its least and largest value
=========== ===================================================== =======================================================

A channel's score is the sum over its rows in the layers that make it, over its columns in those that read it, and its scales in norms,
averaged over these parts (Fang et al. 2023). Criteria that are added are first scaled to a mean of 1.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from autocompress.compress.prune.evidence import Signal, gradients, signals, squared_gradients
from autocompress.compress.prune.groups import BATCH_NORMS, CONVOLUTIONS, Touched, is_depthwise
from autocompress.errors import InfeasibleRecipe

if TYPE_CHECKING:
    from autocompress.compress.distill import Loss, Sample

LOOKS_AT_LOSS = ("gradient", "taylor", "hessian")
LOOKS_AT_SIGNALS = ("activation", "entropy")
OF_CHANNELS = ("bn_scale", *LOOKS_AT_SIGNALS)
BINS = 32  # of a channel's range, for its entropy


@dataclass(frozen=True, eq=False)
class Scoring:
    """How to score: weights of the criteria, and what they look at: samples on the model's device, the task's loss, a seed."""

    importance: Mapping[str, float] = field(default_factory=lambda: {"l2": 1.0})
    samples: "Sequence[Sample]" = ()
    loss: "Loss | None" = None
    seed: int = 0

    @property
    def criteria(self) -> dict[str, float]:
        """Those with a weight above 0."""
        return {name: weight for name, weight in self.importance.items() if weight > 0}


class Evidence:
    """What the criteria need beside the weights; gradients and signals are measured only when one of them asks.

    Raises InfeasibleRecipe where a criterion needs samples or a loss and has none.
    """

    def __init__(self, model: nn.Module, scoring: Scoring) -> None:
        wanted = scoring.criteria
        for name in wanted:
            if name in (*LOOKS_AT_LOSS, *LOOKS_AT_SIGNALS) and not scoring.samples:
                raise InfeasibleRecipe(f"pruning: importance {name} looks at data, and there are no samples. Give some, or use l2.")
            if name in LOOKS_AT_LOSS and scoring.loss is None:
                raise InfeasibleRecipe(f"pruning: importance {name} looks at the gradient, and there is no loss. Give one, or use l2.")
        self.values = {name: value.detach() for name, value in model.named_parameters(remove_duplicate=False)}
        self.gradients: Mapping[str, Tensor] = {}
        self.squares: Mapping[str, Tensor] = {}
        self.signals: Mapping[str, Signal] = {}
        if scoring.loss is not None and {"gradient", "taylor"} & wanted.keys():
            self.gradients = gradients(model, scoring.samples, scoring.loss)
        if scoring.loss is not None and "hessian" in wanted:
            self.squares = squared_gradients(model, scoring.samples, scoring.loss)
        if wanted.keys() & set(LOOKS_AT_SIGNALS):
            self.signals = signals(model, scoring.samples)

    def of(self, criterion: str, parameter: str) -> Tensor:
        """The score of every single value of a parameter, by its name."""
        value = self.values[parameter]
        if criterion == "l1":
            return value.abs()
        if criterion == "l2":
            return value.square()
        if criterion == "gradient":
            return self.gradients[parameter].abs()
        if criterion == "taylor":
            return (value * self.gradients[parameter]).abs()
        assert criterion == "hessian", criterion
        return value.square() * self.squares[parameter] / 2


def combine(parts: Sequence[tuple[float, Tensor]]) -> Tensor:
    """The weighted sum of scores of one shape, each scaled to a mean of 1 before; one alone comes back as it is."""
    if len(parts) == 1:
        return parts[0][1]
    total = torch.zeros_like(parts[0][1])
    for weight, scores in parts:
        mean = scores.mean()
        total = total + (weight * scores / mean if mean > 0 else 0.0)
    return total


def weight_scores(model: nn.Module, scoring: Scoring | None = None, together: bool = False) -> dict[str, Tensor]:
    """A score for each single weight, like the weight: of every Conv2d and Linear by its name, of every LSTM and GRU by the name of the
    parameter ("lstm.weight_ih_l0"). Squared weights without ``scoring``.

    Criteria that are added are scaled within a weight, or over all of them with ``together``. Raises InfeasibleRecipe for a criterion of
    channels, one that lacks data, and gradients that are not finite.
    """
    scoring = scoring or Scoring()
    for name in scoring.criteria:
        if name in OF_CHANNELS:
            raise InfeasibleRecipe(
                f"pruning: importance {name} scores channels, not single weights, heads or hidden units. Use l1, l2, taylor or hessian."
            )
    evidence = Evidence(model, scoring)
    parameters = _weights(model)
    random = torch.Generator().manual_seed(scoring.seed)
    raw: list[tuple[float, dict[str, Tensor]]] = []
    for criterion, share in scoring.criteria.items():
        if criterion == "random":  # 1 - p, for torch.nn.utils.prune takes away the largest
            drawn = {name: 1 - torch.rand(evidence.values[parameter].shape, generator=random) for name, parameter in parameters.items()}
            raw.append((share, {name: scores.to(evidence.values[parameters[name]]) for name, scores in drawn.items()}))
        else:
            raw.append((share, {name: evidence.of(criterion, parameter) for name, parameter in parameters.items()}))
    if together and len(raw) > 1:
        flat = combine([(share, torch.cat([scores.flatten() for scores in by_name.values()])) for share, by_name in raw])
        shapes = {name: scores.shape for name, scores in raw[0][1].items()}
        parts = torch.split(flat, [shape.numel() for shape in shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
    return {name: combine([(share, by_name[name]) for share, by_name in raw]) for name in parameters}


def _weights(model: nn.Module) -> dict[str, str]:
    """Name in the scores -> name of the parameter."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            found[name] = f"{name}.weight" if name else "weight"
        elif isinstance(module, nn.LSTM | nn.GRU):
            inside = (f"{name}.{part}" if name else part for part, _ in module.named_parameters() if part.startswith("weight_"))
            found.update({parameter: parameter for parameter in inside})
    return found


class ChannelScorer:
    """Scores of the channels of prune groups of one model; data is looked at once for all groups."""

    def __init__(self, model: nn.Module, scoring: Scoring | None = None) -> None:
        self.scoring = scoring or Scoring()
        self.evidence = Evidence(model, self.scoring)

    def __call__(self, name: str, touched: Sequence[Touched], width: int) -> Tensor:
        """Scores (width,) of the group ``name``; ``touched``: what a cut of all its channels reaches. Raises InfeasibleRecipe."""
        return combine([(share, self._scores(criterion, name, touched, width)) for criterion, share in self.scoring.criteria.items()])

    def _scores(self, criterion: str, name: str, touched: Sequence[Touched], width: int) -> Tensor:
        if criterion == "random":
            device = next(iter(self.evidence.values.values())).device
            return random_scores(self.scoring.seed, name, width).to(device)
        if criterion == "bn_scale":
            parts = [item for item in touched if isinstance(item.module, BATCH_NORMS) and item.module.affine]
            if not parts:
                raise InfeasibleRecipe(f"{name}: importance bn_scale needs a batch norm with a scale behind it; there is none. Use l2.")
            return _mean([_spread(self.evidence.of("l1", f"{item.name}.weight")[item.channels], item, width) for item in parts])
        if criterion in LOOKS_AT_SIGNALS:
            readers = [item for item in touched if item.is_input and item.name in self.evidence.signals]
            if not readers:
                raise InfeasibleRecipe(f"{name}: importance {criterion} looks at what the next layers read, and none reads it. Use l2.")
            return _mean([self._signal(criterion, item, width) for item in readers])
        return _mean([_spread(self._slices(criterion, item), item, width) for item in touched if _has_scores(item)])

    def _slices(self, criterion: str, item: Touched) -> Tensor:
        """Sums over the rows or columns of a layer, or scales of a norm, in the order of ``item.channels``."""
        scores = self.evidence.of(criterion, f"{item.name}.weight")
        if scores.dim() == 1:
            return scores[item.channels]
        groups = 1 if is_depthwise(item.module) else getattr(item.module, "groups", 1)
        if item.is_input and groups > 1:  # (out, in of a group, ...) -> (in, out of a group)
            by_group = scores.view(groups, -1, *scores.shape[1:]).transpose(1, 2)
            return by_group.flatten(0, 1).flatten(1).sum(1)[item.channels]
        if item.is_input != bool(getattr(item.module, "transposed", False)):
            scores = scores.transpose(0, 1)
        return scores[item.channels].flatten(1).sum(1)

    def _signal(self, criterion: str, item: Touched, width: int) -> Tensor:
        signal = self.evidence.signals[item.name]
        values = signal.magnitude if criterion == "activation" else entropy(torch.cat(signal.pooled))
        counts = _spread(torch.ones_like(values)[item.channels], item, width)
        return _spread(values[item.channels], item, width) / counts  # a flattened channel is several inputs


def random_scores(seed: int, name: str, count: int) -> Tensor:
    """Uniform scores (count,) that depend on the seed and the name alone."""
    mixed = zlib.crc32(f"{seed} {name}".encode())  # one number of 32 bits, for torch's generator drops what is above them
    return torch.rand(count, generator=torch.Generator().manual_seed(mixed))


def entropy(values: Tensor, bins: int = BINS) -> Tensor:
    """Entropy in nats of each column of ``values`` (N, channels), in ``bins`` of equal width between its least and largest value."""
    low, high = values.amin(0), values.amax(0)
    place = ((values - low) / (high - low).clamp(min=torch.finfo(values.dtype).tiny) * bins).long().clamp(max=bins - 1)
    counts = torch.zeros(bins, values.shape[1], device=values.device, dtype=values.dtype)
    counts.scatter_add_(0, place, torch.ones_like(values))
    shares = counts / len(values)
    return -(shares * shares.clamp(min=torch.finfo(values.dtype).tiny).log()).sum(0)


def _has_scores(item: Touched) -> bool:
    """Layers with rows or columns, and the norms that torch-pruning counts: batch norm and layer norm."""
    if isinstance(item.module, BATCH_NORMS | nn.LayerNorm):
        return item.module.weight is not None
    return isinstance(item.module, CONVOLUTIONS | nn.Linear)


def _spread(values: Tensor, item: Touched, width: int) -> Tensor:
    """Add the values of a part to the channels of the group that they are copies of."""
    place = torch.tensor(item.roots, device=values.device)
    return torch.zeros(width, device=values.device, dtype=values.dtype).scatter_add_(0, place, values)


def _mean(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(parts)).mean(0)
