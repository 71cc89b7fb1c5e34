"""The stages of a recipe in their order: shrink, (recover,) settle, (recover,) freeze; and the same structure again without training."""

import torch
from torch import Tensor, nn

from autocompress.blocks import FakeQuantized
from autocompress.compress.factorize import factorize
from autocompress.compress.prune import prune
from autocompress.compress.quantize import fold_batch_norm, layer_bits, quantize
from autocompress.recipe import Recipe

FEW = 64  # inputs that create every quantizer; their ranges come from the stored weights


def shrink(model: nn.Module, recipe: Recipe, example: Tensor) -> nn.Module:
    """Prune, then factorize: the untrained structure of a recipe."""
    pruned = prune(model, {plan.name: plan.keep for plan in recipe.layers}, example)
    return factorize(pruned, {plan.name: plan.rank for plan in recipe.layers if plan.rank is not None})


def settle(model: nn.Module, recipe: Recipe, inputs: Tensor) -> nn.Module:
    """What a runtime lowers: fake-quantized with ranges from ``inputs`` (N, ...), or in float with batch norm folded."""
    if layer_bits(model, recipe.plans):
        return quantize(model, recipe.plans, torch.split(inputs, 128))
    return fold_batch_norm(model, inputs[:1])


def freeze_(model: nn.Module) -> None:
    """Fix what a runtime needs fixed; a float model has nothing to fix."""
    if isinstance(model, FakeQuantized):
        model.freeze_()


def rebuild(model: nn.Module, recipe: Recipe, inputs: Tensor) -> nn.Module:
    """The module of a recipe, frozen, in the structure that its stored weights fit; inputs (N, ...) create the quantizers."""
    settled = settle(shrink(model, recipe, inputs[:1]), recipe, inputs[:FEW])
    freeze_(settled)
    return settled.eval()
