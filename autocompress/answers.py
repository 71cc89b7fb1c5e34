"""How explain, inspect, ask, verify and compare answer on a terminal. Reads plain data and writes to a console, like `terminal`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autocompress.records import Attribution, Inspection, Measurement, Survey
from autocompress.terminal import (
    PERCENT,
    UNKNOWN,
    Row,
    Terminal,
    command,
    interval,
    lost,
    milliseconds,
    numbers,
    size,
    table,
    target_words,
    times,
    unit_of,
    value,
)

MEMORY = {"peak": "peak_bytes", "mean": "mean_bytes"}
FEW = 2  # layers of a decision that are listed; of more, the first and the last


def present_attribution(found: Attribution, simpler: Path | None, console: Terminal) -> None:
    """A line a decision, then the recipe that is left; ``simpler`` is its recipe.yaml."""
    console.line(f"trial {found.trial}: what each decision bought, measured without it", "bold")
    rows = [
        (
            f"{_layers(one.layers)}: {one.decision}" if one.layers else one.decision,
            times(one.speedup),
            f"{one.drop:z.2f}" if found.metric_unit == PERCENT else f"{one.drop:.3g}",
            f"{one.bought_ms:+.3f}",
            f"{one.cost_points:+.2f}" if found.metric_unit == PERCENT else f"{one.cost_points:+.3g}",
            _signed_size(one.bought_bytes),
            "yes" if one.bought else "no",
        )
        for one in found.decisions
    ]
    columns = ("decision", "speed\nwithout", "drop\nwithout", "bought\nms", "cost", "bought\nsize", "worth\nit")
    console.print(table(columns, rows, right=columns[1:6]))
    unit = "points" if found.metric_unit == PERCENT else found.metric_unit
    console.line("Bought: how much longer, and larger, it is without the decision. Cost: by how", "dim")
    console.line(f"much the decision made the metric worse{f', in {unit}' if unit else ''}; below 0, better.", "dim")
    for note in found.notes:
        console.field("note", note, "yellow")
    present_simpler(found, simpler, console)


def present_simpler(found: Attribution, simpler: Path | None, console: Terminal) -> None:
    useless = [one for one in found.decisions if not one.bought]
    if found.simpler_measurement is None:
        console.field("simpler", "none, see the note" if useless else "none: every decision bought something")
        return
    console.field("simpler", numbers(found.simpler_measurement.model_dump(), found.metric_unit), "bold")
    for one in useless:
        console.field("", f"without {one.decision}" + (f" of {_layers(one.layers)}" if one.layers else ""))
    if simpler is not None:
        console.field("recipe", simpler)


def present_inspection(found: Inspection, console: Terminal) -> None:
    """The artifact beside the baseline, then the parts of the samples that it was looked at on."""
    before, after = found.baseline_usage, found.usage
    rows = [
        (f"samples/s, batch {one.batch_size}, {counted(one.threads, 'thread')}", rate(one.baseline_samples_per_s), rate(one.samples_per_s))
        for one in found.throughput
    ]
    rows += [("load time", milliseconds(before.load_ms), milliseconds(after.load_ms))]
    rows += [(f"memory, {word}", size(getattr(before, name)), size(getattr(after, name))) for word, name in MEMORY.items()]
    console.print(table(("", "baseline", "artifact"), rows, right=("baseline", "artifact")))
    parts = [*found.classes, *filter(None, (found.hard, found.rare)), *found.shifts]
    scores = [(one.name, str(one.samples), f"{one.baseline_score:.2f}", f"{one.score:.2f}") for one in parts]
    console.print(table(("metric on", "samples", "baseline", "artifact"), scores, right=("samples", "baseline", "artifact")))
    console.field("samples", f"{len(found.broken)} newly wrong, {len(found.righted)} newly right, of the {found.split} split")
    for reason in dict.fromkeys((*after.reasons.values(), *found.notes)):
        console.field("note", reason)


def rate(samples_per_s: float) -> str:
    return f"{samples_per_s:,.0f}"


def counted(amount: int, what: str) -> str:
    return f"{amount} {what}{'' if amount == 1 else 's'}"


def present_survey(survey: Survey, rows: Sequence[Row], console: Terminal) -> None:
    """A line a layer: its share of the time, and each choice with its harm and the milliseconds it would save."""
    lines = []
    for row in rows:
        told = [_choice(one) for one in row["choices"]]
        lines.append((row["name"], UNKNOWN if row["share"] is None else f"{100 * row['share']:.1f} %", "  ".join(told) or "no choice"))
    console.print(table(("layer", "time", "harm (ms saved) of each choice alone"), lines, right=("time",)))
    console.line(f"Harm: rise of the loss on {survey.samples} calibration samples, untrained. {survey.seconds:.1f} s in all.", "dim")
    if survey.latency is not None:
        about = f"nine in ten within {100 * survey.latency.error:.0f} %, by {survey.latency.probes} structures that were timed"
        console.field("times", f"baseline {milliseconds(survey.latency.baseline_ms)}; predicted times: {about}")
    for note in survey.notes:
        console.field("note", note, "yellow")


def _choice(one: Row) -> str:
    value_ = f"{one['value']:g}" if isinstance(one["value"], int | float) else one["value"]
    harm = "?" if one["harm"] is None else f"{one['harm']:+.2f}"
    saved = f" ({one['saved_ms']:.3f})" if one["saved_ms"] is not None else ""
    return f"{one['kind']} {value_}: {harm}{saved}"


def present_answer(found: Row, runs: Path, console: Terminal) -> None:
    """The trial that fits, or the nearest and what it misses."""
    trial, unit = found["trial"], unit_of(found)
    state = ", still running" if found["running"] else ""
    console.field("study", f"{found['study']}: {found['finished']} finished trials{state}", "bold")
    console.field("target", target_words(found))
    console.field("asked", _wishes(found["asked"], unit))
    if found["fits"]:
        console.field("fastest", f"trial {trial['trial']}: {numbers(trial, unit)}", "bold green")
    else:
        console.line("NO TRIAL FITS", "bold red")
        console.field("nearest", f"trial {trial['trial']}: {numbers(trial, unit)}", "bold yellow")
        console.field("misses", "; ".join(_missed(name, gap, unit) for name, gap in found["misses"].items()), "bold yellow")
    for line in found["words"]:
        console.field("", line)
    if trial["holdout"] is None:
        console.field("holdout", "not measured: only the front of a finished study is")
    else:
        verdict = "fits too" if found["holdout_fits"] else "DOES NOT FIT there"
        style = "bold green" if found["holdout_fits"] else "bold red"
        console.field("holdout", f"{numbers(trial['holdout'], unit)}: {verdict}", style)
    console.field("next", command("export", found["study"], runs, "--trial", str(trial["trial"]), "--out", "DIR"))


def present_verdict(found: Row, console: Terminal) -> None:
    """A line a claim, then whether all hold."""
    console.field("artifact", found["folder"], "bold")
    console.field("task", found["task"])
    console.field("target", found["target"])
    said = {True: "holds", False: "DOES NOT HOLD", None: "not judged"}
    rows = [("files", "", "", "hold", "every sha256 of SHA256SUMS")]
    rows += [
        (one["name"], f"{one['claimed']:.6g}", f"{one['found']:.6g}", said[one["held"]], "" if one["held"] is None else one["words"])
        for one in found["checks"]
    ]
    console.print(table(("what", "claimed", "here", "", "how"), rows, right=("claimed", "here")))
    for one in found["checks"]:
        if one["held"] is None:
            console.field(one["name"], one["words"], "yellow")
    if found["holds"]:
        console.line("verified: the numbers hold here", "bold green")
    else:
        console.line("NOT VERIFIED: what measured.json says does not hold here", "bold red")


def present_comparison(found: Row, console: Terminal) -> None:
    """Both side by side; loudly, where their numbers do not compare."""
    rows = _study_rows(found) if found["kind"] == "studies" else _artifact_rows(found)
    names = [found[side].get("study") or found[side]["folder"] for side in ("a", "b")]
    console.print(table(("", *names), rows))
    if found["differences"]:
        console.line("THESE NUMBERS DO NOT COMPARE: they are not of one task, target and machine", "bold red")
        for line in found["differences"]:
            console.line(f"  {line}", "red")


def _study_rows(found: Row) -> list[tuple[str, str, str]]:
    both = (found["a"], found["b"])
    told: list[tuple[str, list[str]]] = [
        ("task", [str(one["task"]) for one in both]),
        ("target", [target_words(one) for one in both]),
        ("machine", [one["cpu"] for one in both]),
        ("trials", [f"{one['finished']} finished" + (", running" if one["state"] == "running" else "") for one in both]),
        ("bounds", [f"drop {one['max_drop']:g}, {one['min_speedup']:g}x" for one in both]),
        ("baseline", [_baseline(one) for one in both]),
        ("best", [_best(one) for one in both]),
        ("on holdout", [_held(one) for one in both]),
        (f"hypervolume (drop {found['reference_drop']:g})", [f"{one['hypervolume']:.3f}" for one in both]),
    ]
    for index in range(max(len(one["front"]) for one in both)):
        told.append(("front" if index == 0 else "", [_front_cell(one, index) for one in both]))
    told.append(("beaten by the other", [f"{found['beaten'][side]} of {len(found[side]['front'])}" for side in ("a", "b")]))
    return [(what, words[0], words[1]) for what, words in told]


def _baseline(study: Row) -> str:
    return f"{value(study['baseline']['accuracy'], unit_of(study))}, {milliseconds(study['baseline']['latency_ms'])}"


def _best(study: Row) -> str:
    best, nearest, unit = study["best"], study["nearest"], unit_of(study)
    if best:
        return f"trial {best['trial']}: {numbers(best, unit)}"
    return f"none; nearest trial {nearest['trial']}: {numbers(nearest, unit)}" if nearest else "none measured"


def _held(study: Row) -> str:
    best = study["best"] or {}
    return numbers(best["holdout"], unit_of(study)) if best.get("holdout") else UNKNOWN


def _front_cell(study: Row, index: int) -> str:
    front = study["front"]
    return f"trial {front[index]['trial']}: {numbers(front[index], unit_of(study))}" if index < len(front) else ""


def _artifact_rows(found: Row) -> list[tuple[str, str, str]]:
    both = (found["a"], found["b"])
    measured = [Measurement.model_validate({name: one[name] for name in Measurement.model_fields}) for one in both]
    told: list[tuple[str, list[str]]] = [
        ("task", [one["task"] or UNKNOWN for one in both]),
        ("trial", [UNKNOWN if one["trial"] is None else str(one["trial"]) for one in both]),
        ("target", [target_words(one) for one in both]),
        ("machine", [one["cpu"] for one in both]),
        ("split", [f"{one.split}, {one.samples} samples" for one in measured]),
        ("speed", [interval(one.model_dump()) for one in measured]),
        ("latency", [f"{milliseconds(one.latency_ms)}, was {milliseconds(one.baseline_latency_ms)}" for one in measured]),
        ("metric", [_metric(one) for one in both]),
        ("drop", [lost(one["drop"], one["metric_unit"]) for one in both]),
        ("weights", [f"{size(one.size_bytes)}, was {size(one.baseline_size_bytes)}" for one in measured]),
        ("deployed", [size(one.deployed_bytes or None) for one in measured]),
    ]
    return [(what, words[0], words[1]) for what, words in told]


def _metric(one: Row) -> str:
    after, before = (value(one[name], one["metric_unit"]) for name in ("accuracy", "baseline_accuracy"))
    return f"{one['metric']} {after}, was {before}"


def _wishes(asked: Mapping[str, Any], unit: str) -> str:
    words = []
    if asked["max_drop"] is not None:
        words.append(f"drop at most {asked['max_drop']:g} {'points' if unit == PERCENT else unit}".rstrip())
    if asked["min_speedup"] is not None:
        words.append(f"speed at least {asked['min_speedup']:g}x")
    if asked["max_bytes"] is not None:
        words.append(f"weights at most {size(asked['max_bytes'])}")
    return ", ".join([*words, *asked["constraints"]]) or "the fastest"


def _missed(name: str, gap: float | None, unit: str) -> str:
    if gap is None:
        return f"{name}: not measured"
    own = {"max_drop": f"{lost(gap, unit)} too many", "min_speedup": f"{gap:.2f}x too slow", "max_bytes": f"{size(gap)} too large"}
    return own.get(name, f"{name} by {gap:.4g}")


def _layers(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= FEW else f"{names[0]} to {names[-1]} ({len(names)} layers)"


def _signed_size(amount: int) -> str:
    return f"{'-' if amount < 0 else '+'}{size(abs(amount))}"
