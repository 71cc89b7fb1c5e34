"""Optuna's samplers alone: each proposes, repeats itself after an interruption, and learns from what it can."""

from collections.abc import Callable
from typing import Any

import pytest
from optuna.trial import TrialState

import autocompress.study.samplers as room
from autocompress.config import SearchConfig
from autocompress.errors import MissingDependency
from autocompress.records import LayerInfo, TrialResult
from autocompress.study.propose import Memory, Proposal, propose
from autocompress.study.question import Question, question_of
from autocompress.study.samplers import POPULATION, as_trial, check_sampler, verdict

Evaluate = Callable[[Proposal], TrialResult]
MakeConfig = Callable[..., SearchConfig]
NAMES = ("tpe", "nsga2", "nsga3", "gp", "random", "qmc")


def played(question: Question, evaluate: Evaluate, count: int, forgetful: bool = False) -> list[TrialResult]:
    memory, results = Memory(), []
    for number in range(count):
        proposal = propose(question, Memory() if forgetful else memory, results, number)
        assert proposal is not None
        own = {"number": number, "params": proposal.params, "source": proposal.source}
        results.append(evaluate(proposal).model_copy(update=own))
    return results


@pytest.mark.parametrize("name", NAMES)
def test_a_named_sampler_proposes_alone_and_the_same_after_an_interruption(
    name: str, make_config: MakeConfig, chain: tuple[LayerInfo, ...], evaluate: Evaluate
) -> None:
    question = question_of(make_config(sampler=name), chain)
    count = {"nsga2": POPULATION + 6, "nsga3": POPULATION + 6}.get(name, 13)
    kept, rebuilt = (played(question, evaluate, count, forgetful) for forgetful in (False, True))
    assert [one.params for one in kept] == [one.params for one in rebuilt]
    assert {one.source for one in kept} <= {name, "random"}
    assert sum(one.source == name for one in kept) >= count - 2
    assert len({tuple(one.params.values()) for one in kept}) > count // 2


def test_nsga_has_generations_and_learns_from_gated_trials_too(
    make_config: MakeConfig, chain: tuple[LayerInfo, ...], make_trial: Callable[..., TrialResult]
) -> None:
    question = question_of(make_config(sampler="nsga2"), chain)
    params = dict.fromkeys(question.sizes, 0)
    first = as_trial(question, make_trial(0, gate_speedup=1.25, params=params), 0)
    later = as_trial(question, make_trial(1, 3.0, 1.0, params=params), POPULATION)
    assert first is not None
    assert later is not None
    assert (first.state, first.values) == (TrialState.COMPLETE, [1.25, 30.0])
    assert first.constraints["speedup"] > 0
    assert [one.system_attrs["NSGAIISampler:generation"] for one in (first, later)] == [0, 1]


def test_a_third_objective_is_told_in_its_direction(
    make_config: MakeConfig, chain: tuple[LayerInfo, ...], make_trial: Callable[..., TrialResult], evaluate: Evaluate
) -> None:
    space: Any = make_config().space.model_copy(update={"objectives": ("speedup", "drop", "size_bytes", "worst_class_drop")})
    question = question_of(make_config(space=space, sampler="tpe"), chain)
    assert [way.name for way in question.directions] == ["MAXIMIZE", "MINIMIZE", "MINIMIZE", "MINIMIZE"]
    assert verdict(question, make_trial(0, 4.0, 1.0, 1000))[1] == [4.0, 1.0, 1000.0, room.NO_MEASUREMENT]
    assert len(played(question, evaluate, 12)) == 12


def test_a_sampler_whose_package_is_missing_is_refused_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("auto", *NAMES):
        check_sampler(name)  # type: ignore[arg-type]
    monkeypatch.setattr(room, "find_spec", lambda package: None)
    with pytest.raises(MissingDependency, match=r"--sampler qmc needs scipy: `pip install scipy`"):
        check_sampler("qmc")
    check_sampler("auto")
