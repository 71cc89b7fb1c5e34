"""A choice shown in advance gives what really compressing by it gives, and leaves nothing behind."""

import pytest
import torch
from torch import Tensor, nn

from autocompress.compress.build import settle, shrink
from autocompress.compress.prune import sparsify
from autocompress.compress.rehearse import Rehearsal
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import LayerPlan, Recipe
from tests.small_models import concat, depthwise, fingerprint, flat, inputs, outputs, recurrent, residual


def transformer() -> nn.Module:
    """Two layers of torch's own, post-norm, and a head. x (N, 5, 6) -> (N, 3)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        model = nn.Sequential(nn.Linear(6, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3))
        for norm in (module for module in model.modules() if isinstance(module, nn.LayerNorm)):
            nn.init.normal_(norm.weight)
        return model.eval()


CASES = {
    "channels before a sum": (residual, (1, 8, 8), {"stem.0": {"keep": 0.5}, "block1.conv2": {"keep": 0.5}, "block2.conv2": {"keep": 0.5}}),
    "channels inside a block": (residual, (1, 8, 8), {"block3.conv1": {"keep": 0.25}}),
    "channels beside others": (concat, (3, 6, 6), {"b": {"keep": 0.5}}),
    "channels that are flattened": (flat, (3, 6, 6), {"a": {"keep": 0.5}}),
    "channels of a depthwise one": (depthwise, (3, 6, 6), {"a": {"keep": 0.5}, "deep": {"keep": 0.5}}),
    "hidden units": (recurrent, (5, 3), {"lstm": {"keep": 0.5}}),
    "heads": (transformer, (5, 6), {"1.layers.0.self_attn": {"keep": 0.5}}),
    "channels of a feed-forward layer": (transformer, (5, 6), {"1.layers.1.linear1": {"keep": 0.25}}),
    "a block": (residual, (1, 8, 8), {"block2": {"drop": True}}),
    "a transformer layer": (transformer, (5, 6), {"1.layers.0": {"drop": True}}),
    "a rank": (residual, (1, 8, 8), {"block1.conv1": {"rank": 2}}),
    "an energy": (flat, (3, 6, 6), {"middle": {"energy": 0.5}}),
    "zeros": (residual, (1, 8, 8), {"block3.conv2": {"sparsity": 0.5}}),
    "zeros in a pattern": (flat, (3, 6, 6), {"middle": {"pattern": "2:4"}}),
}  # fmt: skip


def plain(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(x)
    return out


def recipe_of(plans: dict[str, dict[str, object]]) -> Recipe:
    return Recipe.model_validate({"layers": [{"name": name, **fields} for name, fields in plans.items()]})


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_really_compressing(case: str) -> None:
    make, shape, plans = CASES[case]
    model, x, recipe = make(), inputs(16, *shape), recipe_of(plans)
    wanted = outputs(sparsify(model, recipe) if recipe.layers[0].is_sparse else settle(shrink(model, recipe, x), recipe, x), x)
    rehearsal = Rehearsal(model, x)
    with rehearsal.applied(recipe, plain) as (module, _, changed):
        shown = plain(module, x)
    assert changed
    assert not torch.allclose(shown, outputs(model, x), atol=1e-3)
    torch.testing.assert_close(shown, wanted, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("case", CASES)
def test_the_next_recipe_finds_the_model_as_it_was_given(case: str) -> None:
    make, shape, plans = CASES[case]
    model, x = make(), inputs(4, *shape)
    before = fingerprint(model)
    rehearsal = Rehearsal(model, x)
    for _ in range(2):
        with rehearsal.applied(recipe_of(plans), plain) as (module, _, _changed):
            first = plain(module, x)
    with rehearsal.applied(Recipe(), plain) as (module, _, changed):
        torch.testing.assert_close(plain(module, x), outputs(model, x), atol=1e-5, rtol=1e-5)
    assert not changed
    assert first.isfinite().all()
    assert fingerprint(model) == before


@pytest.mark.parametrize("name", ["stem.0", "block3.conv2", "head"])
def test_one_integer_layer_is_rounded_as_the_fake_quantized_model_rounds_it(name: str) -> None:
    model, x = residual(8), inputs(32, 1, 8, 8)
    recipe = Recipe(layers=(LayerPlan(name=name, weight_bits=3, activation_bits=8),))
    wanted = settle(model, recipe, x)
    with Rehearsal(model, x).applied(recipe, plain) as (module, _, changed):
        shown = plain(module, x)
    assert changed == {name}
    torch.testing.assert_close(shown, outputs(wanted, x), atol=1e-4, rtol=1e-4)


def test_the_importance_of_the_recipe_chooses_the_channels() -> None:
    model, x = residual(8), inputs(16, 1, 8, 8)
    shown = []
    for importance in ("l2", "random", "l2"):
        recipe = Recipe.model_validate({"pruning": {"importance": importance}, "layers": [{"name": "block3.conv1", "keep": 0.5}]})
        with Rehearsal(model, x).applied(recipe, plain) as (module, _, _changed):
            shown.append(plain(module, x))
    assert torch.equal(shown[0], shown[2])
    assert not torch.allclose(shown[0], shown[1], atol=1e-3)


def test_what_cannot_be_compressed_so_is_refused_with_the_reason() -> None:
    x = inputs(8, 5, 6)
    recipe = Recipe(layers=(LayerPlan(name="1.layers.0.self_attn.out_proj", weight_bits=8, activation_bits=8),))
    with pytest.raises(InfeasibleRecipe, match="its input is never seen"), Rehearsal(transformer(), x).applied(recipe, plain):
        pass
