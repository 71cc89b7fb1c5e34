"""Every space in search_spaces/ loads, explains itself, fits a small model and can be sampled."""

import pytest

from autocompress.config import (
    SPACES,
    Budget,
    DistillationSpace,
    PruningSpace,
    QuantizationSpace,
    RecoverySpace,
    SearchConfig,
    Space,
    StudentSpace,
    load_space,
)
from autocompress.recipe import Assistant, Distillation, LayerPlan, Pruning, Quantization, Recipe, Recovery, Student
from autocompress.records import LayerInfo, Target, TrialResult
from autocompress.study.points import anchors, recipe_of
from autocompress.study.propose import Memory, Proposal, propose
from autocompress.study.question import question_of
from autocompress.study.space import dimensions, sampled, space_size

NAMES = sorted(file.stem for file in SPACES.glob("*.yaml"))


def convolution(number: int, integer: bool) -> LayerInfo:
    return LayerInfo(
        name=f"conv{number}",
        kind="conv2d",
        macs=1000,
        params=9216,
        in_channels=64,
        out_channels=64,
        kernel=(3, 3),
        group=f"g{number}",
        in_group=f"g{number - 1}" if number else None,
        channel_multiple=8,
        weight_bits=(32, 7) if integer else (32,),
        schemes={"static": (2, 3, 4, 5, 6, 7, 8), "weight_only": (4, 8), "dynamic": (8,)} if integer else {},
        factorizable=True,
    )


LAYERS = tuple(convolution(number, integer=number < 3) for number in range(4))


def test_the_spaces_that_the_program_promises_are_there() -> None:
    assert {"compact", "default", "full", "large", "small"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_space_loads_by_name_describes_itself_and_can_be_sampled(name: str) -> None:
    config = SearchConfig(study="s", task="t", space=load_space(name), budget=Budget(trials=1), target=Target())
    assert config.space.description
    question, memory = question_of(config, LAYERS), Memory()
    results: list[TrialResult] = []
    for number in range(14):
        proposal = propose(question, memory, results, number)
        assert isinstance(proposal, Proposal)
        assert [plan.name for plan in proposal.recipe.layers] == [layer.name for layer in LAYERS]
        own = {"params": proposal.params, "recipe": proposal.recipe, "target": Target(), "outcome": "gated"}
        results.append(TrialResult(number=number, gate_speedup=1.0 + number / 10, **own))
    assert any(plan.weight_bits < 32 for result in results for plan in result.recipe.layers)
    assert any(plan.keep < 1 for result in results for plan in result.recipe.layers)


@pytest.mark.parametrize("name", NAMES)
def test_every_ladder_of_a_space_starts_from_what_leaves_the_layer_as_it_is(name: str) -> None:
    space = load_space(name)
    assert (space.keep.choices[-1], space.rank.choices[-1], space.weight_bits.choices[-1]) == (1.0, 1.0, 32)


def test_the_spaces_are_ordered_by_size() -> None:
    small, default, large = (space_size(dimensions(load_space(name), LAYERS)) for name in ("small", "default", "large"))
    assert 100 < small < default < large


def test_the_default_space_starts_from_six_anchors_at_most_and_samples_channels_ranks_and_bits() -> None:
    dims = dimensions(load_space("default"), LAYERS)
    assert {dim.kind for dim in sampled(dims)} == {"keep", "rank", "weight_bits", "temperature", "soft_weight", "learning_rate"}
    assert 4 <= len(anchors(dims)) <= 6


def test_every_field_of_a_recipe_is_reached_from_a_space() -> None:
    """A technique that can be typed by hand can be searched: what a plan or a part of the recipe holds, a space offers."""
    parts = {"pruning": Pruning, "quantization": Quantization, "distillation": Distillation, "recovery": Recovery, "student": Student}
    offered = {"pruning": PruningSpace, "quantization": QuantizationSpace, "distillation": DistillationSpace}
    offered |= {"recovery": RecoverySpace, "student": StudentSpace}
    derived = {"hard_weight", "seed", "weight_bits", "activation_bits"}  # 1 - soft_weight; the study's seed; as the layers have it
    for name, part in parts.items():
        assert set(part.model_fields) - derived <= set(offered[name].model_fields), name
    plan = set(LayerPlan.model_fields) - {"name", "pattern"}  # patterns are choices of `sparsity`
    assert plan <= set(Space.model_fields)
    assert set(Recipe.model_fields) - {"schema_version"} <= set(Space.model_fields)


def test_the_full_space_offers_what_is_no_layer_too_and_its_recipes_are_valid() -> None:
    attention = LayerInfo(name="attention", kind="attention", macs=0, params=0, in_channels=4, out_channels=4, group="attention")
    block = LayerInfo(name="block", kind="block", macs=0, params=0, in_channels=0, out_channels=0, droppable=True)
    layers, space = (*LAYERS, attention, block), load_space("full")
    dims = dimensions(space, layers)
    names = {dim.name for dim in sampled(dims)}
    assert {"heads:attention", "drop:block", "sparsity:*", "factorization", "pruning.importance", "quantization.observer", "order"} <= names
    last = {dim.name: len(dim.choices) - 1 for dim in sampled(dims)}
    recipe = recipe_of(last | {"drop:block": 1, "heads:attention": 0}, dims, space, layers, seed=1)
    assert (recipe.plans["attention"].keep, recipe.plans["block"].drop, recipe.plans["conv0"].pattern) == (0.5, True, "2:4")
    assert recipe.order == space.order[-1]
    assert recipe.pruning.importance == {"hessian": 1.0, "l2": 1.0}
    assert recipe.distillation is not None
    assert recipe.distillation.assistant == Assistant(keep=0.7, steps=60)
