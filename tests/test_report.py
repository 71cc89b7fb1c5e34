"""The report tells a study truly, in one page that needs nothing else, whatever the names in it contain."""

import csv
import io
import re
import time
from collections import Counter
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import onnx
import pytest

from autocompress.config import Budget, SearchConfig, Space
from autocompress.errors import InvalidStudy, UserError
from autocompress.recipe import LayerPlan, Recipe
from autocompress.records import Baseline, LayerInfo, Machine, Measurement, Target, TrialResult
from autocompress.report import trials_csv, write_report
from autocompress.report.charts import ticks
from autocompress.runs import Layers, RunPaths, to_json, write_text
from autocompress.study import pareto

TARGET = Target(runtime="onnxruntime", batch_size=1, threads=2)
REFERENCE = "the same model in fp32 in onnxruntime on cpu at batch 1, 2 threads"
SYSTEM: dict[str, Any] = {"memory_bytes": 8 * 2**30, "system": "Linux", "python": "3.11", "versions": {"torch": "2.13"}}
MACHINE = Machine(cpu="Example CPU", cores=2, instruction_sets=("avx2",), **SYSTEM)
NASTY = "<script>alert(1)</script>"


def measurement(speedup: float, drop: float, split: str = "search") -> Measurement:
    return Measurement.model_validate(
        {
            **{"split": split, "latency_ms": 2.0 / speedup, "baseline_latency_ms": 2.0},
            **{"speedup": speedup, "speedup_low": speedup * 0.95, "speedup_high": speedup * 1.05, "resolved": True, "blocks": 20},
            **{"accuracy": 99.0 - drop, "baseline_accuracy": 99.0, "drop": drop, "samples": 500},
            **{"size_bytes": int(4e5 / speedup), "baseline_size_bytes": 400_000},
            **{"agreement": 1.0, "max_difference": 0.01, "machine": MACHINE.digest},
        }
    )


def trial(number: int, speedup: float | None, drop: float = 0.0, **plan: Any) -> TrialResult:
    recipe = Recipe(layers=(LayerPlan(name="conv1", **(plan or {"keep": 0.5, "weight_bits": 7, "activation_bits": 8})),))
    measured = None if speedup is None else measurement(speedup, drop)
    outcome = "gated" if measured is None else "measured"
    seconds = {"recovery": 1.5, "latency": 0.25}
    return TrialResult(number=number, recipe=recipe, target=TARGET, outcome=outcome, measurement=measured, seconds=seconds)


def row(result: TrialResult, holdout: Measurement | None = None) -> dict[str, Any]:
    keys = ("speedup", "speedup_low", "speedup_high", "drop", "size_bytes", "latency_ms", "accuracy")
    assert result.measurement is not None
    told = {key: getattr(result.measurement, key) for key in keys}
    held = {key: getattr(holdout, key) for key in keys[:4]} if holdout else None
    return {"trial": result.number, **told, "holdout": held}


def make_study(runs: Path, results: list[TrialResult], layers: tuple[str, ...] = ("conv1", "conv2")) -> RunPaths:
    paths = RunPaths(runs, "made-up")
    paths.write_config(SearchConfig(study=paths.study, task="digits", space=Space(), budget=Budget(trials=50), target=TARGET))
    write_text(paths.machine, to_json(MACHINE))
    infos = tuple(LayerInfo(name=name, kind="conv2d", macs=10**6, params=900, in_channels=16, out_channels=32) for name in layers)
    write_text(paths.layers, to_json(Layers(layers=infos)))
    baseline = {
        **{"latency_ms": 2.0, "eager_latency_ms": 3.0, "accuracy": 99.0, "holdout_accuracy": 98.8, "metric": "accuracy"},
        **{"size_bytes": 400_000, "macs": 2 * 10**6, "params": 1800, "input_shape": (1, 8, 8)},
        **{"target": TARGET, "task_digest": "t", "machine": MACHINE.digest},
    }
    write_text(paths.baseline, to_json(Baseline.model_validate(baseline)))
    for result in results:
        paths.write_result(result)
    return paths


def summarize(results: list[TrialResult], best: dict[str, Any] | None, nearest: dict[str, Any] | None = None) -> dict[str, Any]:
    front = [entry for entry in (best, nearest) if entry] or []
    outcomes = dict(Counter(result.outcome for result in results))
    return {"study": "made-up", "state": "finished", "outcomes": outcomes, "front": front, "best": best, "nearest": nearest}


RESULTS = [trial(0, 1.1, 0.1), trial(1, None), trial(2, 4.0, 0.5), trial(3, 6.0, 2.5), trial(4, 8.0, 60.0)]


class Page(HTMLParser):
    """Collects tags, links out, and text; knows which tags stay open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data")]
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def report(runs: Path, results: list[TrialResult], summary: dict[str, Any], **study: Any) -> Page:
    html, png = write_report(make_study(runs, results, **study), summary)
    assert png.read_bytes().startswith(b"\x89PNG")
    return Page(html.read_text(encoding="utf-8"))


def confirmed_best(confirmed: bool | None = True, holdout: Measurement | None = None) -> dict[str, Any]:
    return {**row(RESULTS[3], holdout or measurement(5.8, 2.7, "holdout")), "confirmed": confirmed}


def test_the_page_is_one_well_formed_file_without_scripts_or_links(tmp_path: Path) -> None:
    page = report(tmp_path, RESULTS, summarize(RESULTS, confirmed_best()))
    assert page.open == []
    assert page.links == []
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    text = (tmp_path / "made-up" / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|https?://", text)
    assert "prefers-color-scheme: dark" in text
    assert sorted(file.name for file in (tmp_path / "made-up").glob("*.draft")) == []


def test_the_headline_is_the_holdout_number_with_batch_size_and_reference(tmp_path: Path) -> None:
    text = report(tmp_path, RESULTS, summarize(RESULTS, confirmed_best())).text
    assert "the fastest form of task digits with at most 3 points of accuracy lost and at least 2 times faster than " in text
    assert f"Found: trial 3, 5.80 times faster (95 % interval 5.51 to 6.09) than {REFERENCE}, with a drop of 2.70 points" in text
    assert "Confirmed" in text
    assert "NOT CONFIRMED" not in text


def test_every_number_of_the_comparison_is_shown(tmp_path: Path) -> None:
    best = confirmed_best()
    paths = make_study(tmp_path, RESULTS)
    write_text(paths.trial(3).holdout, to_json(measurement(5.8, 2.7, "holdout")))
    text = Page(write_report(paths, summarize(RESULTS, best))[0].read_text(encoding="utf-8")).text
    assert "Latency 2.000 ms 0.333 ms Latency in eager PyTorch 3.000 ms" in text
    assert "Speedup, search split 1x 6.00x (5.70 to 6.30) Speedup, holdout split 1x 5.80x (5.51 to 6.09)" in text
    assert "Latency is that of onnxruntime on cpu at batch 1, 2 threads." in text
    assert "Size on disk 400.0 kB 66.7 kB accuracy, search split 99.00 96.50 accuracy, holdout split 98.80 96.30" in text
    assert "Drop in points, search split 0 2.50 Drop in points, holdout split 0 2.70" in text


def test_the_summary_that_show_prints_is_what_the_report_reads(tmp_path: Path) -> None:
    paths = make_study(tmp_path, RESULTS)
    write_text(paths.trial(3).holdout, to_json(measurement(1.7, 2.7, "holdout")))
    facts = (paths.read_config(), paths.read_baseline(), RESULTS, paths.holdouts())
    told = pareto.summary(*facts, state="finished", stopped="budget used")
    text = Page(write_report(paths, told)[0].read_text(encoding="utf-8")).text
    assert "Found: trial 3, 1.70 times faster" in text
    assert "The best recipe is NOT CONFIRMED" in text
    assert "The study is finished, 5 trials finished: budget used." in text


def test_an_unconfirmed_best_is_loud(tmp_path: Path) -> None:
    best = confirmed_best(False, measurement(5.5, 4.2, "holdout"))
    text = report(tmp_path, RESULTS, summarize(RESULTS, best)).text
    assert "The best recipe is NOT CONFIRMED" in text
    assert "5.50x (5.22 to 5.78) with a drop of 4.20 points" in text


def test_a_best_that_was_never_measured_on_holdout_is_not_called_confirmed(tmp_path: Path) -> None:
    best = {**row(RESULTS[3]), "confirmed": None}
    text = report(tmp_path, RESULTS, summarize(RESULTS, best)).text
    assert "Not confirmed yet" in text
    assert "on the search split, which also selected it" in text


def test_without_a_best_the_nearest_is_shown_and_marked(tmp_path: Path) -> None:
    results = [trial(0, 1.5, 0.2), trial(1, None)]
    text = report(tmp_path, results, summarize(results, None, row(results[0]))).text
    assert "No recipe met both bounds" in text
    assert "no recipe within both bounds; the nearest is trial 0, 1.50 times faster" in text
    assert "nearest: trial 0" in text
    assert "The nearest recipe, layer by layer" in text


def test_a_study_in_which_nothing_was_measured_still_reports_how_trials_ended(tmp_path: Path) -> None:
    results = [trial(0, None), trial(1, None)]
    text = report(tmp_path, results, summarize(results, None)).text
    assert "No recipe was measured" in text
    assert "gated 2 stopped before training" in text


def test_a_study_without_a_finished_trial_is_refused_in_one_line(tmp_path: Path) -> None:
    paths = make_study(tmp_path, [])
    with pytest.raises(InvalidStudy, match=r"'made-up' has no finished trial.*autocompress resume made-up") as caught:
        write_report(paths, summarize([], None))
    assert "\n" not in str(caught.value)
    assert not paths.report.exists()
    assert not paths.pareto_png.exists()


def test_a_study_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidStudy, match="does not exist"):
        write_report(RunPaths(tmp_path, "absent"), {})


def test_names_from_models_and_machines_are_text_and_never_markup(tmp_path: Path) -> None:
    plan = (LayerPlan(name=NASTY, keep=0.25), LayerPlan(name='" onload="x', rank=4))
    results = [RESULTS[3].model_copy(update={"recipe": Recipe(layers=plan)})]
    summary = {**summarize(results, confirmed_best()), "state": NASTY, "stopped": "a & b <i>"}
    page = report(tmp_path, results, summary, layers=(NASTY, '" onload="x'))
    assert "script" not in page.tags
    assert page.text.count(NASTY) == 2  # the layer and the state
    assert "a & b <i>" in page.text


def test_a_metric_with_dollar_signs_does_not_break_the_png(tmp_path: Path) -> None:
    paths = make_study(tmp_path, RESULTS)
    write_text(paths.baseline, to_json(paths.read_baseline().model_copy(update={"metric": r"$\frac{$ <b>"})))
    html, png = write_report(paths, summarize(RESULTS, confirmed_best()))
    assert r"$\frac{$ &lt;b&gt;" in html.read_text(encoding="utf-8")
    assert png.stat().st_size > 1000


def test_the_recipe_lists_every_layer_with_what_it_keeps(tmp_path: Path) -> None:
    result = trial(3, 6.0, 2.5, keep=0.62, rank=8, weight_bits=7, activation_bits=8)
    text = report(tmp_path, [result], summarize([result], confirmed_best())).text
    assert "conv1 1.00 M 62 % 8 7 8" in text
    assert "conv2 1.00 M 100 % full 32 32" in text


def test_the_code_that_loads_the_artifact_runs_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    html, _ = write_report(make_study(tmp_path, RESULTS), summarize(RESULTS, confirmed_best()))
    code = unescape(re.findall(r"<pre>(.*?)</pre>", html.read_text(encoding="utf-8"), re.DOTALL)[1])
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 1, 8, 8]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "made_up", ends[:1], ends[1:])
    (tmp_path / "compressed").mkdir()
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "compressed" / "model.onnx")
    monkeypatch.chdir(tmp_path)
    seen: dict[str, Any] = {}
    exec(code, seen)
    assert seen["outputs"][0].shape == (1, 1, 8, 8)


def test_the_pareto_figure_has_a_tooltip_for_every_measured_trial(tmp_path: Path) -> None:
    report(tmp_path, RESULTS, summarize(RESULTS, confirmed_best()))
    text = (tmp_path / "made-up" / "report.html").read_text(encoding="utf-8")
    pareto = text[text.index("Speed against accuracy") : text.index("How the search went")]
    for number in (0, 2, 3, 4):
        assert re.search(rf"<title>trial {number}: \d+\.\d\dx \(", pareto), number
    assert "1 at the right edge lost more" in pareto  # the trial that collapsed does not flatten the others


def test_every_mark_lies_inside_the_figure(tmp_path: Path) -> None:
    results = [trial(0, 0.4, -1.2), trial(1, 30.0, 0.0), trial(2, 1.0, 99.0)]
    report(tmp_path, results, summarize(results, {**row(results[1]), "confirmed": True}))
    text = (tmp_path / "made-up" / "report.html").read_text(encoding="utf-8")
    spots = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([-\d.]+)" cy="([-\d.]+)"', text)]
    spots = [spot for spot in spots if spot != (0.0, 0.0)]  # those of the legend
    assert len(spots) >= 5
    assert all(0 < x < 520 and 0 < y < 380 for x, y in spots)


@pytest.mark.parametrize(("max_drop", "drop"), [(0.0, 0.0), (3.0, -2.0), (100.0, 55.0)])
def test_unusual_bounds_still_draw(tmp_path: Path, max_drop: float, drop: float) -> None:
    results = [trial(7, 3.0, drop)]
    paths = make_study(tmp_path, results)
    paths.write_config(paths.read_config().model_copy(update={"max_drop": max_drop}))
    html, png = write_report(paths, summarize(results, {**row(results[0]), "confirmed": True}))
    assert not re.search(r'="[^"]*\b(nan|inf)\b', html.read_text(encoding="utf-8"))
    assert png.stat().st_size > 1000


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.2, 9), (0, 1e-3), (3, 3.5), (0, 12345)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 7
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in found)
    assert all(len(f"{value:g}") <= 6 for value in found)


def test_writing_a_report_leaves_the_global_state_of_matplotlib_alone(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    before = dict(plt.rcParams)
    report(tmp_path, RESULTS, summarize(RESULTS, confirmed_best()))
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == before


def test_five_hundred_trials_take_seconds_and_a_small_file(tmp_path: Path) -> None:
    results = [trial(number, 1 + number % 97 / 12, number % 89 / 10) for number in range(500)]
    paths = make_study(tmp_path, results, layers=tuple(f"layer{index}" for index in range(200)))
    front = [row(result) for result in results[:150]]
    summary = {**summarize(results, {**row(results[20]), "confirmed": True}), "front": front}
    started = time.monotonic()
    html, _ = write_report(paths, summary)
    assert time.monotonic() - started < 5
    assert html.stat().st_size < 6_000_000


def test_the_csv_has_one_row_a_trial_and_leaves_missing_numbers_empty() -> None:
    rows = list(csv.DictReader(io.StringIO(trials_csv(RESULTS))))
    assert [int(line["number"]) for line in rows] == [0, 1, 2, 3, 4]
    measured = ["speedup", "speedup_low", "speedup_high", "drop", "accuracy", "size_bytes", "latency_ms"]
    assert list(rows[0]) == ["number", "source", "outcome", *measured, "seconds", "digest"]
    assert (rows[1]["outcome"], rows[1]["speedup"], rows[1]["size_bytes"]) == ("gated", "", "")
    assert (rows[2]["speedup"], rows[2]["drop"], rows[2]["size_bytes"]) == ("4.0", "0.5", "100000")
    assert (rows[2]["seconds"], rows[2]["digest"]) == ("1.75", RESULTS[2].recipe.digest)


def test_the_csv_of_no_trials_is_its_header() -> None:
    assert trials_csv([]).splitlines() == [trials_csv(RESULTS).splitlines()[0]]


def test_a_full_disk_leaves_no_half_written_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = make_study(tmp_path, RESULTS)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_report(paths, summarize(RESULTS, confirmed_best()))
    assert not paths.pareto_png.exists()
    assert not list(paths.folder.glob(".*.draft"))
