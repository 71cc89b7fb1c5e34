"""report.html: one self-contained page that needs no network and runs no script. Whatever a user or a model named is escaped."""

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from autocompress.recipe import FLOAT_BITS, LayerPlan
from autocompress.records import LayerInfo
from autocompress.report.charts import history_svg, pareto_svg
from autocompress.report.facts import PERCENT, UNKNOWN, Facts, bounds, interval, lost, number, reference, score, size, where
from autocompress.runs import RunPaths

STYLE = Path(__file__).with_name("style.css")
OUTCOMES = {
    "measured": "ran to the end",
    "gated": "stopped before training: too slow to reach the front",
    "infeasible": "this model or target cannot realize it",
    "out_of_memory": "ran out of memory",
    "diverged": "the loss was no longer finite",
    "timed_out": "took too long",
    "died": "its process died",
}


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


def notice(kind: str, title: str, text: str) -> str:
    return f'<div class="notice {kind}" role="status"><strong>{escape(title)}</strong> {escape(text)}</div>'


def section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def table(head: Sequence[str], rows: Iterable[Sequence[object]], kind: str = "numbers", marked: int = -1) -> str:
    """Cells are escaped, except those that `bar` made. Row ``marked`` is set off. ``kind``: a class of style.css."""
    lines = []
    for index, row in enumerate(rows):
        cells = "".join(f"<td>{cell.html if isinstance(cell, Html) else escape(str(cell))}</td>" for cell in row)
        lines.append(f"<tr{' class=marked' if index == marked else ''}>{cells}</tr>")
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    body = f"<thead><tr>{titles}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="scroll"><table class="{kind}">{body}</table></div>'


@dataclass(frozen=True)
class Html:
    """A piece that is HTML already."""

    html: str


def bar(share: float, text: str) -> Html:
    """A number with a bar of ``share`` (0 to 1) under it."""
    return Html(f'{escape(text)}<i class="bar" style="--share:{100 * min(max(share, 0.0), 1.0):.1f}%"></i>')


def comparison(facts: Facts) -> str:
    base, chosen, unit = facts.baseline, facts.chosen or {}, facts.baseline.metric_unit
    holdout, measured = chosen.get("holdout") or {}, facts.holdouts.get(chosen.get("trial", -1))
    drop = "Drop in points" if unit == PERCENT else "Drop"  # the numbers carry any other unit
    name = f"{'best' if facts.summary.get('best') else 'nearest'}, trial {chosen['trial']}" if chosen else "none"
    at = f" at batch {base.target.batch_size}" if len(base.target.batch_sizes) > 1 else ""
    batches, worst = chosen.get("batches") or [], chosen.get("worst") or {}
    rows = [
        (f"Latency{at}", number(base.latency_ms, 3, " ms"), number(chosen.get("latency_ms"), 3, " ms")),
        (f"Latency in eager PyTorch{at}", number(base.eager_latency_ms, 3, " ms"), UNKNOWN),
        ("Speedup, search split", "1x", interval(chosen)),
        *(
            (f"at batch {one['batch_size']}{', the worst' if one['batch_size'] == worst.get('batch_size') else ''}", "1x", interval(one))
            for one in batches
        ),
        ("Speedup, holdout split", "1x", interval(holdout)),
        ("Size on disk", size(base.size_bytes), size(chosen.get("size_bytes"))),
        (f"{base.metric}, search split", score(base.accuracy, unit), score(chosen.get("accuracy"), unit)),
        (f"{base.metric}, holdout split", score(base.holdout_accuracy, unit), score(measured.accuracy if measured else None, unit)),
        (f"{drop}, search split", "0", score(chosen.get("drop"), unit)),
        (f"{drop}, holdout split", "0", score(holdout.get("drop"), unit)),
        ("Multiply-adds a sample", f"{base.macs / 1e6:.2f} M", UNKNOWN),
        ("Parameters", f"{base.params:,}", UNKNOWN),
    ]
    stands = note(
        f"Latency is that of {where(base.target)}. Speedups, with 95 % intervals, are against {reference(facts)}; "
        "eager PyTorch is a second reference."
    )
    return section("Before and after", table(("", "baseline, fp32", name), rows, "fits"), stands)


def front_table(facts: Facts) -> str:
    front = facts.summary.get("front") or []
    best, unit = (facts.summary.get("best") or {}).get("trial"), facts.baseline.metric_unit
    head = ("trial", "speedup", "drop", "size", "latency", "speedup, holdout", "drop, holdout")
    rows = []
    for row in front:
        holdout = row.get("holdout") or {}
        trial = f"{row['trial']} (best)" if row["trial"] == best else row["trial"]
        numbers = (score(row["drop"], unit), size(row.get("size_bytes")), number(row.get("latency_ms"), 3, " ms"))
        rows.append((trial, interval(row), *numbers, interval(holdout), score(holdout.get("drop"), unit)))
    marked = next((index for index, row in enumerate(front) if row["trial"] == best), -1)
    text = "No measured recipe beats one of these on both speed and drop. Speedups with 95 % intervals are against"
    return section("Pareto front", table(head, rows, marked=marked), note(f"{text} {reference(facts)}."))


def recipe_table(facts: Facts) -> str:
    """The chosen recipe, a row a layer in the order of the model, layers that it does not name included."""
    result = next((result for result in facts.results if facts.chosen and result.number == facts.chosen["trial"]), None)
    if result is None:
        return ""
    recipe, known = result.recipe, {layer.name: layer for layer in facts.layers}
    names = dict.fromkeys([*known, *recipe.plans])
    head = ("layer", "multiply-adds", "channels kept", "rank", "weight bits", "activation bits")
    rows = [layer_row(recipe.plans.get(name, LayerPlan(name=name)), known.get(name), facts.baseline.macs) for name in names]
    steps = f"Recovery: {recipe.recovery.steps} steps in float, {recipe.recovery.quantized_steps} quantization-aware, "
    taught = recipe.distillation
    steps += f"with a teacher at temperature {taught.temperature:g}." if taught else "without a teacher."
    which = "best" if facts.summary.get("best") else "nearest"
    text = note(f"{steps} Digest {recipe.digest}.")
    return section(f"The {which} recipe, layer by layer", table(head, rows, "layers"), text)


def layer_row(plan: LayerPlan, info: LayerInfo | None, macs: int) -> tuple[object, ...]:
    rank = "full" if plan.rank is None else str(plan.rank)
    return (
        plan.name,
        bar(info.macs / max(macs, 1), f"{info.macs / 1e6:.2f} M") if info else UNKNOWN,
        bar(plan.keep, f"{100 * plan.keep:.0f} %"),
        bar(plan.rank / min(info.in_channels, info.out_channels), rank) if info and plan.rank else rank,
        bar(plan.weight_bits / FLOAT_BITS, str(plan.weight_bits)),
        bar(plan.activation_bits / FLOAT_BITS, str(plan.activation_bits)),
    )


def outcomes(facts: Facts) -> str:
    counts = facts.summary.get("outcomes") or Counter(result.outcome for result in facts.results)
    total = max(sum(counts.values()), 1)
    rows = [(name, bar(count / total, str(count)), OUTCOMES.get(name, "")) for name, count in counts.items() if count]
    stopped = f": {facts.summary['stopped']}" if facts.summary.get("stopped") else ""
    state = note(f"The study is {facts.summary.get('state', UNKNOWN)}, {len(facts.results)} trials finished{stopped}.")
    return section("How the trials ended", table(("outcome", "trials", "meaning"), rows, "words"), state)


def surroundings(facts: Facts) -> str:
    machine = facts.machine
    others = {result.measurement.machine for result in facts.results if result.measurement} - {machine.digest}
    rows = [
        ("Processor", f"{machine.cpu}, {machine.cores} cores"),
        ("Instruction sets", ", ".join(machine.instruction_sets) or UNKNOWN),
        ("Memory", f"{machine.memory_bytes / 2**30:.1f} GiB"),
        *([("GPU", machine.gpu)] if machine.gpu else []),
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
    return section("Load the artifact", f"<pre>{escape(command)}</pre><pre>{escape(code)}</pre>")


def page(facts: Facts, paths: RunPaths) -> str:
    title = f"autocompress: {paths.study}"
    policy = "default-src 'none'; style-src 'unsafe-inline'"  # the page cannot load or run anything, whatever a name contains
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head>"
    )
    top = f"<header><h1>{escape(title)}</h1><p>{escape(asked(facts))}</p><p>{escape(found(facts))}</p>{banner(facts)}</header>"
    charts = f'<div class="charts">{pareto_svg(facts)}{history_svg(facts)}</div>'
    tables = "".join(make(facts) for make in (comparison, front_table, recipe_table, outcomes))
    return f"{head}<body><main>{top}{charts}{tables}{loading(facts, paths)}{surroundings(facts)}</main></body></html>\n"
