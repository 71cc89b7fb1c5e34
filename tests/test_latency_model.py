"""Predicted latency: costs of layers by kernels, kept inputs, kept outputs and multiply-adds, and a correction of their sum."""

import pytest

from autocompress.latency_model import loads_of, low_rank_macs, predict_ms
from autocompress.recipe import LayerPlan, Recipe, Student
from autocompress.records import LatencyModel, LayerCost, LayerInfo

FIRST = LayerInfo(name="a", kind="linear", macs=64, params=72, in_channels=8, out_channels=8, group="a", factorizable=True)
SECOND = LayerInfo(name="b", kind="linear", macs=64, params=72, in_channels=8, out_channels=8, in_group="a", factorizable=True)
LAYERS = (FIRST, SECOND)


def model(*costs: LayerCost, correction: tuple[float, float, float] = (0.0, 1.0, 0.0)) -> LatencyModel:
    return LatencyModel(costs=costs, correction=correction, baseline_ms=1.0, error=0.1, probes=8, batch_size=1, input_shape=(8,))


def test_a_pruned_group_narrows_its_reader_too() -> None:
    loads = loads_of(Recipe(layers=(LayerPlan(name="a", keep=0.5), LayerPlan(name="b"))), LAYERS)
    assert loads["a"][1:] == (1, 1.0, 0.5, 0.5)
    assert loads["b"][1:] == (1, 0.5, 1.0, 0.5)


def test_a_low_rank_layer_is_two_kernels_with_fewer_multiply_adds() -> None:
    loads = loads_of(Recipe(layers=(LayerPlan(name="a", rank=2),)), LAYERS)
    assert loads["a"][1:] == (2, 1.0, 1.0, 2 * (8 + 8) / 64)


def test_low_rank_macs_count_what_runs_before_a_stride_as_often_as_it_runs() -> None:
    assert low_rank_macs(8, 8, (3, 3), (1, 1), 2) == 2 * (8 + 8) + 4 * 9
    assert low_rank_macs(8, 8, (3, 3), (2, 2), 2) == 2 * (32 + 8) + 4 * 9


def test_time_is_the_corrected_sum_of_the_costs() -> None:
    costs = (LayerCost(name="a", scheme="none", terms=(0.1, 0.0, 0.2, 1.0)), LayerCost(name="b", scheme="none", terms=(0.1, 0.3, 0.0, 1.0)))
    recipe = Recipe(layers=(LayerPlan(name="a", keep=0.5),))
    layers_ms = (0.1 + 0.1 + 0.5) + (0.1 + 0.15 + 0.5)
    assert predict_ms(model(*costs), recipe, LAYERS) == pytest.approx(layers_ms)
    assert predict_ms(model(*costs, correction=(0.5, 2.0, 1.0)), recipe, LAYERS) == pytest.approx(0.5 + 2 * layers_ms + 1.5 / 2)


def test_an_integer_layer_has_a_cost_of_its_own() -> None:
    known = [(name, scheme) for name in "ab" for scheme in ("none", "static")]
    costs = tuple(LayerCost(name=name, scheme=scheme, terms=(0.25 if scheme == "static" else 1.0, 0.0, 0.0, 0.0)) for name, scheme in known)
    recipe = Recipe(layers=(LayerPlan(name="a", weight_bits=8, activation_bits=8),))
    assert predict_ms(model(*costs), recipe, LAYERS) == pytest.approx(1.25)


def test_layers_of_a_dropped_block_cost_nothing() -> None:
    block = LayerInfo(name="block", kind="block", macs=0, params=0, in_channels=0, out_channels=0, droppable=True)
    inside = SECOND.model_copy(update={"name": "block.b", "in_group": None})
    costs = tuple(LayerCost(name=name, scheme="none", terms=(1.0, 0.0, 0.0, 0.0)) for name in ("a", "block.b"))
    recipe = Recipe(layers=(LayerPlan(name="block", drop=True),))
    assert predict_ms(model(*costs), recipe, (FIRST, inside, block)) == pytest.approx(1.0)
    assert predict_ms(model(*costs), Recipe(), (FIRST, inside, block)) == pytest.approx(2.0)


def test_heads_narrow_the_projections_of_their_attention() -> None:
    names = ("att.q", "att.k", "att.v", "att.out")
    inner = tuple(FIRST.model_copy(update={"name": name, "group": None}) for name in names)
    attention = LayerInfo(name="att", kind="attention", macs=0, params=0, in_channels=4, out_channels=4, group="att")
    loads = loads_of(Recipe(layers=(LayerPlan(name="att", keep=0.5),)), (*inner, attention))
    assert [loads[name].outputs for name in names] == [0.5, 0.5, 0.5, 1.0]
    assert [loads[name].inputs for name in names] == [1.0, 1.0, 1.0, 0.5]


def test_nothing_is_predicted_for_a_student() -> None:
    assert predict_ms(model(), Recipe(student=Student(width=0.5)), LAYERS) is None


def test_where_integers_and_floats_meet_costs_too() -> None:
    both = model().model_copy(update={"change_ms": 0.25})
    plans = [LayerPlan(name=name, weight_bits=8, activation_bits=8) for name in "ab"]
    assert predict_ms(both, Recipe(layers=tuple(plans)), LAYERS) == pytest.approx(0.0)
    assert predict_ms(both, Recipe(layers=(plans[0],)), LAYERS) == pytest.approx(0.25)
