"""How fast a recipe will be, before any of it is trained: predicted from a survey, and which recipes are equally fast."""

from collections.abc import Sequence
from typing import NamedTuple

from autocompress.latency_model import predict_ms
from autocompress.recipe import Recipe, Recovery
from autocompress.records import LayerInfo, Survey, Target


class Speed(NamedTuple):
    """Over the baseline, before recovery: timed with its 95 % interval, or predicted with twice the model's error to both sides."""

    speedup: float
    low: float
    high: float


def predicted_speed(recipe: Recipe, survey: Survey | None, layers: Sequence[LayerInfo], target: Target) -> Speed | None:
    """From the survey's latency model; None where there is none, or the target asks for other batch sizes than it was fitted at."""
    latency = survey.latency if survey is not None else None
    if latency is None or target.batch_sizes != (latency.batch_size,):
        return None
    time_ms = predict_ms(latency, recipe, layers)
    if time_ms is None or time_ms <= 0:
        return None
    speedup = latency.baseline_ms / time_ms
    return Speed(speedup, speedup * (1 - 2 * latency.error), speedup * (1 + 2 * latency.error))


def structure_of(recipe: Recipe) -> str:
    """Digest of all that a speed depends on: recipes that differ in training or zeros alone have equal ones.

    Criteria and observers count; `compress.build.provisional` gives the recipe without them.
    """
    dense = tuple(plan.model_copy(update={"sparsity": 0.0, "pattern": None}) for plan in recipe.layers)
    return recipe.model_copy(update={"layers": dense, "distillation": None, "recovery": Recovery()}).digest


def kind_of(recipe: Recipe, layers: Sequence[LayerInfo]) -> object:
    """What decides whether a runtime takes a recipe: bits and factorizations by kind of layer, and how grids are laid."""
    kinds = {layer.name: layer.kind for layer in layers}
    forms = {(kinds.get(plan.name), plan.weight_bits, plan.activation_bits, plan.factorization) for plan in recipe.layers}
    return frozenset(forms), recipe.quantization.model_dump_json(), recipe.student
