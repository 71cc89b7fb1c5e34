"""How results look on a terminal or in a pipe: a console that is safe with text of unknown origin, and the tables of a study.

Everything here reads plain data (the summary that ``show --json`` prints, records) and writes to a console; it computes nothing.
"""

import math
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from autocompress.records import LayerInfo, Measurement, Target

Row = Mapping[str, Any]
DEFAULT_RUNS = Path("runs")
UNKNOWN = "-"
LABEL = 10  # width of the labels in front
PERCENT = "%"


def plain(text: object) -> str:
    """Text of unknown origin as one line that a terminal only prints: control characters become visible escapes."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in str(text))


class Terminal(Console):
    """A console that takes no text for markup; a reader that went away (``| head``) ends the output, never the job."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def on_broken_pipe(self) -> None:
        """Go on silently: what is still buffered has to drain somewhere, or Python complains at exit."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)

    def line(self, text: object = "", style: str | None = None) -> None:
        """One line, never wrapped: a path or a command can be copied whole."""
        self.print(plain(text), style=style, soft_wrap=True)

    def field(self, label: str, text: object, style: str | None = None) -> None:
        """One line with a label in front; with an empty label it continues the field above."""
        self.line(f"{label:<{LABEL}}{text}", style)


def times(speedup: float | None) -> str:
    return UNKNOWN if speedup is None else f"{speedup:.2f}x"


def interval(row: Row | None) -> str:
    """``4.12x (3.90-4.31)``: a ratio with its 95 % interval."""
    if not row or row.get("speedup") is None:
        return UNKNOWN
    return f"{row['speedup']:.2f}x ({row['speedup_low']:.2f}-{row['speedup_high']:.2f})"


def at_batch(row: Row) -> str:
    """``2.10x (2.00-2.20) at batch 8``: the speed at one batch size."""
    return f"{interval(row)} at batch {row['batch_size']}"


def present_batches(row: Row, console: "Terminal") -> None:
    """Where several batch sizes were asked, the speed at each, the worst marked."""
    for index, one in enumerate(row.get("batches") or ()):
        worst = one["batch_size"] == row["worst"]["batch_size"]
        console.field("" if index else "by batch", at_batch(one) + (", the worst" if worst else ""), "yellow" if worst else None)


def points(drop: float | None) -> str:
    return UNKNOWN if drop is None else f"{drop:z.2f}"


def percent(amount: float | None) -> str:
    return UNKNOWN if amount is None else f"{amount:.2f} %"


def value(amount: float | None, unit: str) -> str:
    """A metric with its unit: ``99.75 %``, ``12.31 nats``."""
    return percent(amount) if unit == PERCENT or amount is None else f"{amount:.4g} {unit}".rstrip()


def lost(drop: float | None, unit: str) -> str:
    """A drop with its unit: ``0.50 points``, of percent; ``0.0312 nats``."""
    if drop is None:
        return UNKNOWN
    return f"{points(drop)} points" if unit == PERCENT else f"{drop:.3g} {unit}".rstrip()


def unit_of(summary: Row) -> str:
    """Unit of the metric; that of a study without a baseline is not known yet, and most are percentages."""
    return str((summary.get("baseline") or {}).get("metric_unit", PERCENT))


def numbers(row: Row, unit: str) -> str:
    """Speed, drop and size of one recipe in words."""
    weight = f", {size(row['size_bytes'])}" if row.get("size_bytes") is not None else ""
    return f"{interval(row)}, drop {lost(row['drop'], unit)}{weight}"


def milliseconds(latency: float | None) -> str:
    return UNKNOWN if latency is None else f"{latency:.3g} ms"


def size(amount: float | None) -> str:
    """Bytes in the decimal units that file managers show."""
    if amount is None:
        return UNKNOWN
    for unit in ("B", "kB", "MB"):
        if amount < 999.5:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} GB"


def bounds(max_drop: float, min_speedup: float, constraints: Sequence[str] = (), unit: str = PERCENT) -> str:
    most = f"{max_drop:g} {'point' if max_drop == 1 else 'points'}" if unit == PERCENT else f"{max_drop:g} {unit}".rstrip()
    return ", ".join((f"drop at most {most}", f"speed at least {min_speedup:g}x", *constraints))


def command(verb: str, study: str, runs: Path, *rest: str) -> str:
    """A command line that can be pasted into a shell."""
    return shlex.join(("autocompress", verb, study, *rest, *place(runs)))


def place(runs: Path) -> tuple[str, ...]:
    """The option that a command needs to find the studies of another folder."""
    return () if runs == DEFAULT_RUNS else ("--runs", str(runs))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> Table:
    """A table without frame that loses no digit: what is too wide for the terminal wraps. Columns in ``right`` hold numbers."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(plain, row))
    return made


def present(summary: Row, words: Sequence[str], folder: Path, console: Terminal) -> None:
    """All of a study: baseline, Pareto front, best or nearest recipe in ``words``, outcomes, files, and what to do next."""
    present_head(summary, console)
    present_baseline(summary, console)
    if summary["front"]:
        present_front(summary, console)
    console.line()
    if summary["best"]:
        present_best(summary, words, console)
    else:
        present_nearest(summary, words, console)
    console.line()
    counted = ", ".join(f"{count} {outcome.replace('_', ' ')}" for outcome, count in summary["outcomes"].items() if count)
    console.field("outcomes", counted or "no finished trial")
    console.field("files", folder)
    present_next(summary, folder.parent, console)


STOPPED = {
    "budget": "its budget is used",
    "time": "its time is used",
    "exhausted": "ended early: twenty proposals in a row were recipes that are finished already",
}


def present_head(summary: Row, console: Terminal) -> None:
    trials = f"{summary['finished']} of {summary['budget']} trials" if summary.get("budget") else f"{summary['finished']} trials"
    limit = f", budget {summary['budget_seconds'] / 60:g} minutes" if summary.get("budget_seconds") else ""
    console.field("study", f"{summary['study']}: {summary['state']}, {trials}{limit}", "bold")
    if summary.get("stopped"):
        console.field("", STOPPED.get(summary["stopped"], summary["stopped"]))
    console.field("target", target_words(summary))
    console.field("bounds", bounds(summary["max_drop"], summary["min_speedup"], summary.get("constraints", ()), unit_of(summary)))


def present_baseline(summary: Row, console: Terminal) -> None:
    """The model as it was given: the target's runtime is what speeds refer to, eager PyTorch is the second reference."""
    baseline = summary.get("baseline")
    if not baseline:
        console.field("baseline", "not measured yet")
        return
    metric = baseline.get("metric") or "accuracy"
    unit = unit_of(summary)
    score = f"{metric} {value(baseline.get('accuracy'), unit)} (holdout {value(baseline.get('holdout_accuracy'), unit)})"
    console.field("baseline", f"{score}, {size(baseline.get('size_bytes'))}")
    runtime = target_words(summary).split()[0]
    eager = f"{milliseconds(baseline.get('eager_latency_ms'))} in eager PyTorch{smallest_batch(summary.get('target'))}"
    console.field("", f"{milliseconds(baseline.get('latency_ms'))} in {runtime}, {eager}")


def present_front(summary: Row, console: Terminal) -> None:
    """The Pareto table; the best recipe carries a star."""
    best, unit = (summary["best"] or {}).get("trial"), unit_of(summary)
    drop = points if unit == PERCENT else partial(lost, unit="")
    several = any(row.get("worst") for row in summary["front"])
    columns = ("trial", "speed", *(("worst",) if several else ()), "drop", "size", "holdout\nspeed", "holdout\ndrop")
    rows = []
    for row in summary["front"]:
        holdout = row.get("holdout") or {}
        trial = f"{row['trial']} {'*' if row['trial'] == best else ' '}"
        worst = (f"{times(row['worst']['speedup'])} at {row['worst']['batch_size']}",) if several else ()
        searched = (trial, interval(row), *worst, drop(row["drop"]), size(row["size_bytes"]))
        rows.append((*searched, interval(holdout), drop(holdout.get("drop"))))
    console.line()
    recipes = "1 recipe" if len(rows) == 1 else f"{len(rows)} recipes"
    console.line(f"Pareto front: {recipes} that no other beats on both speed and drop", "bold")
    console.print(table(columns, rows, right=columns))
    console.line("Speed, with its 95 % interval: against the same model in fp32 in", "dim")
    console.line(f"{target_words(summary)}. Drop: {drop_words(summary)}.", "dim")
    if several:
        console.line("It is the geometric mean over the batch sizes; worst: the lowest of them,", "dim")
        console.line("and at which.", "dim")
    for one, other in summary.get("equals", ()):
        console.line(f"trials {one} and {other}: equally fast as far as this machine can tell", "dim")
    present_failed(summary, console)


def drop_words(summary: Row) -> str:
    """What a drop is counted in."""
    baseline, unit = summary.get("baseline") or {}, unit_of(summary)
    if unit == PERCENT:
        return "in percentage points"
    rose = "fell" if baseline.get("higher_is_better", True) else "rose"
    return f"by how much {baseline.get('metric', 'the metric')} {rose}" + (f", in {unit}" if unit else "")


def present_failed(summary: Row, console: Terminal) -> None:
    """Which of the user's own constraints the recipes of the front miss."""
    names = tuple(summary.get("constraints") or ())
    for row in summary["front"]:
        missed = [line for line in row.get("failed", ()) if line.startswith(names)] if names else []
        if missed:
            console.line(f"trial {row['trial']} misses {', '.join(missed)}", "yellow")


def present_best(summary: Row, words: Sequence[str], console: Terminal) -> None:
    """The best recipe in words, and loudly what holdout says of it."""
    best, unit = summary["best"], unit_of(summary)
    console.field("best *", f"trial {best['trial']}: {numbers(best, unit)}", "bold green")
    present_batches(best, console)
    for line in words:
        console.field("", line)
    if best.get("confirmed") is None or not best.get("holdout"):
        console.field("holdout", "not measured yet")
    elif best["confirmed"]:
        console.field("holdout", f"{numbers(best['holdout'], unit)}: confirmed", "bold green")
    else:
        console.field("holdout", f"{numbers(best['holdout'], unit)}", "bold red")
        console.field("", "NOT CONFIRMED on holdout: on data that the search did not see", "bold red")
        console.field("", "it misses a bound. Take another recipe of the front, or search", "bold red")
        console.field("", "again with a tighter --max-drop.", "bold red")
        for line in best["holdout"].get("failed", ()):
            console.field("", f"missed: {line}", "bold red")


def present_nearest(summary: Row, words: Sequence[str], console: Terminal) -> None:
    console.line("NO RECIPE MEETS ALL BOUNDS" if summary.get("constraints") else "NO RECIPE MEETS BOTH BOUNDS", "bold red")
    nearest = summary["nearest"]
    if not nearest:
        console.field("nearest", "none: no trial was measured")
        return
    console.field("nearest", f"trial {nearest['trial']}: {numbers(nearest, unit_of(summary))}", "bold yellow")
    present_batches(nearest, console)
    for line in words:
        console.field("", line)
    console.field("", "the nearest to the bounds, but it misses at least one", "bold yellow")
    for line in nearest.get("failed", ()):
        console.field("", f"missed: {line}", "bold yellow")


def present_next(summary: Row, runs: Path, console: Terminal) -> None:
    """Commands to go on with, ready to be pasted."""
    study, shown = summary["study"], summary["best"] or summary["nearest"]
    if not shown:
        console.field("next", command("resume", study, runs))
        return
    trial = () if summary["best"] else ("--trial", str(shown["trial"]))
    console.field("next", command("export", study, runs, *trial, "--out", "DIR"))
    console.field("", command("report", study, runs))


def target_words(summary: Row) -> str:
    target = summary.get("target")
    return str(Target.model_validate(target)) if isinstance(target, Mapping) else str(target or UNKNOWN)


def smallest_batch(target: Any) -> str:
    """`` at batch 1``: what a latency in milliseconds is that of, where there are several."""
    wanted = Target.model_validate(target) if isinstance(target, Mapping) else target
    return f" at batch {wanted.batch_size}" if isinstance(wanted, Target) and len(wanted.batch_sizes) > 1 else ""


def present_measurement(measured: Measurement, target: Target, console: Terminal, baseline: Row | None = None) -> None:
    """One recipe, measured on its own; ``baseline`` says what its metric is called and counted in."""
    about = baseline or {}
    metric, unit = about.get("metric", "accuracy"), about.get("metric_unit", PERCENT)
    console.field("speed", f"{interval(measured.model_dump())} against the same model in fp32 in", "bold")
    console.field("", target)
    if measured.worst:
        present_batches(measured.model_dump() | {"worst": measured.worst.model_dump()}, console)
    was = f"was {milliseconds(measured.baseline_latency_ms)}{smallest_batch(target)}"
    console.field("latency", f"{milliseconds(measured.latency_ms)}, {was}")
    label = metric if len(metric) < LABEL else "metric"
    console.field(label, f"{value(measured.accuracy, unit)}, was {value(measured.baseline_accuracy, unit)}")
    console.field("", f"drop {lost(measured.drop, unit)} on {measured.samples} samples of the {measured.split} split")
    console.field("size", f"{size(measured.size_bytes)}, was {size(measured.baseline_size_bytes)}")
    console.field("agrees", f"with the PyTorch model on {percent(100 * measured.agreement)} of the samples,")
    console.field("", f"largest difference of an output {measured.max_difference:.3g}")


def present_layers(layers: Sequence[LayerInfo], console: Terminal) -> None:
    """What may be done to each layer on this target, and why not where it may not."""
    columns = ("layer", "kind", "channels", "MMACs", "keep", "rank", "weight bits")
    rows = [
        (
            layer.name,
            layer.kind,
            f"{layer.in_channels}->{layer.out_channels}",
            f"{layer.macs / 1e6:.2f}",
            "yes" if layer.group is not None and not layer.keep_reason else "no",
            "yes" if layer.factorizable else "no",
            ",".join(map(str, layer.weight_bits)),
        )
        for layer in layers
        if layer.kind != "block"
    ]
    console.print(table(columns, rows, right=("channels", "MMACs")))
    blocks = [layer.name for layer in layers if layer.droppable]
    if blocks:
        console.field("blocks", f"may be left out whole: {', '.join(blocks)}")
    for layer in layers:
        if layer.kind == "block":
            continue  # every module with parts is one; why one cannot be left out is said where a recipe asks for it
        reasons = dict.fromkeys(filter(None, (layer.keep_reason, layer.rank_reason, layer.bits_reason, layer.drop_reason)))
        if reasons:
            console.line(f"{layer.name}: {'; '.join(reasons)}")


def present_space(dimensions: Sequence[tuple[str, Sequence[Any]]], combinations: int, console: Terminal) -> None:
    """What a search would vary, and in how many ways."""
    named = [(name, ", ".join(map(_choice, choices))) for name, choices in dimensions]
    console.print(table(("what varies", "choices"), named))
    exact = f"{combinations:,}" if combinations < 10**6 else f"about 10^{math.log10(combinations):.0f}"
    console.field("space", f"{len(dimensions)} dimensions, {exact} combinations")


def _choice(value: Any) -> str:
    """A choice as a person reads it: 0.5, minmax, prune -> distill -> quantize, l1 + 0.5 taylor."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}"
    if isinstance(value, tuple):
        return " -> ".join(map(str, value))
    if isinstance(value, dict):
        return " + ".join(f"{weight:g} {name}" for name, weight in value.items()) or "-"
    return str(value)


def present_studies(studies: Sequence[Row], runs: Path, console: Terminal) -> None:
    if not studies:
        start = shlex.join(("autocompress", "search", "--budget", "50", *place(runs)))
        console.line(f"No studies in {runs}. Start one with: {start}")
        return
    rows = [
        (
            row["study"],
            row["state"],
            f"{row['finished']} of {row['budget']}" if row.get("budget") else row["finished"],
            times(row.get("best_speedup")),
            points(row.get("best_drop")),
            row.get("task", UNKNOWN),
        )
        for row in studies
    ]
    columns = ("study", "state", "trials", "best", "drop", "task")
    console.print(table(columns, rows, right=("trials", "best", "drop")))


def contents(folder: Path) -> str:
    """A folder and what lies in it, in words."""
    files = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    return f"{folder}" + (f": {', '.join(files)}" if files else "")
