"""The commands that ask about what is there: explain, inspect, ask, verify, compare. `cli` lists them among its own.

Everything slow is imported inside the commands, so that ``--help`` is instant.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from autocompress.errors import UserError
from autocompress.options import (
    NOTHING_FOUND,
    OUTSIDE,
    RUNS,
    Data,
    Json,
    Model,
    Options,
    Runs,
    RuntimeName,
    StudyName,
    TaskName,
    Threads,
    Weights,
    dumped,
    task_options,
)

Trial = Annotated[str, typer.Option(metavar="TRIAL", help="best, fastest, smallest, knee, or a trial's number.")]


def batch_sizes(text: str) -> str:
    """What was written, once it reads."""
    from autocompress.config import parse_counts

    try:
        parse_counts("--batch-size", text)
    except UserError as error:
        raise typer.BadParameter(str(error).removeprefix("--batch-size: ")) from None
    return text


BATCHES = "Batch size at which it must be fast; 1,8,32: at all of them."
BatchSize = Annotated[str, typer.Option(metavar="N[,N]", callback=batch_sizes, help=BATCHES)]


def explain(study: StudyName, trial: Trial = "best", as_json: Json = False, runs: Runs = RUNS) -> None:
    """Show what each decision of a recipe bought.

    Every decision is undone in turn and what is left is trained and measured, on the search split; of more than twelve, neighbours go
    together. What bought nothing is dropped, and the simpler recipe is measured and offered. Takes about as long as so many trials;
    interrupted, the same command goes on. The result is kept as attribution.json of the trial.

    \b
    Examples:
      autocompress explain digits
      autocompress explain digits --trial 17 --json | jq .decisions
    """
    from autocompress import job
    from autocompress.answers import present_attribution
    from autocompress.progress import Progress
    from autocompress.terminal import Terminal

    progress = Progress()
    try:
        found = job.explain(study, trial=trial, runs=runs, progress=progress)
    except KeyboardInterrupt:
        progress.say("what was measured is kept; the same command goes on from there")
        raise
    simpler = None if found.simpler is None else runs / study / "undone" / found.simpler.digest / "recipe.yaml"
    present_attribution(found, simpler, Terminal(stderr=as_json))
    if as_json:
        Terminal().out(dumped(found.model_dump(mode="json")))


def inspect(
    study: StudyName,
    trial: Trial = "best",
    threads: Annotated[str, typer.Option(metavar="N[,N...]", help="Samples a second on so many threads, too.")] = "",
    as_json: Json = False,
    runs: Runs = RUNS,
) -> None:
    """Look closer at one recipe: memory, throughput, shifts.

    Memory and load time in a process of its own, samples a second over growing batches, classes, hard, rare and shifted samples, on the
    holdout split. A search does this for the recipe that it shows; what is found is kept as inspection.json of the trial.

    \b
    Examples:
      autocompress inspect digits --threads 1,2,4
      autocompress inspect digits --trial 17 --json | jq .throughput
    """
    from autocompress import job
    from autocompress.answers import present_inspection
    from autocompress.progress import Progress
    from autocompress.terminal import Terminal

    found = job.inspect(study, trial=trial, threads=threads, runs=runs, progress=Progress())
    present_inspection(found, Terminal(stderr=as_json))
    if as_json:
        Terminal().out(dumped(found.model_dump(mode="json")))


def ask(
    study: StudyName,
    max_drop: Annotated[float | None, typer.Option(metavar="POINTS", help="Points of the metric that may be lost.")] = None,
    min_speedup: Annotated[float | None, typer.Option(min=0, metavar="X", help="Times faster it must be, at least.")] = None,
    max_size: Annotated[str | None, typer.Option(metavar="SIZE", help="Weights file at most: 200KB, 1.5MB, 200000.")] = None,
    as_json: Json = False,
    runs: Runs = RUNS,
) -> None:
    """Ask the stored trials for the fastest within bounds.

    Nothing is trained or measured, and a running study can be asked too. A trial fits by its numbers of the search split; its holdout
    numbers are shown where there are some. Exit code 3: no trial fits; the nearest is shown with what it misses.

    \b
    Examples:
      autocompress ask digits --max-drop 0.5 --min-speedup 3 --max-size 200KB
      autocompress ask digits --max-size 50KB --json | jq .trial
    """
    from autocompress.answers import present_answer
    from autocompress.study.ask import ask as answer
    from autocompress.terminal import Terminal

    found = answer(study, max_drop=max_drop, min_speedup=min_speedup, max_size=max_size, runs=runs)
    if as_json:
        Terminal().out(dumped(found))
    else:
        present_answer(found, runs, Terminal())
    if not found["fits"]:
        raise typer.Exit(NOTHING_FOUND)


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that export or apply wrote.")],
    task: Annotated[str | None, typer.Option(metavar="TASK", help="The task; that of measured.json if not given.")] = None,
    data: Data = None,
    weights: Weights = None,
    model: Model = None,
    option: Options = None,
    speed_tolerance: Annotated[float, typer.Option(min=0, metavar="PERCENT", help="How far the speedup may be off.")] = 10.0,
    accuracy_tolerance: Annotated[float, typer.Option(min=0, metavar="POINTS", help="How far the metric may be off.")] = 0.1,
    speed: Annotated[bool, typer.Option("--speed", help="Judge the speed also on another machine.")] = False,
    as_json: Json = False,
    runs: Runs = RUNS,
) -> None:
    """Check an exported folder against its own numbers.

    Files first, by SHA256SUMS: one that is missing or changed is a line and exit code 2, before anything is timed. Then the artifact is
    measured here: speed against a freshly deployed baseline, the metric on the holdout split, size. Speed holds when its 95 % interval
    reaches into that of the claim, widened by the tolerance. On another machine, or with other versions, than measured.json names, the
    speed is shown and judged only with --speed. Exit code 4: a number does not hold.

    \b
    Examples:
      autocompress verify shipped
      autocompress verify shipped --task mypackage.model:factory --speed-tolerance 20
    """
    from autocompress import job
    from autocompress.answers import present_verdict
    from autocompress.progress import Progress
    from autocompress.terminal import Terminal
    from autocompress.verify import Tolerance

    tolerance = Tolerance(speed_tolerance, accuracy_tolerance, speed)
    given = task_options(data, weights, model, option)
    verdict = job.verify(folder, task=task, task_options=given, tolerance=tolerance, runs=runs, progress=Progress())
    content = asdict(verdict) | {"holds": verdict.holds}
    present_verdict(content, Terminal(stderr=as_json))
    if as_json:
        Terminal().out(dumped(content))
    if not verdict.holds:
        raise typer.Exit(OUTSIDE)


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A study, or an exported folder.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another of the same kind.")],
    as_json: Json = False,
    runs: Runs = RUNS,
) -> None:
    """Show two studies or two exported folders side by side.

    Says so when task, target, machine or versions differ, for then the numbers do not compare.

    \b
    Examples:
      autocompress compare digits digits-2
      autocompress compare shipped shipped-before --json | jq .differences
    """
    from autocompress.answers import present_comparison
    from autocompress.compare import compare as side_by_side
    from autocompress.terminal import Terminal

    found = side_by_side(a, b, runs)
    if as_json:
        Terminal().out(dumped(found))
    else:
        present_comparison(found, Terminal())


def survey(
    task: TaskName = "digits",
    data: Data = None,
    weights: Weights = None,
    model: Model = None,
    option: Options = None,
    space: Annotated[str, typer.Option(metavar="FILE", help="Search space: a YAML file, or default, small, large.")] = "default",
    runtime: RuntimeName = "auto",
    batch_size: Annotated[str, typer.Option(metavar="N[,N]", help="Batch size at which it must be fast.")] = "1",
    threads: Threads = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for survey.png and survey.svg.")] = None,
    as_json: Json = False,
    runs: Runs = RUNS,
) -> None:
    """Show what every choice would harm and save.

    For each layer its share of the time in the runtime, and for each choice of the space, made alone and without training, how much the
    loss rises and how many milliseconds it saves. Takes seconds; times are kept in the runs folder and reused. A search does the same
    before its first trial.

    \b
    Examples:
      autocompress survey
      autocompress survey --task mypackage.model:factory --space large --out figures
    """
    from autocompress import job
    from autocompress.answers import present_survey
    from autocompress.progress import Progress
    from autocompress.report.survey import layer_rows
    from autocompress.terminal import Terminal

    asked: dict[str, Any] = {"space": space, "runtime": runtime, "batch_size": batch_size, "threads": threads}
    asked["task_options"] = task_options(data, weights, model, option)
    found, layers = job.survey_of(task, runs=runs, out=out, progress=Progress(), **asked)
    rows = [
        {"name": row.name, "share": row.share, "choices": [{**one.model_dump(), "saved_ms": saved} for one, saved in row.choices]}
        for row in layer_rows(found, layers)
    ]
    present_survey(found, rows, Terminal(stderr=as_json))
    if as_json:
        Terminal().out(dumped({**found.model_dump(mode="json"), "layers": rows}))


def list_studies(runs: Runs = RUNS) -> None:
    """List the studies with their state.

    \b
    Example:
      autocompress list --runs runs
    """
    from autocompress import job
    from autocompress.terminal import Terminal, present_studies

    present_studies(job.list_studies(runs), runs, Terminal())


def doctor() -> None:
    """Show what this machine can run.

    Runtimes, device, kernels, and how to get the missing ones.

    \b
    Example:
      autocompress doctor
    """
    from autocompress import job
    from autocompress.terminal import Terminal, table

    Terminal().print(table(("what", "state", "detail"), job.doctor()))
