"""The recipe as it will be realized: settings that nothing of it uses are at their defaults. Recipes that agree in it are the same."""

from typing import Any

from autocompress.recipe import FLOAT_BITS, LayerPlan, Pruning, Quantization, Recipe


def realized(recipe: Recipe) -> Recipe:
    """The same compression and recovery, written in one way only."""
    changes: dict[str, Any] = {}
    gone = tuple(f"{plan.name}." for plan in recipe.layers if plan.drop)
    if gone:
        changes["layers"] = tuple(LayerPlan(name=plan.name) if plan.name.startswith(gone) else plan for plan in recipe.layers)
    layers = changes.get("layers", recipe.layers)
    is_cut = any(plan.is_cut or plan.is_sparse for plan in layers) or recipe.pruning.global_sparsity > 0
    if not is_cut:
        changes["pruning"] = Pruning(seed=recipe.pruning.seed)
    elif recipe.pruning.schedule == "one_shot":
        usual = Pruning()
        changes["pruning"] = recipe.pruning.model_copy(update={"iterations": usual.iterations, "steps_between": usual.steps_between})
    changes["quantization"] = _quantization(recipe)
    is_taught = recipe.recovery.steps + (recipe.recovery.quantized_steps if recipe.is_quantized else 0) > 0
    if not is_taught and recipe.pruning.schedule == "one_shot":
        changes["distillation"] = None
        changes["recovery"] = recipe.recovery.model_copy(update={"learning_rate": 1.0, "optimizer": "adamw", "schedule": "one_cycle"})
    elif not recipe.is_quantized:
        changes["recovery"] = recipe.recovery.model_copy(update={"quantized_steps": 0})
    return recipe.model_copy(update=changes)


def _quantization(recipe: Recipe) -> Quantization:
    """What the layers do not use is at its default; without integers that is all of it but the kind of half floats."""
    usual, own = Quantization(), recipe.quantization
    student = () if recipe.student is None else ((recipe.student.weight_bits, recipe.student.activation_bits),)
    bits = [*((plan.weight_bits, plan.activation_bits) for plan in recipe.layers), *student]
    weights = {weight for weight, _ in bits if weight < FLOAT_BITS}
    if not weights:
        return usual
    unused: list[str] = []
    unused += ["percentile"] if own.observer != "percentile" else []
    unused += ["group_size"] if own.granularity != "group" else []
    if all(activation >= FLOAT_BITS for _, activation in bits):  # weights alone: nothing of the inputs is found
        unused += ["activations", "observer", "percentile", "symmetric_activations"]
    if recipe.recovery.quantized_steps == 0:
        unused += ["learned_step", "progressive", "freeze_after"]
    return own.model_copy(update={name: getattr(usual, name) for name in unused})
