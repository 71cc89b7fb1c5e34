"""Expected hypervolume improvement against the hypervolume itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.study.expectation import Expected, scaled
from autocompress.study.gain import added, expected_gain

SPEED, DROP = st.floats(0.5, 20), st.floats(-1, 5)


def area(points: list[tuple[float, float]], max_drop: float) -> float:
    """Hypervolume by counting: the area under the staircase, step by step of sorted drops."""
    total, best = 0.0, 1.0
    ordered = sorted((drop, speed) for speed, drop in points if drop < max_drop)
    for place, (drop, speed) in enumerate(ordered):
        best = max(best, speed)
        following = ordered[place + 1][0] if place + 1 < len(ordered) else max_drop
        total += (best - 1.0) * (following - drop)
    return total


@given(st.lists(st.tuples(SPEED, DROP), max_size=6), SPEED, DROP)
def test_the_added_area_is_the_difference_of_two_hypervolumes(front: list[tuple[float, float]], speed: float, drop: float) -> None:
    found = added(front, np.array([speed]), np.array([drop]), 3.0)
    assert found[0] == pytest.approx(area([*front, (speed, drop)], 3.0) - area(front, 3.0), abs=1e-9)


def expected(speed: float, speed_sd: float, drop: float, drop_sd: float, feasible: float = 1.0) -> Expected:
    one = np.ones(1)
    return Expected(one * np.log(speed), one * speed_sd, one * scaled(drop, 1.0), one * drop_sd, one * feasible, 1.0, -1.0)


def test_a_certain_point_gains_its_area_and_one_below_the_least_speed_nothing() -> None:
    front = [(4.0, 1.0)]
    assert expected_gain(front, expected(6.0, 0.0, 2.0, 0.0), 3.0, 2.0) == pytest.approx([2.0])
    assert expected_gain(front, expected(6.0, 0.0, 2.0, 0.0, feasible=0.25), 3.0, 2.0) == pytest.approx([0.5])
    assert expected_gain(front, expected(1.9, 0.0, -1.0, 0.0), 3.0, 2.0) == pytest.approx([0.0])
    assert expected_gain(front, expected(3.0, 0.0, 2.0, 0.0), 3.0, 2.0) == pytest.approx([0.0])


def test_of_two_points_that_are_expected_behind_the_front_the_less_certain_gains_more() -> None:
    front = [(6.0, 0.0)]
    sure, unsure = (expected_gain(front, expected(9.0, 0.01, 4.0, spread), 3.0, 2.0)[0] for spread in (0.05, 1.0))
    assert sure == 0 < unsure


@given(st.lists(st.tuples(st.floats(2, 20), st.floats(-1, 2.9)), min_size=1, max_size=6))
def test_what_is_on_the_front_already_gains_nothing(front: list[tuple[float, float]]) -> None:
    speed, drop = front[0]
    assert added(front, np.array([speed]), np.array([drop]), 3.0)[0] == 0
