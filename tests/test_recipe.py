"""The hub: YAML there and back, digests, and refusals with the path of the field."""

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autocompress.errors import InvalidRecipe
from autocompress.recipe import Distillation, LayerPlan, Recipe, Recovery, from_yaml, to_yaml

BITS = st.one_of(st.integers(2, 16), st.just(32))
SHARES = st.floats(0.0, 1.0, exclude_min=True)
PLANS = st.builds(
    LayerPlan,
    name=st.text(min_size=1, max_size=30),
    keep=SHARES,
    rank=st.none() | st.integers(1, 4096),
    weight_bits=BITS,
    activation_bits=BITS,
)
RECIPES = st.builds(
    Recipe,
    layers=st.lists(PLANS, max_size=5, unique_by=lambda plan: plan.name).map(tuple),
    distillation=st.none() | st.builds(Distillation, temperature=st.floats(0.1, 100.0), soft_weight=SHARES, hard_weight=SHARES),
    recovery=st.builds(Recovery, steps=st.integers(0, 10**6), learning_rate=st.floats(1e-9, 10.0), seed=st.integers(0, 2**63)),
)


@given(RECIPES)
def test_a_recipe_survives_yaml(recipe: Recipe) -> None:
    again = from_yaml(to_yaml(recipe))
    assert again == recipe
    assert again.digest == recipe.digest


@given(RECIPES)
def test_a_recipe_survives_json(recipe: Recipe) -> None:
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_yaml_has_one_line_a_layer() -> None:
    text = to_yaml(Recipe(layers=(LayerPlan(name="conv1", keep=0.5), LayerPlan(name="fc", rank=8))))
    assert [line for line in text.splitlines() if "name" in line] == [
        "  - {name: conv1, keep: 0.5, weight_bits: 32, activation_bits: 32}",
        "  - {name: fc, keep: 1.0, rank: 8, weight_bits: 32, activation_bits: 32}",
    ]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("steps: 3", "steps: unknown key"),
        ("layers: [{name: a}, {name: b, kep: 0.5}]", "layers[1].kep: unknown key"),
        ("layers: [{name: a, keep: 0}]", "layers[0].keep: "),
        ("layers: [{name: a, keep: 1.01}]", "layers[0].keep: "),
        ("layers: [{name: a, keep: .nan}]", "layers[0].keep: "),
        ("layers: [{name: a, rank: 0}]", "layers[0].rank: "),
        ("layers: [{name: a, rank: 1.5}]", "layers[0].rank: "),
        ("layers: [{name: a, weight_bits: 17}]", "layers[0].weight_bits: bits must be 2 to 16, or 32 for float (got 17)"),
        ("layers: [{keep: 0.5}]", "layers[0].name: "),
        ("layers: [{name: a}, {name: a}]", "more than one plan for a"),
        ("distillation: {soft_weight: 0, hard_weight: 0}", "distillation: soft_weight and hard_weight are both 0"),
        ("recovery: {learning_rate: .inf}", "recovery.learning_rate: "),
        ("schema_version: 2", "schema_version: "),
    ],
)
def test_a_wrong_field_is_named_by_its_path(text: str, place: str) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        from_yaml(text, "mine.yaml")
    assert str(caught.value).startswith("mine.yaml: ")
    assert place in str(caught.value)


@pytest.mark.parametrize("text", ["layers: [", "- 1", "", "hello", "!!python/object:os.system {}"])
def test_what_is_no_recipe_at_all_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InvalidRecipe, match=r"^mine\.yaml: ") as caught:
        from_yaml(text, "mine.yaml")
    assert "\n" not in str(caught.value)


def test_the_digest_ignores_order_and_plans_that_change_nothing() -> None:
    one, other, idle = LayerPlan(name="a", keep=0.5), LayerPlan(name="b", rank=3), LayerPlan(name="c")
    assert Recipe(layers=(one, other, idle)).digest == Recipe(layers=(other, one)).digest


@pytest.mark.parametrize(
    "change",
    [
        {"layers": (LayerPlan(name="a", keep=0.5, weight_bits=8),)},
        {"layers": (LayerPlan(name="b", keep=0.5),)},
        {"distillation": None},
        {"recovery": Recovery(seed=1)},
        {"recovery": Recovery(steps=1)},
    ],
)
def test_the_digest_tells_apart_whatever_changes_the_result(change: dict[str, Any]) -> None:
    recipe = Recipe(layers=(LayerPlan(name="a", keep=0.5),))
    assert recipe.model_copy(update=change).digest != recipe.digest


def test_a_digest_written_down_still_holds() -> None:
    """Results are found again by their recipe's digest: it may only change together with schema_version."""
    assert Recipe(layers=(LayerPlan(name="a", keep=0.5, weight_bits=8, activation_bits=8),)).digest == "826dc9305a439862"


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().schema_version = 1  # type: ignore[misc]


def test_a_plan_is_quantized_when_weights_or_inputs_are_integers() -> None:
    plans = [LayerPlan(name="a"), LayerPlan(name="a", weight_bits=8), LayerPlan(name="a", activation_bits=8)]
    assert [plan.is_quantized for plan in plans] == [False, True, True]


def test_the_yaml_is_plain_data_that_any_reader_loads() -> None:
    content = yaml.safe_load(to_yaml(Recipe(layers=(LayerPlan(name="on"), LayerPlan(name="1e3")))))
    assert [plan["name"] for plan in content["layers"]] == ["on", "1e3"]
