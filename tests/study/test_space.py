"""Dimensions, snapping, rules, ranks, bits, recipes and anchors, on hand-made layers."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.config import BitChoices, DistillationSpace, RecoverySpace, Rule, Shares, Space
from autocompress.errors import InvalidSpace
from autocompress.recipe import LayerPlan, Recipe
from autocompress.records import LayerInfo
from autocompress.study.points import anchors, rank_of, recipe_of, values_of
from autocompress.study.space import Dimension, dimensions, narrowed, sampled, snap, space_size, valid_shares

MakeLayer = Callable[..., LayerInfo]
FIXED = {"distillation": None, "recovery": RecoverySpace(learning_rate=(0.001,))}


def choices_of(space: Space, layers: tuple[LayerInfo, ...]) -> dict[str, tuple[float, ...]]:
    return {dim.name: dim.choices for dim in dimensions(space, layers)}


def recipe_with(space: Space, layers: tuple[LayerInfo, ...], wanted: dict[str, float]) -> Recipe:
    """The recipe at the named values; every other dimension at its last choice."""
    dims = dimensions(space, layers)
    params = {dim.name: dim.choices.index(wanted.get(dim.name, dim.choices[-1])) for dim in sampled(dims)}
    return recipe_of(params, dims, space, layers, seed=7)


def plan_of(recipe: Recipe, name: str) -> LayerPlan:
    return recipe.plans[name]


def test_a_prune_group_is_one_dimension_and_a_layer_without_one_has_none(make_layer: MakeLayer) -> None:
    layers = (make_layer("a", group="residual"), make_layer("b", group="residual"), make_layer("head", group=None))
    names = [name for name in choices_of(Space(keep=Shares(choices=(0.5, 1.0)), **FIXED), layers) if name.startswith("keep")]
    assert names == ["keep:residual"]
    recipe = recipe_with(Space(keep=Shares(choices=(0.5, 1.0)), **FIXED), layers, {"keep:residual": 0.5})
    assert [plan.keep for plan in recipe.layers] == [0.5, 0.5, 1.0]


def test_shares_snap_to_the_channel_multiple_and_duplicates_merge(make_layer: MakeLayer) -> None:
    space = Space(keep=Shares(choices=(1.0, 0.75, 0.5, 0.4, 0.3, 0.2)), **FIXED)
    assert choices_of(space, (make_layer("a"),))["keep:group of a"] == (0.25, 0.5, 0.75, 1.0)


def test_a_share_never_falls_below_one_multiple_nor_rises_above_all(make_layer: MakeLayer) -> None:
    assert snap(0.01, [make_layer("a")]) == 0.25
    assert snap(0.99, [make_layer("a")]) == 1.0
    assert snap(0.1, [make_layer("a", out_channels=4)]) == 1.0


def test_members_of_different_widths_get_only_shares_that_suit_them_all(make_layer: MakeLayer) -> None:
    members = [make_layer("a", out_channels=24), make_layer("b", out_channels=64)]
    assert [float(share) for share in valid_shares(members)] == [1.0]
    members = [make_layer("a", out_channels=48), make_layer("b", out_channels=64)]
    assert [float(share) for share in valid_shares(members)] == [0.5, 1.0]


@given(st.lists(st.tuples(st.integers(1, 200), st.sampled_from([1, 2, 8, 16])), min_size=1, max_size=3), st.floats(0.01, 1.0))
def test_a_snapped_share_leaves_every_member_whole_multiples_of_channels(widths: list[tuple[int, int]], share: float) -> None:
    facts: dict[str, Any] = {"kind": "conv2d", "macs": 1, "params": 1, "in_channels": 1}
    members = [LayerInfo(name=str(n), out_channels=o, channel_multiple=m, **facts) for n, (o, m) in enumerate(widths)]
    snapped = snap(share, members)
    for member in members:
        kept = round(member.out_channels * snapped)
        assert math.isclose(kept, member.out_channels * snapped, rel_tol=1e-12)
        assert 1 <= kept <= member.out_channels
        assert kept == member.out_channels or kept % member.channel_multiple == 0


def test_a_tied_share_is_one_dimension_snapped_for_every_group(make_layer: MakeLayer) -> None:
    layers = (make_layer("a"), make_layer("b", out_channels=16))
    space = Space(keep=Shares(choices=(0.3, 1.0), tie="model"), **FIXED)
    assert choices_of(space, layers)["keep:*"] == (0.3, 1.0)
    assert [plan.keep for plan in recipe_with(space, layers, {"keep:*": 0.3}).layers] == [0.25, 0.5]


def test_a_pin_fixes_its_layer_alone_also_under_a_tie(make_layer: MakeLayer) -> None:
    layers = (make_layer("a"), make_layer("b"))
    for tie in ("layer", "model"):
        space = Space(
            keep=Shares(choices=(0.25, 1.0), tie=tie),
            rank=Shares(choices=(0.25, 1.0), tie=tie),
            weight_bits=BitChoices(choices=(32, 8), tie=tie),
            layers=(Rule(match="a", keep=0.5, rank=0.5, weight_bits=32),),
            **FIXED,
        )
        found = choices_of(space, layers)
        assert (found["keep:group of a"], found["rank:a"], found["weight_bits:a"]) == ((0.5,), (0.5,), (32,))
        params = dict.fromkeys((dim.name for dim in sampled(dimensions(space, layers))), 0)
        recipe = recipe_of(params, dimensions(space, layers), space, layers, seed=0)
        assert plan_of(recipe, "a") == LayerPlan(name="a", keep=0.5, rank=8)
        assert plan_of(recipe, "b") == LayerPlan(name="b", keep=0.25, rank=2, weight_bits=8, activation_bits=8)


def test_the_first_matching_rule_counts_and_case_matters(make_layer: MakeLayer) -> None:
    rules = (Rule(match="conv1", keep=0.5), Rule(match="conv*", keep=0.25))
    space = Space(keep=Shares(choices=(0.25, 0.5, 1.0)), layers=rules, **FIXED)
    found = choices_of(space, (make_layer("conv1"), make_layer("conv2"), make_layer("Conv3")))
    assert [len(found[f"keep:group of {name}"]) for name in ("conv1", "conv2", "Conv3")] == [1, 1, 3]
    assert found["keep:group of conv1"] == (0.5,)


def test_excluding_one_member_leaves_its_whole_group_unpruned_and_itself_float(make_layer: MakeLayer) -> None:
    layers = (make_layer("a", group="g"), make_layer("b", group="g"), make_layer("c"))
    rules = (Rule(match="a", exclude=True),)
    space = Space(
        keep=Shares(choices=(0.5, 1.0)), rank=Shares(choices=(0.1,)), weight_bits=BitChoices(choices=(8,)), layers=rules, **FIXED
    )
    recipe = recipe_with(space, layers, {"keep:group of c": 0.5})
    assert plan_of(recipe, "a") == LayerPlan(name="a")
    assert plan_of(recipe, "b") == LayerPlan(name="b", rank=3, weight_bits=8, activation_bits=8)


def test_a_rule_for_no_layer_is_refused_with_its_pattern_and_the_known_layers(chain: tuple[LayerInfo, ...]) -> None:
    space = Space(keep=Shares(choices=(0.5, 1.0)), layers=(Rule(match="conv1"), Rule(match="block*", exclude=True)))
    with pytest.raises(InvalidSpace, match=r"layers\[1\]\.match: no layer is named 'block\*'.*conv1, conv2, conv3, fc"):
        dimensions(space, chain)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"keep": 0.5}, r"layers\[0\]\.keep: .*0\.5 \(fc: it is the output\)"),
        ({"rank": 0.5}, r"layers\[0\]\.rank: .*0\.5 \(fc: tied weights\)"),
        ({"weight_bits": 4}, r"layers\[0\]\.weight_bits: .* 4 \(fc: no kernel for 4\)"),
    ],
)
def test_a_pin_that_its_layers_cannot_take_is_refused_with_the_reason(
    make_layer: MakeLayer, rule: dict[str, Any], message: str
) -> None:
    reasons = {"keep_reason": "it is the output", "rank_reason": "tied weights", "bits_reason": "no kernel for 4"}
    layers = (make_layer("a"), make_layer("fc", group=None, factorizable=False, **reasons))
    with pytest.raises(InvalidSpace, match=message):
        dimensions(Space(keep=Shares(choices=(0.5, 1.0)), layers=(Rule(match="fc", **rule),)), layers)


def test_a_pin_by_wildcard_applies_where_it_can(make_layer: MakeLayer) -> None:
    layers = (make_layer("a"), make_layer("fc", group=None, weight_bits=(32,)))
    space = Space(recovery=RecoverySpace(learning_rate=(0.001, 0.01)), layers=(Rule(match="*", keep=0.5, weight_bits=8),))
    recipe = recipe_with(space, layers, {})
    assert [(plan.keep, plan.weight_bits) for plan in recipe.layers] == [(0.5, 8), (1.0, 32)]


def test_members_of_a_group_pinned_apart_are_refused(make_layer: MakeLayer) -> None:
    rules = (Rule(match="a", keep=0.5), Rule(match="b", keep=0.25))
    with pytest.raises(InvalidSpace, match=r"a, b are one prune group and need one keep, but are pinned to \[0\.25, 0\.5\]"):
        dimensions(Space(layers=rules), (make_layer("a", group="g"), make_layer("b", group="g")))


@pytest.mark.parametrize(
    ("widths", "left"), [((32, 8, 7), (8, 32)), ((32, 7), (7, 32)), ((8,), (8,)), ((32,), (32,)), ((), (32,))]
)
def test_of_several_integer_widths_the_widest_stays(widths: tuple[int, ...], left: tuple[int, ...]) -> None:
    assert narrowed(widths) == left


def test_bits_are_those_that_both_space_and_target_have(make_layer: MakeLayer) -> None:
    layers = (make_layer("a", weight_bits=(32, 7)), make_layer("b", weight_bits=(32, 8, 7)), make_layer("c", weight_bits=(32,)))
    found = choices_of(Space(weight_bits=BitChoices(choices=(8, 7)), keep=Shares(choices=(0.5, 1.0)), **FIXED), layers)
    assert [found[f"weight_bits:{name}"] for name in "abc"] == [(7,), (8,), (32,)]


def test_tied_bits_are_those_that_every_integer_layer_runs(make_layer: MakeLayer) -> None:
    layers = (make_layer("a", weight_bits=(32, 7)), make_layer("b", weight_bits=(32, 8, 7)), make_layer("c", weight_bits=(32,)))
    space = Space(weight_bits=BitChoices(choices=(32, 8, 7), tie="model"), **FIXED)
    assert choices_of(space, layers)["weight_bits:*"] == (7, 32)
    assert [plan.weight_bits for plan in recipe_with(space, layers, {"weight_bits:*": 7}).layers] == [7, 7, 32]
    assert [plan.weight_bits for plan in recipe_with(space, layers, {"weight_bits:*": 32}).layers] == [32, 32, 32]


def test_only_layers_with_integer_weights_get_integer_inputs(make_layer: MakeLayer) -> None:
    layers = (make_layer("a"), make_layer("b"))
    space = Space(weight_bits=BitChoices(choices=(32, 8)), activation_bits=BitChoices(choices=(16, 8)), **FIXED)
    recipe = recipe_with(space, layers, {"weight_bits:a": 8, "weight_bits:b": 32})
    assert [(plan.weight_bits, plan.activation_bits) for plan in recipe.layers] == [(8, 8), (32, 32)]


def test_several_integer_input_widths_are_a_choice_and_none_means_no_integer_weights(make_layer: MakeLayer) -> None:
    several = Space(weight_bits=BitChoices(choices=(32, 8)), activation_bits=BitChoices(choices=(8, 6)), **FIXED)
    assert choices_of(several, (make_layer("a"),))["activation_bits:a"] == (6, 8)
    none = Space(
        weight_bits=BitChoices(choices=(32, 8)),
        activation_bits=BitChoices(choices=(16,)),
        keep=Shares(choices=(0.5, 1.0)),
        **FIXED,
    )
    assert choices_of(none, (make_layer("a"),))["weight_bits:a"] == (32,)


def linear_cost(rank: int, out: int, inp: int) -> int:
    return rank * inp + out * rank


def tucker_cost(rank: int, out: int, inp: int, area: int) -> int:
    inner_in, inner_out = min(rank, inp), min(rank, out)
    return inp * inner_in + inner_in * inner_out * area + inner_out * out


@given(st.integers(1, 128), st.integers(1, 128), st.sampled_from([1, 3, 5]), st.floats(0.01, 0.99))
def test_a_rank_stays_only_where_it_saves_multiply_adds(out: int, inp: int, side: int, share: float) -> None:
    facts: dict[str, Any] = {"macs": 1, "params": 1, "in_channels": inp, "out_channels": out, "factorizable": True}
    info = LayerInfo(name="x", kind="conv2d", kernel=(side, side), **facts)
    rank, wished = rank_of(info, share, out, inp), max(1, round(share * min(out, inp)))
    cost = linear_cost(wished, out, inp) if side == 1 else tucker_cost(wished, out, inp, side * side)
    saves = wished < min(out, inp) and cost < out * inp * side * side
    assert rank == (wished if saves else None)


def test_the_rank_is_counted_after_pruning_of_the_layer_and_of_the_one_before(make_layer: MakeLayer) -> None:
    layers = (make_layer("a"), make_layer("b", in_group="group of a", out_channels=64))
    space = Space(keep=Shares(choices=(0.25, 0.5, 1.0)), rank=Shares(choices=(0.5, 1.0)), **FIXED)
    recipe = recipe_with(space, layers, {"keep:group of a": 0.25, "keep:group of b": 0.5, "rank:b": 0.5})
    assert plan_of(recipe, "b").rank == 4  # half of min(64 * 0.5, 32 * 0.25)
    assert plan_of(recipe, "a").rank is None


def test_a_recipe_has_one_plan_for_every_layer_and_the_seed_of_the_study(space: Space, chain: tuple[LayerInfo, ...]) -> None:
    recipe = recipe_with(space, chain, {"learning_rate": 0.002})
    assert [plan.name for plan in recipe.layers] == ["conv1", "conv2", "conv3", "fc"]
    assert (recipe.recovery.seed, recipe.recovery.learning_rate, recipe.recovery.steps) == (7, 0.002, 10)


def test_the_weights_of_the_loss_add_up_to_one_and_no_soft_weight_means_no_teacher(chain: tuple[LayerInfo, ...]) -> None:
    space = Space(keep=Shares(choices=(0.5, 1.0)), distillation=DistillationSpace(temperature=(8, 2), soft_weight=(0.9, 0.0)))
    taught = recipe_with(space, chain, {"soft_weight": 0.9, "temperature": 2}).distillation
    assert taught is not None
    assert (taught.temperature, taught.soft_weight, taught.hard_weight) == (2, 0.9, 0.1)
    assert recipe_with(space, chain, {"soft_weight": 0.0}).distillation is None


def test_without_training_its_settings_are_no_choice(chain: tuple[LayerInfo, ...]) -> None:
    idle = RecoverySpace(steps=0, quantized_steps=0, learning_rate=(0.001, 0.002))
    space = Space(keep=Shares(choices=(0.5, 1.0)), distillation=DistillationSpace(temperature=(2, 4)), recovery=idle)
    assert {dim.kind for dim in sampled(dimensions(space, chain))} == {"keep"}


def test_the_size_of_a_space_is_the_product_of_its_ladders(space: Space, chain: tuple[LayerInfo, ...]) -> None:
    assert space_size(dimensions(space, chain)) == 4**3 * 2**3 * 2
    assert space_size([Dimension("keep:a", (0.5, 1.0)), Dimension("rank:a", (1.0,))]) == 2


def test_a_model_that_may_not_change_is_refused_with_the_reason_of_every_layer_in_one_line(make_layer: MakeLayer) -> None:
    fixed: dict[str, Any] = {"group": None, "factorizable": False, "weight_bits": (32,)}
    layers = (make_layer("lstm", **fixed, keep_reason="gates share rows"), make_layer("fc", **fixed, bits_reason="tied weights"))
    with pytest.raises(InvalidSpace) as caught:
        dimensions(Space(keep=Shares(choices=(0.5, 1.0)), recovery=RecoverySpace(learning_rate=(0.001, 0.01))), layers)
    assert "lstm: gates share rows; fc: tied weights" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_space_of_one_recipe_is_refused(chain: tuple[LayerInfo, ...]) -> None:
    with pytest.raises(InvalidSpace, match="one recipe only"):
        dimensions(Space(layers=(Rule(match="conv1", keep=0.5),), **FIXED), chain)


def test_anchors_go_from_mild_to_hard_in_integers_and_in_float(space: Space, chain: tuple[LayerInfo, ...]) -> None:
    dims = dimensions(space, chain)
    values = [values_of(point, dims) for point in anchors(dims)]
    assert [(one["keep:group of conv2"], one["weight_bits:conv1"]) for one in values] == [
        (0.5, 8),
        (0.5, 32),
        (0.25, 8),
        (0.25, 32),
    ]
    assert all(one["rank:conv1"] == 1.0 and one["learning_rate"] == 0.002 for one in values)


def test_anchors_are_at_most_six_and_none_is_the_untouched_model(make_layer: MakeLayer) -> None:
    rich = Space(keep=Shares(choices=(0.1, 0.25, 0.5, 1.0)), weight_bits=BitChoices(choices=(32, 8)), **FIXED)
    assert len(anchors(dimensions(rich, (make_layer("a", channel_multiple=1),)))) == 6
    dims = dimensions(Space(weight_bits=BitChoices(choices=(32, 8)), **FIXED), (make_layer("a"),))
    assert [values_of(point, dims)["weight_bits:a"] for point in anchors(dims)] == [8]
