"""The report tells a study truly, in one page that needs nothing else, whatever the names in it contain."""

import base64
import csv
import hashlib
import io
import json
import re
import time
from collections import Counter
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import onnx
import pytest

from autocompress.config import Budget, SearchConfig, Space
from autocompress.errors import InvalidStudy, UserError
from autocompress.recipe import LayerPlan, Recipe
from autocompress.records import (
    Attribution,
    Baseline,
    BatchTiming,
    Inspection,
    LayerInfo,
    Machine,
    Measurement,
    Part,
    Target,
    Throughput,
    TrialResult,
    Undone,
    Usage,
)
from autocompress.report import trials_csv, write_report
from autocompress.runs import Layers, RunPaths, to_json, write_text
from autocompress.study.summary import summary as summary_of

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
        self.scripts: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data")]
        self.links += [value for value in named if not value.startswith("#")]
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif not self.open or self.open[-1] != "style":
            self.texts.append(data)

    @property
    def tips(self) -> list[str]:
        """What marks of figures say."""
        found: list[str] = json.loads(self.scripts[0])
        return found

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def report(runs: Path, results: list[TrialResult], summary: dict[str, Any], **study: Any) -> Page:
    paths = make_study(runs, results, **study)
    html, figures, table = write_report(paths, summary)
    assert (figures / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert len(table.read_text(encoding="utf-8").splitlines()) == 1 + len(results)
    return Page(html.read_text(encoding="utf-8"))


def confirmed_best(confirmed: bool | None = True, holdout: Measurement | None = None) -> dict[str, Any]:
    return {**row(RESULTS[3], holdout or measurement(5.8, 2.7, "holdout")), "confirmed": confirmed}


def test_the_page_is_one_well_formed_file_that_links_to_nothing_and_runs_one_known_script(tmp_path: Path) -> None:
    page = report(tmp_path, RESULTS, summarize(RESULTS, confirmed_best()))
    assert page.open == []
    assert page.links == []
    assert not {"link", "img", "iframe", "object"} & set(page.tags)
    text = (tmp_path / "made-up" / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\((?!#)|@import|https?://", text)
    assert "prefers-color-scheme: dark" in text
    assert len(page.scripts) == 2  # texts as JSON, then the script whose digest the policy names
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text
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
    assert "Latency, median 2.000 ms 0.345 ms Latency in eager PyTorch 3.000 ms" in text
    assert "Speedup 1x 5.80x (5.51 to 6.09)" in text
    assert "Numbers of the holdout split; times of onnxruntime on cpu at batch 1, 2 threads" in text
    assert "Size of the packed weights 400.0 kB 69.0 kB accuracy 99.00 96.30 Drop of accuracy in points 0 2.70" in text
    assert "search holdout gap Speedup 6.00x (5.70 to 6.30) 5.80x (5.51 to 6.09) -0.20 Drop of accuracy in points 2.50 2.70 +0.20" in text


def test_what_was_measured_of_tails_batches_and_drop_is_shown_with_its_intervals(tmp_path: Path) -> None:
    batches = tuple(
        BatchTiming(batch_size=n, latency_ms=1, baseline_latency_ms=n, speedup=n, speedup_low=n, speedup_high=n, resolved=True)
        for n in (4, 8)
    )
    tails = {"p90_ms": 0.4, "p99_ms": 0.5, "baseline_p90_ms": 2.2, "baseline_p99_ms": 2.9, "faster": 0.97, "resolved": False}
    full = measurement(5.8, 2.7).model_copy(update={**tails, "batches": batches, "drop_low": 1.9, "drop_high": 3.5})
    results = [RESULTS[3].model_copy(update={"measurement": full})]
    text = report(tmp_path, results, summarize(results, {**row(results[0]), "confirmed": None})).text
    assert "90 % of the calls within 2.200 ms 0.400 ms Latency, 99 % of the calls within 2.900 ms 0.500 ms" in text
    assert "5.80x (5.51 to 6.09), not resolved Probability that a block of calls is faster - 97 %" in text
    assert "Latency at batch 4 (the worst) 4.000 ms 1.000 ms, 4.00x (4.00 to 4.00) Latency at batch 8 8.000 ms" in text
    assert "Drop of accuracy in points 0 2.70 (1.90 to 3.50)" in text


def test_without_inspection_and_attribution_the_page_says_how_to_get_them(tmp_path: Path) -> None:
    text = report(tmp_path, RESULTS, summarize(RESULTS, confirmed_best())).text
    assert "`autocompress resume made-up` measures what is missing" in text
    assert "`autocompress explain made-up --trial 3`" in text
    assert "Throughput" not in text


def test_what_was_inspected_is_shown_before_and_after(tmp_path: Path) -> None:
    paths = make_study(tmp_path, RESULTS)
    before = Usage(load_ms=14, peak_bytes=9_600_000, mean_bytes=9_000_000, reasons={"energy_mj": "no NVML here"})
    after = before.model_copy(update={"load_ms": 6.0, "peak_bytes": 4_100_000, "utilisation": 0.98})
    classes = tuple(Part(name=name, samples=40, score=98 - lost, baseline_score=98) for name, lost in (("cat", 1.0), (NASTY, 4.0)))
    seen = Inspection(
        usage=after,
        baseline_usage=before,
        throughput=(Throughput(batch_size=8, threads=2, samples_per_s=4000, baseline_samples_per_s=1000),),
        classes=classes,
        shifts=(Part(name="noise 0.1", samples=500, score=80, baseline_score=90),),
        broken=(7, 19),
    )
    write_text(paths.trial(3).inspection, to_json(seen))
    page = Page(write_report(paths, summarize(RESULTS, confirmed_best()))[0].read_text(encoding="utf-8"))
    assert "Throughput at batch 8 1,000 samples/s 4,000 samples/s Load time 14 ms 6 ms Memory, peak 9.60 MB 4.10 MB" in page.text
    assert "Utilisation - 98 %" in page.text
    assert page.text.count("Energy a call: no NVML here.") == 1
    assert f"Worst class, {NASTY} 98.00 94.00" in page.text
    assert "noise 0.1 500 90.00 80.00 10.00" in page.text
    assert "2 samples of the holdout split are newly wrong, 0 newly right" in page.text
    assert "Newly wrong: 7, 19." in page.text
    assert f"{NASTY}: 98.00 before, 94.00 after, 4.00 points lost (40 samples)" in page.tips
    assert (paths.figures / "classes.png").exists()


def test_what_each_decision_bought_is_shown_and_a_figure_that_is_no_longer_true_goes(tmp_path: Path) -> None:
    paths = make_study(tmp_path, RESULTS)
    undone = Undone(
        decision=f"{NASTY}: 50 % of channels", layers=("conv1",), speedup=3, drop=2, bought_ms=0.25, cost_points=0.5, bought=False
    )
    write_text(paths.trial(3).attribution, to_json(Attribution(trial=3, decisions=(undone,), simpler_measurement=measurement(8.0, 2.0))))
    page = Page(write_report(paths, summarize(RESULTS, confirmed_best()))[0].read_text(encoding="utf-8"))
    assert "50 % of channels (bought nothing) 1 +0.250 ms +0.50 points 3.00x 2.00" in page.text
    assert "the smaller recipe is measured at 8.00x (7.60 to 8.40), drop 2.00 points" in page.text
    assert (paths.figures / "attribution.svg").exists()
    paths.trial(3).attribution.unlink()
    write_report(paths, summarize(RESULTS, confirmed_best()))
    assert not (paths.figures / "attribution.svg").exists()


def test_every_figure_lies_beside_the_page_as_png_and_as_svg_and_is_drawn_in_it(tmp_path: Path) -> None:
    report(tmp_path, RESULTS, summarize(RESULTS, confirmed_best()))
    folder = tmp_path / "made-up"
    names = sorted({file.stem for file in (folder / "figures").iterdir()})
    assert names == ["history", "hypervolume", "layers", "pareto"]
    text = (folder / "report.html").read_text(encoding="utf-8")
    for name in names:
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert ElementTree.parse(folder / "figures" / f"{name}.svg").getroot().tag.endswith("svg")
        assert text.count(f'<figure id="figure-{name}">') == 1


def test_the_summary_that_show_prints_is_what_the_report_reads(tmp_path: Path) -> None:
    paths = make_study(tmp_path, RESULTS)
    write_text(paths.trial(3).holdout, to_json(measurement(1.7, 2.7, "holdout")))
    facts = (paths.read_config(), paths.read_baseline(), RESULTS, paths.holdouts())
    told = summary_of(*facts, state="finished", stopped="budget used")
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
    assert "gated 2 stopped on the way" in text
    assert "The gate: 2 trials stopped on their way, about 0 s saved; no audit yet" in text


def test_a_study_without_a_finished_trial_is_refused_in_one_line(tmp_path: Path) -> None:
    paths = make_study(tmp_path, [])
    with pytest.raises(InvalidStudy, match=r"'made-up' has no finished trial.*autocompress resume made-up") as caught:
        write_report(paths, summarize([], None))
    assert "\n" not in str(caught.value)
    assert not paths.report.exists()
    assert not paths.figures.exists()


def test_a_study_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidStudy, match="does not exist"):
        write_report(RunPaths(tmp_path, "absent"), {})


def test_names_from_models_and_machines_are_text_and_never_markup(tmp_path: Path) -> None:
    plan = (LayerPlan(name=NASTY, keep=0.25), LayerPlan(name='" onload="x', rank=4))
    results = [RESULTS[3].model_copy(update={"recipe": Recipe(layers=plan)})]
    summary = {**summarize(results, confirmed_best()), "state": NASTY, "stopped": "a & b <i>"}
    page = report(tmp_path, results, summary, layers=(NASTY, '" onload="x'))
    assert len(page.scripts) == 2
    assert page.tags.count("script") == 2
    assert any(tip.startswith("trial 3: 6.00x") and f"{NASTY}: 25 % of channels" in tip for tip in page.tips)
    assert f"The study is {NASTY}" in page.text
    assert "a & b <i>" in page.text


def test_a_metric_with_dollar_signs_is_no_mathematics(tmp_path: Path) -> None:
    paths = make_study(tmp_path, RESULTS)
    write_text(paths.baseline, to_json(paths.read_baseline().model_copy(update={"metric": r"$\frac{$ <b>"})))
    html, figures, _ = write_report(paths, summarize(RESULTS, confirmed_best()))
    assert r"$\frac{$ &lt;b&gt;" in html.read_text(encoding="utf-8")
    assert r"drop of $\frac{$ &lt;b&gt; in points" in (figures / "pareto.svg").read_text(encoding="utf-8")


def test_the_recipe_lists_every_layer_with_what_it_keeps(tmp_path: Path) -> None:
    result = trial(3, 6.0, 2.5, keep=0.62, rank=8, weight_bits=7, activation_bits=8)
    text = report(tmp_path, [result], summarize([result], confirmed_best())).text
    assert "conv1 1.00 M 62 % 8 none 7 8" in text
    assert "conv2 1.00 M 100 % full none 32 32" in text


def test_the_code_that_loads_the_artifact_runs_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    html = write_report(make_study(tmp_path, RESULTS), summarize(RESULTS, confirmed_best()))[0]
    code = unescape(re.findall(r"<pre[^>]*>(.*?)</pre>", html.read_text(encoding="utf-8"), re.DOTALL)[1])
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 1, 8, 8]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "made_up", ends[:1], ends[1:])
    (tmp_path / "compressed").mkdir()
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "compressed" / "model.onnx")
    monkeypatch.chdir(tmp_path)
    seen: dict[str, Any] = {}
    exec(code, seen)
    assert seen["outputs"][0].shape == (1, 1, 8, 8)


def marks(page_text: str, figure: str) -> list[dict[str, str]]:
    """Attributes of what can be pointed at in a figure."""
    body = page_text[page_text.index(f'id="figure-{figure}"') :].partition("</figure>")[0]
    return [dict(re.findall(r'([\w-]+)="([^"]*)"', found)) for found in re.findall(r"<[^>]*data-tip[^>]*>", body)]


def spot(mark: dict[str, str]) -> tuple[float, float]:
    """A shape that is used, or a path of its own: its first point."""
    place = (mark["x"], mark["y"]) if "x" in mark else mark["d"].split()[1:3]
    return float(place[0]), float(place[1])


def test_every_trial_of_the_pareto_figure_says_its_numbers_and_its_recipe(tmp_path: Path) -> None:
    page = report(tmp_path, RESULTS, summarize(RESULTS, confirmed_best()))
    text = (tmp_path / "made-up" / "report.html").read_text(encoding="utf-8")
    said = [page.tips[int(mark["data-tip"])] for mark in marks(text, "pareto")]
    for number in (0, 2, 3, 4):
        tip = next(tip for tip in said if tip.startswith(f"trial {number}: "))
        assert re.match(r"trial \d: \d+\.\d\dx \(", tip), tip
        assert "conv1: 50 % of channels, 7 bit weights, 8 bit inputs" in tip
    assert any(tip.startswith("baseline: fp32") for tip in said)
    assert "1 lost more" in text  # the trial that collapsed does not flatten the others


def test_a_trial_that_was_never_trained_is_drawn_faint_with_its_first_speed(tmp_path: Path) -> None:
    results = [RESULTS[3], RESULTS[1].model_copy(update={"gate_speedup": 1.25})]
    page = report(tmp_path, results, summarize(results, confirmed_best()))
    assert "trial 1: stopped on the way: it could not reach the front within the bounds, 1.25x before training" in "\n".join(page.tips)


def test_every_mark_lies_inside_the_figure(tmp_path: Path) -> None:
    results = [trial(0, 0.4, -1.2), trial(1, 30.0, 0.0), trial(2, 1.0, 99.0)]
    held = measurement(28.0, 80.0, "holdout")
    report(tmp_path, results, summarize(results, {**row(results[1], held), "confirmed": True}))
    text = (tmp_path / "made-up" / "report.html").read_text(encoding="utf-8")
    spots = [spot(mark) for mark in marks(text, "pareto")]
    assert len(spots) == 6  # three trials, one of them also as the best; the baseline; the holdout
    assert all(0 < x < 360 and 0 < y < 4.4 * 72 for x, y in spots)


@pytest.mark.parametrize(("max_drop", "drop"), [(0.0, 0.0), (3.0, -2.0), (100.0, 55.0)])
def test_unusual_bounds_still_draw(tmp_path: Path, max_drop: float, drop: float) -> None:
    results = [trial(7, 3.0, drop)]
    paths = make_study(tmp_path, results)
    paths.write_config(paths.read_config().model_copy(update={"max_drop": max_drop}))
    html, figures, _ = write_report(paths, summarize(results, {**row(results[0]), "confirmed": True}))
    assert not re.search(r'="[^"]*\b(nan|inf)\b', html.read_text(encoding="utf-8"))
    assert (figures / "pareto.png").stat().st_size > 1000


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
    started = time.process_time()  # not the clock: other programs of a shared machine are not its fault
    html = write_report(paths, summary)[0]
    assert time.process_time() - started < 5
    assert html.stat().st_size < 6_000_000


def test_the_csv_has_one_row_a_trial_and_leaves_missing_numbers_empty() -> None:
    rows = list(csv.DictReader(io.StringIO(trials_csv(RESULTS, {}))))
    assert [int(line["number"]) for line in rows] == [0, 1, 2, 3, 4]
    measured = ["speedup", "speedup_low", "speedup_high", "drop", "accuracy", "size_bytes", "latency_ms"]
    assert list(rows[0])[:10] == ["number", "source", "outcome", *measured]
    numbers = {name for name, value in measurement(2, 1).model_dump().items() if isinstance(value, int | float)}
    assert numbers <= set(rows[0])
    assert {"p90_ms", "drop_high", "busy", "gate_speedup", "seconds", "digest"} <= set(rows[0])
    assert (rows[1]["outcome"], rows[1]["speedup"], rows[1]["size_bytes"]) == ("gated", "", "")
    assert (rows[2]["speedup"], rows[2]["drop"], rows[2]["size_bytes"]) == ("4.0", "0.5", "100000")
    assert (rows[2]["seconds"], rows[2]["digest"]) == ("1.75", RESULTS[2].recipe.digest)


def test_the_csv_has_a_column_for_every_check_and_batch_size(tmp_path: Path) -> None:
    timing = BatchTiming(batch_size=8, latency_ms=1, baseline_latency_ms=3, speedup=3, speedup_low=2, speedup_high=4, resolved=True)
    point = measurement(3, 1).model_copy(update={"checks": {"worst_class_drop": 4.5}, "batches": (timing,)})
    text = trials_csv([RESULTS[0], RESULTS[2].model_copy(update={"measurement": point})], {2: measurement(2.5, 1)})
    lines = list(csv.DictReader(io.StringIO(text)))
    assert (lines[1]["check_worst_class_drop"], lines[1]["batch_8_speedup"]) == ("4.5", "3.0")
    assert (lines[0]["check_worst_class_drop"], lines[0]["batch_8_speedup"]) == ("", "")
    assert (lines[0]["holdout_speedup"], lines[1]["holdout_speedup"], lines[1]["holdout_drop"]) == ("", "2.5", "1.0")


def test_the_csv_of_no_trials_is_its_header() -> None:
    assert trials_csv([], {}).splitlines() == [trials_csv(RESULTS, {}).splitlines()[0]]


def test_a_full_disk_leaves_no_half_written_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = make_study(tmp_path, RESULTS)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("autocompress.report.save", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_report(paths, summarize(RESULTS, confirmed_best()))
    assert not paths.figures.exists()
    assert not list(paths.folder.glob(".*.draft"))
