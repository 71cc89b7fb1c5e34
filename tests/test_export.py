"""What is shipped: a folder that needs nothing of this package, with numbers that hold, and back into PyTorch."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import toy_task
from torch import nn
from toy_runs import Finished

import autocompress
from autocompress.errors import InvalidRecipe, InvalidStudy, UserError
from autocompress.recipe import from_yaml
from autocompress.tasks.task import gather

FILES = ["README.md", "SHA256SUMS", "measured.json", "model.onnx", "recipe.yaml", "weights.safetensors"]

ELSEWHERE = """\
import sys
import numpy, onnxruntime
held = numpy.load(sys.argv[1])
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
outputs = session.run(None, {"input": held["inputs"]})[0]
assert not {"torch", "autocompress", "onnx", "optuna"} & set(sys.modules), "this was to be done without them"
print(int((outputs.argmax(1) == held["targets"]).sum()))
"""


@pytest.fixture(scope="module")
def study(shipped: Finished) -> "autocompress.job.Study":
    return autocompress.show(shipped.paths.study, runs=shipped.paths.runs)


@pytest.fixture(scope="module")
def folders(study: "autocompress.job.Study", tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Every trial of the front, exported."""
    out = tmp_path_factory.mktemp("out")
    return {row["trial"]: study.export(row["trial"], out / str(row["trial"])) for row in study.front()}


def test_the_folder_holds_model_recipe_weights_numbers_and_a_readme(folders: dict[int, Path], shipped: Finished) -> None:
    for number, folder in folders.items():
        assert sorted(file.name for file in folder.iterdir()) == FILES
        trial = shipped.paths.trial(number)
        assert (folder / "model.onnx").read_bytes() == (trial.artifact / "model.onnx").read_bytes()
        assert from_yaml((folder / "recipe.yaml").read_text()) == from_yaml(trial.recipe.read_text())


def test_a_process_with_nothing_but_onnxruntime_and_numpy_gets_the_accuracy_that_is_claimed(
    folders: dict[int, Path], tmp_path: Path
) -> None:
    inputs, targets = gather(toy_task.make().holdout or (), "holdout")
    np.savez(tmp_path / "holdout.npz", inputs=inputs.numpy(), targets=targets.numpy())
    assert len(folders) >= 1
    for folder in folders.values():
        command = [sys.executable, "-I", "-c", ELSEWHERE, str(tmp_path / "holdout.npz")]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=60)
        claimed = json.loads((folder / "measured.json").read_text())["holdout"]
        assert claimed["samples"] == len(targets)
        assert 100 * int(done.stdout) / len(targets) == pytest.approx(claimed["accuracy"], abs=1e-3)


def test_measured_says_all_that_the_trial_says(folders: dict[int, Path], shipped: Finished) -> None:
    for number, folder in folders.items():
        measured = json.loads((folder / "measured.json").read_text())
        trial = shipped.paths.trial(number)
        measurement = next(one.measurement for one in shipped.paths.results() if one.number == number)  # a contender was timed again
        assert measurement is not None
        assert measured["search"] == measurement.model_dump(mode="json")
        assert measured["holdout"] == json.loads(trial.holdout.read_text())
        assert measured["baseline"] == json.loads(shipped.paths.baseline.read_text())
        assert measured["machine"] == json.loads(shipped.paths.machine.read_text())
        assert measured["input_shape"] == [1, 8, 8]
        assert measured["search"]["deployed_bytes"] == (folder / "model.onnx").stat().st_size
        assert measured["search"]["size_bytes"] == (folder / "weights.safetensors").stat().st_size


def test_the_readme_shows_code_that_runs(folders: dict[int, Path]) -> None:
    folder = next(iter(folders.values()))
    text = (folder / "README.md").read_text()
    assert len(text.splitlines()) <= 14
    assert "holdout" in text
    code = "\n".join(line.strip() for line in re.findall(r"^    (.*)$", text, re.MULTILINE))
    code = f"import numpy\ninputs = numpy.zeros((3, 1, 8, 8), numpy.float32)\n{code}\nprint(outputs.shape)"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=folder, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "(3, 10)\n"


def test_a_loaded_model_agrees_with_the_artifact(folders: dict[int, Path], study: "autocompress.job.Study") -> None:
    task = toy_task.make()
    x, _ = gather(task.holdout or (), "holdout")
    for number, folder in folders.items():
        model = autocompress.load(folder, task)
        assert not model.training
        with torch.no_grad():
            outputs = model(x)
        session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        shipped = torch.from_numpy(session.run(None, {"input": x.numpy()})[0])
        assert (outputs.argmax(1) == shipped.argmax(1)).float().mean() >= 0.99
        if all(not plan.is_quantized for plan in study.recipe(number).layers):
            assert torch.allclose(outputs, shipped, atol=1e-3)


def test_loading_leaves_the_model_of_the_task_alone(folders: dict[int, Path]) -> None:
    task = toy_task.make()
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    autocompress.load(next(iter(folders.values())), task)
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(study: "autocompress.job.Study", tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UserError, match="exists and is not empty; choose another folder"):
        study.export("fastest", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(UserError, match="exists and is not empty"):
        study.export("fastest", tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "precious"


def test_an_empty_folder_is_filled(study: "autocompress.job.Study", tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    study.export("fastest", tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == FILES


@pytest.mark.parametrize("trial", [99, "slowest", "-1", ""])
def test_an_unknown_trial_is_refused_with_those_that_exist(study: "autocompress.job.Study", tmp_path: Path, trial: str | int) -> None:
    with pytest.raises(InvalidStudy, match=r"must be best, fastest, smallest, knee or the number of a trial, got .* Measured trials: 0"):
        study.export(trial, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_lost_artifact_is_told_with_how_to_get_it_again(shipped: Finished, tmp_path: Path) -> None:
    shutil.copytree(shipped.paths.folder, tmp_path / "runs" / "shipped")
    shutil.rmtree(tmp_path / "runs" / "shipped" / "trials" / "0000" / "artifact")
    with pytest.raises(UserError, match=r"the artifact of trial 0 is missing; replay .*`autocompress apply`"):
        autocompress.export("shipped", trial=0, out=tmp_path / "out", runs=tmp_path / "runs")


@pytest.fixture
def folder(folders: dict[int, Path], tmp_path: Path) -> Path:
    """An exported folder of one's own to break."""
    return Path(shutil.copytree(next(iter(folders.values())), tmp_path / "exported"))


def one_line(folder: Path, task: autocompress.Task) -> str:
    with pytest.raises(UserError) as caught:
        autocompress.load(folder, task)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_of_another_model_are_refused_in_one_line(folder: Path) -> None:
    wider = replace(toy_task.make(), model=toy_task.Toy(width=24).eval())
    assert "the weights do not fit the model of task 'toy'" in one_line(folder, wider)
    assert one_line(folder, replace(wider, model=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()))


@pytest.mark.parametrize(
    ("plan", "named"),
    [("{name: absent, rank: 2}", "absent"), ("{name: absent, keep: 0.5}", "absent"), ("{name: head, rank: 400}", "rank")],
)
def test_a_recipe_that_does_not_belong_to_the_model_is_refused_in_one_line(folder: Path, plan: str, named: str) -> None:
    (folder / "recipe.yaml").write_text(f"layers:\n  - {plan}\n")
    assert named in one_line(folder, toy_task.make())


def test_a_folder_without_a_recipe_or_without_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRecipe, match="is not an exported folder"):
        autocompress.load(tmp_path, toy_task.make())
    (folder / "weights.safetensors").write_bytes(b"not weights")
    assert "weights.safetensors: the weights cannot be read" in one_line(folder, toy_task.make())
    (folder / "weights.safetensors").unlink()
    assert "weights.safetensors: the weights cannot be read" in one_line(folder, toy_task.make())
