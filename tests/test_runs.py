"""Files of a study: whole or absent, one driver at a time, names that are no paths."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.config import Budget, SearchConfig, Space
from autocompress.errors import InvalidStudy, UserError
from autocompress.recipe import LayerPlan, Recipe, from_yaml
from autocompress.records import LayerInfo, Target, TrialResult
from autocompress.runs import (
    Layers,
    RunPaths,
    free_name,
    only_driver,
    read_json,
    studies,
    to_json,
    write_folder,
    write_text,
)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path / "runs", "study")


def result(number: int, **changes: object) -> TrialResult:
    recipe = Recipe(layers=(LayerPlan(name="a", keep=0.5),))
    return TrialResult.model_validate({"number": number, "recipe": recipe, "target": Target(), "outcome": "gated", **changes})


def config(study: str = "study") -> SearchConfig:
    return SearchConfig(study=study, task="t", space=Space(), budget=Budget(trials=3), target=Target())


def files_under(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def full_disk(*arguments: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a/b", "../up", "/abs", "a\\b", ".", "..", ".hidden", "", "a b", "a\n", "é", "x" * 101, "-x"])
def test_a_study_name_that_could_be_a_path_or_an_option_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidStudy, match=r"--study: .* is not a study name") as caught:
        RunPaths(tmp_path, name)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=20))
def test_every_name_that_is_accepted_stays_inside_the_runs_folder(name: str) -> None:
    try:
        folder = RunPaths(Path("/runs"), name).folder
    except InvalidStudy:
        return
    assert Path(os.path.normpath(folder)).parent == Path("/runs")


def test_a_free_name_is_a_valid_one_that_no_study_has(tmp_path: Path) -> None:
    assert free_name(tmp_path, "my task:v1/x") == "my-task-v1-x"
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits-2").mkdir()
    assert free_name(tmp_path, "digits") == "digits-3"
    assert free_name(tmp_path, "../..") == "study"
    RunPaths(tmp_path, free_name(tmp_path, "../.."))


# ---- writing --------------------------------------------------------------------------------------------------------


def test_results_are_read_back_by_number_and_unfinished_trials_do_not_count(paths: RunPaths) -> None:
    for number in (10000, 2, 0):
        paths.write_result(result(number, message=f"trial {number}"))
    paths.trial(1).folder.mkdir()
    assert [(one.number, one.message) for one in paths.results()] == [(n, f"trial {n}") for n in (0, 2, 10000)]
    assert from_yaml(paths.trial(2).recipe.read_text()) == result(2).recipe
    assert paths.holdouts() == {}


def test_of_a_result_the_recipe_is_written_first(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced: list[str] = []
    whole = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: (replaced.append(Path(target).name), whole(self, target))[1])
    paths.write_result(result(0))
    assert replaced == ["recipe.yaml", "result.json"]


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace", "pathlib.Path.write_text", "tempfile.mkstemp"])
def test_on_a_full_disk_the_old_file_stays_whole_and_no_draft_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    file = tmp_path / "x.json"
    write_text(file, "old")
    with monkeypatch.context() as broken:
        broken.setattr(call, full_disk)
        with pytest.raises(UserError, match=r"x\.json could not be written: No space left on device\. .*autocompress resume"):
            write_text(file, "new")
    assert file.read_text() == "old"
    assert files_under(tmp_path) == ["x.json"]


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace"])
def test_on_a_full_disk_a_trial_is_not_finished(paths: RunPaths, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    paths.write_result(result(0))
    with monkeypatch.context() as broken:
        broken.setattr(call, full_disk)
        with pytest.raises(UserError, match="No space left on device"):
            paths.write_result(result(1))
    assert [one.number for one in paths.results()] == [0]
    assert files_under(paths.folder) == ["trials/0000/recipe.yaml", "trials/0000/result.json"]


def test_a_killed_writer_leaves_the_old_file_whole(tmp_path: Path) -> None:
    """SIGKILL between the draft and the rename: what readers see is the old file."""
    file = tmp_path / "x.json"
    write_text(file, "old")
    code = (
        "import os, signal, sys; from pathlib import Path; from autocompress import runs;"
        "runs.flush = lambda path: os.kill(os.getpid(), signal.SIGKILL);"
        "runs.write_text(Path(sys.argv[1]), 'new')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], cwd=REPOSITORY, check=False)
    assert done.returncode == -signal.SIGKILL
    assert file.read_text() == "old"


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace"])
def test_on_a_full_disk_no_half_filled_folder_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(call, full_disk)
        with pytest.raises(UserError, match="artifact could not be written: No space left on device"):
            write_folder(tmp_path / "artifact", lambda draft: (draft / "model.onnx").write_text("x"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_whole_and_replaces_an_older_one(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    write_folder(folder, lambda draft: (draft / "old").write_text("x"))
    write_folder(folder, lambda draft: (draft / "new").write_text("y"))
    assert files_under(tmp_path) == ["artifact/new"]


def test_what_fills_a_folder_may_fail_and_leaves_nothing(tmp_path: Path) -> None:
    def fill(draft: Path) -> None:
        (draft / "half").write_text("x")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_folder(tmp_path / "artifact", fill)
    assert list(tmp_path.iterdir()) == []


# ---- reading --------------------------------------------------------------------------------------------------------


def test_a_configuration_is_read_back_and_an_absent_study_names_those_that_exist(paths: RunPaths) -> None:
    paths.write_config(config())
    assert paths.read_config() == config()
    assert studies(paths.runs) == ["study"]
    with pytest.raises(InvalidStudy, match=r"study 'other' does not exist in .*Studies there: study\."):
        RunPaths(paths.runs, "other").read_config()
    with pytest.raises(InvalidStudy, match=r"Studies there: none\."):
        RunPaths(paths.runs / "absent", "other").read_config()


def test_a_stored_configuration_that_was_edited_wrongly_is_refused_by_field(paths: RunPaths) -> None:
    paths.write_config(config())
    paths.config.write_text(paths.config.read_text() + "sede: 3\n")
    with pytest.raises(InvalidStudy, match=r"config\.yaml: sede: unknown key"):
        paths.read_config()
    paths.config.write_text("a: [")
    with pytest.raises(InvalidStudy, match="not valid YAML"):
        paths.read_config()


@pytest.mark.parametrize(
    ("text", "message"), [("{}", r"result\.json: recipe: "), ("{", r"result\.json: "), ('{"x": 1}', "x: unknown key")]
)
def test_a_result_that_does_not_read_is_named(paths: RunPaths, text: str, message: str) -> None:
    paths.trial(3).folder.mkdir(parents=True)
    paths.trial(3).result.write_text(text)
    with pytest.raises(InvalidStudy, match=message):
        paths.results()


def test_a_missing_file_of_a_study_is_named(paths: RunPaths) -> None:
    with pytest.raises(InvalidStudy, match=r"layers\.json: this file of the study is missing"):
        paths.read_layers()


def test_the_survey_is_read_back(paths: RunPaths) -> None:
    layers = (LayerInfo(name="a", kind="linear", macs=1, params=1, in_channels=2, out_channels=3, weight_bits=(32, 8)),)
    write_text(paths.layers, to_json(Layers(layers=layers)))
    assert paths.read_layers() == layers
    assert read_json(paths.layers, Layers).layers == layers


# ---- one driver -----------------------------------------------------------------------------------------------------

HOLD = (
    "import sys; from pathlib import Path; from autocompress.runs import RunPaths, only_driver\n"
    "with only_driver(RunPaths(Path(sys.argv[1]), 'study')):\n"
    "    print('held', flush=True); sys.stdin.read()\n"
)


def test_a_second_driver_is_refused_with_the_pid_of_the_first_until_that_one_dies(paths: RunPaths) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(paths.runs)], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InvalidStudy, match=rf"study 'study' is being run by pid {holder.pid} on "), only_driver(paths):
            pytest.fail("two drivers at once")
        holder.kill()
        holder.wait()
    with only_driver(paths):
        assert paths.lock.read_text().startswith(f"pid {os.getpid()} on ")


def test_the_lock_is_free_again_after_the_driver_is_done(paths: RunPaths) -> None:
    for _ in range(2):
        with only_driver(paths):
            assert paths.lock.exists()


def test_runs_that_cannot_be_a_folder_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"--runs: .*file is not writable: .* Choose another folder"),
        only_driver(RunPaths(tmp_path / "file", "study")),
    ):
        pytest.fail("a driver in a file")


def test_an_unwritable_runs_folder_is_refused_in_one_line(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(UserError, match=r"is not writable: Permission denied"), only_driver(paths):
        pytest.fail("a driver without a folder")
