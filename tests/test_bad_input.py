"""Wrong input: exit code 2, one clear line, no traceback, and nothing is left of it."""

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_runs import Finished, call, copied, ended, fingerprints, largest_file, leftovers, search_arguments, start
from typer.testing import Result

from autocompress.runs import RunPaths, only_driver

WRONG_TASKS = [
    *("absent:make", "raises", "returns_a_model", "wrong_input", "nan_metric", "raising_metric", "infinite_outputs"),
    *("empty_search", "empty_train", "no_pairs_in_search", "no_pairs_in_train", "loader_that_raises"),
]


def refused(done: Result) -> str:
    """The one line that says what is wrong."""
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == errors[0]
    return errors[0]


def misused(done: Result) -> str:
    """What the parser of the command line itself refuses, after its usage."""
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    return " ".join(done.stderr.split())


def search(tmp_path: Path, *more: str, task: str = "toy_task:make") -> Result:
    arguments = search_arguments(tmp_path / "runs", "study", 2, "fake")
    arguments[arguments.index("toy_task:make")] = task
    return call(*arguments, *more)


def nothing_was_made(tmp_path: Path) -> bool:
    return not (tmp_path / "runs" / "study").exists()


# ---- a search that cannot begin -------------------------------------------------------------------------------------


def test_an_unknown_task_in_a_real_process_is_one_line_on_stderr(tmp_path: Path) -> None:
    code, out, err = ended(start("search", "--task", "absent.module:make", "--runs", str(tmp_path / "runs")))
    assert code == 2
    assert out == ""
    assert err.splitlines()[-1].startswith("error: --task absent.module:make: there is no module 'absent'")
    assert "Traceback" not in err


@pytest.mark.parametrize("name", WRONG_TASKS)
def test_a_task_that_is_wrong_is_refused(tmp_path: Path, name: str) -> None:
    assert "task" in refused(search(tmp_path, task=name if ":" in name else f"toy_task:{name}"))


@pytest.mark.parametrize("name", ["absent:make", "toy_task:raises", "toy_task:nan_metric"])
def test_after_a_refusal_the_name_of_the_study_is_still_free(tmp_path: Path, name: str) -> None:
    """Or a typing error in --task would have to be answered with another --study."""
    refused(search(tmp_path, task=name))
    assert nothing_was_made(tmp_path)
    assert call("list", "--runs", str(tmp_path / "runs")).stdout.startswith("No studies in")
    assert search(tmp_path).exit_code == 0


SPACES = {
    "keep: [": "is not valid YAML",
    "- 1\n": "must be a mapping of settings, got list",
    "": "must be a mapping of settings, got NoneType",
    "kepp: {choices: [1.0]}\n": "kepp: unknown key",
    "keep: {choices: [1.0], tye: layer}\n": "keep.tye: unknown key",
    "keep: {choices: [1.5]}\n": "keep.choices: every share must be above 0 and at most 1",
    "weight_bits: {choices: [32, 33]}\n": "weight_bits.choices: bits must be 2 to 8, 16 for half floats, or 32 for float",
    "keep: {choices: [1.0, 0.5]}\nlayers: [{match: 'absent*', exclude: true}]\n": "layers[0].match: no layer is named 'absent*'",
    "keep: {choices: [1.0]}\n": "nothing in this model may change",
}


@pytest.mark.parametrize("text", SPACES)
def test_a_space_that_does_not_read_or_fit_is_refused_with_the_path_of_the_field(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    assert SPACES[text] in refused(search(tmp_path, "--space", str(file)))
    assert nothing_was_made(tmp_path)


def test_a_missing_space_file_is_refused_with_the_built_in_ones(tmp_path: Path) -> None:
    line = refused(search(tmp_path, "--space", "absent.yaml"))
    assert "no file absent.yaml" in line
    assert "compact, default, full, large, small" in line
    assert nothing_was_made(tmp_path)


@pytest.mark.parametrize("budget", ["0", "abc", "-3", "2.5", "0m", ""])
def test_a_budget_that_is_none_is_refused(tmp_path: Path, budget: str) -> None:
    assert f"--budget: must be a whole number of trials of at least 1 (50) or a time (90s, 20m, 2h), got {budget!r}" in refused(
        search(tmp_path, f"--budget={budget}")
    )
    assert nothing_was_made(tmp_path)


@pytest.mark.parametrize("name", ["a/b", "../up", "/abs", "..", ""])
def test_a_study_name_that_is_a_path_is_refused(tmp_path: Path, name: str) -> None:
    if name:
        assert f"--study: {name!r} is not a study name" in refused(search(tmp_path, f"--study={name}"))
    assert "is not a study name" in refused(call("resume", name, "--runs", str(tmp_path)))
    assert "is not a study name" in refused(call("show", name, "--runs", str(tmp_path)))
    assert not (tmp_path / "up").exists()


@pytest.mark.parametrize(
    ("option", "value"), [("--max-drop", "nan"), ("--max-drop", "inf"), ("--min-speedup", "nan"), ("--min-speedup", "0")]
)
def test_bounds_that_are_no_numbers_or_senseless_are_refused(tmp_path: Path, option: str, value: str) -> None:
    """By the option or by the settings: what comes first depends on the version of click."""
    done = search(tmp_path, option, value)
    last = misused(done).splitlines()[-1].replace("_", "-")
    assert option.removeprefix("--") in last
    assert nothing_was_made(tmp_path)


@pytest.mark.parametrize(("option", "value"), [("--batch-size", "8,0"), ("--threads", "0"), ("--max-drop", "-1"), ("--seed", "-1")])
def test_numbers_out_of_range_are_refused_by_the_option(tmp_path: Path, option: str, value: str) -> None:
    assert option in misused(search(tmp_path, option, value))
    assert nothing_was_made(tmp_path)


def test_an_unknown_runtime_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    assert "'tensorrt' is unknown; the runtimes are auto, eager, onnxruntime" in refused(search(tmp_path, "--runtime", "tensorrt"))
    assert nothing_was_made(tmp_path)


def test_a_runtime_that_is_not_installed_is_told_with_the_pip_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # what an import of an absent package meets
    monkeypatch.delitem(sys.modules, "autocompress.runtimes.onnx_runtime", raising=False)
    line = refused(search(tmp_path, "--runtime", "onnxruntime"))
    assert "the package 'onnxruntime' is not installed; get it with `pip install onnxruntime`" in line
    assert nothing_was_made(tmp_path)


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "--device: 'cuda:99' cannot be used here" in refused(search(tmp_path, "--device", "cuda:99"))
    assert nothing_was_made(tmp_path)


def test_a_storage_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    line = refused(search(tmp_path, "--storage", f"sqlite:///{tmp_path}/absent/study.db"))
    assert "--storage: sqlite:////" in line


@pytest.mark.parametrize("kind", ["a file", "no place for folders"])
@pytest.mark.parametrize("command", ["search", "apply"])
def test_runs_that_cannot_be_written_are_refused(tmp_path: Path, shipped: Finished, kind: str, command: str) -> None:
    (tmp_path / "file").touch()
    runs = str(tmp_path / "file") if kind == "a file" else "/proc/autocompress"
    if command == "search":
        done = search(tmp_path, "--runs", runs)
    else:
        recipe = str(shipped.paths.trial(0).recipe)
        done = call("apply", recipe, "--task", "toy_task:make", "--threads", "1", "--out", str(tmp_path / "out"), "--runs", runs)
    assert runs in refused(done)


# ---- a study that cannot go on --------------------------------------------------------------------------------------


def resume(paths: RunPaths, *more: str) -> Result:
    return call("resume", paths.study, "--runs", str(paths.runs), *more)


@pytest.mark.parametrize("command", ["resume", "show", "report", "explain", "ask"])
def test_a_study_that_does_not_exist_is_refused_with_those_that_do(shipped: Finished, command: str) -> None:
    line = refused(call(command, "absent", "--runs", str(shipped.paths.runs)))
    assert "study 'absent' does not exist" in line
    assert "Studies there: shipped" in line
    assert not (shipped.paths.runs / "absent").exists()


def test_a_study_whose_task_changed_is_refused_and_left_as_it_was(
    undisturbed: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = copied(undisturbed.paths, tmp_path)
    before, config = fingerprints(paths), paths.config.read_bytes()
    monkeypatch.setitem(os.environ, "TOY_SEED", "1")
    assert "the task changed since" in refused(resume(paths, "--budget", "18"))
    assert fingerprints(paths) == before
    assert paths.config.read_bytes() == config


@pytest.mark.parametrize(
    ("field", "value"), [("cpu", "Z80"), ("cores", 77), ("versions", {"torch": "1.0"}), ("instruction_sets", ["mmx"])]
)
def test_a_study_of_another_machine_or_other_versions_is_refused_with_what_differs(
    undisturbed: Finished, tmp_path: Path, field: str, value: object
) -> None:
    paths = copied(undisturbed.paths, tmp_path)
    before, config = fingerprints(paths), paths.config.read_bytes()
    paths.machine.write_text(json.dumps(json.loads(paths.machine.read_text()) | {field: value}))
    line = refused(resume(paths, "--budget", "18"))
    assert "measured elsewhere or before an upgrade" in line
    assert ("torch: 1.0 -> " if field == "versions" else f"{field}: ") in line
    assert fingerprints(paths) == before
    assert paths.config.read_bytes() == config


def test_a_study_that_is_being_run_is_refused_with_the_pid(undisturbed: Finished, tmp_path: Path) -> None:
    paths = copied(undisturbed.paths, tmp_path)
    with only_driver(paths):
        assert f"study 'study' is being run by pid {os.getpid()} on " in refused(resume(paths, "--budget", "18"))
    assert len(fingerprints(paths)) == 16


@pytest.mark.parametrize("budget", ["0", "abc"])
def test_a_resume_with_a_budget_that_is_none_changes_nothing(undisturbed: Finished, tmp_path: Path, budget: str) -> None:
    paths = copied(undisturbed.paths, tmp_path)
    config = paths.config.read_bytes()
    assert "--budget" in refused(resume(paths, "--budget", budget))
    assert paths.config.read_bytes() == config


@pytest.mark.parametrize("trial", ["99", "slowest", "x"])
def test_an_unknown_trial_to_export_is_refused(shipped: Finished, tmp_path: Path, trial: str) -> None:
    out = tmp_path / "out"
    line = refused(call("export", "shipped", "--trial", trial, "--out", str(out), "--runs", str(shipped.paths.runs)))
    assert "--trial: must be best, fastest, smallest, knee or the number of a trial" in line
    assert not out.exists()


# ---- questions to a study or a folder -------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["explain", "ask", "compare", "report"])
def test_a_study_with_no_finished_trial_answers_nothing(undisturbed: Finished, tmp_path: Path, command: str) -> None:
    paths = copied(undisturbed.paths, tmp_path)
    for file in paths.folder.glob("trials/*/result.json"):
        file.unlink()
    names = (paths.study, paths.study) if command == "compare" else (paths.study,)
    line = refused(call(command, *names, "--runs", str(paths.runs)))
    assert "autocompress resume" in line


@pytest.mark.parametrize("trial", ["99", "slowest", "x"])
def test_an_unknown_trial_to_explain_is_refused(shipped: Finished, trial: str) -> None:
    line = refused(call("explain", "shipped", "--trial", trial, "--runs", str(shipped.paths.runs)))
    assert "--trial: must be best, fastest, smallest, knee or the number of a trial" in line


@pytest.mark.parametrize("size", ["", "many", "-1", "0KB", "1.2.3MB"])
def test_a_size_that_is_none_is_refused(shipped: Finished, size: str) -> None:
    assert f"got {size!r}" in refused(call("ask", "shipped", f"--max-size={size}", "--runs", str(shipped.paths.runs)))


@pytest.mark.parametrize(("option", "value"), [("--max-drop", "nan"), ("--max-drop", "inf"), ("--min-speedup", "inf")])
def test_a_wish_that_is_no_number_is_refused(shipped: Finished, option: str, value: str) -> None:
    line = refused(call("ask", "shipped", option, value, "--runs", str(shipped.paths.runs)))
    assert f"{option}: must be a finite number, got {value}" in line


@pytest.mark.parametrize("option", ["--speed-tolerance", "--accuracy-tolerance"])
def test_a_tolerance_that_is_no_number_is_refused(shipped: Finished, option: str) -> None:
    assert f"{option}: must be a finite number of at least 0, got inf" in refused(call("verify", str(shipped.paths.runs), option, "inf"))
    assert option in misused(call("verify", str(shipped.paths.runs), option, "nan"))


def lost(file: Path) -> None:
    file.unlink()


def changed(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b" ")


@pytest.mark.parametrize("name", ["model.onnx", "weights.safetensors", "recipe.yaml", "measured.json", "README.md"])
@pytest.mark.parametrize("harm", [lost, changed])
def test_an_exported_file_that_is_missing_or_changed_is_named(
    shipped: Finished, tmp_path: Path, name: str, harm: Callable[[Path], None]
) -> None:
    folder = tmp_path / "out"
    assert call("export", "shipped", "--out", str(folder), "--runs", str(shipped.paths.runs)).exit_code == 0
    harm(folder / name)
    line = refused(call("verify", str(folder)))
    assert line.startswith(f"error: {folder / name}: {'missing' if harm is lost else 'changed since it was exported'}")


def test_several_broken_files_are_a_line_each(shipped: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert call("export", "shipped", "--out", str(folder), "--runs", str(shipped.paths.runs)).exit_code == 0
    lost(folder / "model.onnx")
    changed(folder / "recipe.yaml")
    done = call("verify", str(folder))
    assert done.exit_code == 2
    assert [line.partition("/out/")[2].partition(":")[0] for line in done.stderr.splitlines()] == ["model.onnx", "recipe.yaml"]


def test_what_is_no_exported_folder_is_refused(shipped: Finished, tmp_path: Path) -> None:
    assert "no such folder" in refused(call("verify", str(tmp_path / "absent")))
    assert "not an exported folder" in refused(call("verify", str(shipped.paths.folder)))
    line = refused(call("compare", "absent", "shipped", "--runs", str(shipped.paths.runs)))
    assert "absent: neither a study in" in line
    assert "Studies there: shipped" in line


# ---- recipes --------------------------------------------------------------------------------------------------------

RECIPES = {
    "layers: [": "not valid YAML",
    "layers:\n  - {name: head, kep: 0.5}\n": "layers[0].kep: unknown key",
    "layers:\n  - {name: stem, keep: 0.5}\n": "layers[0].name: the model has no layer 'stem'; its layers are conv1, conv2, head",
    "layers:\n  - {name: head, keep: 0.5}\n": "layers[0].keep: 0.5 is not possible for head",
    "layers:\n  - {name: head, rank: 500}\n": "layers[0].rank: 500 is too large for head",
    "layers:\n  - {name: conv2, activation_bits: 16}\n": "layers[0].activation_bits: 16 with weight_bits 32: no kernel takes it",
    "layers:\n  - {name: conv1, keep: 0.5}\n": "layers[0].keep: must be equal inside one prune group",
    "recovery: {learning_rate: 0}\n": "recovery.learning_rate",
}


@pytest.mark.parametrize("text", RECIPES)
def test_a_recipe_for_another_model_is_refused_with_the_path_of_the_field(tmp_path: Path, text: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    out, runs = tmp_path / "out", tmp_path / "runs"
    line = refused(call("apply", str(file), "--task", "toy_task:make", "--threads", "1", "--out", str(out), "--runs", str(runs)))
    assert RECIPES[text] in line
    assert "recipe.yaml" in line
    assert not out.exists()
    assert not runs.exists() or list(runs.iterdir()) == []


def test_a_missing_recipe_and_a_folder_that_is_not_empty_are_refused(tmp_path: Path, shipped: Finished) -> None:
    common = ["--task", "toy_task:make", "--out", str(tmp_path), "--runs", str(tmp_path / "runs")]
    assert "absent.yaml: cannot be read" in refused(call("apply", "absent.yaml", *common))
    (tmp_path / "mine").touch()
    assert "exists and is not empty" in refused(call("apply", str(shipped.paths.trial(0).recipe), *common))


# ---- a full disk ----------------------------------------------------------------------------------------------------


def test_on_a_disk_too_full_for_the_baseline_the_file_is_named_and_no_study_is_left(tmp_path: Path) -> None:
    with largest_file(8_000):
        line = refused(search(tmp_path))
    assert "baseline" in line
    assert nothing_was_made(tmp_path)


def test_on_a_disk_too_full_for_the_report_all_trials_are_kept_and_a_resume_ends_well(tmp_path: Path) -> None:
    with largest_file(30_000):
        line = refused(search(tmp_path))
    paths = RunPaths(tmp_path / "runs", "study")
    assert "could not be written" in line
    assert leftovers(paths.folder) == []
    before = fingerprints(paths)
    assert len(before) == 2
    assert resume(paths).exit_code == 0
    assert fingerprints(paths) == before
    assert paths.report.exists()


def full(*arguments: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def weights_fail(broken: pytest.MonkeyPatch, *, of_artifact: bool) -> None:
    write = Path.write_bytes

    def written(file: Path, content: bytes) -> int:
        if file.name == "weights.safetensors" and "trials" in file.parts and file.parent.name.startswith(".artifact") is of_artifact:
            full()
        return write(file, content)

    broken.setattr(Path, "write_bytes", written)


def artifact_cannot_be_written(broken: pytest.MonkeyPatch) -> None:
    weights_fail(broken, of_artifact=True)


def draft_for_the_gate_cannot_be_written(broken: pytest.MonkeyPatch) -> None:
    weights_fail(broken, of_artifact=False)


def result_cannot_be_flushed(broken: pytest.MonkeyPatch) -> None:
    flush = os.fsync

    def flushed(handle: int) -> None:
        if "result.json" in os.readlink(f"/proc/self/fd/{handle}"):
            full()
        flush(handle)

    broken.setattr(os, "fsync", flushed)


@pytest.mark.parametrize("fault", [artifact_cannot_be_written, draft_for_the_gate_cannot_be_written, result_cannot_be_flushed])
def test_on_a_disk_that_fills_during_a_trial_the_others_are_kept_and_the_file_is_named(
    undisturbed: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[pytest.MonkeyPatch], None]
) -> None:
    paths = copied(undisturbed.paths, tmp_path)
    before = fingerprints(paths)
    with monkeypatch.context() as broken:
        fault(broken)
        line = refused(resume(paths, "--budget", "17"))
    assert str(paths.folder) in line
    assert "No space left on device" in line
    assert fingerprints(paths) == before
    assert leftovers(paths.folder) == []
    assert resume(paths).exit_code == 0
    assert len(fingerprints(paths)) == 17
