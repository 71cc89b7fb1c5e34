"""The command line: one thin command a function of job; terminal shows what it returns.

Everything slow is imported inside the commands, so that ``--help`` is instant. Results go to stdout, progress to stderr.
Exit codes: 0 found, 2 wrong input, 3 finished but no recipe met the bounds, 4 an artifact is not what
it says (verify), 130 interrupted (143 by SIGTERM).
"""

import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from autocompress import options, questions
from autocompress.errors import Diverged, InfeasibleRecipe, UserError
from autocompress.options import FOUND, INTERRUPTED, NOTHING_FOUND, RUNS, TERMINATED, WRONG_INPUT, Json, Runs, StudyName, dumped
from autocompress.questions import BatchSize

if TYPE_CHECKING:
    from autocompress.job import DryRun, Study
    from autocompress.progress import Progress


class Commands(TyperGroup):
    """The commands; what they raise on purpose becomes one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            complain("interrupted")
            raise typer.Exit(code_of(stop)) from None
        except UserError as error:
            complain(f"error: {error}")
            raise typer.Exit(WRONG_INPUT) from None


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. SIGTERM is treated as Ctrl-C; a character that the output cannot encode is escaped."""
    signal.signal(signal.SIGTERM, terminated)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    app(args=arguments, prog_name="autocompress")


def terminated(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt(number)


def code_of(stop: KeyboardInterrupt) -> int:
    return TERMINATED if stop.args == (signal.SIGTERM,) else INTERRUPTED


def complain(text: str) -> None:
    from autocompress.progress import Progress

    Progress().say(text)


def run(work: "Callable[[], Study]", progress: "Progress", runs: Path, as_json: bool) -> NoReturn:
    """Do the long work, show what came of it, also of a part of it, and end with the exit code that tells which."""
    try:
        study = work()
    except KeyboardInterrupt as stop:
        present_kept(progress.study, runs, as_json)
        raise typer.Exit(code_of(stop)) from None
    present_study(study, as_json)
    raise typer.Exit(FOUND if study.summary["best"] else NOTHING_FOUND)


def present_study(study: "Study", as_json: bool) -> None:
    """Tables on stdout; with ``as_json`` on stderr, and the object as the last line of stdout."""
    from autocompress.terminal import Terminal, present

    shown = study.summary["best"] or study.summary["nearest"]
    words = study.words(shown["trial"]) if shown else []
    present(study.summary, words, study.paths.folder, Terminal(stderr=as_json))
    if as_json:
        Terminal().out(dumped(study.summary))


def present_dry_run(plan: "DryRun", as_json: bool) -> None:
    from autocompress.progress import Progress, duration
    from autocompress.terminal import Terminal, present_layers, present_space

    console = Terminal(stderr=as_json)
    Progress(console=console).begin(plan.config)
    present_layers(plan.layers, console)
    present_space(plan.dimensions, plan.size, console)
    console.field("time", f"about {duration(plan.seconds_estimate)}, estimated")
    if as_json:
        layers = [layer.model_dump(mode="json") for layer in plan.layers]
        content: dict[str, Any] = {"layers": layers, "dimensions": dict(plan.dimensions), "size": plan.size}
        content |= {"seconds_estimate": plan.seconds_estimate, "config": plan.config.model_dump(mode="json")}
        Terminal().out(dumped(content))


def present_kept(name: str | None, runs: Path, as_json: bool) -> None:
    """After an interruption: what is finished, and how to go on."""
    from autocompress import job
    from autocompress.terminal import command

    try:
        study = job.show(name, runs=runs) if name else None
    except UserError:
        study = None  # interrupted before the baseline was on disk
    if study is None or name is None:
        how = f"; go on with: {command('resume', name, runs)}" if name else ""
        complain(f"interrupted before the baseline was measured: nothing to show yet{how}")
        return
    present_study(study, as_json)
    finished = study.summary["finished"]
    trials = "1 trial" if finished == 1 else f"{finished} trials"
    complain(f"interrupted: {trials} finished, kept; go on with: {command('resume', name, runs)}")


def version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version as installed

        typer.echo(f"autocompress {installed('autocompress')}")
        raise typer.Exit


@app.callback()
def root(
    asked: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Make a trained PyTorch model small and fast, and measure that it is.

    \b
    Examples:
      autocompress search --budget 50      the main job, on embedded data
      autocompress search --task mypackage.model:factory --budget 20m
      autocompress show digits             what a study found
      autocompress explain digits          what each decision of its best recipe bought
      autocompress doctor                  what this machine can run

    Exit codes: 0 found, 2 wrong input, 3 no recipe met the bounds, 4 an artifact is not what it says, 130 interrupted.
    """


@app.command()
def search(
    *,
    task: options.TaskName = "digits",
    data: options.Data = None,
    weights: options.Weights = None,
    model: options.Model = None,
    option: options.Options = None,
    space: Annotated[str, typer.Option(metavar="FILE", help="Search space: a YAML file, or default, small, large.")] = "default",
    budget: Annotated[str, typer.Option(metavar="N|TIME", help="50: finished trials in all; 90s, 20m, 2h: wall clock.")] = "50",
    study: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the study; one is made up if not given.")] = None,
    runtime: options.RuntimeName = "auto",
    device: options.Device = "auto",
    batch_size: BatchSize = "1",
    threads: options.Threads = None,
    max_drop: Annotated[float, typer.Option(min=0, metavar="POINTS", help="How much worse the metric may be, in its unit.")] = 3.0,
    min_speedup: Annotated[float, typer.Option(min=0, metavar="X", help="Times faster it must be, at least.")] = 2.0,
    constraint: options.Constraints = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the proposals and of recovery.")] = 0,
    runs: Runs = RUNS,
    storage: options.Storage = None,
    sampler: options.SamplerName = "auto",
    stop_when_flat: options.StopWhenFlat = False,
    warm_start: options.WarmStart = None,
    without: options.Without = None,
    as_json: Json = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print layers, size of the space, estimated time.")] = False,
) -> None:
    """Search for fast and accurate forms of a model.

    Ends with the Pareto front, the best recipe and its numbers on the holdout split. Exit code 3: no recipe met both bounds; the
    nearest one is shown.

    \b
    Examples:
      autocompress search --budget 50
      autocompress search --task mypackage.model:factory --budget 20m --max-drop 1
      autocompress search --task cifar10 --data cifar-10-batches-bin
      autocompress search --task cifar10 --data bin --weights a.pt --model m:Net
      autocompress search --task char-lm --data book.txt --option length=128
      autocompress search --space large --batch-size 32 --threads 2 --study wide
      autocompress search --constraint "worst_class_drop <= 5"
      autocompress search --dry-run
    """
    from autocompress import job
    from autocompress.progress import Progress

    progress = Progress()
    asked: dict[str, Any] = {"space": space, "budget": budget, "study": study, "runs": runs, "storage": storage, "seed": seed}
    asked |= {"runtime": runtime, "device": device, "batch_size": batch_size, "threads": threads}
    asked |= {"max_drop": max_drop, "min_speedup": min_speedup, "constraints": constraint or None, "progress": progress}
    asked |= {"sampler": sampler, "stop_when_flat": stop_when_flat, "warm_start": warm_start, "without": without or None}
    asked["task_options"] = options.task_options(data, weights, model, option)
    if dry_run:
        present_dry_run(job.dry_run(task, **asked), as_json)
    else:
        run(lambda: job.search(task, **asked), progress, runs, as_json)


@app.command()
def resume(
    study: StudyName,
    budget: Annotated[str | None, typer.Option(metavar="N|TIME", help="A new budget, the finished trials included.")] = None,
    runs: Runs = RUNS,
) -> None:
    """Go on with a study from where it stopped.

    Its stored configuration holds; trials that are finished are never run again.

    \b
    Examples:
      autocompress resume digits
      autocompress resume digits --budget 100      50 are finished: 50 more
    """
    from autocompress import job
    from autocompress.progress import Progress

    progress = Progress()
    progress.study = study
    run(lambda: job.resume(study, budget=budget, runs=runs, progress=progress), progress, runs, as_json=False)


@app.command()
def refine(
    study: StudyName,
    trial: Annotated[str, typer.Option(metavar="TRIAL", help="best, fastest, smallest, knee, or a trial's number.")] = "best",
    budget: Annotated[str, typer.Option(metavar="N|TIME", help="Finished trials in all, or wall clock.")] = "10",
    name: Annotated[str | None, typer.Option("--study", metavar="NAME", help="Name of the new study; STUDY-refined if not given.")] = None,
    as_json: Json = False,
    runs: Runs = RUNS,
) -> None:
    """Search around a trial, with longer recovery.

    A new study: every number that the recipe chose may move to the next smaller or larger one of the space, and recovery takes four times
    the steps. It begins with the recipe itself, trained that long. Takes the bounds, the target and the seed of the study.

    \b
    Examples:
      autocompress refine digits --budget 10
      autocompress refine digits --trial 17 --budget 10m --study digits-17
    """
    from autocompress.progress import Progress
    from autocompress.refine import refine as search_around

    progress = Progress()
    run(lambda: search_around(study, trial=trial, budget=budget, name=name, runs=runs, progress=progress), progress, runs, as_json)


@app.command()
def show(
    study: StudyName,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Every trial as CSV.")] = False,
    runs: Runs = RUNS,
) -> None:
    """Show what a study found.

    Baseline, Pareto front, best recipe, outcomes counted. Exit code 0 also where no recipe met both bounds.

    \b
    Examples:
      autocompress show digits
      autocompress show digits --json | jq .best
      autocompress show digits --csv > trials.csv
    """
    if as_json and as_csv:
        raise typer.BadParameter("--json and --csv exclude each other")
    from autocompress import job
    from autocompress.terminal import Terminal

    found = job.show(study, runs=runs)
    if as_json:
        Terminal().out(dumped(found.summary))
    elif as_csv:
        Terminal().out(found.csv().rstrip("\r\n"))
    else:
        present_study(found, as_json=False)


app.command()(questions.explain)
app.command()(questions.inspect)
app.command()(questions.ask)
app.command()(questions.compare)
app.command()(questions.survey)


@app.command()
def export(
    study: StudyName,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")],
    trial: Annotated[str, typer.Option(metavar="TRIAL", help="best, fastest, smallest, knee, or a trial's number.")] = "best",
    runs: Runs = RUNS,
) -> None:
    """Write the model of a trial as a folder to ship.

    Model, recipe, weights, measured numbers, and a README on how to load it.

    \b
    Examples:
      autocompress export digits --out shipped
      autocompress export digits --trial 17 --out shipped
    """
    from autocompress import job
    from autocompress.terminal import Terminal, contents

    folder = job.export(study, trial=trial, out=out, runs=runs)
    Terminal().line(f"written   {contents(folder)}")


app.command()(questions.verify)


@app.command(name="apply")
def replay(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe.yaml, of a trial or written by hand.")],
    task: options.TaskName,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")],
    *,
    data: options.Data = None,
    weights: options.Weights = None,
    model: options.Model = None,
    option: options.Options = None,
    runtime: options.RuntimeName = "auto",
    device: options.Device = "auto",
    batch_size: BatchSize = "1",
    threads: options.Threads = None,
    runs: Runs = RUNS,
) -> None:
    """Replay a recipe with no study.

    Compresses, recovers, measures, and writes the artifact.

    \b
    Example:
      autocompress apply runs/digits/trials/0017/recipe.yaml --task digits --out shipped
    """
    from autocompress import job
    from autocompress.progress import Progress
    from autocompress.terminal import Terminal, contents, present_measurement

    asked: dict[str, Any] = {"runtime": runtime, "device": device, "batch_size": batch_size, "threads": threads, "runs": runs}
    asked["task_options"] = options.task_options(data, weights, model, option)
    try:
        result = job.apply(recipe, task=task, out=out, progress=Progress(), **asked)
    except (InfeasibleRecipe, Diverged) as error:
        raise UserError(f"{recipe}: {error}") from None
    if result.measurement is None:
        raise UserError(f"{recipe}: nothing was measured ({result.outcome}). {result.message}")
    console = Terminal()
    baseline = json.loads((out / "measured.json").read_text(encoding="utf-8"))["baseline"]
    present_measurement(result.measurement, result.target, console, baseline)
    console.line(f"written   {contents(out)}")


@app.command()
def report(study: StudyName, runs: Runs = RUNS) -> None:
    """Write report.html, figures/ and trials.csv of a study.

    They go into the study's folder; the HTML is one self-contained file.

    \b
    Example:
      autocompress report digits
    """
    from autocompress import job
    from autocompress.terminal import Terminal

    for file in job.report(study, runs):
        Terminal().line(f"written   {file}")


app.command(name="list")(questions.list_studies)
app.command()(questions.doctor)


if __name__ == "__main__":
    main()
