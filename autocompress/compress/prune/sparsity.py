"""Unstructured sparsity: single weights become 0 (Han et al. 2015), by layer, by one threshold for all, or N of every M.

As many weights go as ``torch.nn.utils.prune`` takes: ``round(sparsity * numel)``, those with the lowest scores.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from autocompress.blocks.skipped import Skipped
from autocompress.compress.prune.importance import Scoring, weight_scores
from autocompress.compress.prune.masks import mask_, masks_of
from autocompress.compress.prune.n_m import n_of_m, parts_of
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import LayerPlan, Recipe

LAYERS = (nn.Conv2d, nn.Linear)


def sparsify(model: nn.Module, recipe: Recipe, scoring: Scoring | None = None, share: float = 1.0) -> nn.Module:
    """A copy of ``model`` whose layers have masks: by their plan's ``sparsity`` or ``pattern``, else by ``pruning.global_sparsity``.

    A plan on a module with parts (the factors of a low-rank layer, an attention) holds for those of its layers that have no plan of
    their own. ``share`` in 0..1: how much of the removal is done (gradual pruning); of a pattern the zeros in every run are rounded.
    Weights that are masked already stay so. ``scoring``: squared weights without it.
    Raises InfeasibleRecipe for a plan on what is neither Conv2d nor Linear, and for a pattern that does not fit the inputs.
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share must be in 0 to 1, got {share:g}")
    work = copy.deepcopy(model)
    planned = _targets(work, recipe)
    rest = _untied(work, [name for name, module in work.named_modules() if isinstance(module, LAYERS) and name not in planned])
    everywhere = recipe.pruning.global_sparsity
    if planned:
        scores = _masked_last(work, weight_scores(work, scoring))
        for name, plan in planned.items():
            mask_(work.get_submodule(name), _mask(name, plan, scores[name], share))
    if everywhere and rest:
        scores = _masked_last(work, weight_scores(work, scoring, together=True))
        for name, mask in global_masks({name: scores[name] for name in rest}, everywhere * share).items():
            mask_(work.get_submodule(name), mask)
    return work


def lowest(scores: Tensor, sparsity: float) -> Tensor:
    """Mask (bool, like ``scores``), False for the ``round(sparsity * numel)`` lowest."""
    mask = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    gone = torch.topk(scores.flatten(), round(sparsity * scores.numel()), largest=False).indices
    mask[gone] = False
    return mask.view(scores.shape)


def global_masks(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Masks by one threshold over all layers: the lowest ``round(sparsity * all)`` scores go, wherever they are."""
    mask = lowest(torch.cat([values.flatten() for values in scores.values()]), sparsity)
    parts = torch.split(mask, [values.numel() for values in scores.values()])
    return {name: part.view(values.shape) for (name, values), part in zip(scores.items(), parts, strict=True)}


def mask_of(plan: LayerPlan, scores: Tensor) -> Tensor:
    """Mask (bool, like ``scores``) of the weights that a plan leaves. Raises InfeasibleRecipe where its pattern does not fit."""
    return _mask(plan.name, plan, scores, 1.0)


def _mask(name: str, plan: LayerPlan, scores: Tensor, share: float) -> Tensor:
    if plan.pattern is None:
        return lowest(scores, plan.sparsity * share)
    n, m = parts_of(plan.pattern)
    return n_of_m(scores, m - round(share * (m - n)), m, name)


def _targets(model: nn.Module, recipe: Recipe) -> dict[str, LayerPlan]:
    """Layer -> the plan that says what becomes of its weights."""
    plans = {name: plan for name, plan in recipe.plans.items() if plan.is_sparse}
    targets: dict[str, LayerPlan] = {}
    for plan_name, plan in sorted(plans.items(), key=lambda pair: pair[0].count(".")):  # the innermost has the last word
        module = _find(model, plan_name)
        if module is None:
            continue
        inside = {".".join(filter(None, (plan_name, path))): part for path, part in module.named_modules() if isinstance(part, LAYERS)}
        if not inside:
            raise InfeasibleRecipe(
                f"{plan_name}: sparsity is for Conv2d and Linear, and this is a {type(module).__name__}. Leave sparsity and pattern out."
            )
        targets.update(dict.fromkeys(inside, plan))
    return {name: targets[name] for name in _untied(model, list(targets))}


def _find(model: nn.Module, name: str) -> nn.Module | None:
    """The module, or None where it went with a block that was dropped."""
    modules = dict(model.named_modules())
    module: nn.Module | None = modules.get(name)
    if module is not None:
        return module
    parts = name.split(".")
    if any(isinstance(modules.get(".".join(parts[:count])), Skipped) for count in range(1, len(parts))):
        return None
    raise InfeasibleRecipe(f"{name}: the model has no module of this name to make sparse. Take the plan out.")


def _untied(model: nn.Module, names: list[str]) -> list[str]:
    """The names without layers whose weight is that of another one before them."""
    first: dict[int, str] = {}
    for name in names:
        first.setdefault(id(model.get_submodule(name).weight), name)
    return list(first.values())


def _masked_last(model: nn.Module, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores in which weights that are masked already come below all others: a mask only grows."""
    masks = masks_of(model)
    return {name: value.masked_fill(~masks[name], -1.0) if name in masks else value for name, value in scores.items()}
