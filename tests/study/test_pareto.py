"""Front, best, nearest, knee, picks, hypervolume, the summary contract and the words."""

import itertools
import json
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.bounds import parse_constraint
from autocompress.config import Budget, SearchConfig
from autocompress.errors import InvalidStudy
from autocompress.recipe import LayerPlan, Recipe, Recovery
from autocompress.records import Baseline, LayerInfo, Measurement, Target, TrialResult
from autocompress.study.pareto import (
    Bounds,
    best,
    bounds_of,
    describe,
    front,
    hypervolume,
    knee,
    nearest,
    pick,
    within,
)
from autocompress.study.summary import confirmed, gate_savings, row, sources, summary

MakeTrial = Callable[..., TrialResult]
MakeMeasurement = Callable[..., Measurement]
WIDE = Bounds(max_drop=3.0, min_speedup=2.0)
POINTS = st.lists(st.tuples(st.integers(1, 12), st.integers(-2, 8), st.integers(1, 3)), max_size=12)


def numbers(results: list[TrialResult]) -> list[int]:
    return [result.number for result in results]


def point_of(result: TrialResult) -> Measurement:
    assert result.measurement is not None
    return result.measurement


def trials_of(points: list[tuple[int, int, int]], make_trial: MakeTrial) -> list[TrialResult]:
    return [make_trial(number, float(speed), float(drop), size) for number, (speed, drop, size) in enumerate(points)]


def test_the_front_holds_what_nobody_beats_on_both_fastest_first(make_trial: MakeTrial) -> None:
    results = [make_trial(0, 2.0, 0.0), make_trial(1, 4.0, 1.0), make_trial(2, 3.0, 1.5), make_trial(3, 6.0, 5.0), make_trial(4)]
    assert numbers(front(results)) == [3, 1, 0]


def test_of_equal_points_the_smaller_then_the_earlier_is_on_the_front(make_trial: MakeTrial) -> None:
    assert numbers(front([make_trial(0, 2.0, 1.0, 900), make_trial(1, 2.0, 1.0, 800), make_trial(2, 2.0, 1.0, 800)])) == [1]


@given(points=POINTS)
def test_the_front_is_what_the_definition_says(make_trial: MakeTrial, points: list[tuple[int, int, int]]) -> None:
    from_definition = {
        (speed, drop)
        for speed, drop, _ in points
        if not any((s >= speed and d <= drop) and (s > speed or d < drop) for s, d, _ in points)
    }
    found = [(point_of(one).speedup, point_of(one).drop) for one in front(trials_of(points, make_trial))]
    assert set(found) == from_definition
    assert len(found) == len(set(found))


@given(points=POINTS)
def test_the_hypervolume_is_the_area_counted_cell_by_cell(make_trial: MakeTrial, points: list[tuple[int, int, int]]) -> None:
    cells = itertools.product(range(1, 12), range(-2, 3))
    covered = sum(any(speed > s and drop <= d for speed, drop, _ in points) for s, d in cells)
    assert math.isclose(hypervolume(trials_of(points, make_trial), max_drop=3.0), covered)


def test_the_best_is_the_fastest_within_both_bounds_which_count_themselves(make_trial: MakeTrial) -> None:
    results = [make_trial(0, 9.0, 3.1), make_trial(1, 4.0, 3.0), make_trial(2, 3.0, 0.0), make_trial(3, 1.9, -1.0)]
    chosen = best(results, WIDE)
    assert chosen is not None
    assert chosen.number == 1
    assert best([make_trial(0, 2.0, 3.0)], WIDE) is not None
    assert best([make_trial(0, 1.99, 0.0), make_trial(1, 9.0, 3.01), make_trial(2)], WIDE) is None


def test_the_nearest_misses_by_the_least_share_of_the_bounds(make_trial: MakeTrial) -> None:
    half_a_bound_over, tenth_too_slow = make_trial(0, 9.0, 4.5), make_trial(1, 1.8, 0.0)
    near = nearest([half_a_bound_over, tenth_too_slow, make_trial(2)], WIDE)
    assert near is not None
    assert near.number == 1
    loose = nearest([make_trial(0, 9.0, 14.0), make_trial(1, 1.0, 0.0)], Bounds(max_drop=10.0, min_speedup=2.0))
    assert loose is not None
    assert loose.number == 0  # 40 % over one bound against 50 % short of the other
    assert nearest([make_trial(2)], WIDE) is None
    assert nearest([make_trial(0, 3.0, 1.0)], Bounds(max_drop=0.0, min_speedup=2.0)) is not None


def held(trial: TrialResult, **checks: float) -> TrialResult:
    return trial.model_copy(update={"measurement": point_of(trial).model_copy(update={"checks": checks})})


STRICT = WIDE._replace(constraints=(parse_constraint("worst_class_drop <= 5"), parse_constraint("size_bytes <= 1000")))


def test_the_best_keeps_the_constraints_also_where_the_front_does_not(make_trial: MakeTrial) -> None:
    fast, large, good, unknown = (make_trial(number, 9.0 - number, 1.0 + number) for number in range(4))
    results = [held(fast, worst_class_drop=5.1), held(large, worst_class_drop=5.0), held(good, worst_class_drop=-1.0), unknown]
    results[1] = held(make_trial(1, 8.0, 2.0, 1001), worst_class_drop=5.0)
    assert numbers(front(results)) == [0]
    chosen = best(results, STRICT)
    assert chosen is not None
    assert chosen.number == 2
    assert numbers(within(results, STRICT.constraints)) == [2]
    assert pick(results, "best", STRICT).number == 2
    with pytest.raises(InvalidStudy, match=r"2x faster, with worst_class_drop <= 5, with size_bytes <= 1000\. The nearest is trial 1"):
        pick(results[:2], "best", STRICT)


def test_the_nearest_counts_a_missed_constraint_as_a_share_of_it(make_trial: MakeTrial) -> None:
    tenth, fifth = held(make_trial(0, 3.0, 1.0), worst_class_drop=5.5), held(make_trial(1, 9.0, 0.0, 1200), worst_class_drop=0.0)
    near = nearest([fifth, tenth, make_trial(2, 9.0, 0.0)], STRICT)
    assert near is not None
    assert near.number == 0


def test_what_failed_is_told_with_its_number_on_both_splits(make_config: Callable[..., SearchConfig], make_trial: MakeTrial) -> None:
    config = make_config(constraints=("worst_class_drop <= 5",))
    chosen = held(make_trial(0, 4.0, 1.0), worst_class_drop=4.0)
    other = point_of(held(chosen, worst_class_drop=7.5)).model_copy(update={"split": "holdout", "drop": 3.5})
    told = summary(config, None, [chosen, make_trial(1, 5.0, 1.0)], {0: other}, state="finished")
    assert told["constraints"] == ["worst_class_drop <= 5"]
    assert told["best"]["failed"] == []
    assert told["best"]["confirmed"] is False
    assert told["best"]["holdout"]["failed"] == ["drop <= 3 (3.5)", "worst_class_drop <= 5 (7.5)"]
    assert told["front"][0]["failed"] == ["worst_class_drop <= 5 (not measured)"]
    assert bounds_of(config).failed(point_of(make_trial(1, 1.5, 4.0)))[:2] == ["drop <= 3 (4)", "speedup >= 2 (1.5)"]


def test_a_drop_counts_by_the_size_of_its_metric(make_trial: MakeTrial) -> None:
    """An mIoU of 0.7 that may lose 0.01: half of it lost is no near miss."""

    def small(number: int, speed: float, drop: float) -> TrialResult:
        one = make_trial(number, speed, drop)
        return one.model_copy(update={"measurement": point_of(one).model_copy(update={"baseline_accuracy": 0.7})})

    near = nearest([small(0, 9.0, 0.35), small(1, 1.0, 0.0)], Bounds(max_drop=0.01, min_speedup=2.0))
    assert near is not None
    assert near.number == 1


def test_the_knee_bulges_farthest_from_the_chord(make_trial: MakeTrial) -> None:
    results = [make_trial(0, 1.0, 0.0), make_trial(1, 8.0, 1.0), make_trial(2, 10.0, 10.0), make_trial(3, 4.0, 0.9)]
    found = knee(results)
    assert found is not None
    assert found.number == 1
    assert knee([]) is None
    alone, pair = knee(results[:1]), knee([results[0], results[2]])
    assert alone is not None
    assert pair is not None
    assert (alone.number, pair.number) == (0, 0)  # nothing bulges between two: the smaller drop


def test_picks_by_name_and_by_number(make_trial: MakeTrial) -> None:
    results = [
        make_trial(0, 2.0, 0.0, 900),
        make_trial(1, 8.0, 2.0, 500),
        make_trial(2, 10.0, 40.0, 600),
        make_trial(3, 3.0, 9.0, 100),
    ]
    found = {which: pick(results, which, WIDE).number for which in ("best", "fastest", "smallest", "knee", "3", 0)}
    assert found == {"best": 1, "fastest": 2, "smallest": 3, "knee": 1, "3": 3, 0: 0}


@pytest.mark.parametrize("which", ["99", -1, "quickest", "1.0", ""])
def test_an_unknown_pick_is_refused_with_the_known_trials(make_trial: MakeTrial, which: str | int) -> None:
    with pytest.raises(InvalidStudy, match=r"best, fastest, smallest, knee or the number.*Measured trials: 0, 5"):
        pick([make_trial(0, 2.0), make_trial(1), make_trial(5, 3.0)], which, WIDE)


def test_a_trial_without_a_measurement_is_refused_with_its_outcome(make_trial: MakeTrial) -> None:
    results = [make_trial(0, 2.0), make_trial(1, outcome="diverged", message="loss is nan")]
    with pytest.raises(InvalidStudy, match=r"--trial 1: .* ended as diverged \(loss is nan\)"):
        pick(results, 1, WIDE)


def test_without_a_best_the_refusal_names_the_nearest_and_without_trials_how_to_go_on(make_trial: MakeTrial) -> None:
    with pytest.raises(InvalidStudy, match=r"at least 2x faster\. The nearest is trial 7"):
        pick([make_trial(7, 1.5)], "best", WIDE)
    for which in ("best", "knee", "0"):
        with pytest.raises(InvalidStudy, match="autocompress resume"):
            pick([make_trial(0)], which, WIDE)


@pytest.fixture
def baseline() -> Baseline:
    return Baseline(
        latency_ms=1.0,
        eager_latency_ms=2.0,
        accuracy=99.0,
        holdout_accuracy=98.9,
        size_bytes=4000,
        macs=10,
        params=10,
        input_shape=(1, 8, 8),
        metric="accuracy",
        target=Target(),
        task_digest="t",
        machine="abc",
    )


def test_the_summary_keeps_its_contract(
    make_config: Callable[..., SearchConfig], make_trial: MakeTrial, make_measurement: MakeMeasurement, baseline: Baseline
) -> None:
    results = [make_trial(0, 4.0, 1.0), make_trial(1, 2.0, 0.0), make_trial(2), make_trial(3, outcome="diverged")]
    told = summary(make_config(), baseline, results, {0: make_measurement(3.9, 1.2)}, state="finished", stopped="budget")
    assert list(told) == [
        "study", "state", "finished", "budget", "budget_seconds", "stopped", "outcomes", "gate", "target",
        "max_drop", "min_speedup", "constraints", "baseline", "equals", "front", "best", "nearest",
        "objectives", "hypervolume", "sources",
    ]  # fmt: skip
    assert (told["finished"], told["budget"], told["budget_seconds"], told["stopped"]) == (4, 12, None, "budget")
    assert told["outcomes"] == {"measured": 2, "diverged": 1, "gated": 1}
    assert told["baseline"]["latency_ms"] == 1.0
    columns = ["trial", "speedup", "speedup_low", "speedup_high", "drop", "size_bytes", "latency_ms", "accuracy", "failed", "holdout"]
    columns += ["batches", "worst"]
    assert [sorted(row) for row in told["front"]] == [sorted(columns)] * 2
    held = {"speedup": 3.9, "speedup_low": 3.9 * 0.98, "speedup_high": 3.9 * 1.02, "drop": 1.2, "failed": []}
    assert told["front"][0]["holdout"] == held
    assert told["front"][1]["holdout"] is None
    assert told["best"] == {**told["front"][0], "confirmed": True}
    assert told["nearest"] is None
    assert math.isclose(told["hypervolume"], 1 * 3 + 2 * 2)
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_a_row_over_several_batch_sizes_has_each_and_the_worst(make_trial: MakeTrial) -> None:
    one = make_trial(0, 4.0, 1.0)
    timing = {"latency_ms": 1.0, "baseline_latency_ms": 4.0, "speedup_low": 1.0, "speedup_high": 9.0, "resolved": True}
    batches = [{"batch_size": size, "speedup": speedup, **timing} for size, speedup in ((1, 5.0), (8, 2.0), (32, 6.4))]
    several = Measurement.model_validate(point_of(one).model_dump() | {"batches": batches})
    told = row(one.model_copy(update={"measurement": several}), None, Bounds(3.0, 2.0))
    assert [(part["batch_size"], part["speedup"]) for part in told["batches"]] == [(1, 5.0), (8, 2.0), (32, 6.4)]
    assert told["worst"] == told["batches"][1]
    alone = row(one, None, Bounds(3.0, 2.0))
    assert (alone["batches"], alone["worst"]) == ([], None)


def test_the_summary_of_a_study_without_trials_has_nulls_and_no_infinities(make_config: Callable[..., SearchConfig]) -> None:
    told = summary(make_config(budget=Budget(seconds=60)), None, [], {}, state="running")
    assert (told["baseline"], told["best"], told["nearest"], told["stopped"], told["budget"]) == (None,) * 5
    assert (told["front"], told["outcomes"], told["hypervolume"], told["budget_seconds"]) == ([], {}, 0.0, 60)
    json.dumps(told, allow_nan=False)


def test_without_a_best_the_summary_shows_the_nearest(make_config: Callable[..., SearchConfig], make_trial: MakeTrial) -> None:
    told = summary(make_config(), None, [make_trial(4, 1.5)], {}, state="finished")
    assert told["best"] is None
    assert told["nearest"]["trial"] == 4
    assert told["nearest"]["confirmed"] is None


def test_holdout_confirms_or_contradicts_and_never_selects(
    make_config: Callable[..., SearchConfig], make_trial: MakeTrial, make_measurement: MakeMeasurement
) -> None:
    assert confirmed(None, WIDE) is None
    assert confirmed(make_measurement(2.0, 3.0), WIDE) is True
    assert confirmed(make_measurement(1.9, 0.0), WIDE) is False
    results = [make_trial(0, 4.0, 1.0), make_trial(1, 3.0, 0.5)]
    told = summary(make_config(), None, results, {0: make_measurement(4.0, 9.0), 1: make_measurement(3.0, 0.5)}, state="finished")
    assert (told["best"]["trial"], told["best"]["confirmed"]) == (0, False)


def test_a_recipe_in_words_has_one_line_a_changed_layer_in_the_order_of_the_model(make_layer: Callable[..., LayerInfo]) -> None:
    recipe = Recipe(
        layers=(
            LayerPlan(name="fc", rank=8),
            LayerPlan(name="conv2", keep=0.625, weight_bits=8, activation_bits=8),
            LayerPlan(name="conv3", weight_bits=7, activation_bits=8),
            LayerPlan(name="conv1"),
        ),
        recovery=Recovery(steps=160, quantized_steps=40, learning_rate=0.002),
    )
    layers = [make_layer(name) for name in ("conv1", "conv2", "conv3", "fc")]
    assert describe(recipe, layers) == [
        "conv2: 62 % of channels, 8 bit",
        "conv3: 7 bit weights, 8 bit inputs",
        "fc: rank 8",
        "recovery: 160 steps, 40 quantized, learning rate 0.002",
        "distillation at temperature 4, soft 0.7, hard 0.3",
    ]


def test_a_run_of_equal_layers_is_one_line_in_words(make_layer: Callable[..., LayerInfo]) -> None:
    names = ("a", "b", "c", "d", "e")
    plans = tuple(LayerPlan(name=name, keep=0.5) for name in names[:3]) + tuple(LayerPlan(name=name, rank=4) for name in names[3:])
    lines = describe(Recipe(layers=plans), [make_layer(name) for name in names])
    assert lines[:3] == ["a to c (3 layers): 50 % of channels", "d: rank 4", "e: rank 4"]


def test_a_recipe_that_changes_nothing_says_so(make_layer: Callable[..., LayerInfo]) -> None:
    lines = describe(Recipe(distillation=None), [make_layer("a")])
    assert lines == ["no layer is changed", "recovery: 200 steps, 50 quantized, learning rate 0.001", "no distillation"]


def test_a_soft_constraint_excludes_nobody_and_costs_the_share_it_is_missed_by(make_trial: MakeTrial) -> None:
    soft = WIDE._replace(constraints=(parse_constraint("size_bytes <= 1000 soft"),))
    large, small = make_trial(0, 9.0, 1.0, 1500), make_trial(1, 7.0, 1.0, 900)
    assert soft.hold(point_of(large))
    assert soft.penalised(point_of(large)) == pytest.approx(6.0)
    assert soft.failed(point_of(large)) == ["size_bytes <= 1000 soft (1500)"]
    chosen = best([large, small], soft)
    assert chosen is not None
    assert chosen.number == 1
    assert numbers(within([large, small], soft.constraints)) == [0, 1]
    alone = best([large], soft)
    assert alone is not None


def test_a_front_of_three_objectives_keeps_what_only_the_third_speaks_for(make_trial: MakeTrial) -> None:
    results = [make_trial(0, 9.0, 1.0, 3000), make_trial(1, 5.0, 2.0, 1000), make_trial(2, 5.0, 2.5, 1000), make_trial(3, 4.0, 0.5, 4000)]
    assert numbers(front(results)) == [0, 3]
    assert numbers(front(results, ("speedup", "drop", "size_bytes"))) == [0, 1, 3]
    unmeasured = front([held(results[0], worst_class_drop=2.0), results[1]], ("speedup", "drop", "worst_class_drop"))
    assert numbers(unmeasured) == [0]


def test_a_source_earned_what_would_be_lost_without_it(make_trial: MakeTrial) -> None:
    results = [
        make_trial(0, 4.0, 1.0, source="anchor"),
        make_trial(1, 6.0, 2.0, source="mutation"),
        make_trial(2, 3.0, 1.5, source="anchor"),
        make_trial(3, source="tpe"),
    ]
    found = sources(results, 3.0)
    assert found["anchor"] == {"trials": 2, "measured": 2, "front": 1, "lost_without": pytest.approx(3.0)}
    assert found["mutation"] == {"trials": 1, "measured": 1, "front": 1, "lost_without": pytest.approx(2.0)}
    assert found["tpe"] == {"trials": 1, "measured": 0, "front": 0, "lost_without": 0.0}
# ---- what the gate saved --------------------------------------------------------------------------------------------


def test_the_gate_is_held_to_what_its_audits_became(make_trial: MakeTrial) -> None:
    taken = [make_trial(0, 3.0, 1.0), make_trial(1, 2.5, 2.0), make_trial(2, gate_speedup=2.2), make_trial(3, gate_speedup=1.1)]
    taken = [one.model_copy(update={"seconds": {"recover": spent}}) for one, spent in zip(taken, (8.0, 12.0, 4.0, 1.0), strict=True)]
    before = gate_savings(taken, WIDE)
    assert (before.gated, before.audits, before.seconds, before.lost) == (2, 0, 15.0, 0)
    assert str(before) == "2 trials stopped on their way, about 15 s saved; no audit yet, so nobody knows what it lost"
    audits = {4: (2.4, 2.8), 5: (4.0, 2.9), 6: (9.0, 3.1), 7: (1.5, 0.0)}  # dominated; on the front; beyond max_drop; below min_speedup
    also = [make_trial(number, *point).model_copy(update={"audit": True}) for number, point in audits.items()]
    after = gate_savings([*taken, *also], WIDE)
    assert (after.audits, after.lost) == (4, 1)
    assert str(after).endswith("; 4 more ran to their end as audits, 1 of them on the front")
