"""What a user can ask for, a function each: search, resume, explain, inspect, apply, verify, show, export, report, list_studies, doctor.

The only room that sees both halves: the study, which knows optuna, and the evaluator, which knows torch.
"""

import contextlib
import copy
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autocompress.bench import IN_MEMORY, bench_of, named_task, same_machine, task_of
from autocompress.compress.distill import Lesson, Sample
from autocompress.compress.recover import recover_
from autocompress.config import SearchConfig, Space, load_space, parse_budget, parse_counts, parts_without, search_config
from autocompress.contest import time_contenders
from autocompress.doctor import doctor
from autocompress.errors import Diverged, InvalidRecipe, InvalidSpace, InvalidStudy, UserError
from autocompress.evaluate import Bench, confirm, evaluate
from autocompress.explain import explain
from autocompress.export import Origin, load
from autocompress.export import export as export_trial
from autocompress.gate import Gate, curves_of, is_audited
from autocompress.inspection import inspect, inspect_trial
from autocompress.measure.machine import in_words, this_machine
from autocompress.measure.quality import checks
from autocompress.measure.samples import no_classes
from autocompress.progress import Progress
from autocompress.recipe import Recipe, from_yaml
from autocompress.records import CHECKS, LayerInfo, Survey, TrialResult
from autocompress.report import write_report
from autocompress.report.survey import save_survey
from autocompress.runs import RunPaths, free_name, only_driver, to_json, write_text
from autocompress.runtimes import find_runtime
from autocompress.saved import Study, list_studies, show
from autocompress.study import pareto
from autocompress.study.propose import Proposal
from autocompress.study.question import question_of
from autocompress.study.space import space_size
from autocompress.study.study import run as run_study
from autocompress.study.summary import summary
from autocompress.survey import check_recipe, survey
from autocompress.surveyed import survey_bench, survey_study
from autocompress.tasks.find import absolute
from autocompress.tasks.task import Task, calibration, floor_drop, stream
from autocompress.verify import verify

__all__ = [
    "DryRun", "Study", "apply", "doctor", "dry_run", "explain", "export", "inspect", "list_studies", "load", "report", "resume", "search",
    "show", "survey_of", "verify",
]  # fmt: skip

# On more threads a model of a few hundred microseconds times the scheduler: one artifact came out as 3.5x and as 5.8x (runs/README.md).
THREADS = 1
SAMPLE_STEPS = 3
MEASURING_SECONDS = 2.0  # of a trial: deploying twice, timing twice


@dataclass(frozen=True)
class DryRun:
    """What a search would do: the layers, what may vary, how many recipes that makes, about how long it would take."""

    layers: tuple[LayerInfo, ...]
    dimensions: list[tuple[str, tuple[Any, ...]]]
    size: int
    seconds_estimate: float
    config: SearchConfig


def search(
    task: Task | str = "digits",
    *,
    space: str | Path | Space = "default",
    budget: int | str = 50,
    study: str | None = None,
    runs: str | Path = "runs",
    progress: Progress | None = None,
    **settings: Any,
) -> Study:
    """Search for the fastest recipes of a task's model and measure them on artifacts that really run.

    ``budget``: finished trials (50) or wall clock ("20m"). ``settings``: runtime, device, batch_size (8, or several: "1,8,32"), threads,
    max_drop (in the unit of the metric), min_speedup (times), constraints (["worst_class_drop <= 5"]), seed, storage (Optuna's URL),
    sampler, stop_when_flat, warm_start (another study), without (parts of the search to leave out), task_options ({"data": "folder"},
    for a task by name); see SearchConfig, Target.
    Raises UserError (InvalidTask, InvalidSpace, InvalidStudy, MissingDependency) for wrong input; KeyboardInterrupt with all kept.
    """
    progress = progress or Progress()
    runs = Path(runs)
    config = _config(task, space, budget, study or free_name(runs, _stem(task)), settings)
    return begin(config, task, runs, progress)


def begin(config: SearchConfig, task: Task | str, runs: Path, progress: Progress) -> Study:
    """Run a new study to the end of its budget. Raises InvalidStudy where there is one of its name."""
    paths = RunPaths(runs, config.study)
    if paths.config.exists():
        raise InvalidStudy(f"study {config.study!r} exists: go on with `autocompress resume {config.study}`, or give another --study")
    progress.begin(config, paths.folder)
    with only_driver(paths):
        try:
            paths.write_config(config)
            return _drive(paths, config, task_of(task, runs, progress, config.task_options), progress)
        except UserError:
            if not paths.results():
                shutil.rmtree(paths.folder, ignore_errors=True)  # wrong input leaves no study behind
            raise


def resume(
    study: str, *, budget: int | str | None = None, runs: str | Path = "runs", task: Task | None = None, progress: Progress | None = None
) -> Study:
    """Go on with a study under its stored configuration; ``budget`` counts the trials that are finished already.

    Raises InvalidStudy where there is no such study, its task changed, or this is another machine or other versions.
    """
    progress = progress or Progress()
    paths = RunPaths(Path(runs), study)
    config = paths.read_config()
    wanted = named_task(config, task, "resume")
    if budget is not None:
        config = config.model_copy(update={"budget": parse_budget(budget)})
    progress.begin(config, paths.folder)
    with only_driver(paths):
        same_machine(paths)
        return _drive(paths, config, task_of(wanted, paths.runs, progress, config.task_options), progress)


def dry_run(task: Task | str = "digits", *, runs: str | Path = "runs", progress: Progress | None = None, **asked: Any) -> DryRun:
    """What a search with the same arguments would do; writes no study."""
    progress = progress or Progress(quiet=True)
    settings = dict(asked)
    space, budget, study = settings.pop("space", "default"), settings.pop("budget", 50), settings.pop("study", None)
    config = _config(task, space, budget, study or free_name(Path(runs), _stem(task)), settings)
    ready = task_of(task, Path(runs), progress, config.task_options)
    layers = _survey(ready, config)
    question = question_of(config, layers)
    choices = [(dimension.name, dimension.choices) for dimension in question.dimensions]
    trials = config.budget.trials
    seconds = config.budget.seconds if trials is None else trials * _seconds_a_trial(ready, config)
    return DryRun(layers, choices, space_size(question.dimensions), seconds or 0.0, config)


def export(study: str, *, trial: str | int = "best", out: str | Path, runs: str | Path = "runs") -> Path:
    """See Study.export."""
    return show(study, runs).export(trial, out)


def report(study: str, runs: str | Path = "runs") -> tuple[Path, Path, Path]:
    """See Study.report."""
    return show(study, runs).report()


def apply(
    recipe: str | Path | Recipe,
    *,
    task: Task | str,
    out: str | Path,
    runs: str | Path = "runs",
    progress: Progress | None = None,
    **settings: Any,
) -> TrialResult:
    """Replay a recipe with no study: compress, recover, measure on search and holdout, write the artifact to ``out``.

    Raises InvalidRecipe, with the path of the field, where the recipe is not for this model or target.
    """
    progress = progress or Progress()
    source = str(recipe) if isinstance(recipe, str | Path) else "recipe"
    wanted = recipe if isinstance(recipe, Recipe) else from_yaml(_read(Path(recipe)), source)
    config = _config(task, Space(), 1, "apply", settings)
    scratch = RunPaths(Path(runs), free_name(Path(runs), "apply"))
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out: {out} exists and is not empty; choose another folder")
    ready = task_of(task, scratch.runs, progress, config.task_options)
    with _temporary(scratch):
        bench = bench_of(scratch, config, ready, progress)
        check_recipe(wanted, bench.layers, source)
        with progress.stage("compressing and measuring"):
            result = evaluate(wanted, bench, Gate(), scratch.trial(0).folder)
        if result.outcome != "measured":
            raise InvalidRecipe(f"{source}: {result.outcome}: {result.message}")
        with progress.stage("confirming on holdout"):
            holdout = confirm(wanted, bench, scratch.trial(0).artifact)
        about = (bench.baseline, bench.machine, Origin(config.task, config.task_options))
        export_trial(result, holdout, scratch.trial(0).artifact, about, out)
    return result


def survey_of(
    task: Task | str = "digits", *, runs: str | Path = "runs", out: str | Path | None = None, progress: Progress | None = None, **asked: Any
) -> tuple[Survey, tuple[LayerInfo, ...]]:
    """What every choice of a space would harm and save, and the layers; writes no study. ``out``: a folder for the figure."""
    progress, settings = progress or Progress(), dict(asked)
    config = _config(task, settings.pop("space", "default"), 1, "survey", settings)
    scratch = RunPaths(Path(runs), free_name(Path(runs), "survey"))
    ready = task_of(task, scratch.runs, progress, config.task_options)
    with _temporary(scratch):
        bench = bench_of(scratch, config, ready, progress)
        found = survey_bench(config, bench, scratch.runs, progress)
    if out is not None:
        save_survey(found, bench.layers, Path(out))
    return found, bench.layers


def _config(task: Task | str, space: str | Path | Space, budget: int | str, study: str, settings: dict[str, Any]) -> SearchConfig:
    """Settings as the command line names them -> SearchConfig. Raises UserError with the field that is wrong."""
    settings = {name: value for name, value in settings.items() if value is not None}
    options = absolute(settings.pop("task_options", {}))
    if options and not isinstance(task, str):
        raise UserError(f"task_options: {', '.join(options)}: a task in memory takes none; they are for a task by name")
    device = _device(settings.pop("device", "auto"))
    runtime = find_runtime(settings.pop("runtime", "auto")).name
    settings |= {"parts": parts_without(settings.pop("without", ()))}
    return search_config(
        {
            "runtime": runtime,
            "batch_sizes": parse_counts("--batch-size", settings.pop("batch_size", 1)),
            "threads": settings.pop("threads", THREADS),
        },
        study=study,
        task=task if isinstance(task, str) else IN_MEMORY,
        task_options=options,
        space=space if isinstance(space, Space) else load_space(space),
        budget=parse_budget(budget),
        device=device,
        **settings,
    )


def _device(name: str) -> str:
    """``auto`` is CUDA when there is a GPU. Raises UserError for a device that torch does not have."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device: {name!r} cannot be used here: {reason}. Use auto or cpu, or install a CUDA build of torch.") from None
    return name


def _stem(task: Task | str) -> str:
    """What a study is called when nobody names it: the task, or the module that its factory is in."""
    return task.name if isinstance(task, Task) else task.partition(":")[0].rpartition(".")[2]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRecipe(f"{path}: cannot be read: {error}") from None


def _survey(task: Task, config: SearchConfig) -> tuple[LayerInfo, ...]:
    return survey(task.model, calibration(task)[:1], find_runtime(config.target.runtime), this_machine())


def _drive(paths: RunPaths, config: SearchConfig, task: Task, progress: Progress) -> Study:
    """Trials until the budget is used, the front on holdout, the report."""
    bench = bench_of(paths, config, task, progress)
    _check_constraints(config, bench)
    survey_study(paths, config, bench, progress)
    paths.write_config(config)  # with the new budget of a resume, now that nothing can be refused any more
    finished = paths.results()
    with progress.stage("trials", config.budget.trials, done=len(finished)) as advance:

        def tell(result: TrialResult) -> None:
            finished.append(result)
            progress.say(_in_words(result))
            advance(1)

        def one(proposal: Proposal) -> TrialResult:
            return evaluate(proposal.recipe, bench, _gate(config, bench, finished, proposal.number), paths.trial(proposal.number).folder)

        stopped = run_study(paths, config, bench.layers, one, survey=bench.survey, on_trial=tell, say=progress.say)
    if stopped == "exhausted":
        progress.say(
            f"the search ended after {len(finished)} finished trials: whatever it would propose is finished already. "
            "A wider space (--space large, or more choices in your own) has more to find."
        )
    _finish_nearest(paths, bench, finished, progress)
    time_contenders(paths, pareto.bounds_of(config), bench, progress)
    _confirm_front(paths, config, bench, progress)
    _look_closer(paths, config, bench, progress)
    found = summary(config, bench.baseline, paths.results(), paths.holdouts(), state="finished", stopped=stopped)
    write_text(paths.pareto, json.dumps(found, indent=1, allow_nan=False) + "\n")
    with progress.stage("report"):
        if any(result.measurement for result in paths.results()):
            write_report(paths, found)
    return Study(paths)


def _gate(config: SearchConfig, bench: Bench, finished: list[TrialResult], number: int) -> Gate:
    """What a trial must have a hope for; nothing where the gate is left out."""
    if "gate" not in config.parts:
        return Gate()
    is_plane = config.space.objectives == pareto.TWO  # slow and inaccurate may still be the smallest
    front = pareto.points(pareto.within(finished, config.limits)) if is_plane else ()
    floor = floor_drop(bench.task, bench.baseline.accuracy)
    return Gate(config.min_speedup, front, floor, config.max_drop, curves_of(finished), is_audited(config.seed, number))


def _check_constraints(config: SearchConfig, bench: Bench) -> None:
    """Raises InvalidSpace, before any trial, where a constraint is on a check that the outputs of this task do not have."""
    outputs, (_, targets) = bench.outputs["search"], bench.splits["search"]
    known = checks(bench.task, outputs, outputs, targets)
    for limit in config.limits:
        if limit.name in CHECKS and limit.name not in known:
            reason = no_classes(bench.task, outputs, targets)
            raise InvalidSpace(f"--constraint: {limit}: {reason}, so there is no {limit.name}. Leave it out.")


def _finish_nearest(paths: RunPaths, bench: Bench, finished: list[TrialResult], progress: Progress) -> None:
    """Where the gate stopped every trial there would be nothing to show: run the fastest of them to its end after all."""
    gated = [result for result in finished if result.outcome == "gated"]  # a diverged one would diverge again
    if not gated or any(result.measurement for result in finished):
        return
    nearest = max(gated, key=lambda result: result.gate_speedup or 0.0)
    with progress.stage("training the nearest recipe, for the gate stopped all"):
        result = evaluate(nearest.recipe, bench, Gate(), paths.trial(nearest.number).folder)
    kept = {name: getattr(nearest, name) for name in ("number", "source", "params", "finished_at", "gate_speedup", "gate_predicted")}
    paths.write_result(result.model_copy(update=kept))
    progress.say(_in_words(result.model_copy(update=kept)))


def _confirm_front(paths: RunPaths, config: SearchConfig, bench: Bench, progress: Progress) -> None:
    """Measure what a user will read, the front and the best or the nearest, on the holdout split."""
    results, known = paths.results(), paths.holdouts()
    bounds = pareto.bounds_of(config)
    shown = pareto.best(results, bounds) or pareto.nearest(results, bounds)  # with constraints the best need not be on the front
    chosen = {result.number: result for result in [*pareto.front(results, config.space.objectives), *([shown] if shown else [])]}
    missing = [result for number, result in chosen.items() if number not in known]
    with progress.stage("confirming on holdout", len(missing)) as advance:
        for result in missing:
            files = paths.trial(result.number)
            try:
                write_text(files.holdout, to_json(confirm(result.recipe, bench, files.artifact)))
            except Diverged as error:  # finite on the search split: this trial stays unconfirmed, the others go on
                progress.say(f"trial {result.number} is not confirmed: {error}")
            advance(1)


def _look_closer(paths: RunPaths, config: SearchConfig, bench: Bench, progress: Progress) -> None:
    """At what a user will read most about; and what was said against the times of this study, where the machine was loaded."""
    results, bounds = paths.results(), pareto.bounds_of(config)
    shown = pareto.best(results, bounds) or pareto.nearest(results, bounds)
    if shown is not None:
        inspect_trial(shown, paths, bench, progress)
    busy = [point.busy for _, point in pareto.measured(results) if point.busy is not None]
    said = in_words(sum(busy) / len(busy), config.target.threads, bench.machine.cores) if busy else ""
    if said:
        progress.say(f"note: {said}")


def _in_words(result: TrialResult) -> str:
    """One line a finished trial."""
    if result.measurement is None:
        return f"trial {result.number} ({result.source}): {result.outcome}: {result.message}"
    one = result.measurement
    worst = f", {one.worst.speedup:.2f}x at batch {one.worst.batch_size}" if one.worst else ""
    return (
        f"trial {result.number} ({result.source}): {one.speedup:.2f}x ({one.speedup_low:.2f} to {one.speedup_high:.2f}){worst}, "
        f"drop {one.drop:.2f}, {one.size_bytes / 1000:.0f} kB, {sum(result.seconds.values()):.1f} s"
    )


def _seconds_a_trial(task: Task, config: SearchConfig) -> float:
    """An estimate: steps timed on the uncompressed model, scaled by the mean share of multiply-adds that stays, and the measuring."""
    recipe = Recipe.model_validate({"recovery": {"steps": SAMPLE_STEPS}, "distillation": None})
    model = copy.deepcopy(task.model)
    batches = (Sample(batch[0], batch[1]) for batch in stream(task, 2 * SAMPLE_STEPS, 0))
    lesson = Lesson(loss=task.loss, training_step=task.training_step)
    recover_(model, recipe, batches, lesson)
    started = time.monotonic()
    recover_(model, recipe, batches, lesson)
    step = (time.monotonic() - started) / SAMPLE_STEPS
    shares = config.space.keep.choices
    share = sum(one**2 for one in shares) / len(shares)
    return MEASURING_SECONDS + step * share * (config.space.recovery.steps + 3 * config.space.recovery.quantized_steps)


@contextlib.contextmanager
def _temporary(paths: RunPaths) -> Iterator[None]:
    """A run folder that is gone afterwards."""
    try:
        yield
    finally:
        shutil.rmtree(paths.folder, ignore_errors=True)
