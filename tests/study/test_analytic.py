"""The analytic front is the least harm at its speeds."""

import itertools
from collections.abc import Callable

import numpy as np

from autocompress.config import SearchConfig
from autocompress.records import LayerInfo, Tried
from autocompress.study.analytic import TARGETS, analytic_front, descend_all
from autocompress.study.forecast import Forecast
from autocompress.study.propose import given_point
from autocompress.study.question import Question, question_of

MakeConfig = Callable[..., SearchConfig]


def total_harm(forecast: Forecast, points: np.ndarray) -> np.ndarray:
    return np.asarray(sum(forecast.harm(points).values()))


def test_no_point_of_the_space_is_both_faster_and_less_harmful(make_config: MakeConfig, chain: tuple[LayerInfo, ...]) -> None:
    forecast = Forecast(question_of(make_config(), chain))
    places = [range(size) if forecast.harms[place].any() else (0,) for place, size in enumerate(forecast.sizes)]
    every = np.array(list(itertools.product(*places)))
    speeds, harms = forecast.speedup(every), total_harm(forecast, every)
    front = analytic_front(forecast, 1.0, np.zeros_like(forecast.sizes))
    assert 4 <= len(front) <= TARGETS
    for point in front:
        speed, harm = forecast.speedup(point[None])[0], total_harm(forecast, point[None])[0]
        assert not ((speeds > speed * (1 + 1e-9)) & (harms < harm - 1e-9)).any()


def test_the_front_begins_with_the_fastest_point_and_ends_with_the_mildest(make_config: MakeConfig, chain: tuple[LayerInfo, ...]) -> None:
    forecast = Forecast(question_of(make_config(), chain))
    points = descend_all(forecast, given_point(forecast))
    assert forecast.speedup(points).max() == forecast.speedup(np.zeros_like(points[:1])).max()
    assert total_harm(forecast, points).min() == 0
    assert all(forecast.speedup(one[None])[0] >= 2.5 / (1 + 2 * forecast.error) for one in analytic_front(forecast, 2.5, points[0]))


def test_a_layer_that_suffers_more_is_cut_less(make_question: Callable[..., Question]) -> None:
    values = (0.25, 0.5, 0.75)
    tried = [Tried(kind="keep", name="group of conv1", value=value, harm=10 * (1 - value)) for value in values]
    tried += [Tried(kind="keep", name=f"group of conv{n}", value=value, harm=0.01 * (1 - value)) for n in (2, 3) for value in values]
    forecast = Forecast(make_question(*tried))
    middle = analytic_front(forecast, 1.5, given_point(forecast))[1:-1]
    keep = {dim.name: place for place, dim in enumerate(forecast.dims)}
    assert middle
    assert all(point[keep["keep:group of conv1"]] >= point[keep["keep:group of conv2"]] for point in middle)
    assert any(point[keep["keep:group of conv1"]] > point[keep["keep:group of conv2"]] for point in middle)
