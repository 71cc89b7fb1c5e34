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
from autocompress.evaluate import Bench
from autocompress.explain import undone
from autocompress.gate import Gate
from autocompress.measure.latency import Timing
from autocompress.progress import Progress
from autocompress.recipe import LayerPlan, Quantization, Recipe
from autocompress.records import Attribution, Beside, Measurement, TrialResult
from autocompress.runs import RunPaths, only_driver, read_json, to_json

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
        assert one.bought_ms == pytest.approx(point.latency_ms * (point.speedup / one.speedup - 1), abs=1e-9)
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
    known = {one.recipe.digest for one in paths.results()}
    assert paths.undone(found.simpler.digest).recipe.exists() or found.simpler.digest in known
    assert not list(paths.folder.glob("undone/*/artifact"))


def test_what_buys_nothing_alone_but_something_together_is_kept(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = chosen(paths)
    point = trial.measurement
    assert point is not None
    calls: list[str] = []

    def evaluate(recipe: Recipe, bench: Bench, gate: Gate, folder: Path) -> TrialResult:
        calls.append(recipe.digest)
        plain = all(plan == LayerPlan(name=plan.name) for plan in recipe.layers)
        halved = point.model_copy(update={"latency_ms": 0.5 if plain else 1.0})
        (folder / "artifact").mkdir(parents=True)
        return TrialResult(recipe=recipe, target=bench.target, outcome="measured", measurement=halved)

    def compare_batches(chosen: TrialResult, other: TrialResult, *more: object) -> tuple[Timing, tuple[()]]:
        assert other.measurement is not None
        ratio = other.measurement.latency_ms
        return Timing(1.0, 1.0, ratio, ratio, ratio, resolved=True, blocks=9), ()

    results = {trial.recipe.digest: trial}

    def opened(recipe: Recipe, bench: Bench, artifact: Path) -> TrialResult:
        file = artifact.parent / "result.json"
        return results.get(recipe.digest) or read_json(file, TrialResult)

    for name, stub in (("evaluate", evaluate), ("compare_batches", compare_batches), ("opened", opened)):
        monkeypatch.setitem(ROOM, name, stub)
    for other in paths.results():
        if other.number != trial.number:
            paths.trial(other.number).result.unlink()
    found = explained(paths, trial.number)
    assert not any(one.bought for one in found.decisions)
    assert found.simpler is None
    assert f"keep trial {trial.number}" in found.notes[-1]
    assert len(calls) == len(found.decisions) + 1


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
    ("layers", "ratio", "drop", "bought"),
    [
        (("a",), 0.75, 1.0, True),  # slower without it
        (("a",), 0.98, 1.0, False),  # the interval covers 1
        (("a",), 0.96, 1.0, True),  # so it does here, and it is slower by 4 %
        (("a",), 1.1, 2.0, False),  # a width is there for time, and its accuracy is told
        ((), 1.0, 2.0, True),  # a setting of training: worse without it
        ((), 1.0, 1.0, False),
        ((), 1.0, 0.5, False),
    ],
)
def test_what_a_decision_bought(layers: tuple[str, ...], ratio: float, drop: float, bought: bool) -> None:
    beside = Beside(trial="x", ratio=ratio, ratio_low=ratio - 0.05, ratio_high=ratio + 0.05, latency_ms=2 / ratio, trial_latency_ms=2.0)
    one = undone(Decision("x", layers, (), Recipe()), measurement(5.0, drop), measurement(4.0, 1.0), beside)
    assert one.bought is bought
    assert one.speedup == pytest.approx(4.0 * ratio), "timed beside the trial, not as it was timed some other day"
    assert one.bought_ms == pytest.approx(2 / ratio - 2)
    assert one.cost_points == pytest.approx(1.0 - drop)
    assert one.bought_bytes == 200 - 250


def test_what_was_timed_beside_another_trial_is_timed_again(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = chosen(paths)
    explained(paths, trial.number)
    files = list(paths.folder.glob("undone/*/beside.json"))
    assert len(files) >= 2
    other = read_json(files[0], Beside).model_copy(update={"trial": "another", "ratio": 77.0})
    files[0].write_text(to_json(other))
    explained(paths, trial.number)
    assert read_json(files[0], Beside).ratio < 77


def test_what_was_not_timed_before_its_artifact_went_is_measured_again(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = chosen(paths)
    explained(paths, trial.number)
    (lost, *_) = paths.folder.glob("undone/*/beside.json")
    lost.unlink()
    again = counted(monkeypatch)
    explained(paths, trial.number)
    assert again == [lost.parent.name]


def test_without_the_artifact_of_the_trial_nothing_can_be_timed_beside_it(paths: RunPaths) -> None:
    trial = chosen(paths)
    paths.trial(trial.number).artifact.rename(paths.folder / "gone")
    with pytest.raises(InvalidStudy, match=f"the artifact of trial {trial.number} is missing"):
        explained(paths, trial.number)


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
