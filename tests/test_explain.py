"""Every decision of a recipe is undone and really measured; what bought nothing goes, and an interruption loses nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_runs import Finished, call, copied, fingerprints

import autocompress
from autocompress import explain as explain_trial
from autocompress.decisions import Decision
from autocompress.errors import InvalidStudy
from autocompress.evaluate import Bench, Gate
from autocompress.explain import undone
from autocompress.progress import Progress
from autocompress.recipe import LayerPlan, Quantization, Recipe
from autocompress.records import Attribution, Measurement, TrialResult
from autocompress.runs import RunPaths, only_driver, read_json

ROOM = explain_trial.__globals__  # the room bears the name of its function
QUIET = Progress(quiet=True)


@pytest.fixture
def paths(undisturbed: Finished, tmp_path: Path) -> RunPaths:
    return copied(undisturbed.paths, tmp_path)


def explained(paths: RunPaths, trial: str | int = "best") -> Attribution:
    return explain_trial(paths.study, trial=trial, runs=paths.runs, progress=QUIET)


def chosen(paths: RunPaths) -> TrialResult:
    """A trial with widths and bits to undo."""
    return next(one for one in paths.results() if one.recipe.is_quantized and any(plan.keep < 1 for plan in one.recipe.layers))


def counted(monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None] = lambda count: None) -> list[str]:
    evaluate, calls = ROOM["evaluate"], []

    def counting(recipe: Recipe, bench: Bench, gate: Gate, folder: Path) -> TrialResult:
        before(len(calls))
        calls.append(recipe.digest)
        result: TrialResult = evaluate(recipe, bench, gate, folder)
        return result

    monkeypatch.setitem(ROOM, "evaluate", counting)
    return calls


def test_each_decision_is_undone_measured_and_told_with_what_it_bought(paths: RunPaths) -> None:
    trial = chosen(paths)
    point = trial.measurement
    assert point is not None
    found = explained(paths, trial.number)
    assert found.trial == trial.number
    assert {"distillation"} < {one.decision for one in found.decisions}
    layers = {name for one in found.decisions for name in one.layers}
    assert layers == {plan.name for plan in trial.recipe.layers if plan != LayerPlan(name=plan.name)}
    for one in found.decisions:
        with_ms, without_ms = point.baseline_latency_ms / point.speedup, point.baseline_latency_ms / one.speedup
        assert one.bought_ms == pytest.approx(without_ms - with_ms)
        assert one.cost_points == pytest.approx(point.drop - one.drop)
        if one.layers:
            assert one.bought is (one.bought_ms > 1e-9), "the times of the fake runtime are exact"
    assert any(one.bought for one in found.decisions)
    assert read_json(paths.trial(trial.number).attribution, Attribution) == found


def test_the_recipe_that_is_left_without_what_bought_nothing_is_measured(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = chosen(paths)
    useless = Quantization(equalize=True, bias_correction=True)  # in a fake runtime, where they change no time
    recipe = trial.recipe.model_copy(update={"quantization": useless})
    paths.write_result(trial.model_copy(update={"recipe": recipe, "measurement": worst(trial)}))
    found = explained(paths, trial.number)
    gone = {one.decision for one in found.decisions if not one.bought}
    assert {"quantization: equalize yes", "quantization: bias correction yes"} <= gone
    assert found.simpler is not None
    assert found.simpler.quantization == Quantization()
    assert found.simpler_measurement is not None
    assert paths.undone(found.simpler.digest).artifact.is_dir() or found.simpler.digest in {one.recipe.digest for one in paths.results()}


def worst(trial: TrialResult) -> Measurement:
    """So that no setting can have won accuracy."""
    assert trial.measurement is not None
    return trial.measurement.model_copy(update={"drop": 100.0})


def test_interrupted_it_keeps_what_is_measured_and_the_next_call_goes_on(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = chosen(paths)

    def stop(count: int) -> None:
        if count == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as first:
        done = counted(first, stop)
        with pytest.raises(KeyboardInterrupt):
            explained(paths, trial.number)
    assert len(done) == 1
    assert not paths.trial(trial.number).attribution.exists()
    again = counted(monkeypatch)
    explained(paths, trial.number)
    assert done[0] not in again
    count = len(again)
    explained(paths, trial.number)
    assert len(again) == count, "a second call measures nothing"


def test_explaining_leaves_the_trials_of_the_study_alone(paths: RunPaths) -> None:
    before, shown = fingerprints(paths), json.loads(paths.pareto.read_text())
    explained(paths)
    assert fingerprints(paths) == before
    assert autocompress.show(paths.study, runs=paths.runs).summary == shown


def test_a_decision_that_cannot_be_undone_is_a_note(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = chosen(paths)

    def evaluate(recipe: Recipe, bench: Bench, gate: Gate, folder: Path) -> TrialResult:
        return TrialResult(recipe=recipe, target=bench.target, outcome="diverged", message="loss is nan")

    monkeypatch.setitem(ROOM, "evaluate", evaluate)
    found = explained(paths, trial.number)
    assert "distillation: could not be undone (diverged: loss is nan)" in found.notes


def measurement(speedup: float, drop: float, half: float = 0.1) -> Measurement:
    times = {"speedup": speedup, "speedup_low": speedup - half, "speedup_high": speedup + half}
    accuracies = {"accuracy": 99 - drop, "baseline_accuracy": 99.0, "drop": drop, "agreement": 1.0, "max_difference": 0.0}
    sizes = {"size_bytes": int(1000 / speedup), "baseline_size_bytes": 1000, "samples": 9, "blocks": 9, "resolved": True}
    clock = {"latency_ms": 1 / speedup, "baseline_latency_ms": 1.0, "machine": "m", "split": "search"}
    return Measurement.model_validate(times | accuracies | sizes | clock)


@pytest.mark.parametrize(
    ("layers", "speedup", "drop", "bought"),
    [
        (("a",), 3.0, 1.0, True),  # slower without it
        (("a",), 3.9, 1.0, False),  # not slower beyond the intervals
        (("a",), 3.9, 2.0, False),  # a width is there for time, and its accuracy is told
        ((), 4.0, 2.0, True),  # a setting of training: worse without it
        ((), 4.0, 1.0, False),
        ((), 4.0, 0.5, False),
    ],
)
def test_what_a_decision_bought(layers: tuple[str, ...], speedup: float, drop: float, bought: bool) -> None:
    one = undone(Decision("x", layers, (), Recipe()), measurement(speedup, drop), measurement(4.0, 1.0))
    assert one.bought is bought
    assert one.bought_ms == pytest.approx(1 / speedup - 1 / 4.0)
    assert one.cost_points == pytest.approx(1.0 - drop)
    assert one.bought_bytes == int(1000 / speedup) - 250


# ---- from the command line, and refusals ----------------------------------------------------------------------------


def test_the_command_shows_a_table_and_with_json_the_record(paths: RunPaths) -> None:
    trial = chosen(paths)
    arguments = ("explain", paths.study, "--trial", str(trial.number), "--runs", str(paths.runs))
    done = call(*arguments)
    assert done.exit_code == 0, done.stderr
    assert f"trial {trial.number}: what each decision bought" in done.stdout
    assert "distillation" in done.stdout
    again = call(*arguments, "--json")
    content = json.loads(again.stdout.splitlines()[-1])
    assert Attribution.model_validate(content) == read_json(paths.trial(trial.number).attribution, Attribution)
    assert again.stdout.count("\n") == 1


def test_a_study_that_is_being_run_is_not_disturbed(paths: RunPaths) -> None:
    with only_driver(paths), pytest.raises(InvalidStudy, match="is being run by pid"):
        explained(paths)


def test_a_task_in_memory_has_to_be_given(paths: RunPaths) -> None:
    paths.write_config(paths.read_config().model_copy(update={"task": "(in memory)"}))
    with pytest.raises(InvalidStudy, match=r"explain it in Python with explain\('study', task=\.\.\.\)"):
        explained(paths)
