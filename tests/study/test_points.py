"""From a point to a recipe: what the techniques beside channels, ranks and bits become, on hand-made layers."""

from collections.abc import Callable
from typing import Any

import pytest

from autocompress.config import (
    BitChoices,
    DistillationSpace,
    PruningSpace,
    QuantizationSpace,
    RecoverySpace,
    Rule,
    Shares,
    Space,
    Sparsities,
    StudentSpace,
)
from autocompress.errors import InvalidSpace
from autocompress.recipe import Recipe, Student
from autocompress.records import LayerInfo
from autocompress.study.pareto import describe
from autocompress.study.points import anchors, recipe_of, values_of
from autocompress.study.space import dimensions, sampled

MakeLayer = Callable[..., LayerInfo]
QUIET: dict[str, Any] = {"distillation": None, "recovery": RecoverySpace()}
ALL = {"static": (2, 3, 4, 5, 6, 7, 8), "weight_only": (4, 8), "half": (16,)}


def recipe_with(space: Space, layers: tuple[LayerInfo, ...], **wanted: Any) -> Recipe:
    """The recipe at the named values (``:`` and ``.`` written ``__`` and ``_of_``), every other dimension at its first choice."""
    dims = dimensions(space, layers)
    asked = {name.replace("__", ":").replace("_of_", "."): value for name, value in wanted.items()}
    params = {dim.name: dim.choices.index(asked.pop(dim.name)) if dim.name in asked else 0 for dim in sampled(dims)}
    assert not asked, f"no such dimension: {asked}; there are {[dim.name for dim in sampled(dims)]}"
    return recipe_of(params, dims, space, layers, seed=7)


@pytest.fixture
def attention() -> LayerInfo:
    return LayerInfo(name="attention", kind="attention", macs=0, params=0, in_channels=4, out_channels=4, group="attention")


@pytest.fixture
def block() -> LayerInfo:
    return LayerInfo(name="block", kind="block", macs=0, params=0, in_channels=0, out_channels=0, droppable=True)


def test_heads_are_cut_in_whole_numbers_and_apart_from_channels(make_layer: MakeLayer, attention: LayerInfo) -> None:
    space = Space(heads=Shares(choices=(1.0, 0.6, 0.1)), **QUIET)
    layers = (make_layer("a"), attention)
    assert {dim.name: dim.choices for dim in sampled(dimensions(space, layers))} == {"heads:attention": (0.25, 0.5, 1.0)}
    recipe = recipe_with(space, layers, heads__attention=0.5)
    assert [plan.keep for plan in recipe.layers] == [1.0, 0.5]


def test_a_block_is_left_out_only_where_the_space_allows_it_or_a_rule_says_so(make_layer: MakeLayer, block: LayerInfo) -> None:
    layers = (make_layer("a"), block)
    assert "drop:block" not in {dim.name for dim in dimensions(Space(keep=Shares(choices=(0.5, 1.0)), **QUIET), layers)}
    assert recipe_with(Space(drop=True, **QUIET), layers, drop__block=1).plans["block"].drop
    pinned = Space(keep=Shares(choices=(0.5, 1.0)), layers=(Rule(match="block", drop=True),), **QUIET)
    assert recipe_with(pinned, layers).plans["block"].drop
    with pytest.raises(InvalidSpace, match=r"layers\[0\]\.drop: no layer that 'a' matches can have 1"):
        dimensions(Space(keep=Shares(choices=(0.5, 1.0)), layers=(Rule(match="a", drop=True),), **QUIET), layers)


def test_zeros_are_a_share_or_a_pattern_of_layers_with_weights(make_layer: MakeLayer, attention: LayerInfo) -> None:
    space = Space(sparsity=Sparsities(choices=("2:4", 0.5, 0)), **QUIET)
    layers = (make_layer("a"), make_layer("b"), attention)
    recipe = recipe_with(space, layers, sparsity__a="2:4", sparsity__b=0.5)
    assert [(plan.sparsity, plan.pattern) for plan in recipe.layers] == [(0.0, "2:4"), (0.5, None), (0.0, None)]


def test_a_kept_energy_stands_where_no_rank_is_chosen(make_layer: MakeLayer) -> None:
    space = Space(rank=Shares(choices=(0.25, 1.0)), energy=Shares(choices=(0.9, 1.0)), factorization=("auto", "cp"), **QUIET)
    by_rank = recipe_with(space, (make_layer("a"),), rank__a=0.25, energy__a=0.9, factorization="cp").plans["a"]
    by_energy = recipe_with(space, (make_layer("a"),), rank__a=1.0, energy__a=0.9, factorization="cp").plans["a"]
    assert (by_rank.rank, by_rank.energy, by_rank.factorization) == (8, None, "cp")
    assert (by_energy.rank, by_energy.energy, by_energy.factorization) == (None, 0.9, "cp")


def test_widths_without_a_kernel_of_their_own_are_offered_only_on_request(make_layer: MakeLayer) -> None:
    layer = make_layer("a", schemes=ALL)
    for real, offered in ((True, (8, 32)), (False, (4, 8, 32))):
        space = Space(weight_bits=BitChoices(choices=(4, 8, 32), real=real), **QUIET)
        assert {dim.name: dim.choices for dim in dimensions(space, (layer,))}["weight_bits:a"] == offered


def test_a_layer_that_the_chosen_scheme_does_not_run_stays_float(make_layer: MakeLayer) -> None:
    layers = (make_layer("conv", schemes=ALL), make_layer("fc", kind="linear", schemes=ALL | {"dynamic": (8,)}))
    space = Space(
        weight_bits=BitChoices(choices=(8, 32), real=False),
        quantization=QuantizationSpace(activations=("static", "dynamic")),
        **QUIET,
    )
    static = recipe_with(space, layers, quantization_of_activations="static")
    dynamic = recipe_with(space, layers, quantization_of_activations="dynamic")
    assert [plan.weight_bits for plan in static.layers] == [8, 8]
    assert [plan.weight_bits for plan in dynamic.layers] == [32, 8]


def test_weights_alone_become_integers_where_inputs_stay_float(make_layer: MakeLayer) -> None:
    space = Space(weight_bits=BitChoices(choices=(4, 32), real=False), activation_bits=BitChoices(choices=(8, 32)), **QUIET)
    layer = make_layer("a", schemes=ALL)
    found = {recipe_with(space, (layer,), weight_bits__a=4, activation_bits__a=bits).plans["a"].activation_bits for bits in (8, 32)}
    assert found == {8, 32}
    half = Space(weight_bits=BitChoices(choices=(16, 32), real=False), **QUIET)
    plan = recipe_with(half, (layer,), weight_bits__a=16).plans["a"]
    assert (plan.weight_bits, plan.activation_bits) == (16, 32)


def test_a_student_stands_beside_the_given_model_and_has_no_plans_of_its_layers(make_layer: MakeLayer) -> None:
    space = Space(
        student=StudentSpace(width=(0.25, 0.5), depth=(1.0,)),
        weight_bits=BitChoices(choices=(8,)),
        keep=Shares(choices=(0.5, 1.0)),
        **QUIET,
    )
    layers = (make_layer("a"),)
    given, small = (recipe_with(space, layers, student_of_width=width) for width in (0.0, 0.25))
    assert given.student is None
    assert given.plans["a"].keep == 0.5
    assert small.student == Student(width=0.25, depth=1.0, weight_bits=8, activation_bits=8)
    assert small.layers == ()


def test_settings_of_the_whole_model_are_one_dimension_each_and_only_where_there_is_a_choice(make_layer: MakeLayer) -> None:
    space = Space(
        keep=Shares(choices=(0.5, 1.0)),
        pruning=PruningSpace(importance=("l2", {"taylor": 1.0, "l1": 0.5}), steps_between=3),
        quantization=QuantizationSpace(observer="mse", equalize=(False, True)),
        distillation=DistillationSpace(augmentation=("none", "cutmix"), ramp=0.25),
        recovery=RecoverySpace(optimizer=("adamw", "sgd"), ema=0.9),
    )
    names = {dim.name for dim in sampled(dimensions(space, (make_layer("a"),)))}
    assert names == {
        "keep:group of a", "pruning.importance", "quantization.equalize", "distillation.augmentation", "recovery.optimizer",
    }  # fmt: skip
    mixed = {"taylor": 1.0, "l1": 0.5}
    chosen = {"pruning_of_importance": mixed, "quantization_of_equalize": True, "recovery_of_optimizer": "sgd"}
    recipe = recipe_with(space, (make_layer("a"),), **chosen)
    assert (recipe.pruning.importance, recipe.pruning.steps_between, recipe.pruning.seed) == ({"l1": 0.5, "taylor": 1.0}, 3, 7)
    assert (recipe.quantization.observer, recipe.quantization.equalize) == ("mse", True)
    assert (recipe.recovery.optimizer, recipe.recovery.ema) == ("sgd", 0.9)
    assert recipe.distillation is not None
    assert recipe.distillation.ramp == 0.25


def test_an_order_without_a_stage_that_the_space_needs_is_refused(make_layer: MakeLayer) -> None:
    space = Space(keep=Shares(choices=(0.5, 1.0)), order=(("distill", "quantize"),), **QUIET)
    with pytest.raises(InvalidSpace, match=r"order\[0\]: distill -> quantize lacks prune"):
        dimensions(space, (make_layer("a"),))


def test_anchors_leave_heads_blocks_and_weights_and_the_given_model_in_place(
    make_layer: MakeLayer, attention: LayerInfo, block: LayerInfo
) -> None:
    space = Space(
        keep=Shares(choices=(0.25, 0.5, 1.0)), heads=Shares(choices=(0.5, 1.0)), drop=True, sparsity=Sparsities(choices=(0, 0.5)),
        student=StudentSpace(width=(0.5,)), **QUIET,
    )  # fmt: skip
    dims = dimensions(space, (make_layer("a"), attention, block))
    found = [values_of(point, dims) for point in anchors(dims)]
    assert [one["keep:group of a"] for one in found] == [0.5, 0.25]
    for one in found:
        assert (one["heads:attention"], one["drop:block"], one["sparsity:a"], one["student.width"]) == (1.0, 0, 0.0, 0.0)


def test_a_recipe_is_told_in_words_with_all_that_is_not_usual(make_layer: MakeLayer, attention: LayerInfo, block: LayerInfo) -> None:
    space = Space(
        heads=Shares(choices=(0.5,)), drop=True, sparsity=Sparsities(choices=(0.5,)), weight_bits=BitChoices(choices=(4,), real=False),
        activation_bits=BitChoices(choices=(32,)), pruning=PruningSpace(importance="taylor"),
        quantization=QuantizationSpace(adaround_steps=100), recovery=RecoverySpace(ema=0.9),
        distillation=DistillationSpace(augmentation="mixup"), order=(("distill", "prune", "sparsify", "quantize"),),
    )  # fmt: skip
    layers = (make_layer("a", schemes=ALL), attention, block)
    lines = describe(recipe_with(space, layers, drop__block=1), layers)
    assert lines[:3] == ["a: 50 % zeros, 4 bit weights", "attention: 50 % of heads", "block: left out"]
    assert "pruning: importance taylor" in lines
    assert "quantization: adaround_steps 100" in lines
    assert "order: distill -> prune -> sparsify -> quantize" in lines
    assert lines[-2].endswith("ema 0.9")
    assert lines[-1].endswith("hard 0.3, mixup")
