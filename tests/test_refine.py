"""A study around a trial of another one: its neighbours, trained longer."""

from pathlib import Path
from typing import Any

import pytest
import toy_task
from toy_runs import call, fingerprints

import autocompress
from autocompress import Space
from autocompress.config import BitChoices, RecoverySpace, Shares
from autocompress.errors import InvalidSpace, InvalidStudy
from autocompress.progress import Progress
from autocompress.refine import around, refine
from autocompress.saved import Study
from autocompress.study.space import Dimension, narrowed_to, sampled, whole_dimensions

SPACE = Space(
    keep=Shares(choices=(0.25, 0.5, 0.75, 1.0)),
    weight_bits=BitChoices(choices=(32, 7)),
    recovery=RecoverySpace(steps=2, quantized_steps=1, learning_rate=(0.001, 0.002, 0.003, 0.004), optimizer=("adamw", "sgd")),
)
QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    asked: dict[str, Any] = {"space": SPACE, "runtime": "fake", "threads": 1, "device": "cpu", "max_drop": 100.0, "min_speedup": 0.01}
    return autocompress.search(toy_task.make(), budget=3, runs=tmp_path_factory.mktemp("refine") / "runs", progress=QUIET, **asked)


@pytest.fixture(scope="module")
def refined(study: Study) -> Study:
    return refine(study.paths.study, trial=2, budget=3, runs=study.paths.runs, task=toy_task.make(), progress=QUIET)


def test_it_begins_with_the_trials_own_recipe_trained_four_times_as_long(study: Study, refined: Study) -> None:
    assert refined.paths.study == "toy-refined"
    old, new = study.results[2].recipe, refined.results[0].recipe
    assert (new.layers, new.distillation) == (old.layers, old.distillation)
    longer = {"steps": 4 * old.recovery.steps, "quantized_steps": 4 * old.recovery.quantized_steps}
    assert new.recovery == old.recovery.model_copy(update=longer)


def test_every_number_moves_to_its_neighbours_only_and_names_stay(study: Study, refined: Study) -> None:
    layers = study.paths.read_layers()
    whole = {dim.name: dim.choices for dim in whole_dimensions(study.config.space, layers)}
    for result in refined.results:
        near = refined.config.space.near
        for name, index in result.params.items():
            kept = whole[name][max(0, near[name] - 1) : near[name] + 2]
            assert len(kept) <= 3
            assert kept[index] in whole[name]
        assert result.recipe.recovery.optimizer == study.results[2].recipe.recovery.optimizer
        rates = whole["learning_rate"]
        moved = rates.index(result.recipe.recovery.learning_rate) - rates.index(study.results[2].recipe.recovery.learning_rate)
        assert abs(moved) <= 1


def test_the_study_that_it_starts_from_is_not_changed(study: Study, tmp_path: Path) -> None:
    before = fingerprints(study.paths)
    refine(study.paths.study, trial=0, budget=1, name="other", runs=study.paths.runs, task=toy_task.make(), progress=QUIET)
    assert fingerprints(study.paths) == before


def test_a_refined_study_can_be_refined_again_around_what_the_whole_space_has_there(refined: Study) -> None:
    result = refined.results[-1]
    closer = around(refined.config, result, refined.paths)
    dims = narrowed_to(whole_dimensions(refined.config.space, refined.paths.read_layers()), {})
    chosen = {dim.name: dim.choices[closer.space.near[dim.name]] for dim in sampled(dims)}
    assert chosen["learning_rate"] == result.recipe.recovery.learning_rate
    assert chosen["recovery.optimizer"] == result.recipe.recovery.optimizer
    assert closer.space.recovery.steps == 32


def test_a_trial_that_was_not_measured_is_refused(study: Study) -> None:
    gated = study.results[1].model_copy(update={"outcome": "gated", "measurement": None, "message": "too slow"})
    file = study.paths.trial(1).result
    kept = file.read_text()
    study.paths.write_result(gated)
    try:
        with pytest.raises(InvalidStudy, match=r"trial 1: this trial has no measurement, it ended as gated \(too slow\)"):
            refine("toy", trial=1, runs=study.paths.runs, task=toy_task.make(), progress=QUIET)
    finally:
        file.write_text(kept)


def test_a_trial_that_was_not_drawn_from_the_space_is_refused(study: Study) -> None:
    given = study.results[0].model_copy(update={"params": {}, "source": "given"})
    with pytest.raises(InvalidStudy, match="was not drawn from its space"):
        around(study.config, given, study.paths)


def test_an_unknown_study_and_a_task_in_memory_are_told_in_one_line(study: Study) -> None:
    done = call("refine", "nothing", "--runs", str(study.paths.runs))
    assert done.exit_code == 2
    assert "study 'nothing' does not exist" in done.stderr
    done = call("refine", "toy", "--runs", str(study.paths.runs))
    assert done.exit_code == 2
    assert "refine it in Python" in done.stderr


def test_narrowing_to_what_the_space_does_not_have_is_refused() -> None:
    dims = (Dimension("keep:a", (0.5, 1.0)),)
    assert narrowed_to(dims, {"keep:a": 1})[0].choices == (0.5, 1.0)
    for near in ({"keep:b": 0}, {"keep:a": 2}, {"keep:a": -1}):
        with pytest.raises(InvalidSpace, match="no dimension of that name with a choice"):
            narrowed_to(dims, near)
