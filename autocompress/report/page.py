"""report.html: one page that needs no network. Whatever a user or a model named is text; the one script is ours, known by its digest."""

import base64
import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from autocompress.report.comparison import comparison, front_table
from autocompress.report.drawing import Drawing, figure_html
from autocompress.report.facts import OUTCOMES, UNKNOWN, Facts, bounds, interval, lost, number, reference
from autocompress.report.layers import recipe_section
from autocompress.report.quality import samples_section
from autocompress.report.reasons import reasons_section
from autocompress.report.sources import sources_section
from autocompress.report.tables import bar, note, notice, section, table
from autocompress.runs import RunPaths

STYLE = Path(__file__).with_name("style.css")
SCRIPT = Path(__file__).with_name("report.js")


def asked(facts: Facts) -> str:
    config = facts.config
    return f"Asked: the fastest form of task {config.task} with {bounds(facts)} than {reference(facts)}, within {config.budget}."


def found(facts: Facts) -> str:
    """What came out, in one sentence; the holdout split speaks where it was measured, because it did not select."""
    chosen = facts.chosen
    if chosen is None:
        return "Found: nothing that could be measured."
    seen = chosen.get("holdout") or chosen
    split = "on the holdout split" if chosen.get("holdout") else "on the search split, which also selected it"
    which = "trial" if facts.summary.get("best") else "no recipe within both bounds; the nearest is trial"
    low, high = number(seen.get("speedup_low"), 2), number(seen.get("speedup_high"), 2)
    return (
        f"Found: {which} {chosen['trial']}, {seen['speedup']:.2f} times faster (95 % interval {low} to {high}) "
        f"than {reference(facts)}, with a drop of {lost(seen['drop'], facts.baseline.metric_unit)}, {split}."
    )


def banner(facts: Facts) -> str:
    """Loud where the result is not what was asked for, quiet where it is."""
    best, chosen, wish = facts.summary.get("best"), facts.chosen, bounds(facts)
    if chosen is None:
        return notice("bad", "No recipe was measured", f"Asked was {wish}. The outcomes below say how the trials ended.")
    holdout, unit = chosen.get("holdout"), facts.baseline.metric_unit
    missed = "; ".join((holdout if best is not None and holdout else chosen).get("failed") or ())
    missed = f" Missed: {missed}." if missed else ""
    if best is None:
        shown = f"Shown is the nearest, trial {chosen['trial']}: {interval(chosen)}, drop {lost(chosen['drop'], unit)}."
        title = "No recipe met all bounds" if facts.config.constraints else "No recipe met both bounds"
        return notice("bad", title, f"Asked was {wish}. {shown}{missed}")
    if best.get("confirmed"):
        every = "all" if facts.config.constraints else "both"
        text = f"On the holdout split, which took no part in the search, the best recipe keeps {every} bounds."
        return notice("good", "Confirmed", text)
    if holdout is None:
        text = "The best recipe was not measured on the holdout split yet, and the search split flatters what it selected."
        return notice("bad", "Not confirmed yet", text)
    text = f"On the holdout split it is {interval(holdout)} with a drop of {lost(holdout['drop'], unit)}; asked was {wish}.{missed}"
    return notice("bad", "The best recipe is NOT CONFIRMED", f"{text} Take another of the front, or search with a tighter bound.")


def outcomes(facts: Facts) -> str:
    counts = facts.summary.get("outcomes") or Counter(result.outcome for result in facts.results)
    total = max(sum(counts.values()), 1)
    rows = [(name, bar(count / total, str(count)), OUTCOMES.get(name, "")) for name, count in counts.items() if count]
    stopped = f": {facts.summary['stopped']}" if facts.summary.get("stopped") else ""
    state = note(f"The study is {facts.summary.get('state', UNKNOWN)}, {len(facts.results)} trials finished{stopped}.")
    gate = note(f"The gate: {facts.gate}.") if facts.gate else ""
    files = note("Beside this page: trials.csv with every number of every trial, and figures/ with each figure as PNG and SVG.")
    return section("How the trials ended", table(("outcome", "trials", "meaning"), rows, "words"), state, gate, files)


def surroundings(facts: Facts) -> str:
    machine = facts.machine
    others = {point.machine for point in facts.measured.values()} - {machine.digest}
    busy = [point.busy for point in facts.measured.values() if point.busy is not None]
    rows = [
        ("Processor", f"{machine.cpu}, {machine.cores} cores"),
        ("Instruction sets", ", ".join(machine.instruction_sets) or UNKNOWN),
        ("Memory", f"{machine.memory_bytes / 2**30:.1f} GiB"),
        *([("GPU", machine.gpu)] if machine.gpu else []),
        *([("Kept busy by others", f"{sum(busy) / len(busy):.2f} cores on average, {max(busy):.2f} at most")] if busy else []),
        ("System", machine.system),
        ("Python", machine.python),
        *sorted(machine.versions.items()),
        *([("Measured elsewhere", f"some trials, machines {', '.join(sorted(others))}")] if others else []),
    ]
    return section("Machine and versions", table(("", ""), rows, "words"))


def loading(facts: Facts, paths: RunPaths) -> str:
    chosen = facts.chosen
    if chosen is None:
        return ""
    place = [] if paths.runs == Path("runs") else ["--runs", str(paths.runs)]
    which = "best" if facts.summary.get("best") else str(chosen["trial"])
    command = shlex.join(["autocompress", "export", paths.study, "--trial", which, "--out", "compressed", *place])
    target, shape = facts.baseline.target, (facts.baseline.target.batch_size, *facts.baseline.input_shape)
    code = f"""import numpy, onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = {target.threads}
session = onnxruntime.InferenceSession("compressed/model.onnx", options, providers=["CPUExecutionProvider"])
batch = numpy.zeros({shape}, numpy.float32)  # your samples here
outputs = session.run(None, {{session.get_inputs()[0].name: batch}})"""
    if target.runtime != "onnxruntime":
        code = f"# measured in {target.runtime}: the README in the folder `compressed` says how to load it"
    return section("Load the artifact", f'<pre tabindex="0">{escape(command)}</pre><pre tabindex="0">{escape(code)}</pre>')


def head(title: str, script: str) -> str:
    """The page can load nothing, and run nothing but this script, whatever a name in it contains."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head>"
    )


def as_data(texts: Sequence[str]) -> str:
    """JSON that can end no script element."""
    return json.dumps(texts, ensure_ascii=False).replace("<", "\\u003c")


def page(facts: Facts, paths: RunPaths, figures: Mapping[str, tuple[Drawing, str]]) -> str:
    """``figures``: by name, each drawing with its SVG."""
    title, script = f"autocompress: {paths.study}", SCRIPT.read_text(encoding="utf-8")
    tips = (tip for drawing, _ in figures.values() for told in drawing.tips.values() for tip in told)
    texts = {tip: index for index, tip in enumerate(dict.fromkeys(tips))}
    drawn = {name: figure_html(drawing, svg, texts) for name, (drawing, svg) in figures.items()}

    def charts(*names: str) -> str:
        shown = [drawn[name] for name in names if name in drawn]
        return f'<div class="charts">{"".join(shown)}</div>' if shown else ""

    top = f"<header><h1>{escape(title)}</h1><p>{escape(asked(facts))}</p><p>{escape(found(facts))}</p>{banner(facts)}</header>"
    body = (
        *(top, charts("pareto", "layers"), comparison(facts), front_table(facts), recipe_section(facts)),
        *(charts("classes", "attribution"), samples_section(facts), reasons_section(facts)),
        *(charts("history", "hypervolume", "sensitivity", "survey"), sources_section(facts), outcomes(facts)),
        *(loading(facts, paths), surroundings(facts)),
    )
    tip = '<div id="tip" role="status" hidden></div>'
    data = f'<script type="application/json" id="texts">{as_data(list(texts))}</script><script>{script}</script>'
    return f"{head(title, script)}<body><main>{''.join(body)}</main>{tip}{data}</body></html>\n"
