"""The command line end to end, with real processes and a real runtime, over one finished study."""

import csv
import io
import json
import re
import signal
from pathlib import Path

import optuna
import pytest
from toy_runs import Finished, call, copied, ended, leftovers, result_files, search_arguments, start, wait_for

from autocompress.records import Inspection
from autocompress.runs import RunPaths

FILES = ["README.md", "SHA256SUMS", "measured.json", "model.onnx", "recipe.yaml", "weights.safetensors"]


def at(finished: Finished, *arguments: str) -> list[str]:
    return [*arguments, "--runs", str(finished.paths.runs)]


def test_a_search_ends_with_a_best_recipe_measured_in_the_runtime(shipped: Finished) -> None:
    assert shipped.code == 0
    assert len(shipped.out.splitlines()) == 1
    summary = shipped.summary
    assert (summary["study"], summary["state"], summary["finished"], summary["budget"]) == ("shipped", "finished", 3, 3)
    assert summary["target"]["runtime"] == "onnxruntime"
    assert summary["best"]["confirmed"] is True
    assert summary["outcomes"] == {"measured": 3}
    assert "Traceback" not in shipped.err


def test_the_recipe_that_is_shown_was_looked_at_more_closely(shipped: Finished) -> None:
    trial = shipped.summary["best"]["trial"]
    assert list(shipped.paths.inspections()) == [trial]
    assert shipped.paths.inspections()[trial].usage.peak_bytes


def test_another_trial_is_looked_at_on_request_and_its_rate_on_several_threads(shipped: Finished, tmp_path: Path) -> None:
    paths = copied(shipped.paths, tmp_path)
    other = next(result.number for result in paths.results() if result.number not in paths.inspections())
    code, out, err = ended(start("inspect", "shipped", "--trial", str(other), "--threads", "1,2", "--json", "--runs", str(paths.runs)))
    assert code == 0, err
    found = Inspection.model_validate_json(out)
    assert found == paths.inspections()[other]
    assert [(row.batch_size, row.threads) for row in found.throughput][-1] == (1, 2)
    assert {row.threads for row in found.throughput} == {1, 2}
    assert "samples/s, batch 1, 2 threads" in err
    assert "newly wrong" in err


def test_progress_tells_the_budget_every_stage_and_every_trial_in_plain_lines(shipped: Finished) -> None:
    assert "3 finished trials in all" in shipped.err
    for words in ("survey of the layers", "timing the baseline", "trials: started, 0 of 3", "trial 2 ", "confirming on holdout"):
        assert words in shipped.err
    assert "\x1b" not in shipped.err


def test_show_json_in_another_process_is_what_the_search_printed(shipped: Finished) -> None:
    code, out, _ = ended(start(*at(shipped, "show", "shipped", "--json")))
    assert code == 0
    assert json.loads(out) == shipped.summary


def test_show_csv_has_a_row_a_trial(shipped: Finished) -> None:
    done = call(*at(shipped, "show", "shipped", "--csv"))
    assert done.exit_code == 0
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert len(rows) == 3
    assert {row["outcome"] for row in rows} == {"measured"}


def test_show_names_the_best_recipe_and_where_the_files_lie(shipped: Finished) -> None:
    done = call(*at(shipped, "show", "shipped"))
    assert done.exit_code == 0
    assert f"trial {shipped.summary['best']['trial']}:" in done.stdout
    assert "confirmed" in done.stdout
    assert "onnxruntime on cpu, batch 1, 1 thread" in done.stdout


def test_list_shows_the_study_with_its_state(shipped: Finished) -> None:
    done = call(*at(shipped, "list"))
    assert done.exit_code == 0
    assert re.search(r"^shipped +finished +3 of 3", done.stdout, re.MULTILINE)


def test_export_of_the_fastest_writes_the_folder_that_ships(shipped: Finished, tmp_path: Path) -> None:
    done = call(*at(shipped, "export", "shipped", "--trial", "fastest", "--out", str(tmp_path / "out")))
    assert done.exit_code == 0, done.stderr
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == FILES
    fastest = max(shipped.summary["front"], key=lambda row: row["speedup"])
    assert json.loads((tmp_path / "out" / "measured.json").read_text())["search"]["speedup"] == fastest["speedup"]


def test_the_report_is_one_file_that_asks_the_network_for_nothing(shipped: Finished, tmp_path: Path) -> None:
    paths = copied(shipped.paths, tmp_path)
    paths.report.unlink()
    done = call("report", "shipped", "--runs", str(paths.runs))
    assert done.exit_code == 0, done.stderr
    html = paths.report.read_text()
    assert "shipped" in html
    assert re.findall(r"""(?:src|href)=["'](?!data:|#)([^"']*)""", html) == []
    assert not re.search(r"@import|url\((?!data:|['\"]?#)", html)
    assert (paths.figures / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_the_study_can_be_opened_by_the_dashboard(shipped: Finished) -> None:
    assert len(optuna.load_study(study_name="shipped", storage=f"sqlite:///{shipped.paths.database}").trials) == 3


def test_a_recipe_of_a_trial_is_replayed_into_an_artifact(shipped: Finished, tmp_path: Path) -> None:
    trial = shipped.summary["front"][-1]
    recipe = shipped.paths.trial(trial["trial"]).recipe
    where = ["--runs", str(tmp_path / "runs"), "--threads", "1", "--device", "cpu"]
    code, out, err = ended(start("apply", str(recipe), "--task", "toy_task:make", "--out", str(tmp_path / "out"), *where))
    assert code == 0, err
    assert "onnxruntime on cpu" in out
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == FILES
    replayed = json.loads((tmp_path / "out" / "measured.json").read_text())
    assert replayed["search"]["accuracy"] == pytest.approx(trial["accuracy"], abs=1e-4)
    assert replayed["holdout"]["drop"] == pytest.approx(trial["holdout"]["drop"], abs=1e-4)
    assert leftovers(tmp_path) == []


def test_doctor_names_runtimes_kernels_and_versions() -> None:
    done = call("doctor")
    assert done.exit_code == 0
    for words in ("cpu", "runtime onnxruntime", "runtime eager", "7", "torch", "optuna"):
        assert words in done.stdout


def test_a_dry_run_prints_layers_space_and_time_and_writes_no_study(tmp_path: Path) -> None:
    done = call(*search_arguments(tmp_path / "runs", "dry", 5, "onnxruntime"), "--dry-run", "--json")
    assert done.exit_code == 0, done.stderr
    plan = json.loads(done.stdout.splitlines()[-1])
    assert [layer["name"] for layer in plan["layers"]] == ["conv1", "conv2", "head"]
    assert plan["size"] > 1
    assert plan["seconds_estimate"] > 0
    assert "conv2" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_search_keeps_and_shows_what_is_finished(tmp_path: Path, number: signal.Signals, code: int) -> None:
    paths = RunPaths(tmp_path / "runs", "study")
    process = start(*search_arguments(paths.runs, "study", 500, "fake"), "--json")
    wait_for(lambda: len(result_files(paths)) >= 2, process)
    process.send_signal(number)
    ending, out, err = ended(process)
    assert ending == code, err
    summary = json.loads(out.splitlines()[-1])
    assert summary["state"] == "interrupted"
    assert summary["finished"] == len(result_files(paths)) >= 2
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"interrupted: {summary['finished']} trials finished, kept; go on with: autocompress resume study")


def test_a_search_over_several_batch_sizes_is_kept_shown_and_resumed(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "runs", "study")
    code, _, err = ended(start(*search_arguments(paths.runs, "study", 2, "fake"), "--batch-size", "8,1"))
    assert code == 0, err
    assert paths.read_config().target.batch_sizes == (1, 8)
    code, _, err = ended(start("resume", "study", "--budget", "3", "--runs", str(paths.runs)))
    assert code == 0, err
    measured = [result.measurement for result in paths.results() if result.measurement]
    assert len(paths.results()) == 3
    assert {tuple(one.batch_size for one in each.batches) for each in (*measured, *paths.holdouts().values())} == {(1, 8)}
    shown = call("show", "study", "--runs", str(paths.runs)).stdout
    assert "batch 1 and 8, 1 thread" in shown
    assert re.search(r"^by batch  .* at batch 1.*\n          .* at batch 8", shown, re.MULTILINE)
