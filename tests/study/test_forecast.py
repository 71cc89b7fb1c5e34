"""What is predicted of a point agrees with what is predicted of its recipe, and harm is a sum over choices."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from autocompress.config import BitChoices, QuantizationSpace, SearchConfig, Shares, Space, load_space
from autocompress.latency_model import predict_ms
from autocompress.records import LatencyModel, LayerCost, LayerInfo, Survey, Tried
from autocompress.study.forecast import Forecast, harm_of
from autocompress.study.question import Question, question_of

MakeConfig = Callable[..., SearchConfig]
SCHEMES = ("none", "half", "dynamic", "static", "weight_only")


def random_latency(layers: tuple[LayerInfo, ...], seed: int = 0) -> LatencyModel:
    rng = np.random.default_rng(seed)
    costs = [
        LayerCost.model_validate({"name": layer.name, "scheme": scheme, "terms": tuple(rng.random(4).tolist())})
        for layer in layers
        for scheme in SCHEMES
    ]
    return LatencyModel(
        costs=tuple(costs), correction=(0.3, 1.1, 0.7), baseline_ms=9.0, error=0.05, probes=9, batch_size=1, input_shape=(3, 8, 8)
    )


def surveyed(config: SearchConfig, layers: tuple[LayerInfo, ...], *tried: Tried) -> Question:
    return question_of(config, layers, Survey(tried=tried, layer_ms={}, latency=random_latency(layers), samples=64))


@pytest.mark.parametrize("name", ["default", "full", "compact", "large"])
def test_the_time_of_a_point_is_that_of_its_recipe(name: str, make_config: MakeConfig, make_layer: Callable[..., LayerInfo]) -> None:
    schemes: Any = {"static": (4, 7, 8), "weight_only": (4, 8), "dynamic": (8,)}
    conv = [make_layer(f"conv{place}", in_group=f"group of conv{place - 1}" if place else None, schemes=schemes) for place in range(3)]
    attention = LayerInfo(name="att", kind="attention", macs=0, params=0, in_channels=4, out_channels=4, group="att")
    inner = [make_layer(f"att.{part}", kind="linear", kernel=(1, 1), group=None, schemes=schemes) for part in ("q", "k", "v", "out")]
    block = LayerInfo(name="block", kind="block", macs=0, params=0, in_channels=0, out_channels=0, droppable=True)
    inside = make_layer("block.conv", group="inside", in_group="group of conv2", schemes=schemes)
    layers = (*conv, attention, *inner, block, inside, make_layer("depthwise", conv_groups=32, group="group of conv2"))
    question = surveyed(make_config(space=load_space(name)), layers)
    forecast, rng = Forecast(question), np.random.default_rng(1)
    points = rng.integers(0, forecast.sizes, size=(60, len(forecast.sizes)))
    asked = [predict_ms(random_latency(layers), question.recipe_at(forecast.params(point)), layers) for point in points]
    # where a block is left out, the share of outputs is taken over the layers that stay; here over all: see `Forecast.look`
    stays = ["block" not in question.recipe_at(forecast.params(point)).plans or not _drops(question, forecast, point) for point in points]
    found = forecast.look(points)[:, 0]
    assert found[stays] == pytest.approx(np.array(asked)[stays])
    assert found == pytest.approx(np.array(asked), rel=0.1)


def _drops(question: Question, forecast: Forecast, point: Any) -> bool:
    return question.recipe_at(forecast.params(point)).plans["block"].drop


def test_the_harm_of_a_point_is_the_sum_over_its_choices_clipped_at_0(make_config: MakeConfig, chain: tuple[LayerInfo, ...]) -> None:
    tried = [Tried(kind="keep", name=f"group of conv{n}", value=0.25, harm=harm) for n, harm in ((1, 0.5), (2, 0.25), (3, -0.1))]
    bits = [Tried(kind="weight_bits", name=f"conv{n}", value=8, harm=0.125) for n in (1, 2, 3)]
    forecast = Forecast(surveyed(make_config(), chain, *tried, *bits))
    smallest = forecast.harm(np.zeros((1, len(forecast.dims)), dtype=np.int64))
    assert smallest["keep"] == pytest.approx([0.75])
    assert smallest["weight_bits"] == pytest.approx([0.375])
    assert sum(one[0] for one in forecast.harm((forecast.sizes - 1)[None]).values()) == 0


def test_the_harm_of_a_tied_choice_is_that_of_all_its_layers(make_config: MakeConfig, chain: tuple[LayerInfo, ...]) -> None:
    tied = Space(keep=Shares(choices=(1.0, 0.5), tie="model"))
    tried = [Tried(kind="keep", name=f"group of conv{n}", value=0.5, harm=0.25) for n in (1, 2, 3)]
    forecast = Forecast(surveyed(make_config(space=tied), chain, *tried))
    assert forecast.harm(np.zeros((1, len(forecast.dims)), dtype=np.int64))["keep"] == pytest.approx([0.75])


def test_a_choice_between_tried_ones_lies_on_the_line_between_them() -> None:
    assert harm_of("keep", 0.625, {0.5: 0.4, 0.75: 0.2}) == pytest.approx(0.3)
    assert harm_of("keep", 0.875, {0.75: 0.2}) == pytest.approx(0.1)
    assert harm_of("sparsity", 0.25, {0.5: 0.2}) == pytest.approx(0.1)


@pytest.mark.parametrize(("kind", "mild", "hard"), [("keep", 0.75, 0.25), ("rank", 0.5, 0.25), ("sparsity", 0.5, 0.75), ("drop", 0, 1)])
def test_without_a_survey_a_harder_choice_is_taken_for_more_harmful(kind: str, mild: float, hard: float) -> None:
    assert 0 <= harm_of(kind, mild, {}) < harm_of(kind, hard, {})
    assert harm_of("sparsity", "1:4", {}) > harm_of("sparsity", "2:4", {}) > 0
    assert harm_of("weight_bits", 32, {}) == 0 < harm_of("weight_bits", 8, {}) < harm_of("weight_bits", 2, {})


def test_without_a_survey_fewer_multiply_adds_and_integers_are_taken_for_faster(
    make_config: MakeConfig, chain: tuple[LayerInfo, ...]
) -> None:
    forecast = Forecast(question_of(make_config(), chain))
    given, smallest = forecast.sizes - 1, np.zeros_like(forecast.sizes)
    integer = given * np.array([dim.kind != "weight_bits" for dim in forecast.dims])
    speeds = forecast.speedup(np.array([given, integer, smallest]))
    assert speeds[0] == pytest.approx(1.0)
    assert speeds[0] < speeds[1] < speeds[2]
    assert not forecast.is_measured


def test_a_student_is_predicted_by_its_width_and_depth(make_config: MakeConfig, chain: tuple[LayerInfo, ...]) -> None:
    space = Space.model_validate({"student": {"width": [0.5], "depth": [1.0]}, "keep": {"choices": [0.5, 1.0]}})
    forecast = Forecast(question_of(make_config(space=space), chain))
    assert forecast.speedup((forecast.sizes - 1)[None]) == pytest.approx([4.0])


def test_the_table_of_a_layer_holds_only_what_was_asked_about(
    make_config: MakeConfig, make_layer: Callable[..., LayerInfo]
) -> None:
    layers = tuple(make_layer(f"conv{n}", in_group=f"group of conv{n - 1}" if n else None) for n in range(20))
    space = Space(keep=Shares(choices=(1.0, 0.5, 0.25)), weight_bits=BitChoices(choices=(32, 8)), quantization=QuantizationSpace())
    forecast = Forecast(question_of(make_config(space=space), layers))
    points = np.random.default_rng(0).integers(0, forecast.sizes, size=(3, len(forecast.sizes)))
    assert np.isfinite(forecast.look(points)).all()
    assert all(1 <= np.isfinite(table.entries[:, 0]).sum() <= 3 for tables in forecast.touched for table in tables)
