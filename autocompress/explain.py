"""Why this recipe: every decision of a trial undone in turn and really measured, and the recipe that is left without the useless ones."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from autocompress.bench import IN_MEMORY, bench_of, same_machine, task_of
from autocompress.decisions import Decision, decisions, undo
from autocompress.errors import InvalidRecipe, InvalidStudy
from autocompress.evaluate import Bench, Gate, evaluate
from autocompress.progress import Progress
from autocompress.recipe import Recipe, to_yaml
from autocompress.records import Attribution, Measurement, TrialResult, Undone
from autocompress.runs import RunPaths, only_driver, read_json, to_json, write_text
from autocompress.study import pareto
from autocompress.survey import check_recipe
from autocompress.tasks.task import Task


def explain(
    study: str, *, trial: str | int = "best", runs: str | Path = "runs", task: Task | None = None, progress: Progress | None = None
) -> Attribution:
    """What each decision of a trial bought in time and cost in accuracy, on the search split; stored as the trial's attribution.json.

    ``trial``: best, fastest, smallest, knee or a number. Interrupted, it keeps what is measured, and the next call goes on.
    Raises InvalidStudy where there is no such study or trial, the study is being run, its task changed, or this is another machine.
    """
    progress = progress or Progress()
    paths = RunPaths(Path(runs), study)
    config = paths.read_config()
    result = pareto.pick(paths.results(), trial, pareto.Bounds(config.max_drop, config.min_speedup))
    if config.task == IN_MEMORY and task is None:
        raise InvalidStudy(f"study {study!r} was made from a task in memory: explain it in Python with explain({study!r}, task=...)")
    with only_driver(paths):
        same_machine(paths)
        bench = bench_of(paths, config, task_of(task or config.task, paths.runs, progress), progress)
        attribution = attribute(result, bench, paths, progress)
        write_text(paths.trial(result.number).attribution, to_json(attribution))
    return attribution


def attribute(result: TrialResult, bench: Bench, paths: RunPaths, progress: Progress) -> Attribution:
    """Measure the recipe of a trial without each of its decisions, and without all those together that bought nothing."""
    chosen = result.measurement
    assert chosen is not None
    found = decisions(result.recipe, bench.layers)
    known = {one.recipe.digest: one for one in paths.results() if one.measurement is not None}
    pairs: list[tuple[Decision, Undone]] = []
    notes = []
    with progress.stage(f"undoing the decisions of trial {result.number}", len(found)) as advance:
        for decision in found:
            without = measured(decision.without, bench, paths, known)
            if without.measurement is None:
                notes.append(f"{decision.words}: could not be undone ({without.outcome}: {without.message})")
            else:
                pairs.append((decision, undone(decision, without.measurement, chosen)))
            shutil.rmtree(paths.undone(decision.without.digest).artifact, ignore_errors=True)  # only its numbers are of use
            advance(1)
    useless = [decision for decision, one in pairs if not one.bought]
    simpler = None
    if useless:
        recipe = undo(result.recipe, (place for decision in useless for place in decision.places))
        with progress.stage("measuring the recipe without what bought nothing"):
            simpler = measured(recipe, bench, paths, known)
        if simpler.measurement is None:
            notes.append(f"without all that bought nothing: {simpler.outcome}: {simpler.message}")
    offered = simpler if simpler is not None and simpler.measurement is not None else None
    return Attribution(
        trial=result.number,
        decisions=tuple(one for _, one in pairs),
        simpler=offered.recipe if offered else None,
        simpler_measurement=offered.measurement if offered else None,
        notes=tuple(notes),
    )


def undone(decision: Decision, without: Measurement, chosen: Measurement) -> Undone:
    """What a decision bought. Milliseconds come from the two speedups, each paired with the same baseline: absolute times drift.

    A decision about layers is there for time; a setting of the whole model (the teacher, how ranges are found) for accuracy as well.
    """
    slower, worse = without.speedup_high < chosen.speedup_low, without.drop > chosen.drop
    return Undone(
        decision=decision.words,
        layers=decision.layers,
        speedup=without.speedup,
        drop=without.drop,
        bought_ms=chosen.baseline_latency_ms * (1 / without.speedup - 1 / chosen.speedup),
        cost_points=chosen.drop - without.drop,
        bought_bytes=without.size_bytes - chosen.size_bytes,
        bought=slower or (worse and not decision.layers),
    )


def measured(recipe: Recipe, bench: Bench, paths: RunPaths, known: Mapping[str, TrialResult]) -> TrialResult:
    """A trial of the study with this recipe, an earlier measurement of it for `explain`, or a new one, which is kept."""
    if recipe.digest in known:
        return known[recipe.digest]
    files = paths.undone(recipe.digest)
    if files.result.exists():
        return read_json(files.result, TrialResult)
    try:
        check_recipe(recipe, bench.layers, "recipe")
    except InvalidRecipe as error:
        return TrialResult(recipe=recipe, target=bench.target, outcome="infeasible", message=str(error))
    result = evaluate(recipe, bench, Gate(), files.folder)
    write_text(files.recipe, to_yaml(recipe))
    write_text(files.result, to_json(result))
    return result
