"""Nothing is lost: killed with SIGKILL at any moment and resumed, a study is as if nothing had happened."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from toy_runs import (
    Finished,
    call,
    copied,
    ended,
    fingerprints,
    kill,
    leftovers,
    repeatable,
    result_files,
    search_arguments,
    start,
    wait_for,
)

from autocompress.runs import RunPaths

BUDGET = 16  # that of the undisturbed study


def test_a_search_that_is_killed_again_and_again_ends_like_one_that_never_was(undisturbed: Finished, tmp_path: Path) -> None:
    """Five real processes die, in the beginning, in the middle of trials and between them; a sixth one finishes."""
    paths, dice = RunPaths(tmp_path / "runs", "study"), random.Random(0)
    search = search_arguments(paths.runs, "study", BUDGET, "fake")
    seen: dict[str, tuple[int, str]] = {}

    moments: list[Callable[[], bool]] = [
        paths.config.exists,
        paths.baseline.exists,
        lambda: len(result_files(paths)) >= 1,
        lambda: len(result_files(paths)) >= len(seen) + 2,
        lambda: len(result_files(paths)) >= len(seen) + 3,
    ]
    for index, moment in enumerate(moments):
        process = start(*(search if index == 0 else ["resume", "study", "--runs", str(paths.runs)]))
        wait_for(moment, process)
        time.sleep(dice.uniform(0, 0.08))
        kill(process)
        now = fingerprints(paths)
        assert {name: now[name] for name in seen} == seen, "a finished trial was written again"
        seen = now
    assert 5 <= len(seen) < BUDGET, "the kills came too late to interrupt anything"

    code, _, err = ended(start("resume", "study", "--runs", str(paths.runs)))
    assert code == 0, err
    after = fingerprints(paths)
    assert {name: after[name] for name in seen} == seen
    results = paths.results()
    assert [result.number for result in results] == list(range(BUDGET))
    assert len({result.recipe.digest for result in results}) == BUDGET
    assert leftovers(paths.folder) == []
    held = optuna.load_study(study_name="study", storage=f"sqlite:///{paths.database}").trials
    assert sorted(trial.user_attrs["number"] for trial in held) == list(range(BUDGET))
    assert [repeatable(result) for result in results] == [repeatable(result) for result in undisturbed.paths.results()]


def test_a_resume_in_another_process_proposes_what_the_first_would_have(undisturbed: Finished, tmp_path: Path) -> None:
    """From every prefix that is short enough to be quick: equal told results, equal proposals."""
    paths = copied(undisturbed.paths, tmp_path)
    for number in range(12, 16):
        paths.trial(number).result.unlink()
    done = call("resume", "study", "--runs", str(paths.runs))
    assert done.exit_code == 0, done.stderr
    recipes = [result.recipe for result in paths.results()]
    assert recipes == [result.recipe for result in undisturbed.paths.results()]


def test_what_a_kill_in_the_middle_of_a_write_left_is_gone_after_the_resume(undisturbed: Finished, tmp_path: Path) -> None:
    paths = copied(undisturbed.paths, tmp_path)
    paths.trial(15).result.unlink()
    drafts = [paths.folder / ".pareto.json.a1.draft", paths.trial(2).folder / ".holdout.json.b2.draft"]
    drafts += [paths.trial(15).folder / ".result.json.c3.draft", paths.trial(15).folder / "draft" / "model.onnx"]
    drafts += [paths.trial(3).folder / ".artifact.d4.draft" / "model.onnx", paths.trial(3).folder / ".artifact.e5.older" / "model.onnx"]
    for draft in drafts:
        draft.parent.mkdir(exist_ok=True)
        draft.write_text("half")
    done = call("resume", "study", "--runs", str(paths.runs))
    assert done.exit_code == 0, done.stderr
    assert leftovers(paths.folder) == []


def test_a_gap_is_filled_and_a_trial_without_a_result_counts_for_nothing(undisturbed: Finished, tmp_path: Path) -> None:
    paths = copied(undisturbed.paths, tmp_path)
    paths.trial(7).result.unlink()
    assert json.loads(call("show", "study", "--json", "--runs", str(paths.runs)).stdout)["finished"] == BUDGET - 1
    done = call("resume", "study", "--runs", str(paths.runs))
    assert done.exit_code == 0, done.stderr
    assert [result.number for result in paths.results()] == list(range(BUDGET))


@pytest.mark.parametrize("damage", ["absent", "garbage"])
def test_the_database_is_only_a_mirror_and_is_made_again(undisturbed: Finished, tmp_path: Path, damage: str) -> None:
    paths = copied(undisturbed.paths, tmp_path)
    if damage == "absent":
        paths.database.unlink()
    else:
        paths.database.write_bytes(b"not a database" * 100)
    done = call("resume", "study", "--budget", "17", "--runs", str(paths.runs))
    assert done.exit_code == 0, done.stderr
    assert len(paths.results()) == 17
    if damage == "absent":
        assert len(optuna.load_study(study_name="study", storage=f"sqlite:///{paths.database}").trials) == 17
    else:
        assert "study.db is behind" in done.stderr
