"""Finished trials teach what was timed: a speed that was only predicted teaches nothing about predictions."""

from collections.abc import Callable

import numpy as np

from autocompress.config import SearchConfig
from autocompress.records import LayerInfo, TrialResult
from autocompress.study.expectation import Expectation
from autocompress.study.forecast import Forecast
from autocompress.study.propose import given_point
from autocompress.study.question import question_of


def expected_speed(
    config: SearchConfig, chain: tuple[LayerInfo, ...], make_trial: Callable[..., TrialResult], *, predicted: bool
) -> tuple[float, float]:
    """What is expected of a point, and what was forecast of it, once many points were stopped at half of their forecast speed."""
    forecast = Forecast(question_of(config, chain))
    points = np.random.default_rng(0).integers(0, forecast.sizes, size=(12, len(forecast.sizes)))
    stopped = [
        (make_trial(number, gate_speedup=float(speed) / 2).model_copy(update={"gate_predicted": predicted}), point)
        for number, (point, speed) in enumerate(zip(points, forecast.speedup(points), strict=True))
    ]
    found = Expectation(forecast, stopped, given_point(forecast)).at(points[:1])
    return float(np.exp(found.log_speed[0])), float(forecast.speedup(points[:1])[0])


def test_speeds_that_the_gate_timed_correct_the_forecast(
    make_config: Callable[..., SearchConfig], chain: tuple[LayerInfo, ...], make_trial: Callable[..., TrialResult]
) -> None:
    expected, forecast = expected_speed(make_config(), chain, make_trial, predicted=False)
    assert expected < 0.75 * forecast


def test_speeds_that_were_predicted_teach_nothing(
    make_config: Callable[..., SearchConfig], chain: tuple[LayerInfo, ...], make_trial: Callable[..., TrialResult]
) -> None:
    expected, forecast = expected_speed(make_config(), chain, make_trial, predicted=True)
    assert abs(expected / forecast - 1) < 1e-6
