"""The hub: YAML there and back, digests, and refusals with the path of the field."""

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autocompress.errors import InvalidRecipe
from autocompress.recipe import (
    ORDER,
    Distillation,
    LayerPlan,
    Pruning,
    Quantization,
    Recipe,
    Recovery,
    Student,
    from_yaml,
    refused_order,
    scheme_of,
    to_yaml,
)

BITS = st.one_of(st.integers(2, 8), st.sampled_from([16, 32]))
SHARES = st.floats(0.0, 1.0, exclude_min=True)
WITHIN = st.floats(0.0, 1.0, exclude_min=True, exclude_max=True)
HOW_MUCH = st.sampled_from([{}, {"rank": 3}, {"energy": 0.9}, {"sparsity": 0.25}, {"pattern": "2:4"}, {"drop": True}])
PLANS = st.builds(
    lambda extra, **fields: LayerPlan(**fields, **extra),
    HOW_MUCH,
    name=st.text(min_size=1, max_size=30),
    keep=SHARES,
    factorization=st.sampled_from(["auto", "svd", "cp"]),
    weight_bits=BITS,
    activation_bits=st.sampled_from([8, 16, 32]),
)
RECIPES = st.builds(
    Recipe,
    student=st.none() | st.builds(Student, width=SHARES, depth=SHARES, weight_bits=BITS),
    layers=st.lists(PLANS, max_size=5, unique_by=lambda plan: plan.name).map(tuple),
    pruning=st.builds(Pruning, importance=st.sampled_from(["l1", {"taylor": 1.0, "bn_scale": 0.5}]), global_sparsity=WITHIN),
    quantization=st.builds(Quantization, observer=st.sampled_from(["minmax", "mse"]), group_size=st.integers(2, 256)),
    distillation=st.none() | st.builds(Distillation, temperature=st.floats(0.1, 100.0), soft_weight=SHARES, hard_weight=SHARES),
    recovery=st.builds(Recovery, steps=st.integers(0, 10**6), learning_rate=st.floats(1e-9, 10.0), seed=st.integers(0, 2**63)),
    order=st.sampled_from([ORDER, ("distill", "prune", "factorize", "sparsify", "distill", "quantize")]),
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
        ("layers: [{name: a, weight_bits: 17}]", "layers[0].weight_bits: bits must be 2 to 8, 16 for half floats, or 32 for float"),
        ("layers: [{keep: 0.5}]", "layers[0].name: "),
        ("layers: [{name: a}, {name: a}]", "more than one plan for a"),
        ("distillation: {soft_weight: 0, hard_weight: 0}", "distillation: soft_weight and hard_weight are both 0"),
        ("recovery: {learning_rate: .inf}", "recovery.learning_rate: "),
        ("layers: [{name: a, weight_bits: 1}]", "layers[0].weight_bits: bits must be 2 to 8"),
        ("layers: [{name: a, activation_bits: 4}]", "layers[0].activation_bits: activation bits must be 8, 16 for half floats"),
        ("layers: [{name: a, sparsity: 1}]", "layers[0].sparsity: "),
        ("layers: [{name: a, pattern: '4:2'}]", 'layers[0].pattern: pattern must be "N:M" with 0 < N < M'),
        ("layers: [{name: a, rank: 3, energy: 0.5}]", "layers[0]: rank and energy both say"),
        ("layers: [{name: a, sparsity: 0.5, pattern: '2:4'}]", "layers[0]: sparsity and pattern both say"),
        ("pruning: {importance: magnitude}", "pruning.importance.magnitude.[key]: Input should be 'l1', 'l2'"),
        ("pruning: {importance: {l1: 0}}", "pruning.importance: importance needs at least one criterion"),
        ("quantization: {group_size: 1}", "quantization.group_size: "),
        ("distillation: {feature_weight: 1}", "distillation: feature_weight and attention_weight need `features`"),
        ("distillation: {teachers: {big: 0}}", "distillation: teachers: weights must not be below 0, nor all be 0"),
        ("order: [quantize, prune]", "order: quantize -> prune: quantize must come last"),
        ("{layers: [{name: a, keep: 0.5}], order: [distill, quantize]}", "order: distill -> quantize lacks prune"),
        ("schema_version: 3", "schema_version: "),
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
    assert Recipe(layers=(LayerPlan(name="a", keep=0.5, weight_bits=8, activation_bits=8),)).digest == "77e59cec08044d6d"


def test_a_recipe_of_version_1_reads_as_what_it_meant() -> None:
    old = "schema_version: 1\nlayers: [{name: a, keep: 0.5, weight_bits: 8, activation_bits: 8}]\nrecovery: {steps: 3}\n"
    recipe = from_yaml(old)
    assert recipe == Recipe(layers=(LayerPlan(name="a", keep=0.5, weight_bits=8, activation_bits=8),), recovery=Recovery(steps=3))
    assert recipe.schema_version == 2


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ((), "at least one stage"),
        (("prune", "distill", "prune"), "prune comes twice"),
        (("quantize", "distill"), "quantize must come last"),
        (("factorize", "prune"), "prune must come before factorize: ranks are counted after pruning"),
        (("sparsify", "prune"), "prune must come before sparsify"),
        (("sparsify", "factorize"), "factorize must come before sparsify"),
        (("distill", "distill"), "distill twice in a row"),
        (ORDER, ""),
        (("distill", "prune", "quantize"), ""),
        (("prune", "distill", "sparsify", "distill", "quantize"), ""),
    ],
)
def test_only_meaningful_orders_are_taken(order: tuple[Any, ...], reason: str) -> None:
    assert refused_order(order).startswith(reason) if not reason else reason in refused_order(order)


@pytest.mark.parametrize(
    ("weight", "activation", "scheme"),
    [
        (32, 32, "none"), (8, 8, "dynamic"), (32, 8, "dynamic"), (4, 32, "weight_only"), (4, 16, "weight_only"), (16, 32, "half"),
        (32, 16, "half"),
    ],
)
def test_the_scheme_of_a_layer_follows_from_its_bits(weight: int, activation: int, scheme: str) -> None:
    assert scheme_of(weight, activation, Quantization(activations="dynamic")) == scheme


def test_the_name_of_one_criterion_is_short_for_its_weight_of_one() -> None:
    assert from_yaml("pruning: {importance: taylor}").pruning.importance == {"taylor": 1.0}


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().schema_version = 1  # type: ignore[misc]


def test_a_plan_is_quantized_when_weights_or_inputs_are_integers() -> None:
    plans = [LayerPlan(name="a"), LayerPlan(name="a", weight_bits=8), LayerPlan(name="a", activation_bits=8)]
    assert [plan.is_quantized for plan in plans] == [False, True, True]


def test_the_yaml_is_plain_data_that_any_reader_loads() -> None:
    content = yaml.safe_load(to_yaml(Recipe(layers=(LayerPlan(name="on"), LayerPlan(name="1e3")))))
    assert [plan["name"] for plan in content["layers"]] == ["on", "1e3"]
