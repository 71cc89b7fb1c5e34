"""The gate: it stops only on evidence, and says on which."""

import math

import pytest

from autocompress.gate import AUDITED, LEAST_CURVES, Curve, Gate, curves_of, is_audited, quantile
from autocompress.recipe import Recipe
from autocompress.records import CurvePoint, Target, TrialResult


def test_a_speed_is_refused_only_where_no_accuracy_could_help() -> None:
    assert "below min_speedup 2" in Gate(min_speedup=2).too_slow(1.85, 1.9)
    assert not Gate(min_speedup=2).too_slow(1.95, 2.1)
    assert "dominated" in Gate(front=((3.0, -1.0),), floor_drop=-1.0).too_slow(1.9, 2.1)
    assert not Gate(front=((3.0, 0.5),), floor_drop=-1.0).too_slow(1.9, 2.1)  # a better accuracy would be on the front
    assert not Gate(front=((2.0, -1.0),), floor_drop=-1.0).too_slow(1.9, 2.1)
    assert not Gate().too_slow(0.1, 0.1)


def test_a_speed_is_enough_only_where_its_low_end_is() -> None:
    assert Gate(min_speedup=2).is_fast_enough(2.0)
    assert not Gate(min_speedup=2).is_fast_enough(1.99)
    assert not Gate(front=((3.0, -1.0),), floor_drop=-1.0).is_fast_enough(2.5)


def curves(count: int, recovered: float = 4.0) -> tuple[Curve, ...]:
    """Finished trials that stood at 5 points after 20 steps and ended ``recovered`` better."""
    return tuple(Curve({20: 5.0}, 5.0 - recovered) for _ in range(count))


def test_nothing_is_stopped_by_its_drop_before_enough_trials_are_finished() -> None:
    assert Gate(max_drop=1.0, curves=curves(LEAST_CURVES - 1)).hopeless(20, 90.0, 3.0) is None
    assert Gate(max_drop=1.0, curves=curves(LEAST_CURVES)).hopeless(20, 90.0, 3.0) is not None
    assert Gate(max_drop=1.0, curves=curves(LEAST_CURVES)).hopeless(10, 90.0, 3.0) is None  # they say nothing about another rung


def test_a_trial_is_granted_the_largest_recovery_seen_and_its_distance_from_the_usual_one() -> None:
    gate = Gate(max_drop=3.0, curves=(*curves(18, recovered=1.0), *curves(2, recovered=4.0)))
    assert gate.hoped(20, 50.0) == pytest.approx(50.0 - 4.0 - 3.0)  # more than one in twenty recovered 4, usual is 1
    hoped, reason = gate.hopeless(20, 10.5, 3.0) or (math.nan, "")
    assert hoped == pytest.approx(3.5)
    assert "drop 10.50 after 20 steps" in reason
    assert "3.50" in reason
    assert "max_drop 3" in reason
    assert gate.hopeless(20, 9.9, 3.0) is None


def test_where_trials_recover_unequally_nothing_is_stopped() -> None:
    """All stood at chance, and most ended well: the rung says nothing, and a front of theirs must not stop the next one."""
    chance = tuple(Curve({0: 90.0}, final) for final in (0.0, 0.5, 1.0, 1.0, 2.0, 3.0, 15.0, 60.0))
    assert Gate(max_drop=3.0, curves=chance, front=((9.0, 0.0),)).hopeless(0, 90.0, 3.0) is None


def test_a_rung_at_which_even_the_largest_drop_would_go_on_is_looked_at_no_more() -> None:
    stood, ended = (2.0, 2.0, 3.0, 3.0, 4.0, 4.0, 5.0, 70.0), (1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 60.0)
    chance = tuple(Curve({0: 90.0, 20: before}, final) for before, final in zip(stood, ended, strict=True))
    gate = Gate(max_drop=3.0, curves=chance)
    assert not gate.is_telling(0)
    assert gate.is_telling(20)  # who still stands at 90 there has no hope
    assert gate.is_telling(10)  # nobody knows yet
    assert Gate(max_drop=3.0, curves=chance[:7]).is_telling(0)


def test_a_trial_is_stopped_where_a_faster_one_already_drops_no_more_than_it_may_hope_for() -> None:
    gate = Gate(max_drop=3.0, curves=curves(8), front=((4.0, 1.0), (2.0, 0.1)))
    assert "dominated by 4.00x with drop 1.00" in (gate.hopeless(20, 6.0, 3.0) or (0, ""))[1]
    assert gate.hopeless(20, 6.0, 4.5) is None  # faster than the front
    assert gate.hopeless(20, 4.5, 3.0) is None  # it may yet drop less than that one


def test_audits_are_one_in_twenty_and_the_same_ones_every_time() -> None:
    drawn = [number for number in range(4000) if is_audited(0, number)]
    assert 0.7 * AUDITED < len(drawn) / 4000 < 1.3 * AUDITED
    assert drawn == [number for number in range(4000) if is_audited(0, number)]
    assert drawn != [number for number in range(4000) if is_audited(1, number)]


def test_curves_are_those_of_measured_trials_only() -> None:
    gated = TrialResult(recipe=Recipe(), target=Target(), outcome="gated", curve=(CurvePoint(step=0, drop=9.0),))
    assert curves_of([gated]) == ()


def test_a_quantile_is_one_of_the_values() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile(list(map(float, range(1, 21))), 0.95) == 19.0
    assert quantile([7.0], 0.95) == 7.0
