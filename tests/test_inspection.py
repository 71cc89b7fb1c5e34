"""A closer look is taken once, at the artifact that ships, on holdout; a process that dies there costs no study its report."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_task

from autocompress import inspection as room
from autocompress.errors import UserError
from autocompress.evaluate import Bench, evaluate, prepare
from autocompress.gate import Gate
from autocompress.inspection import inspect_trial
from autocompress.progress import Progress
from autocompress.recipe import LayerPlan, Recipe, Recovery
from autocompress.records import Inspection, Target, TrialResult
from autocompress.runs import RunPaths, read_json
from autocompress.tasks.task import with_holdout

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, RunPaths, TrialResult]:
    """A study with one measured trial in onnxruntime, of a task that has a postprocess."""
    paths = RunPaths(tmp_path_factory.mktemp("runs"), "toy")
    task = with_holdout(replace(toy_task.make(), postprocess=lambda outputs: outputs.argmax(1)), seed=0)
    bench = prepare(task, Target(runtime="onnxruntime"), torch.device("cpu"), paths.baseline_artifact, QUIET)
    layers = tuple(LayerPlan(name=layer.name, weight_bits=7, activation_bits=8) for layer in bench.layers if 7 in layer.weight_bits)
    recipe = Recipe(layers=layers, recovery=Recovery(steps=0, quantized_steps=0))
    return bench, paths, evaluate(recipe, bench, Gate(), paths.trial(0).folder)


def test_everything_is_looked_at_on_holdout_and_kept(study: tuple[Bench, RunPaths, TrialResult]) -> None:
    bench, paths, result = study
    inspect_trial(result, paths, bench, QUIET)
    found = read_json(paths.trial(0).inspection, Inspection)
    samples = len(bench.splits["holdout"][1])
    assert found.split == "holdout"
    assert sum(part.samples for part in found.classes) == samples
    assert found.hard is not None
    assert found.hard.samples == -(-samples // 10)
    assert [part.name.split()[0] for part in found.shifts] == ["noise", "blur", "brightness", "contrast", "FGSM"]
    assert not set(found.broken) & set(found.righted)
    for usage in (found.usage, found.baseline_usage):
        assert usage.load_ms is not None
        assert usage.peak_bytes is not None
        assert usage.load_ms > 0
        assert usage.peak_bytes > 0
        assert "not available on this machine" in usage.reasons["energy_mj"]
    assert found.throughput[0].batch_size == 1
    assert found.end_to_end is not None
    assert found.end_to_end.postprocess_ms is not None


def test_a_trial_is_looked_at_once(study: tuple[Bench, RunPaths, TrialResult], monkeypatch: pytest.MonkeyPatch) -> None:
    bench, paths, result = study
    paths.trial(0).inspection.touch()
    monkeypatch.setattr(room, "look", lambda *arguments: pytest.fail("looked again"))
    inspect_trial(result, paths, bench, QUIET)


def test_a_process_that_dies_there_is_told_and_ends_nothing(
    study: tuple[Bench, RunPaths, TrialResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed(*arguments: Any) -> None:
        raise UserError("usage: the process that loads it was killed by signal 9")

    bench, _, result = study
    monkeypatch.setattr(room, "usage", killed)
    paths = RunPaths(tmp_path, "other")
    monkeypatch.setattr(type(paths.trial(0)), "artifact", property(lambda files: study[1].folder / "trials" / "0000" / "artifact"))
    inspect_trial(result, paths, bench, Progress())
    assert not paths.trial(0).inspection.exists()
    assert "killed by signal 9" in capsys.readouterr().err
