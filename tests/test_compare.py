"""Two studies or two exported folders side by side, and whether their numbers compare."""

import json
from pathlib import Path

import pytest
from toy_runs import Finished, call, copied

import autocompress
from autocompress import compare
from autocompress.errors import InvalidStudy, UserError
from autocompress.runs import RunPaths


@pytest.fixture
def paths(undisturbed: Finished, tmp_path: Path) -> RunPaths:
    return copied(undisturbed.paths, tmp_path)


@pytest.fixture
def shorter(paths: RunPaths) -> RunPaths:
    """The same study after 8 of its trials, under another name, with a tighter bound."""
    own = RunPaths(paths.runs, "shorter")
    paths.folder.rename(own.folder)
    for number in range(8, 16):
        own.trial(number).result.unlink()
    own.write_config(own.read_config().model_copy(update={"study": "shorter", "max_drop": 5.0}))
    return own


def test_two_studies_of_one_task_and_machine_compare(undisturbed: Finished, shorter: RunPaths) -> None:
    copied(undisturbed.paths, shorter.runs.parent)
    found = compare("study", "shorter", shorter.runs)
    assert (found["kind"], found["differences"]) == ("studies", [])
    assert (found["a"]["finished"], found["b"]["finished"]) == (16, 8)
    assert found["reference_drop"] == 100.0
    assert found["a"]["hypervolume"] >= found["b"]["hypervolume"] > 0, "from one reference point; more trials cover no less"
    assert found["beaten"]["a"] == 0
    assert found["a"]["best"]["speedup"] >= found["b"]["best"]["speedup"] if found["b"]["best"] else True
    assert compare("study", "study", shorter.runs)["beaten"] == {"a": 0, "b": 0}


def test_why_two_studies_do_not_compare_is_told(undisturbed: Finished, paths: RunPaths, tmp_path: Path) -> None:
    own = copied(undisturbed.paths, tmp_path / "other")
    own.machine.write_text(json.dumps(json.loads(own.machine.read_text()) | {"cpu": "Z80"}))
    own.baseline.write_text(json.dumps(json.loads(own.baseline.read_text()) | {"task_digest": "another"}))
    config = own.read_config()
    own.write_config(config.model_copy(update={"target": config.target.model_copy(update={"batch_sizes": (8,)})}))
    lines = compare(paths.folder, own.folder)["differences"]
    assert [line.partition(":")[0] for line in lines] == ["task", "target", "cpu"]
    assert lines[2].endswith("-> Z80")


def test_two_exported_folders_are_compared_by_their_measured_json(paths: RunPaths, tmp_path: Path) -> None:
    trials = [row["trial"] for row in autocompress.show(paths.study, runs=paths.runs).front()][:2]
    folders = [autocompress.export(paths.study, trial=trial, out=tmp_path / str(trial), runs=paths.runs) for trial in trials]
    found = compare(*folders)
    assert (found["kind"], found["differences"]) == ("artifacts", [])
    assert [found[side]["trial"] for side in "ab"] == trials
    assert [found[side]["split"] for side in "ab"] == ["holdout", "holdout"]
    assert found["a"]["speedup"] > found["b"]["speedup"]


def test_the_command_shows_both_columns_and_warns(paths: RunPaths, undisturbed: Finished, tmp_path: Path) -> None:
    own = copied(undisturbed.paths, tmp_path / "other")
    alike = call("compare", str(paths.folder), str(own.folder))
    assert alike.exit_code == 0, alike.stderr
    assert "hypervolume (drop 100)" in alike.stdout
    assert "DO NOT COMPARE" not in alike.stdout
    own.machine.write_text(json.dumps(json.loads(own.machine.read_text()) | {"cpu": "Z80"}))
    warned = call("compare", str(paths.folder), str(own.folder))
    assert warned.exit_code == 0
    assert "THESE NUMBERS DO NOT COMPARE" in warned.stdout
    done = call("compare", str(paths.folder), str(own.folder), "--json")
    assert json.loads(done.stdout)["kind"] == "studies"
    folder = autocompress.export(paths.study, out=tmp_path / "out", runs=paths.runs)
    shown = call("compare", str(folder), str(folder))
    assert shown.exit_code == 0, shown.stderr
    assert "weights" in shown.stdout


def test_what_cannot_be_compared_is_refused(paths: RunPaths, tmp_path: Path) -> None:
    folder = autocompress.export(paths.study, out=tmp_path / "out", runs=paths.runs)
    with pytest.raises(UserError, match=r"absent: neither a study in .* nor a folder that .* wrote\. Studies there: study"):
        compare("study", "absent", paths.runs)
    with pytest.raises(UserError, match=r"study is a study and .*/out an exported folder; compare two of a kind"):
        compare("study", folder, paths.runs)
    with pytest.raises(UserError, match=r"study is a study and .*/out an exported folder"):
        compare(folder, "study", paths.runs)
    for file in paths.folder.glob("trials/*/result.json"):
        file.unlink()
    with pytest.raises(InvalidStudy, match=r"'study' has no finished trial.*resume study"):
        compare("study", "study", paths.runs)
