"""The cut itself: rows and columns of one layer, which units stay, and what may be asked for."""

import zlib
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from autocompress.blocks.attention import NarrowAttention
from autocompress.blocks.skipped import Skipped
from autocompress.compress.prune.importance import LOOKS_AT_SIGNALS, Evidence, Scoring, combine, entropy
from autocompress.errors import InfeasibleRecipe

OfUnits = Callable[[Callable[[str], Tensor]], Tensor]


def cut_parameter_(module: nn.Module, name: str, dim: int, index: Tensor) -> None:
    """Keep of a parameter, and of a mask beside it (buffer ``name``_mask), what ``index`` names along ``dim``."""
    old = getattr(module, name)
    index = index.to(old.device)
    mask = getattr(module, f"{name}_mask", None)
    if isinstance(mask, Tensor):
        setattr(module, f"{name}_mask", mask.index_select(dim, index.to(mask.device)))
    setattr(module, name, nn.Parameter(old.detach().index_select(dim, index).contiguous(), requires_grad=old.requires_grad))


def cut_linear_(layer: nn.Linear, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
    """Keep these outputs (``rows``) and inputs (``columns``) of a Linear."""
    if rows is not None:
        cut_parameter_(layer, "weight", 0, rows)
        layer.out_features = len(rows)
        if layer.bias is not None:
            cut_parameter_(layer, "bias", 0, rows)
    if columns is not None:
        cut_parameter_(layer, "weight", 1, columns)
        layer.in_features = len(columns)


def leave_fused_path_(model: nn.Module) -> None:
    """Send ``nn.TransformerEncoder`` past nested tensors where one of its layers is ours: the fused kernel would read in_proj_weight."""
    for encoder in (module for module in model.modules() if isinstance(module, nn.TransformerEncoder)):
        if any(isinstance(module, NarrowAttention | Skipped) for module in encoder.modules()):
            encoder.use_nested_tensor = False


def wanted_counts(
    keep: Mapping[str, float], present: Mapping[str, int], reasons: Mapping[str, str], kind: str, given: Mapping[str, int] | None
) -> dict[str, int]:
    """How many stay where that is fewer than are ``present``: ``round(share * given)``, at least one; ``given``: before earlier cuts.

    Raises InfeasibleRecipe for an unknown name, a share outside (0, 1] and what a reason stands against; what was cut before may be cut.
    """
    full = present if given is None else {**present, **given}
    for name, share in keep.items():
        if name not in present:
            offered = ", ".join(other for other in present if not reasons[other]) or "none"
            raise InfeasibleRecipe(f"{name}: the model has no {kind} of this name. It has: {offered}.")
        if not 0.0 < share <= 1.0:
            raise InfeasibleRecipe(f"{name}: keep must be above 0 and at most 1, got {share:g}. It is the share that stays.")
        if share < 1.0 and reasons[name] and full[name] == present[name]:
            raise InfeasibleRecipe(f"{name}: keep {share:g} is not possible: {reasons[name]}. Set keep to 1 or leave it out.")
    counts = {name: max(1, round(share * full[name])) for name, share in keep.items()}
    return {name: count for name, count in counts.items() if count < present[name]}


def most_important(scores: Tensor, count: int) -> list[int]:
    """Indices, ascending, of the ``count`` highest scores; of equal ones the last."""
    order = torch.argsort(scores, stable=True)
    return sorted(int(index) for index in order[len(scores) - count :])


class UnitScorer:
    """Scores of the heads of an attention or the units of an LSTM or GRU; data is looked at once for all modules of one model."""

    def __init__(self, model: nn.Module, scoring: Scoring | None) -> None:
        self.scoring = scoring or Scoring()
        self.evidence = Evidence(model, self.scoring)
        self.device = next(model.parameters()).device

    def __call__(self, name: str, count: int, by_weight: OfUnits, by_input: OfUnits) -> Tensor:
        """Scores (count,), each criterion scaled to a mean of 1 before they are added.

        ``by_weight`` sums up what it gets for a parameter, by name and like it; ``by_input`` what it gets for a layer, one value for
        each of its inputs. Raises InfeasibleRecipe for a criterion that does not apply or lacks data.
        """
        parts = []
        for criterion, share in self.scoring.criteria.items():
            if criterion == "random":
                seed = zlib.crc32(f"{self.scoring.seed} {name}".encode())  # the generator reads 32 bits of it
                scores = torch.rand(count, generator=torch.Generator().manual_seed(seed)).to(self.device)
            elif criterion in LOOKS_AT_SIGNALS:
                scores = by_input(partial(self._signal, criterion))
            elif criterion == "bn_scale":
                raise InfeasibleRecipe(f"{name}: importance bn_scale scores channels in front of a batch norm, not heads or units. Use l2.")
            else:
                scores = by_weight(partial(self.evidence.of, criterion))
            parts.append((share, scores))
        return combine(parts)

    def _signal(self, criterion: str, layer: str) -> Tensor:
        signal = self.evidence.signals[layer]
        return signal.magnitude if criterion == "activation" else entropy(torch.cat(signal.pooled))
