"""A study is surveyed once, before its first trial; the command shows the same without a study."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toy_task
from toy_runs import call, space_file

import autocompress
from autocompress.errors import InvalidSpace
from autocompress.job import survey_of
from autocompress.latency_model import predict_ms
from autocompress.progress import Progress
from autocompress.records import Survey
from autocompress.report.survey import layer_rows, save_survey
from autocompress.runs import RunPaths, read_json
from autocompress.saved import Study
from autocompress.surveyed import PROBES


def searched(runs: Path, **changes: Any) -> Study:
    asked: dict[str, Any] = {"space": space_file(runs.parent), "runtime": "fake", "threads": 1, "device": "cpu", "budget": 1}
    bounds = {"max_drop": 100.0, "min_speedup": 0.01, "progress": Progress(quiet=True)}
    return autocompress.search(toy_task.make(), runs=runs, **(asked | bounds | changes))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autocompress.survey.probes.LEAST_PROBES", PROBES)  # all of them, however slow the machine is just now
        yield searched(tmp_path_factory.mktemp("surveyed") / "runs")


@pytest.fixture(scope="module")
def survey(study: Study) -> Survey:
    return read_json(study.paths.survey, Survey)


def test_a_study_keeps_its_survey_with_a_harm_for_every_choice_and_a_time_for_every_layer(study: Study, survey: Survey) -> None:
    assert survey == study.paths.read_survey()
    kinds = {one.kind for one in survey.tried}
    assert kinds == {"keep", "weight_bits"}
    assert all(one.harm is not None and one.divergence is not None for one in survey.tried)
    assert survey.layer_ms.keys() == {"conv1", "conv2", "head"}
    assert survey.samples >= 64
    assert survey.seconds > 0


def test_the_latency_model_knows_the_arithmetic_of_the_fake_runtime(study: Study, survey: Survey) -> None:
    """Its times are sums of weights, so the model has nothing to be wrong about but rounding."""
    assert survey.latency is not None
    assert survey.latency.error < 0.05
    layers = study.paths.read_layers()
    for result in study.results:
        assert result.measurement is not None
        assert predict_ms(survey.latency, result.recipe, layers) == pytest.approx(result.measurement.latency_ms, rel=0.05)


def test_resuming_reads_the_survey_and_measures_none(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    before = study.paths.survey.read_bytes()
    monkeypatch.setattr("autocompress.surveyed.survey_bench", lambda *args: pytest.fail("it was measured again"))
    autocompress.resume(study.config.study, budget=2, runs=study.paths.runs, task=toy_task.make(), progress=Progress(quiet=True))
    assert study.paths.survey.read_bytes() == before


def test_without_a_survey_none_is_made(tmp_path: Path) -> None:
    without = searched(tmp_path / "runs", without=("survey",))
    assert "survey" not in without.config.parts
    assert without.paths.read_survey() is None


def test_a_second_study_of_the_model_takes_no_probe(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autocompress.survey.probes._take", lambda *args: pytest.fail("a probe was taken again"))
    second = searched(study.paths.runs, study="second", seed=3)
    again = second.paths.read_survey()
    assert again is not None
    assert again.latency is not None


def test_the_figure_is_drawn_and_every_row_has_its_choices(study: Study, survey: Survey, tmp_path: Path) -> None:
    layers = study.paths.read_layers()
    rows = layer_rows(survey, layers)
    assert [row.name for row in rows] == ["conv1", "conv2", "head"]
    assert sum(row.share or 0.0 for row in rows) == pytest.approx(1.0, abs=0.01)
    keep = [saved for row in rows for one, saved in row.choices if one.kind == "keep"]
    assert keep
    assert all(saved is not None and saved > 0 for saved in keep)
    files = save_survey(survey, layers, tmp_path / "figures")
    assert [file.name for file in files] == ["survey.png", "survey.svg"]
    assert all(file.stat().st_size > 1000 for file in files)


def test_the_command_shows_a_table_and_leaves_no_study(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    asked = ["survey", "--task", "toy_task:make", "--runtime", "fake", "--runs", str(runs), "--space", str(space_file(tmp_path))]
    result = call(*asked, "--out", str(tmp_path / "figures"), "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout.splitlines()[-1])
    assert [row["name"] for row in content["layers"]] == ["conv1", "conv2", "head"]
    assert content["latency"]["probes"] > 5
    assert "conv1" in result.stderr
    assert "keep 0.5" in result.stderr
    assert (tmp_path / "figures" / "survey.svg").exists()
    assert [path for path in runs.iterdir() if path.name != ".cache"] == []


def test_a_space_that_does_not_fit_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    space = tmp_path / "none.yaml"
    space.write_text("keep: {choices: [1.0]}\nrecovery: {learning_rate: [0.001]}\n", encoding="utf-8")
    with pytest.raises(InvalidSpace):
        survey_of(toy_task.make(), space=space, runtime="fake", runs=tmp_path / "runs", progress=Progress(quiet=True))


def test_a_study_s_folder_holds_the_survey_beside_its_layers(study: Study) -> None:
    assert study.paths.survey == RunPaths(study.paths.runs, study.config.study).folder / "survey.json"
