"""When to stop, and what cannot be kept at all."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from autocompress.config import Budget, SearchConfig
from autocompress.errors import InvalidSpace
from autocompress.recipe import Recipe
from autocompress.records import LayerInfo, TrialResult
from autocompress.runs import RunPaths
from autocompress.study.outlook import LEAST_TRIALS, check_reachable, is_flat, outlook
from autocompress.study.propose import Proposal
from autocompress.study.question import Question
from autocompress.study.study import run

MakeTrial = Callable[..., TrialResult]


def proposal(gain: float | None) -> Proposal:
    return Proposal(99, {}, Recipe(), "mutation", gain)


def trials(make_trial: MakeTrial, *speeds: float) -> list[TrialResult]:
    return [make_trial(number, speed, 1.0) for number, speed in enumerate(speeds)]


def test_a_front_that_stands_still_and_expects_nothing_is_flat(make_question: Callable[..., Question], make_trial: MakeTrial) -> None:
    question = make_question()
    still = trials(make_trial, *[5.0] * LEAST_TRIALS)
    assert is_flat(question, still, proposal(0.001))
    assert is_flat(question, still, proposal(None))
    assert not is_flat(question, still, proposal(0.02))  # ten such trials would add a fortieth
    assert not is_flat(question, still[:-1], proposal(0.001))
    assert not is_flat(question, [*still[:-1], make_trial(19, 5.5, 1.0)], proposal(0.001))
    assert not is_flat(question, [make_trial(number) for number in range(30)], proposal(0.0))  # nothing is measured yet


def test_the_line_tells_hypervolume_trend_and_expected_gain(make_question: Callable[..., Question], make_trial: MakeTrial) -> None:
    question = make_question()
    assert outlook(question, [], proposal(1.0)) == ""
    results = trials(make_trial, 5.0, *[4.0] * 9, 6.0)
    line = "after 11 trials: hypervolume 10 (+2 in the last 10 trials), +0.5 expected from the next trial"
    assert outlook(question, results, proposal(0.5)) == line
    assert outlook(question, results[:1], proposal(None)) == "after 1 trials: hypervolume 8"


def test_a_flat_study_ends_before_its_budget_only_where_that_was_asked(
    tmp_path: Any,
    make_config: Callable[..., SearchConfig],
    chain: tuple[LayerInfo, ...],
    evaluate: Callable[[Proposal], TrialResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("autocompress.study.study.Mirror.catch_up", lambda self, results: None)
    ends = {}
    for flat in (True, False):
        paths = RunPaths(tmp_path, f"study-{flat}")
        paths.folder.mkdir()
        said: list[str] = []
        config = make_config(stop_when_flat=flat, budget=Budget(trials=60))
        ends[flat] = run(paths, config, chain, evaluate, say=said.append), len(paths.results())
        assert said[0].startswith("after 5 trials: hypervolume ")
    assert ends[True][0] == "flat"
    assert LEAST_TRIALS <= ends[True][1] < 60
    assert ends[False] == ("budget", 60)


def test_a_speed_that_no_recipe_comes_near_is_refused_with_the_best_predicted(make_question: Callable[..., Question]) -> None:
    within = make_question(min_speedup=2.0)
    check_reachable(within)
    with pytest.raises(InvalidSpace) as refused:
        check_reachable(make_question(min_speedup=30.0))
    rule = r"no recipe of this space can keep min_speedup >= 30: the fastest is predicted at \d\.\d\dx, with an error of 5 %"
    assert re.match(rule, str(refused.value))
    with pytest.raises(InvalidSpace, match=r"can keep latency_ms <= 0.001: the fastest is predicted at 0\.\d+ ms"):
        check_reachable(make_question(constraints=("latency_ms <= 0.001",)))
    check_reachable(make_question(constraints=("latency_ms <= 0.001 soft",)))


def test_what_the_error_of_the_prediction_leaves_open_is_not_refused(make_question: Callable[..., Question]) -> None:
    check_reachable(make_question(min_speedup=30.0, error=5.0))
    check_reachable(replace(make_question(min_speedup=30.0), survey=None))
