"""Structured pruning of attention heads: the rows of q, k, v and the columns of the output that belong to a head leave together.

Many heads of a trained transformer can go without harm (Michel, Levy and Neubig 2019; Voita et al. 2019). Importance is summed over all
weights of a head. ``nn.MultiheadAttention`` cannot be narrower inside than its embedding, so ``NarrowAttention`` takes its place;
attention that users wrote is cut where it is (``projections`` finds out how, or why not), or, where its code fixes the width of all
heads but it computes nothing but self-attention, replaced by ``PlainSelfAttention``, which does not.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from autocompress.blocks.attention import NarrowAttention, PlainSelfAttention, SelfAttentionPlan
from autocompress.compress.prune.calls import changes, eval_copy, is_close, own_copy, seen_modules, shapes_of
from autocompress.compress.prune.cuts import UnitScorer, leave_fused_path_, most_important, wanted_counts
from autocompress.compress.prune.importance import Scoring
from autocompress.compress.prune.projections import HeadCut, cut_heads_, find_cuts, find_plain, heads_of, scores_by_input, scores_by_weight
from autocompress.errors import InfeasibleRecipe


@dataclass(frozen=True)
class Attention:
    """An attention module: its heads, their width, and ``reason`` why none can go ("" where they can).

    ``layers``: the Linear layers of the given model that hold its heads; their shared width is not to be cut by channels.
    """

    name: str
    heads: int
    head_dim: int
    reason: str = ""
    layers: tuple[str, ...] = ()


def attention_modules(model: nn.Module, example: Tensor) -> dict[str, Attention]:
    """The attention modules of ``model`` by name; example: one input (1, ...). The model is not changed."""
    return dict(_plans(model, example).attention)


def prune_heads(
    model: nn.Module, keep: Mapping[str, float], example: Tensor, scoring: Scoring | None = None, heads: Mapping[str, int] | None = None
) -> nn.Module:
    """A copy of ``model`` with ``round(keep * heads)`` heads, at least one, in every named attention module: the most important ones.

    example: one input (1, ...). ``scoring``: how heads are scored; by squared weights without it. ``heads``: what ``keep`` counts from,
    the heads before earlier cuts; those of ``model`` without it. Raises InfeasibleRecipe for a name that is no attention module, one
    that cannot be cut, and a share outside (0, 1].
    """
    plans = _plans(model, example)
    present, reasons = ({name: getattr(item, field) for name, item in plans.attention.items()} for field in ("heads", "reason"))
    counts = wanted_counts(keep, present, reasons, "attention module", heads)
    work = own_copy(model)
    if not counts:
        return work
    open_(work, counts, plans.plain)
    scorer = UnitScorer(work, scoring)
    for name, count in counts.items():
        cut = plans.cuts[name]
        scores = scorer(name, cut.heads, partial(scores_by_weight, cut), partial(scores_by_input, cut))
        cut_heads_(work.get_submodule(cut.scope), cut, most_important(scores, count))
    with torch.no_grad(), seen_modules():
        reason = changes(eval_copy(work), example, eval_copy(model)(example))
    if reason:
        raise InfeasibleRecipe(f"{', '.join(counts)}: keep is not possible together: {reason}. Cut fewer of them.")
    return work


def open_(model: nn.Module, names: Iterable[str], plain: Mapping[str, SelfAttentionPlan]) -> None:
    """Put in the place of the named modules, where they cannot be narrower inside, the same from layers that can."""
    for name in names:
        module = model.get_submodule(name)
        if type(module) is nn.MultiheadAttention:
            model.set_submodule(name, NarrowAttention(module))
        elif name in plain:
            model.set_submodule(name, PlainSelfAttention(module, plain[name]))
    leave_fused_path_(model)


def opened(model: nn.Module, work: nn.Module, example: Tensor) -> tuple[dict[str, int], dict[str, str], dict[str, HeadCut]]:
    """Open all closed attention of ``work``, a copy of ``model`` -> by attention module its heads, why none can go, and the cut."""
    plans = _plans(model, example)
    open_(work, [name for name, item in plans.attention.items() if not item.reason and item.heads > 1], plans.plain)
    heads, reasons = ({name: getattr(item, field) for name, item in plans.attention.items()} for field in ("heads", "reason"))
    return heads, reasons, plans.cuts


@dataclass(frozen=True)
class _Plans:
    """What is known of a model: its attention, how each is cut, and which are replaced by ``PlainSelfAttention`` for that."""

    attention: dict[str, Attention]
    cuts: dict[str, HeadCut]
    plain: dict[str, SelfAttentionPlan]


_known: WeakKeyDictionary[nn.Module, tuple[tuple[object, ...], _Plans]] = WeakKeyDictionary()


def _plans(model: nn.Module, example: Tensor) -> _Plans:
    """Found once a model and remembered, for every trial asks again."""
    shapes = shapes_of(model, example)
    known = _known.get(model)
    if known is None or known[0] != shapes:
        with seen_modules():
            _known[model] = known = (shapes, _find_plans(model, example))
    return known[1]


@torch.no_grad()
def _find_plans(model: nn.Module, example: Tensor) -> _Plans:
    if not any(map(heads_of, model.modules())):
        return _Plans({}, {}, {})
    work, closed = _opened(model, example)
    found = find_cuts(work, example)
    refused = [name for name, cut in found.items() if isinstance(cut, str) and name not in closed]
    plain = find_plain(work, refused, example) if refused else {}
    if plain:
        open_(work, plain, plain)
        again = find_cuts(work, example)
        plain = {name: plan for name, plan in plain.items() if isinstance(again[name], HeadCut)}
        found |= {name: again[name] for name in plain}
    given = dict(model.named_modules())
    plans = _Plans({}, {name: cut for name, cut in found.items() if isinstance(cut, HeadCut)}, plain)
    for name, cut in found.items():
        module = given[name]
        reason = closed.get(name, cut) if isinstance(cut, str) else ""
        layers = [f"{name}.{path}" for path, part in module.named_modules() if isinstance(part, nn.Linear)]
        if isinstance(cut, HeadCut) and not isinstance(module, nn.MultiheadAttention):
            layers = list(cut.layers)
        head_dim = cut.head_dim if isinstance(cut, HeadCut) else 0
        plans.attention[name] = Attention(name, heads_of(module), head_dim, reason, tuple(layers))
    return plans


def _opened(model: nn.Module, example: Tensor) -> tuple[nn.Module, dict[str, str]]:
    """A copy in eval mode with every ``nn.MultiheadAttention`` opened that can be; for the others the reason."""
    work = eval_copy(model)
    reasons: dict[str, str] = {}
    with torch.no_grad():
        before = work(example)
        for name, module in [pair for pair in work.named_modules() if isinstance(pair[1], nn.MultiheadAttention)]:
            reason = _closed(module)
            if not reason:
                open_(work, [name], {})
                reason = changes(work, example, before)
                if not reason and isinstance(before, Tensor) and not is_close(work(example), before):
                    reason = "the model does not compute the same with its projections in layers of their own"
            if reason:
                work.set_submodule(name, module)
                reasons[name] = reason
    return work, reasons


def _closed(module: nn.MultiheadAttention) -> str:
    if type(module) is not nn.MultiheadAttention:
        return f"it is a {type(module).__name__}, which may do more than nn.MultiheadAttention"
    if module.bias_k is not None:
        return "it has learned extra keys and values (add_bias_kv)"
    return "it attends to an extra zero (add_zero_attn)" if module.add_zero_attn else ""
