"""The driver with pretended evaluations: budgets, resuming, what is on disk when something fails, and the mirror."""

import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage

import autocompress.study.study as room
from autocompress.config import BitChoices, Budget, RecoverySpace, SearchConfig, Shares, Space
from autocompress.errors import UserError
from autocompress.records import LayerInfo, TrialResult
from autocompress.runs import RunPaths
from autocompress.study.propose import Proposal
from autocompress.study.study import next_number, run, without_password

Evaluate = Callable[[Proposal], TrialResult]
MakeConfig = Callable[..., SearchConfig]
Layers = tuple[LayerInfo, ...]


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    found = RunPaths(tmp_path, "study")
    found.folder.mkdir()
    return found


def mirrored(url: str, name: str = "study") -> list[optuna.trial.FrozenTrial]:
    """The trials that the dashboard would see, by our number."""
    storage = RDBStorage(url)
    try:
        trials = optuna.load_study(study_name=name, storage=storage).get_trials()
    finally:
        storage.remove_session()
        storage.engine.dispose()
    return sorted(trials, key=lambda trial: trial.user_attrs["number"])


@pytest.fixture
def unmirrored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making a database costs half a second; tests of the driver alone do without."""
    monkeypatch.setattr(room.Mirror, "catch_up", lambda self, results: None)


def points(results: list[TrialResult]) -> list[tuple[int, str, dict[str, int]]]:
    return [(result.number, result.source, result.params) for result in results]


@pytest.mark.usefixtures("unmirrored")
def test_a_budget_of_trials_counts_those_of_earlier_calls(
    paths: RunPaths, make_config: MakeConfig, chain: Layers, evaluate: Evaluate
) -> None:
    seen: list[int] = []
    assert (
        run(paths, make_config(budget=Budget(trials=3)), chain, evaluate, on_trial=lambda one: seen.append(one.number))
        == "budget"
    )
    assert (
        run(paths, make_config(budget=Budget(trials=5)), chain, evaluate, on_trial=lambda one: seen.append(one.number))
        == "budget"
    )
    assert (
        run(paths, make_config(budget=Budget(trials=5)), chain, evaluate, on_trial=lambda one: seen.append(one.number))
        == "budget"
    )
    assert seen == [0, 1, 2, 3, 4] == [result.number for result in paths.results()]


@pytest.mark.usefixtures("unmirrored")
def test_a_resumed_study_runs_the_trials_that_an_uninterrupted_one_runs(
    tmp_path: Path, make_config: MakeConfig, chain: Layers, evaluate: Evaluate
) -> None:
    whole, pieces = RunPaths(tmp_path, "whole"), RunPaths(tmp_path, "pieces")
    run(whole, make_config(budget=Budget(trials=18)), chain, evaluate)
    for trials in (2, 11, 14, 18):
        run(pieces, make_config(budget=Budget(trials=trials)), chain, evaluate)
    assert points(whole.results()) == points(pieces.results())


@pytest.mark.usefixtures("unmirrored")
def test_every_trial_is_on_disk_with_number_source_params_and_time(
    paths: RunPaths, make_config: MakeConfig, chain: Layers, evaluate: Evaluate
) -> None:
    shown: list[TrialResult] = []
    run(paths, make_config(budget=Budget(trials=5)), chain, evaluate, on_trial=shown.append)
    assert paths.results() == shown
    assert [one.source for one in shown] == ["analytic", "anchor"] * 2 + ["analytic"]
    assert all(one.finished_at and one.params for one in shown)
    assert all(paths.trial(number).recipe.exists() for number in range(5))


@pytest.mark.usefixtures("unmirrored")
def test_a_budget_of_time_is_looked_at_before_every_trial(
    paths: RunPaths, make_config: MakeConfig, chain: Layers, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def ten_seconds(proposal: Proposal) -> TrialResult:
        clock[0] += 10
        return evaluate(proposal)

    assert run(paths, make_config(budget=Budget(seconds=25)), chain, ten_seconds) == "time"
    assert len(paths.results()) == 3
    assert run(paths, make_config(budget=Budget(seconds=5)), chain, ten_seconds) == "time"
    assert len(paths.results()) == 4


@pytest.mark.usefixtures("unmirrored")
def test_a_search_with_nothing_left_ends_exhausted(
    paths: RunPaths, make_config: MakeConfig, chain: Layers, evaluate: Evaluate
) -> None:
    tiny = Space(keep=Shares(choices=(0.5, 1.0)), distillation=None, recovery=RecoverySpace(learning_rate=(0.001,)))
    assert run(paths, make_config(space=tiny, budget=Budget(trials=50)), chain, evaluate) == "exhausted"
    assert len(paths.results()) == 8


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), KeyboardInterrupt()], ids=["bug", "interrupt"])
def test_what_evaluate_raises_goes_through_untouched_and_earlier_trials_are_kept(
    paths: RunPaths, make_config: MakeConfig, chain: Layers, evaluate: Evaluate, error: BaseException
) -> None:
    def fails_at_2(proposal: Proposal) -> TrialResult:
        if proposal.number == 2:
            raise error
        return evaluate(proposal)

    with pytest.raises(type(error)) as caught:
        run(paths, make_config(), chain, fails_at_2)
    assert caught.value is error
    assert [result.number for result in paths.results()] == [0, 1]
    assert len(mirrored(f"sqlite:///{paths.database}")) == 2


@pytest.mark.usefixtures("unmirrored")
def test_a_killed_trial_is_run_again_under_its_number_from_a_clean_folder(
    paths: RunPaths, make_config: MakeConfig, chain: Layers, evaluate: Evaluate
) -> None:
    left = paths.trial(2).folder / "artifact" / "half"
    run(paths, make_config(budget=Budget(trials=2)), chain, evaluate)
    left.parent.mkdir(parents=True)
    left.touch()
    run(paths, make_config(budget=Budget(trials=3)), chain, evaluate)
    assert [result.number for result in paths.results()] == [0, 1, 2]
    assert not left.exists()


def test_the_next_number_is_the_first_without_a_result(make_trial: Callable[..., TrialResult]) -> None:
    assert next_number([]) == 0
    assert next_number([make_trial(0), make_trial(1)]) == 2
    assert next_number([make_trial(0), make_trial(2)]) == 1


def test_an_evaluator_that_answers_for_another_recipe_is_our_bug(
    paths: RunPaths, make_config: MakeConfig, chain: Layers, make_trial: Callable[..., TrialResult]
) -> None:
    with pytest.raises(AssertionError, match="another recipe"):
        run(paths, make_config(), chain, lambda proposal: make_trial(0, 3.0))
    assert paths.results() == []


# ---- the mirror -----------------------------------------------------------------------------------------------------


def test_the_mirror_shows_values_outcomes_and_both_objectives(
    paths: RunPaths, make_config: MakeConfig, chain: Layers, evaluate: Evaluate
) -> None:
    run(paths, make_config(budget=Budget(trials=4)), chain, evaluate)
    trials, results = mirrored(f"sqlite:///{paths.database}"), paths.results()
    assert [trial.user_attrs["digest"] for trial in trials] == [result.recipe.digest for result in results]
    assert [trial.user_attrs["outcome"] for trial in trials] == [result.outcome for result in results]
    point = results[1].measurement
    assert point is not None
    assert trials[1].values == [point.speedup, point.drop]
    assert (trials[1].params["keep:group of conv1"], trials[1].params["weight_bits:conv1"]) == (0.5, 8)


def test_a_kill_between_result_and_mirror_is_made_good_at_the_next_start(
    paths: RunPaths, make_config: MakeConfig, chain: Layers, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(room.Mirror, "catch_up", lambda self, results: None)
        run(paths, make_config(budget=Budget(trials=3)), chain, evaluate)
    assert not paths.database.exists()
    run(paths, make_config(budget=Budget(trials=3)), chain, evaluate)
    run(paths, make_config(budget=Budget(trials=3)), chain, evaluate)
    assert [trial.user_attrs["number"] for trial in mirrored(f"sqlite:///{paths.database}")] == [0, 1, 2]


def test_a_locked_database_in_mid_run_is_told_and_caught_up_with_later(
    paths: RunPaths, make_config: MakeConfig, chain: Layers, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(paths, make_config(budget=Budget(trials=1)), chain, evaluate)
    monkeypatch.setattr(room, "SQLITE_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # Optuna waits up to 2 s between its five tries
    said: list[str] = []
    with closing(sqlite3.connect(paths.database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")

        def unlock_at_2(proposal: Proposal) -> TrialResult:
            if proposal.number == 2:
                other.execute("ROLLBACK")
            return evaluate(proposal)

        assert run(paths, make_config(budget=Budget(trials=3)), chain, unlock_at_2, say=said.append) == "budget"
    assert len(paths.results()) == 3
    assert said
    assert all("study.db is behind" in line and "locked" in line and "\n" not in line for line in said)
    assert [trial.user_attrs["number"] for trial in mirrored(f"sqlite:///{paths.database}")] == [0, 1, 2]


def test_a_broken_database_of_ours_stops_nothing(
    paths: RunPaths, make_config: MakeConfig, chain: Layers, evaluate: Evaluate
) -> None:
    paths.database.write_bytes(b"this is no database" * 100)
    said: list[str] = []
    assert run(paths, make_config(budget=Budget(trials=2)), chain, evaluate, say=said.append) == "budget"
    assert len(said) == 2
    assert len(paths.results()) == 2


def test_a_database_of_ours_that_holds_other_trials_is_made_anew(
    paths: RunPaths, make_config: MakeConfig, chain: Layers, evaluate: Evaluate
) -> None:
    run(paths, make_config(budget=Budget(trials=3)), chain, evaluate)
    shutil.rmtree(paths.trial(1).folder)
    paths.write_result(paths.results()[0].model_copy(update={"number": 1, "outcome": "died"}))
    run(paths, make_config(budget=Budget(trials=3)), chain, evaluate)
    assert [trial.user_attrs["outcome"] for trial in mirrored(f"sqlite:///{paths.database}")] == [
        one.outcome for one in paths.results()
    ]


def test_the_users_storage_is_used_instead_and_never_emptied(
    tmp_path: Path, make_config: MakeConfig, chain: Layers, evaluate: Evaluate
) -> None:
    storage = f"sqlite:///{tmp_path / 'own.db'}"
    config, paths = make_config(budget=Budget(trials=2), storage=storage), RunPaths(tmp_path / "runs", "study")
    run(paths, config, chain, evaluate)
    assert not paths.database.exists()
    assert len(mirrored(storage)) == 2
    with pytest.raises(UserError, match="already holds a study 'study' with other trials"):
        run(RunPaths(tmp_path / "elsewhere", "study"), config, chain, evaluate)
    assert len(mirrored(storage)) == 2


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+nonsense://ann:s3cr3t@nowhere/db",
        "mysql://ann:s3cr3t@nowhere/db",
        "s3cr3t",
        "mysql://nowhere/db?password=s3cr3t",
        "sqlite:////nowhere/at/all/study.db",
    ],
)
def test_a_storage_that_cannot_be_used_is_one_line_before_any_trial_and_hides_the_password(
    paths: RunPaths, make_config: MakeConfig, chain: Layers, url: str
) -> None:
    def never(proposal: Proposal) -> TrialResult:
        raise AssertionError("a trial ran")

    with pytest.raises(UserError) as caught:
        run(paths, make_config(storage=url), chain, never)
    message = str(caught.value)
    assert message.startswith("--storage: ")
    assert "\n" not in message
    assert ("s3cr3t" in message) == (url == "s3cr3t")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ann:p:a@ss@host:5432/db", "postgresql://ann:***@host:5432/db"),
        ("mysql://host/db?user=ann&password=x&a=1", "mysql://host/db?user=ann&password=***&a=1"),
        ("sqlite:///runs/study.db", "sqlite:///runs/study.db"),
    ],
)
def test_urls_are_shown_without_their_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_integer_ladders_get_integer_axes_and_learning_rates_a_logarithmic_one(
    paths: RunPaths, make_config: MakeConfig, chain: Layers, evaluate: Evaluate
) -> None:
    bits: Any = Space(weight_bits=BitChoices(choices=(32, 8)), recovery=RecoverySpace(learning_rate=(0.001, 0.01)))
    run(paths, make_config(space=bits, budget=Budget(trials=1)), chain, evaluate)
    found = mirrored(f"sqlite:///{paths.database}")[0].distributions
    assert found["weight_bits:conv1"] == optuna.distributions.IntDistribution(8, 32)
    assert found["learning_rate"] == optuna.distributions.FloatDistribution(0.001, 0.01, log=True)
