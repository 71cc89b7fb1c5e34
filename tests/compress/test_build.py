"""The stages in their order, and the same structure again for stored weights."""

import pytest
import torch
from torch import nn

from autocompress.blocks import FakeQuantized, LowRankConv2d
from autocompress.compress.build import freeze_, rebuild, settle, shrink
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import LayerPlan, Recipe
from tests.small_models import fingerprint, inputs, outputs, residual

X = inputs(96, 1, 8, 8)
SHARED = ("stem.0", "block1.conv2", "block2.conv2")
CUT = tuple(LayerPlan(name=name, keep=0.5, weight_bits=7, activation_bits=8) for name in SHARED)
MIXED = Recipe(
    layers=(*CUT, LayerPlan(name="block4.conv1", rank=4, weight_bits=8, activation_bits=8), LayerPlan(name="block3.conv1", keep=0.75))
)
FLOAT = Recipe(layers=(LayerPlan(name="block1.conv1", keep=0.5), LayerPlan(name="block4.conv1", rank=4)))


def test_a_model_is_pruned_first_and_then_factorized_at_its_new_width() -> None:
    recipe = Recipe(layers=(LayerPlan(name="block4.conv1", keep=0.5, rank=6),))
    block = shrink(residual(8), recipe, X[:1]).block4.conv1
    assert isinstance(block, LowRankConv2d)
    assert (block.out_channels, block.reduce.out_channels, block.expand.in_channels) == (8, 6, 6)
    too_large = Recipe(layers=(LayerPlan(name="block4.conv1", keep=0.125, rank=12),))
    with pytest.raises(InfeasibleRecipe, match=r"block4\.conv1: rank 12"):
        shrink(residual(8), too_large, X[:1])


def test_a_float_recipe_settles_with_folded_batch_norm_and_needs_no_quantizer() -> None:
    model = shrink(residual(8), FLOAT, X[:1])
    settled = settle(model, FLOAT, X)
    freeze_(settled)
    assert not isinstance(settled, FakeQuantized)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in settled.modules())
    torch.testing.assert_close(outputs(settled, X), outputs(model, X), atol=2e-5, rtol=1e-4)


def test_settling_takes_its_ranges_from_all_of_the_inputs() -> None:
    x = torch.cat([X, X, 9 * X[:1]])  # the largest value comes last, in the second batch
    settled = settle(residual(8), Recipe(layers=(LayerPlan(name="stem.0", weight_bits=7, activation_bits=8),)), x)
    assert isinstance(settled, FakeQuantized)
    assert settled.points[settled.inputs["stem.0"]].high == x.max()


@pytest.mark.parametrize("recipe", [Recipe(), FLOAT, MIXED], ids=["empty", "float", "mixed"])
def test_a_rebuilt_module_takes_the_stored_weights_and_gives_the_same_outputs(recipe: Recipe) -> None:
    given = residual(8)
    trained = settle(shrink(given, recipe, X[:1]), recipe, X)
    for value in trained.parameters():
        value.data *= 1.1
    freeze_(trained)
    again = rebuild(given, recipe, X)
    assert not torch.equal(outputs(again, X), outputs(trained, X))
    again.load_state_dict(trained.state_dict())
    assert torch.equal(outputs(again, X), outputs(trained, X))
    assert not again.training


def test_no_stage_changes_the_given_model() -> None:
    model = residual(8)
    before = fingerprint(model)
    rebuild(model, MIXED, X)
    assert fingerprint(model) == before
