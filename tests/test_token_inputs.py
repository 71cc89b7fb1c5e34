"""Models that read tokens (int64) go the whole way: survey, every technique, deployment with any batch, search, verify, resume."""

import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toy_runs import call, space_file
from toy_tokens import prose, texts

from autocompress.compress.build import Materials, compress
from autocompress.compress.distill import Lesson
from autocompress.measure.accuracy import agreement, predict
from autocompress.measure.machine import this_machine
from autocompress.recipe import Recipe
from autocompress.runtimes import find_runtime
from autocompress.runtimes.runtime import deploy
from autocompress.survey import survey
from autocompress.tasks.transformer import CharModel, TextClassifier
from tests.small_models import outputs

LINEAR = ("q", "k", "v", "out", "wide", "narrow", "head")
RUNTIME = find_runtime("onnxruntime")


def made(kind: str, width: int = 64, layers: int = 2) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = torch.randint(2, 20, (40, 8))
        if kind == "characters":
            return CharModel(20, 8, width, layers).eval(), x
        x[::3, 5:] = 0  # filling
        return TextClassifier(20, 8, width, layers, 5).eval(), x


def planned(model: nn.Module, ends: tuple[str, ...], **plan: Any) -> list[dict[str, Any]]:
    return [{"name": name, **plan} for name, _ in model.named_modules() if name.rpartition(".")[2] in ends]


RECIPES: dict[str, Any] = {
    "static": lambda m: {"layers": planned(m, LINEAR, weight_bits=7, activation_bits=8)},
    "static, all that saves accuracy": lambda m: {
        "layers": planned(m, LINEAR, weight_bits=7, activation_bits=8),
        "quantization": {"equalize": True, "bias_correction": True, "adaround_steps": 2, "observer": "mse"},
    },
    "dynamic": lambda m: {"layers": planned(m, LINEAR, weight_bits=7, activation_bits=8), "quantization": {"activations": "dynamic"}},
    "4-bit weights": lambda m: {"layers": planned(m, LINEAR, weight_bits=4), "quantization": {"granularity": "group"}},
    "half": lambda m: {"layers": planned(m, LINEAR, weight_bits=16)},
    "heads and hidden widths": lambda m: {"layers": planned(m, ("attention", "wide"), keep=0.5)},
    "ranks": lambda m: {"layers": planned(m, ("wide", "narrow"), rank=8)},
    "a layer left out": lambda m: {"layers": planned(m, ("1",), drop=True)},
    "zeros": lambda m: {"layers": planned(m, ("wide",), sparsity=0.5)},
}


@pytest.mark.parametrize("kind", ["texts", "characters"])
@pytest.mark.parametrize("name", RECIPES)
def test_every_technique_comes_out_of_the_runtime_as_pytorch_says_at_any_batch(tmp_path: Path, kind: str, name: str) -> None:
    model, x = made(kind)
    recipe = Recipe.model_validate({**RECIPES[name](model), "recovery": {"steps": 0, "quantized_steps": 0}})
    assert recipe.layers
    result = compress(model, recipe, Materials(calibration=x, lesson=Lesson(loss=F.cross_entropy)))
    deployed = deploy(RUNTIME, result, x[:1], tmp_path / "artifact", threads=1)
    expected, found = outputs(result, x), predict(deployed, x)
    same, difference = agreement(found, expected)
    assert same > 0.95
    assert difference < (0.1 if any(plan.is_quantized for plan in recipe.layers) else 1e-4)
    torch.testing.assert_close(torch.from_numpy(deployed.run(x[:1].numpy())), found[:1], atol=0.1, rtol=0.1)


def test_heads_and_hidden_widths_may_go_and_layers_may_be_left_out() -> None:
    model, x = made("texts")
    found = {layer.name: layer for layer in survey(model, x[:1], RUNTIME, this_machine())}
    for layer in ("encoder.layers.0", "encoder.layers.1"):
        assert found[f"{layer}.attention"].group == f"{layer}.attention"
        assert found[f"{layer}.wide"].group == f"{layer}.wide"
        assert found[layer].droppable
        assert all(found[f"{layer}.{name}"].factorizable for name in ("wide", "narrow"))


def test_agreement_of_outputs_with_places_counts_every_place() -> None:
    one = torch.zeros(2, 3, 4)
    one[:, 1] = 1.0
    other = one.clone()
    other[0, 2, 3] = 2.0
    assert agreement(one, other) == (pytest.approx(7 / 8), 2.0)


def search(tmp_path: Path, task: str, data: Path, *options: str) -> list[str]:
    where = ["--runtime", "onnxruntime", "--device", "cpu", "--runs", str(tmp_path / "runs"), "--space", str(space_file(tmp_path))]
    bounds = ["--max-drop", "100", "--min-speedup", "0.01", "--budget", "2", "--study", "study"]
    more = [word for option in options for word in ("--option", option)]
    return ["search", "--task", task, "--data", str(data), *where, *bounds, *more]


def test_a_search_on_texts_ends_with_a_folder_that_verifies_and_a_study_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts(tmp_path / "t.csv", columns=("words", "topic"))
    monkeypatch.chdir(tmp_path)
    options = ("text=words", "label=topic", "length=8", "epochs=4")
    done = call(*search(tmp_path, "text-classification", Path("t.csv"), *options), "--model", "toy_tokens:classifier")
    assert done.exit_code == 0, done.output
    out, runs = tmp_path / "shipped", str(tmp_path / "runs")
    monkeypatch.chdir("/")
    assert call("export", "study", "--out", str(out), "--runs", runs).exit_code == 0
    told = json.loads((out / "measured.json").read_text())
    assert told["task"] == "text-classification"
    assert told["task_options"]["data"] == str(tmp_path / "t.csv")
    assert "inputs: int64 array, shape (any batch, 8)" in (out / "README.md").read_text()
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {"input": torch.ones(3, 8, dtype=torch.int64).numpy()})[0].shape == (3, 3)
    (tmp_path / "t.csv").rename(tmp_path / "moved.csv")
    missing = call("verify", str(out), "--runs", runs)
    assert missing.exit_code == 2
    assert f"--data: {tmp_path / 't.csv'}: no such file or folder" in missing.stderr
    verified = call("verify", str(out), "--runs", runs, "--data", str(tmp_path / "moved.csv"), "--speed-tolerance", "1000")
    assert verified.exit_code == 0, verified.output
    (tmp_path / "moved.csv").rename(tmp_path / "t.csv")
    assert call("resume", "study", "--runs", runs, "--budget", "2").exit_code == 0


def test_a_search_on_characters_has_perplexity_with_its_unit_in_what_it_says(tmp_path: Path) -> None:
    asked = search(tmp_path, "char-lm", prose(tmp_path / "p.txt", 800), "length=16", "epochs=1")
    done = call(*asked, "--model", "toy_tokens:characters")
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "note: the metric is perplexity (lower is better): drops, and --max-drop, are in ppl" in text
    assert "drop at most 100 ppl" in text
    assert "Drop: by how much perplexity rose, in ppl." in text


WRONG = {
    "no equals": (("--option", "label"), "error: --option: must be NAME=VALUE, as label=category, got 'label'"),
    "no name": (("--option", "=x"), "error: --option: must be NAME=VALUE"),
    "twice": (("--option", "label=a", "--option", "label=b"), "error: --option: label is given twice"),
    "data twice": (("--data", "x", "--option", "data=y"), "error: --option: data is given twice"),
    "unknown": (("--option", "colour=red"), "error: task text-classification: there is no option 'colour'; it has data, weights"),
    "no data": ((), "error: task text-classification: --data is missing: a csv with a header"),
}


@pytest.mark.parametrize("case", WRONG)
def test_options_that_are_wrong_are_one_line_and_leave_nothing(tmp_path: Path, case: str) -> None:
    more, said = WRONG[case]
    done = call("search", "--task", "text-classification", "--runs", str(tmp_path / "runs"), "--study", "x", *more)
    assert done.exit_code == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith(said)
    assert not (tmp_path / "runs" / "x").exists()


def test_options_of_a_task_in_memory_are_refused(tmp_path: Path) -> None:
    import toy_task

    import autocompress

    with pytest.raises(autocompress.UserError, match="task_options: data: a task in memory takes none"):
        autocompress.search(toy_task.make(), task_options={"data": "x"}, runs=tmp_path)
