"""The regression finds a line, a bend and a single choice, knows what it does not know, and repeats itself."""

import numpy as np
import pytest

from autocompress.study.regression import MOST, Regression


def observations(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random((count, 3)), rng.integers(0, 2, size=(count, 12)).astype(float)


def fitted(features: np.ndarray, singles: np.ndarray, y: np.ndarray) -> Regression:
    return Regression(features, singles, y, 0.05, np.full(3, 0.3))


def test_a_line_and_a_single_choice_are_found() -> None:
    features, singles = observations(80)
    new_features, new_singles = observations(30, seed=1)

    def truth(f: np.ndarray, s: np.ndarray) -> np.ndarray:
        return np.asarray(2 * f[:, 0] - f[:, 1] + 0.8 * s[:, 4])

    mean, deviation = fitted(features, singles, truth(features, singles)).predict(new_features, new_singles)
    error = mean - truth(new_features, new_singles)
    assert np.abs(error).max() < 0.25
    assert np.corrcoef(mean, truth(new_features, new_singles))[0, 1] > 0.98
    assert (np.abs(error) < 3 * deviation).all()


def test_a_bend_is_found() -> None:
    features, singles = observations(120)
    new_features, new_singles = observations(30, seed=1)
    mean, _ = fitted(features, singles, (features[:, 0] - 0.5) ** 2 * 4).predict(new_features, new_singles)
    assert np.abs(mean - (new_features[:, 0] - 0.5) ** 2 * 4).mean() < 0.12


def test_far_from_the_observations_less_is_known() -> None:
    features, singles = observations(40)
    model = fitted(features, singles, features[:, 0])
    _, near = model.predict(features[:1], singles[:1])
    _, far = model.predict(features[:1] + 3.0, singles[:1])
    assert far > 2 * near


def test_equal_values_and_a_single_observation_are_fitted_too() -> None:
    features, singles = observations(5)
    mean, deviation = fitted(features, singles, np.full(5, 2.0)).predict(features, singles)
    assert mean == pytest.approx(np.full(5, 2.0))
    assert (deviation > 0).all()
    mean, _ = fitted(features[:1], singles[:1], np.array([7.0])).predict(features[:1], singles[:1])
    assert mean == pytest.approx([7.0])


def test_of_more_observations_than_are_used_the_latest_count() -> None:
    features, singles = observations(MOST + 50)
    y = np.where(np.arange(MOST + 50) < 50, 100.0, features[:, 0])
    mean, _ = fitted(features, singles, y).predict(features[-5:], singles[-5:])
    assert np.abs(mean - features[-5:, 0]).max() < 0.2
