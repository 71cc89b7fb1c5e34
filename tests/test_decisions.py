"""What counts as a decision, and that undoing one changes that and nothing else."""

from typing import Any

import pytest

from autocompress.decisions import MOST, decisions, undo
from autocompress.recipe import Assistant, Distillation, LayerPlan, Pruning, Quantization, Recipe, Student
from autocompress.records import LayerInfo


def layer(name: str, **changes: Any) -> LayerInfo:
    plain: dict[str, Any] = {"kind": "conv2d", "macs": 1, "params": 1, "in_channels": 32, "out_channels": 32, "group": f"of {name}"}
    return LayerInfo(name=name, **(plain | changes))


def layers(*names: str) -> tuple[LayerInfo, ...]:
    return tuple(layer(name) for name in names)


def recipe(*plans: LayerPlan, **parts: Any) -> Recipe:
    return Recipe(layers=plans, **({"distillation": None} | parts))


def words(found: Recipe, known: tuple[LayerInfo, ...] = ()) -> list[str]:
    return [one.words for one in decisions(found, known)]


def test_a_recipe_that_changes_nothing_holds_no_decision() -> None:
    assert decisions(recipe(LayerPlan(name="a")), layers("a")) == ()


PLANS = {
    "20 % of channels": LayerPlan(name="a", keep=0.2),
    "left out": LayerPlan(name="a", drop=True),
    "50 % zeros": LayerPlan(name="a", sparsity=0.5),
    "2:4 zeros": LayerPlan(name="a", pattern="2:4"),
    "rank 8": LayerPlan(name="a", rank=8),
    "rank for 90 % of the energy, tucker2": LayerPlan(name="a", energy=0.9, factorization="tucker2"),
    "7 bit weights, 8 bit inputs": LayerPlan(name="a", weight_bits=7, activation_bits=8),
    "4 bit weights": LayerPlan(name="a", weight_bits=4),
    "8 bit": LayerPlan(name="a", weight_bits=8, activation_bits=8),
}


@pytest.mark.parametrize("expected", PLANS)
def test_what_was_done_to_a_layer_is_a_decision_that_is_undone_whole(expected: str) -> None:
    (one,) = decisions(recipe(PLANS[expected]), layers("a"))
    assert (one.words, one.layers) == (expected, ("a",))
    assert one.without == recipe(LayerPlan(name="a"))


def test_each_decision_of_a_layer_is_undone_alone() -> None:
    plan = LayerPlan(name="a", keep=0.5, rank=8, weight_bits=7, activation_bits=8)
    found = {one.words: one.without.plans["a"] for one in decisions(recipe(plan), layers("a"))}
    assert found == {
        "50 % of channels": LayerPlan(name="a", rank=8, weight_bits=7, activation_bits=8),
        "rank 8": LayerPlan(name="a", keep=0.5, weight_bits=7, activation_bits=8),
        "7 bit weights, 8 bit inputs": LayerPlan(name="a", keep=0.5, rank=8),
    }


def test_the_width_of_a_prune_group_is_undone_for_all_its_layers_in_the_models_order() -> None:
    known = (layer("a", group="g"), layer("b"), layer("c", group="g"))
    plans = (LayerPlan(name="c", keep=0.5), LayerPlan(name="b", keep=0.5), LayerPlan(name="a", keep=0.5))
    first, second = decisions(recipe(*plans), known)
    assert (first.layers, second.layers) == (("a", "c"), ("b",))
    assert {name: plan.keep for name, plan in first.without.plans.items()} == {"a": 1.0, "b": 0.5, "c": 1.0}


def test_heads_and_hidden_units_are_called_so() -> None:
    known = (layer("a", kind="attention"), layer("b", kind="lstm"))
    assert words(recipe(LayerPlan(name="a", keep=0.5), LayerPlan(name="b", keep=0.25)), known) == ["50 % of heads", "25 % of hidden units"]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"distillation": Distillation()}, "distillation"),
        ({"distillation": Distillation(ramp=0.5)}, "distillation: ramp 0.5"),
        ({"distillation": Distillation(assistant=Assistant(keep=0.5, steps=9))}, "distillation: assistant keep 0.5, steps 9"),
        ({"quantization": Quantization(equalize=True)}, "quantization: equalize yes"),
        ({"quantization": Quantization(adaround_steps=50)}, "quantization: adaround steps 50"),
        ({"quantization": Quantization(granularity="group", group_size=64)}, "quantization: granularity group"),
        ({"pruning": Pruning(importance="taylor")}, "pruning: importance taylor 1"),
        ({"pruning": Pruning(schedule="cubic", iterations=9)}, "pruning: schedule cubic"),
        ({"order": ("quantize",)}, "order: quantize"),
    ],
)
def test_a_setting_that_is_not_the_usual_one_is_a_decision(part: dict[str, Any], expected: str) -> None:
    cut = {} if "order" in part else {"keep": 0.5}
    plan = LayerPlan(name="a", weight_bits=8, activation_bits=8, **cut)
    found = {one.words: one for one in decisions(recipe(plan, **part), layers("a"))}
    assert expected in found
    assert found[expected].layers == ()
    (name,) = part
    usual = {"distillation": Distillation() if ":" in expected else None}
    assert getattr(found[expected].without, name) == usual.get(name, getattr(Recipe(), name))


def test_settings_of_a_part_that_does_nothing_here_are_no_decisions() -> None:
    idle = {"pruning": Pruning(importance="taylor"), "quantization": Quantization(equalize=True)}
    assert words(recipe(LayerPlan(name="a", rank=4), **idle), layers("a")) == ["rank 4"]


def test_amounts_are_no_decisions() -> None:
    amounts = {"distillation": Distillation(temperature=9, soft_weight=0.1), "recovery": {"steps": 7, "learning_rate": 0.5, "seed": 3}}
    assert words(recipe(LayerPlan(name="a", rank=4), **amounts), layers("a")) == ["rank 4", "distillation"]


def test_a_student_is_undone_with_the_plans_of_layers_that_only_it_has() -> None:
    student = Student(width=0.5, weight_bits=8, activation_bits=8)
    found = decisions(recipe(LayerPlan(name="own", rank=2), LayerPlan(name="a", rank=3), student=student), layers("a"))
    by_words = {one.words: one.without for one in found}
    whole = by_words["a student of its own: 0.5 x width, 1 x depth"]
    assert whole.student is None
    assert set(whole.plans) == {"a"}
    bits = by_words["student: 8 bit"].student
    assert bits == Student(width=0.5)


def test_what_cannot_be_undone_alone_is_left_out() -> None:
    only = Distillation(soft_weight=0, hard_weight=0, feature_weight=1.0, features=("a",))
    assert words(recipe(LayerPlan(name="a", rank=4), distillation=only), layers("a")) == ["rank 4", "distillation"]


@pytest.mark.parametrize("count", [13, 40, 200])
def test_many_decisions_are_undone_in_groups_of_neighbours_of_one_kind(count: int) -> None:
    names = [f"l{index}" for index in range(count)]
    plans = (LayerPlan(name=name, keep=0.5 if index % 2 else 0.25, weight_bits=8) for index, name in enumerate(names))
    found = decisions(recipe(*plans, distillation=Distillation()), layers(*names))
    assert len(found) <= MOST
    widths = [one for one in found if "channels" in one.words]
    assert [name for one in widths for name in one.layers] == names, "every layer once, in the order of the model"
    assert len(widths) > 1
    assert widths[0].words == "25 % of channels or 50 % of channels"
    assert all(one.without.plans[name].keep == 1.0 for one in widths for name in one.layers)
    assert max(len(one.layers) for one in widths) - min(len(one.layers) for one in widths) <= 1


def test_several_decisions_are_undone_together() -> None:
    full = recipe(LayerPlan(name="a", keep=0.5, rank=3), LayerPlan(name="b", weight_bits=8), distillation=Distillation(ramp=0.5))
    places = [place for one in decisions(full, layers("a", "b")) for place in one.places]
    assert undo(full, places) == recipe(LayerPlan(name="a"), LayerPlan(name="b"))
    assert undo(full, []) == full
