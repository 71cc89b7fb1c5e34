"""The whole job from Python, with a task in memory: what is found, how it goes on, what its summary says."""

import json
from dataclasses import replace
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import toy_task
from toy_runs import call, copied, fingerprints, search_arguments

import autocompress
from autocompress import Space
from autocompress.config import BitChoices, RecoverySpace, Shares
from autocompress.errors import Diverged, InvalidSpace, InvalidStudy, InvalidTask
from autocompress.job import dry_run
from autocompress.job import search as job_search
from autocompress.progress import Progress
from autocompress.runs import RunPaths
from autocompress.saved import Study
from autocompress.tasks.task import accuracy

SPACE = Space(
    keep=Shares(choices=(1.0, 0.5)),
    weight_bits=BitChoices(choices=(32, 7)),
    recovery=RecoverySpace(steps=2, quantized_steps=1, learning_rate=(0.001, 0.002, 0.003)),
)
KEYS = (
    "study state finished budget budget_seconds stopped outcomes gate target max_drop min_speedup constraints baseline equals front best "
    "nearest objectives hypervolume sources"
)
ROW = "trial latency_ms speedup speedup_low speedup_high accuracy drop size_bytes failed holdout batches worst"
HELD = "speedup speedup_low speedup_high drop"  # and what failed
BASELINE = (
    "latency_ms eager_latency_ms accuracy holdout_accuracy size_bytes macs params input_shape input_dtype metric metric_unit "
    "higher_is_better target task_digest machine"
)


def searched(runs: Path, budget: int | str = 4, **changes: Any) -> Study:
    asked: dict[str, Any] = {"space": SPACE, "runtime": "fake", "threads": 1, "device": "cpu", "max_drop": 100.0, "min_speedup": 0.01}
    return autocompress.search(toy_task.make(), budget=budget, runs=runs, progress=Progress(quiet=True), **(asked | changes))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return searched(tmp_path_factory.mktemp("job") / "runs")


# ---- what comes out -------------------------------------------------------------------------------------------------


def test_a_task_in_memory_is_searched_in_one_call(study: Study) -> None:
    assert study.config.study == "toy"
    assert study.config.task == "(in memory)"
    assert len(study.results) == 4
    assert study.summary["state"] == "finished"
    assert study.summary["stopped"] == "budget"
    assert study.best() is not None


def test_an_artifact_that_is_not_finite_on_holdout_stays_unconfirmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise Diverged("the artifact's outputs on the holdout split are not all finite")

    monkeypatch.setattr(import_module("autocompress.job"), "confirm", broken)
    summary = searched(tmp_path, budget=1).summary
    assert (summary["state"], summary["best"]["holdout"], summary["best"]["confirmed"]) == ("finished", None, None)


def test_the_summary_has_these_keys_and_no_others(study: Study) -> None:
    summary = study.summary
    assert list(summary) == KEYS.split()
    assert set(summary["baseline"]) == set(BASELINE.split())
    for row in summary["front"]:
        assert set(row) == set(ROW.split())
        assert set(row["holdout"]) == {*HELD.split(), "failed"}
    assert set(summary["best"]) == {*ROW.split(), "confirmed"}
    assert summary["nearest"] is None


def test_in_the_summary_numbers_are_numbers_and_it_is_strict_json(study: Study) -> None:
    summary = study.summary
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    rows = [*summary["front"], *(row["holdout"] for row in summary["front"])]
    for row in rows:
        assert all(type(row[key]) is float for key in HELD.split())
    for key in ("latency_ms", "eager_latency_ms", "accuracy", "holdout_accuracy"):
        assert type(summary["baseline"][key]) is float
    assert all(type(row["trial"]) is int and type(row["size_bytes"]) is int for row in summary["front"])
    assert (type(summary["finished"]), type(summary["budget"]), summary["budget_seconds"]) == (int, int, None)
    assert sum(summary["outcomes"].values()) == summary["finished"]


def test_the_summary_on_disk_is_the_one_that_is_returned(study: Study) -> None:
    assert json.loads(study.paths.pareto.read_text()) == study.summary


def test_every_member_of_the_front_was_measured_on_holdout_and_nothing_else(study: Study) -> None:
    front = {row["trial"] for row in study.front()}
    assert front == set(study.paths.holdouts())
    assert all(measured.split == "holdout" and measured.samples == 157 for measured in study.paths.holdouts().values())
    assert all(result.measurement is None or result.measurement.split == "search" for result in study.results)


def test_best_is_the_fastest_within_both_bounds_on_the_search_split(tmp_path: Path) -> None:
    study = searched(tmp_path / "runs", budget=8, max_drop=20.0, min_speedup=1.05)
    within = [
        (result.measurement.speedup, result.number)
        for result in study.results
        if result.measurement and result.measurement.drop <= 20 and result.measurement.speedup >= 1.05
    ]
    best = study.best()
    assert best is not None
    assert best["trial"] == max(within)[1]
    assert best["confirmed"] is (best["holdout"]["drop"] <= 20 and best["holdout"]["speedup"] >= 1.05)


def test_holdout_contradicts_and_never_selects(study: Study, tmp_path: Path) -> None:
    own = Study(copied(study.paths, tmp_path))
    before = own.best()
    assert before is not None
    assert before["confirmed"] is True
    file = own.paths.trial(before["trial"]).holdout
    file.write_text(json.dumps(json.loads(file.read_text()) | {"drop": 100.5}))
    after = own.best()
    assert after is not None
    assert after["trial"] == before["trial"]
    assert after["confirmed"] is False


def test_the_study_gives_front_csv_report_words_and_export(study: Study, tmp_path: Path) -> None:
    own = Study(copied(study.paths, tmp_path))
    speeds = [row["speedup"] for row in own.front()]
    assert speeds == sorted(speeds, reverse=True)
    assert len(own.csv().splitlines()) == 1 + 4
    html, figures, table = own.report()
    assert html.stat().st_size > 1000
    assert len(table.read_text().splitlines()) == 1 + 4
    assert (figures / "pareto.png").read_bytes().startswith(b"\x89PNG")
    best = own.best()
    assert best is not None
    assert any("channels" in line or "bit" in line for line in own.words(best["trial"]))
    assert (own.export("best", tmp_path / "out") / "measured.json").exists()


def test_study_db_holds_the_same_trials_for_the_dashboard(study: Study) -> None:
    held = optuna.load_study(study_name="toy", storage=f"sqlite:///{study.paths.database}").trials
    assert [trial.user_attrs["digest"] for trial in held] == [result.recipe.digest for result in study.results]
    assert [trial.values for trial in held] == [[r.measurement.speedup, r.measurement.drop] for r in study.results if r.measurement]


# ---- how it goes on -------------------------------------------------------------------------------------------------


def test_a_larger_budget_goes_on_and_leaves_finished_trials_untouched(study: Study, tmp_path: Path) -> None:
    paths = copied(study.paths, tmp_path)
    before = fingerprints(paths)
    resumed = autocompress.resume("toy", budget=6, runs=paths.runs, task=toy_task.make(), progress=Progress(quiet=True))
    after = fingerprints(paths)
    assert [result.number for result in resumed.results] == [0, 1, 2, 3, 4, 5]
    assert {name: after[name] for name in before} == before
    assert len({result.recipe.digest for result in resumed.results}) == 6
    assert (resumed.summary["finished"], resumed.summary["budget"], resumed.summary["state"]) == (6, 6, "finished")
    assert len(optuna.load_study(study_name="toy", storage=f"sqlite:///{paths.database}").trials) == 6
    assert resumed.config.budget.trials == RunPaths(paths.runs, "toy").read_config().budget.trials == 6


def test_a_used_budget_runs_nothing_and_measures_nothing_again(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = copied(study.paths, tmp_path)
    before = {file: file.read_bytes() for file in paths.folder.glob("trials/*/*.json")}
    for name in ("evaluate", "confirm"):
        monkeypatch.setitem(job_search.__globals__, name, lambda *arguments: pytest.fail("nothing was left to do"))
    resumed = autocompress.resume("toy", runs=paths.runs, task=toy_task.make(), progress=Progress(quiet=True))
    assert {file: file.read_bytes() for file in paths.folder.glob("trials/*/*.json")} == before
    assert resumed.summary == study.summary


def test_a_task_in_memory_has_to_be_given_again(study: Study) -> None:
    with pytest.raises(InvalidStudy, match=r"made from a task in memory: resume it in Python with resume\('toy', task=\.\.\.\)"):
        autocompress.resume("toy", runs=study.paths.runs)


def test_a_second_search_takes_another_name_and_a_given_name_is_never_taken_twice(study: Study, tmp_path: Path) -> None:
    paths = copied(study.paths, tmp_path)
    assert searched(paths.runs, budget=1).config.study == "toy-2"
    with pytest.raises(InvalidStudy, match=r"exists.*: go on with `autocompress resume toy`, or give another --study"):
        searched(paths.runs, budget=1, study="toy")


def test_a_budget_of_time_ends_by_the_clock(tmp_path: Path) -> None:
    summary = searched(tmp_path / "runs", budget="1s").summary
    assert (summary["budget"], summary["budget_seconds"], summary["stopped"], summary["state"]) == (None, 1.0, "time", "finished")
    assert summary["finished"] >= 1


def test_an_exhausted_space_ends_the_search_and_says_so(tmp_path: Path) -> None:
    narrow = Space(keep=Shares(choices=(1.0, 0.5)), recovery=RecoverySpace(steps=0, quantized_steps=0))
    summary = searched(tmp_path / "runs", budget=50, space=narrow).summary
    assert summary["stopped"] == "exhausted"
    assert summary["finished"] == 2
    assert summary["state"] == "finished"


def test_a_bug_stops_the_study_and_loses_nothing(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = copied(study.paths, tmp_path)
    before = fingerprints(paths)
    with monkeypatch.context() as broken:
        broken.setitem(job_search.__globals__, "evaluate", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            autocompress.resume("toy", budget=5, runs=paths.runs, task=toy_task.make(), progress=Progress(quiet=True))
    assert fingerprints(paths) == before
    assert Study(paths).summary["state"] == "interrupted"
    resumed = autocompress.resume("toy", runs=paths.runs, task=toy_task.make(), progress=Progress(quiet=True))
    assert resumed.summary["finished"] == 5


# ---- exit codes -----------------------------------------------------------------------------------------------------


def test_no_recipe_within_the_bounds_is_exit_code_3_with_the_nearest_shown_and_marked(tmp_path: Path) -> None:
    arguments = search_arguments(tmp_path / "runs", "strict", 4, "fake")
    done = call(*arguments, "--max-drop", "0", "--min-speedup", "2", "--json")
    assert done.exit_code == 3, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["best"] is None
    assert summary["nearest"]["confirmed"] is False
    assert summary["nearest"]["holdout"] is not None
    assert "NO RECIPE MEETS BOTH BOUNDS" in done.stderr
    assert RunPaths(tmp_path / "runs", "strict").report.exists()


def test_where_the_gate_stops_everything_the_nearest_recipe_is_run_to_its_end_and_shown(tmp_path: Path) -> None:
    arguments = search_arguments(tmp_path / "runs", "slow", 3, "fake")
    done = call(*arguments, "--min-speedup", "1000", "--json")
    assert done.exit_code == 3, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["outcomes"] == {"gated": 2, "measured": 1}
    assert summary["best"] is None
    results = RunPaths(tmp_path / "runs", "slow").results()
    fastest = max(results, key=lambda result: result.gate_speedup or 0)
    assert summary["nearest"]["trial"] == fastest.number
    assert summary["nearest"]["holdout"]["drop"] is not None
    assert summary["nearest"]["confirmed"] is False
    assert call("show", "slow", "--runs", str(tmp_path / "runs")).exit_code == 0


# ---- without a study ------------------------------------------------------------------------------------------------


def test_a_dry_run_tells_layers_space_and_time_and_writes_no_study(tmp_path: Path) -> None:
    plan = dry_run(toy_task.make(), runs=tmp_path / "runs", space=SPACE, runtime="fake", budget=10, threads=1)
    assert [layer.name for layer in plan.layers] == ["conv1", "conv2", "head"]
    assert plan.size == 2 * 2**3 * 3
    assert plan.seconds_estimate > 0
    assert not (tmp_path / "runs").exists()


def test_a_recipe_is_replayed_with_no_study_and_gives_what_the_study_gave(study: Study, tmp_path: Path) -> None:
    best = study.best()
    assert best is not None
    asked: dict[str, Any] = {"runtime": "fake", "threads": 1, "device": "cpu", "progress": Progress(quiet=True)}
    result = autocompress.apply(study.recipe(), task=toy_task.make(), out=tmp_path / "out", runs=tmp_path / "runs", **asked)
    assert result.measurement is not None
    assert result.measurement.accuracy == best["accuracy"]
    assert json.loads((tmp_path / "out" / "measured.json").read_text())["holdout"]["split"] == "holdout"
    assert list((tmp_path / "runs").iterdir()) == []


# ---- metrics and constraints of the user's own ----------------------------------------------------------------------


def test_a_search_keeps_its_constraints_and_says_which_failed(tmp_path: Path) -> None:
    study = searched(tmp_path, constraints=["worst_class_drop<=-200", "size_bytes <= 1000000"])
    assert study.config.constraints == ("worst_class_drop <= -200", "size_bytes <= 1000000")
    summary = study.summary
    assert summary["best"] is None
    assert [line.split(" (")[0] for line in summary["nearest"]["failed"]] == ["worst_class_drop <= -200"]
    assert summary["nearest"]["confirmed"] is False
    assert summary["nearest"]["holdout"]["failed"] != []
    assert "worst_class_drop &lt;= -200 (" in study.paths.report.read_text(encoding="utf-8")


def test_the_best_within_constraints_is_measured_on_holdout_also_off_the_front(tmp_path: Path) -> None:
    free = searched(tmp_path / "free", budget=6)
    points = [result.measurement for result in free.results if result.measurement is not None]
    smallest = min(point.size_bytes for point in points)
    bounded = searched(tmp_path / "bounded", budget=6, constraints=[f"size_bytes <= {smallest}"])
    best = bounded.best()
    assert best is not None
    assert best["size_bytes"] <= smallest
    assert best["confirmed"] is True
    assert best["holdout"]["failed"] == []


def test_a_constraint_on_what_this_task_does_not_have_is_refused_before_any_trial(tmp_path: Path) -> None:
    x, y = toy_task.data()[0]
    numbers = [(x, y[:, None].float())]
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    task = autocompress.Task(
        "size", model, numbers, numbers, loss=torch.nn.functional.mse_loss, metric=lambda outputs, targets: 1.0,
        distillation_loss=lambda student, teacher, temperature: (student - teacher).square().mean(),
    )  # fmt: skip
    with pytest.raises(InvalidSpace, match=r"--constraint: rare_drop <= 5: .*, so there is no rare_drop"):
        autocompress.search(task, runs=tmp_path, runtime="fake", progress=Progress(quiet=True), constraints=["rare_drop <= 5"])
    assert list(tmp_path.glob("*/config.yaml")) == []


def test_a_metric_that_fails_on_an_artifact_is_one_line_and_no_finished_trial_is_lost(tmp_path: Path) -> None:
    calls = count()

    def tired(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        return accuracy(outputs, targets) if next(calls) < 12 else float("nan")  # a check, three of the baseline, four a trial

    task = replace(toy_task.make(), metric=tired, sample_scores=lambda outputs, targets: 100.0 * (outputs.argmax(1) == targets))
    asked: dict[str, Any] = {"space": SPACE, "runtime": "fake", "max_drop": 100.0, "min_speedup": 0.01, "study": "tired"}
    with pytest.raises(InvalidTask, match=r"task 'toy': metric 'accuracy' returned nan on 150 samples of the search split") as refused:
        autocompress.search(task, budget=6, runs=tmp_path, progress=Progress(quiet=True), **asked)
    assert "\n" not in str(refused.value)
    assert len(autocompress.job.show("tired", tmp_path).results) == 2
    again = autocompress.resume("tired", runs=tmp_path, task=toy_task.make(), progress=Progress(quiet=True))
    assert [result.number for result in again.results] == list(range(6))


def test_a_perplexity_is_searched_from_end_to_end(tmp_path: Path) -> None:
    def perplexity(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        return torch.nn.functional.cross_entropy(outputs, targets).exp().item()

    task = replace(toy_task.make(), metric=perplexity, metric_name="perplexity", metric_unit="", higher_is_better=False)
    study = autocompress.search(
        task, space=SPACE, budget=4, runs=tmp_path, runtime="fake", max_drop=50.0, min_speedup=0.01, progress=Progress(quiet=True)
    )
    best, baseline = study.best(), study.summary["baseline"]
    assert best is not None
    assert best["drop"] == pytest.approx(best["accuracy"] - baseline["accuracy"])
    assert study.summary["outcomes"] == {"measured": 4}  # the gate knows no best perplexity, so it stops none
    page = study.paths.report.read_text(encoding="utf-8")
    assert "rise of perplexity" in page
    assert " points" not in page
    readme = (study.export("best", tmp_path / "out") / "README.md").read_text(encoding="utf-8")
    assert f"perplexity {best['holdout'] and study.paths.holdouts()[best['trial']].accuracy:.4g} against" in readme
