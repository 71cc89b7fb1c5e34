"""Proposals: the same after an interruption, never twice, anchors first, and learned from every ending."""

from collections.abc import Callable

import optuna
import pytest
from optuna.trial import TrialState

import autocompress.study.propose as room
from autocompress.config import PARTS, BitChoices, RecoverySpace, SearchConfig, Shares, Space
from autocompress.records import LayerInfo, TrialResult
from autocompress.study import pareto
from autocompress.study.propose import Memory, Proposal, propose
from autocompress.study.question import Question, question_of
from autocompress.study.samplers import Told, as_trial, remember, verdict

Evaluate = Callable[[Proposal], TrialResult]
MakeConfig = Callable[..., SearchConfig]


@pytest.fixture
def question(make_config: MakeConfig, chain: tuple[LayerInfo, ...]) -> Question:
    return question_of(make_config(), chain)


def finished(proposal: Proposal, evaluate: Evaluate) -> TrialResult:
    own = {"number": proposal.number, "params": proposal.params, "source": proposal.source}
    return evaluate(proposal).model_copy(update=own)


def sequence(question: Question, evaluate: Evaluate, count: int, forgetful: bool = False) -> list[TrialResult]:
    """Results of ``count`` proposals; a forgetful driver starts from an empty memory before every one."""
    memory, results = Memory(), []
    for number in range(count):
        proposal = propose(question, Memory() if forgetful else memory, results, number)
        assert proposal is not None
        results.append(finished(proposal, evaluate))
    return results


def test_proposals_are_the_same_whether_memory_is_kept_or_rebuilt_before_every_one(
    question: Question, evaluate: Evaluate
) -> None:
    kept, rebuilt = sequence(question, evaluate, 24), sequence(question, evaluate, 24, forgetful=True)
    assert [(one.params, one.source) for one in kept] == [(one.params, one.source) for one in rebuilt]
    assert len({one.source for one in kept}) >= 4


def test_another_seed_gives_other_proposals(make_config: MakeConfig, chain: tuple[LayerInfo, ...], evaluate: Evaluate) -> None:
    one, other = (sequence(question_of(make_config(seed=seed), chain), evaluate, 24) for seed in (0, 1))
    assert [result.params for result in one] != [result.params for result in other]


def test_a_proposal_depends_on_what_was_measured(question: Question, evaluate: Evaluate) -> None:
    results = sequence(question, evaluate, 16)
    upside_down = [
        one
        if one.measurement is None
        else one.model_copy(update={"measurement": one.measurement.model_copy(update={"drop": -one.measurement.drop})})
        for one in results
    ]
    first, second = (propose(question, Memory(), told_results, 16) for told_results in (results, upside_down))
    assert first is not None
    assert second is not None
    assert first.params != second.params


def test_a_result_that_belongs_before_a_told_one_makes_the_memory_anew(question: Question, evaluate: Evaluate) -> None:
    results = sequence(question, evaluate, 20)
    memory = Memory()
    remember(memory.told, question, results[:3] + results[4:])
    late, fresh = propose(question, memory, results, 20), propose(question, Memory(), results, 20)
    assert late == fresh
    assert memory.told.numbers == list(range(20))


def test_the_analytic_front_and_the_anchors_come_first_in_turn_and_say_so(question: Question, evaluate: Evaluate) -> None:
    results = sequence(question, evaluate, 4)
    assert [result.source for result in results] == ["analytic", "anchor"] * 2
    assert [plan.keep for plan in results[1].recipe.layers] == [0.5, 0.5, 0.5, 1.0]


def test_no_recipe_is_proposed_twice_and_a_small_space_ends_exhausted(
    make_config: MakeConfig, chain: tuple[LayerInfo, ...], evaluate: Evaluate
) -> None:
    tiny = Space(keep=Shares(choices=(0.5, 1.0)), distillation=None, recovery=RecoverySpace(learning_rate=(0.001,)))
    question, memory, results = question_of(make_config(space=tiny), chain), Memory(), []
    while (proposal := propose(question, memory, results, len(results))) is not None:
        results.append(finished(proposal, evaluate))
    assert len({result.recipe.digest for result in results}) == len(results) == 2**3


def test_two_points_with_one_recipe_are_one_proposal(
    make_config: MakeConfig, make_layer: Callable[..., LayerInfo], evaluate: Evaluate
) -> None:
    tied = Space(
        keep=Shares(choices=(0.2, 0.25, 0.3, 1.0), tie="model"), distillation=None, recovery=RecoverySpace(learning_rate=(0.1,))
    )
    question, memory, results = question_of(make_config(space=tied), (make_layer("a"),)), Memory(), []
    while (proposal := propose(question, memory, results, len(results))) is not None:
        results.append(finished(proposal, evaluate))
    assert sorted(result.recipe.layers[0].keep for result in results) == [0.25, 1.0]


def test_twenty_duplicates_in_a_row_end_the_search_and_not_nineteen(
    monkeypatch: pytest.MonkeyPatch, make_config: MakeConfig, chain: tuple[LayerInfo, ...], evaluate: Evaluate
) -> None:
    question = question_of(make_config(sampler="tpe"), chain)
    results = sequence(question, evaluate, 5)
    fresh = propose(question, Memory(), results, 5)
    assert fresh is not None
    answers = [results[0].params] * 19 + [fresh.params]
    monkeypatch.setattr(room, "ask", lambda study, question, number, attempt, name: answers[attempt])
    again = propose(question, Memory(), results, 5)
    assert again is not None
    assert again.params == fresh.params
    answers[19] = results[1].params
    assert propose(question, Memory(), results, 5) is None


def test_every_ending_is_told_so_that_tpe_learns_from_it(question: Question, make_trial: Callable[..., TrialResult]) -> None:
    state, values, limits = verdict(question, make_trial(0, 4.0, 1.0))
    assert (state, values, limits) == (TrialState.COMPLETE, [4.0, 1.0], {"drop": -2.0, "speedup": -2.0})
    assert verdict(question, make_trial(0, 1.5, 5.0))[2] == {"drop": 2.0, "speedup": 0.5}
    gated = verdict(question, make_trial(0, gate_speedup=1.25))
    assert gated == (TrialState.PRUNED, None, {"drop": 0.0, "speedup": 0.75})
    fast_but_gated = verdict(question, make_trial(0, gate_speedup=9.0))
    assert fast_but_gated[2]["speedup"] > 0
    hopeless = make_trial(0, gate_speedup=9.0).model_copy(update={"gate_drop": 7.0})
    assert verdict(question, hopeless)[2]["drop"] == 4.0  # or TPE would take it for nearly feasible
    for outcome in ("infeasible", "out_of_memory", "diverged", "timed_out", "died"):
        state, values, limits = verdict(question, make_trial(0, outcome=outcome))
        assert (state, values) == (TrialState.PRUNED, None)
        assert limits["speedup"] > fast_but_gated[2]["speedup"]


def test_constraints_of_the_user_are_told_as_shares_of_their_limits(
    make_config: MakeConfig, chain: tuple[LayerInfo, ...], make_trial: Callable[..., TrialResult]
) -> None:
    question = question_of(make_config(constraints=("size_bytes<=800", "rare_drop <= 5")), chain)
    names = ["drop", "speedup", "size_bytes <= 800", "rare_drop <= 5"]
    state, _, limits = verdict(question, make_trial(0, 4.0, 1.0, 1000))
    assert state == TrialState.COMPLETE
    assert list(limits) == names
    assert limits["size_bytes <= 800"] == pytest.approx(0.25)
    assert limits["rare_drop <= 5"] > 1000  # not measured
    for other in (make_trial(0, gate_speedup=1.25), make_trial(0, outcome="died")):
        assert list(verdict(question, other)[2]) == names
    proposal = propose(question, Memory(), [], 0)
    assert proposal is not None
    study = remember(Told(), question, [make_trial(0, 4.0, 1.0, 1000, params=proposal.params)])
    assert list(study.get_trials()[0].constraints) == names


def test_no_measurement_is_worse_than_any_whatever_the_metric_counts(question: Question, make_trial: Callable[..., TrialResult]) -> None:
    wrecked = verdict(question, make_trial(0, 4.0, 50_000.0))[2]  # a perplexity
    assert sum(verdict(question, make_trial(0, outcome="died"))[2].values()) > sum(wrecked.values())


def test_trials_that_give_no_number_still_push_the_sampler_away(
    question: Question, make_trial: Callable[..., TrialResult]
) -> None:
    proposals = [propose(question, Memory(), [], 0)]
    assert proposals[0] is not None
    died = make_trial(0, outcome="died", params=proposals[0].params, recipe=proposals[0].recipe)
    study = remember(Told(), question, [died])
    assert [one.state for one in study.get_trials()] == [TrialState.PRUNED]
    assert max(study.get_trials()[0].constraints.values()) > 0


def test_results_from_another_space_are_not_told_but_count_as_done(
    question: Question, make_trial: Callable[..., TrialResult]
) -> None:
    first = propose(question, Memory(), [], 0)
    assert first is not None
    foreign = make_trial(0, 3.0, params={"keep:elsewhere": 0}, recipe=first.recipe)
    assert as_trial(question, foreign) is None
    too_high = dict.fromkeys(first.params, 99)
    assert as_trial(question, make_trial(0, 3.0, params=too_high)) is None
    second = propose(question, Memory(), [foreign], 1)
    assert second is not None
    assert second.recipe.digest != first.recipe.digest


def test_optunas_verbosity_is_given_back(question: Question, evaluate: Evaluate, capfd: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    sequence(question, evaluate, 6)
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr() == ("", "")


def test_a_fixed_dimension_is_not_sampled_but_stays_in_the_recipe(make_config: MakeConfig, chain: tuple[LayerInfo, ...]) -> None:
    bits = Space(weight_bits=BitChoices(choices=(32, 8)), rank=Shares(choices=(0.25,)))
    question = question_of(make_config(space=bits), chain)
    proposal = propose(question, Memory(), [], 0)
    assert proposal is not None
    assert set(proposal.params) == {"weight_bits:conv1", "weight_bits:conv2", "weight_bits:conv3"}
    assert proposal.recipe.plans["conv1"].rank == 8


def test_where_no_point_is_predicted_fast_enough_the_anchors_are_tried_and_the_search_goes_on(
    make_config: MakeConfig, chain: tuple[LayerInfo, ...], make_trial: Callable[..., TrialResult]
) -> None:
    question = question_of(make_config(min_speedup=1000.0), chain)
    results = sequence(question, lambda proposal: make_trial(0, recipe=proposal.recipe, gate_speedup=1.5), 12)
    assert [one.source for one in results[:4]] == ["anchor"] * 4
    assert len({one.recipe.digest for one in results}) == 12


@pytest.mark.parametrize("part", ["survey", "analytic", "accuracy_model"])
def test_a_part_that_is_left_out_is_left_out(part: str, make_question: Callable[..., Question], evaluate: Evaluate) -> None:
    whole, without = (sequence(make_question(parts=parts), evaluate, 16) for parts in (PARTS, tuple(set(PARTS) - {part})))
    assert [one.params for one in whole] != [one.params for one in without]
    if part == "analytic":
        assert "analytic" not in {one.source for one in without}
    if part == "survey":
        assert make_question(parts=tuple(set(PARTS) - {part})).survey is None


def test_twenty_trials_of_ours_hold_more_than_twenty_of_a_plain_sampler(make_question: Callable[..., Question], evaluate: Evaluate) -> None:
    """On a pretended truth of seven dimensions and a survey of time alone; the promise itself is judged in benchmarks on a real model."""
    ours = pareto.hypervolume(sequence(make_question(), evaluate, 20), 3.0)
    others = [pareto.hypervolume(sequence(make_question(sampler=name), evaluate, 20), 3.0) for name in ("tpe", "nsga2", "random")]
    assert ours > 1.05 * max(others) > 0
