"""Which trials are timed longer: open orders near the front, and nothing else."""

from collections.abc import Callable

import pytest

from autocompress.records import TrialResult
from autocompress.study.contenders import MOST, contenders, equals, near_front
from autocompress.study.pareto import Bounds

WIDE = Bounds(max_drop=3.0, min_speedup=2.0)
MakeTrial = Callable[..., TrialResult]


@pytest.fixture
def timed(make_trial: MakeTrial) -> MakeTrial:
    """A trial with an interval of its own: number, speedup, drop, half the width."""

    def make(number: int, speedup: float, drop: float, half: float) -> TrialResult:
        result = make_trial(number, speedup, drop)
        assert result.measurement is not None
        between = {"speedup_low": speedup - half, "speedup_high": speedup + half}
        return result.model_copy(update={"measurement": result.measurement.model_copy(update=between)})

    return make


def test_neighbours_whose_intervals_overlap_are_contenders_fastest_first(timed: MakeTrial) -> None:
    results = [timed(0, 8.0, 1.0, 0.3), timed(1, 8.2, 2.0, 0.3), timed(2, 5.0, 0.5, 0.3), timed(3, 3.0, 0.0, 0.3)]
    assert contenders(results, WIDE) == (1, 0)
    assert equals(results, WIDE) == ((1, 0),)


def test_a_front_whose_order_is_decided_has_no_contenders(timed: MakeTrial) -> None:
    assert contenders([timed(0, 8.0, 2.0, 0.2), timed(1, 7.0, 1.0, 0.2), timed(2, 6.0, 0.0, 0.2)], WIDE) == ()
    assert contenders([timed(0, 8.0, 2.0, 0.2)], WIDE) == ()
    assert contenders([], WIDE) == ()


def test_two_narrow_intervals_that_still_overlap_are_equal_and_no_contenders(timed: MakeTrial) -> None:
    results = [timed(0, 8.0, 1.0, 0.07), timed(1, 8.05, 2.0, 0.07)]
    assert contenders(results, WIDE) == ()
    assert equals(results, WIDE) == ((1, 0),)


def test_of_two_neighbours_only_the_wide_one_is_timed_again(timed: MakeTrial) -> None:
    assert contenders([timed(0, 8.0, 1.0, 0.05), timed(1, 8.1, 2.0, 0.5)], WIDE) == (1,)


def test_a_trial_off_the_front_counts_where_its_interval_reaches_the_one_that_beats_it(timed: MakeTrial) -> None:
    results = [timed(0, 8.0, 1.0, 0.3), timed(1, 7.8, 1.0, 0.3), timed(2, 7.0, 1.0, 0.3)]
    assert [result.number for result, _ in near_front(results, WIDE)] == [0, 1]
    assert contenders(results, WIDE) == (0, 1)


def test_what_is_out_of_both_bounds_is_skipped(timed: MakeTrial) -> None:
    results = [timed(0, 1.5, 9.0, 0.3), timed(1, 1.4, 8.0, 0.3)]
    assert contenders(results, WIDE) == ()
    assert contenders(results, Bounds(3.0, 1.0)) == (0, 1)


def test_those_within_both_bounds_come_first_and_there_are_at_most_so_many(timed: MakeTrial) -> None:
    results = [timed(number, 9.0 - 0.05 * number, 4.5 - 0.2 * number, 0.3) for number in range(20)]
    chosen = contenders(results, WIDE)
    assert len(chosen) == MOST
    assert chosen == tuple(range(8, 8 + MOST))  # drop 2.9 and less


def test_gated_trials_are_none(make_trial: MakeTrial, timed: MakeTrial) -> None:
    assert contenders([make_trial(0), timed(1, 8.0, 1.0, 0.3), make_trial(2)], WIDE) == ()
