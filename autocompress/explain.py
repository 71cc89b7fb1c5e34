"""Why this recipe: every decision of a trial undone in turn and really measured, and the recipe that is left without the useless ones."""

import shutil
from pathlib import Path

from autocompress.bench import reopened
from autocompress.decisions import Decision, decisions, undo
from autocompress.errors import InvalidRecipe, InvalidStudy
from autocompress.evaluate import Bench, evaluate, opened
from autocompress.gate import Gate
from autocompress.measure.batches import compare_batches
from autocompress.measure.latency import Effort
from autocompress.progress import Progress
from autocompress.recipe import Recipe, to_yaml
from autocompress.records import Attribution, Beside, Measurement, TrialResult, Undone
from autocompress.runs import RunPaths, TrialPaths, read_json, to_json, write_text
from autocompress.survey import check_recipe
from autocompress.tasks.task import Task

NOTHING = 0.03  # of the speed: what is slower by less, with an interval that covers 1, is not slower
PATIENCE = Effort(width=0.04, seconds=2.0, segments=24)


def explain(
    study: str, *, trial: str | int = "best", runs: str | Path = "runs", task: Task | None = None, progress: Progress | None = None
) -> Attribution:
    """What each decision of a trial bought in time and cost in accuracy, on the search split; stored as the trial's attribution.json.

    ``trial``: best, fastest, smallest, knee or a number. Interrupted, it keeps what is measured, and the next call goes on.
    Raises InvalidStudy where there is no such study or trial, the study is being run, its task changed, or this is another machine.
    """
    progress = progress or Progress()
    paths = RunPaths(Path(runs), study)
    with reopened(paths, trial, task, "explain", progress) as (result, bench):
        attribution = attribute(result, bench, paths, progress)
        write_text(paths.trial(result.number).attribution, to_json(attribution))
        for artifact in paths.folder.glob("undone/*/artifact"):  # what was measured stays; `apply` makes the simpler recipe again
            shutil.rmtree(artifact, ignore_errors=True)
    return attribution


def attribute(result: TrialResult, bench: Bench, paths: RunPaths, progress: Progress) -> Attribution:
    """Measure the recipe of a trial without each of its decisions, and without all those together that bought nothing."""
    trial = _Chosen(result, bench, paths)
    found = decisions(result.recipe, bench.layers)
    pairs: list[tuple[Decision, Undone]] = []
    notes: list[str] = []
    with progress.stage(f"undoing the decisions of trial {result.number}", len(found)) as advance:
        for decision in found:
            without = trial.measured(decision.without)
            if without.measurement is None:
                notes.append(f"{decision.words}: could not be undone ({without.outcome}: {without.message})")
            else:
                pairs.append((decision, undone(decision, without.measurement, trial.point, trial.beside(without))))
            advance(1)
    useless = [decision for decision, one in pairs if not one.bought]
    offered = None
    if useless:
        with progress.stage("measuring the recipe without what bought nothing"):
            offered = _simpler(trial, undo(result.recipe, (place for decision in useless for place in decision.places)), notes)
    return Attribution(
        trial=result.number,
        metric_unit=bench.baseline.metric_unit,
        decisions=tuple(one for _, one in pairs),
        simpler=offered.recipe if offered else None,
        simpler_measurement=offered.measurement if offered else None,
        notes=tuple(notes),
    )


def undone(decision: Decision, without: Measurement, chosen: Measurement, beside: Beside) -> Undone:
    """What a decision bought in time, from both timed side by side: what a study timed an hour ago was timed on a machine in another mood.

    It bought time where without it the recipe is slower beyond the interval, or by more than NOTHING: on a noisy machine the interval
    covers 1 also where something was bought. A decision about layers is there for time; a setting of the whole model (the teacher,
    how ranges are found) for accuracy as well.
    """
    slower = beside.ratio_high < 1 or beside.ratio < 1 - NOTHING
    worse = without.drop > chosen.drop
    return Undone(
        decision=decision.words,
        layers=decision.layers,
        speedup=chosen.speedup * beside.ratio,
        drop=without.drop,
        bought_ms=beside.latency_ms - beside.trial_latency_ms,
        cost_points=chosen.drop - without.drop,
        bought_bytes=without.size_bytes - chosen.size_bytes,
        bought=slower or (worse and not decision.layers),
    )


def _simpler(trial: "_Chosen", recipe: Recipe, notes: list[str]) -> TrialResult | None:
    """The recipe without all that bought nothing, or None with a note: decisions that are useless alone may be of use together."""
    simpler = trial.measured(recipe)
    if simpler.measurement is None:
        notes.append(f"without all that bought nothing: {simpler.outcome}: {simpler.message}")
        return None
    beside = trial.beside(simpler)
    if beside.ratio_high < 1 - NOTHING:
        share = f"{100 * (1 - beside.ratio):.0f} % slower"
        notes.append(f"what bought nothing alone does together: without all of it the recipe is {share}; keep trial {trial.result.number}")
        return None
    return simpler


class _Chosen:
    """The trial that is explained, and what is measured beside it; every measurement is kept on disk as soon as it is made."""

    def __init__(self, result: TrialResult, bench: Bench, paths: RunPaths) -> None:
        assert result.measurement is not None
        self.result, self.bench, self.paths, self.point = result, bench, paths, result.measurement
        whole = (one for one in paths.results() if one.measurement is not None and paths.trial(one.number).artifact.is_dir())
        self.known = {one.recipe.digest: one for one in whole}
        artifact = paths.trial(result.number).artifact
        if not artifact.is_dir():
            raise InvalidStudy(f"{artifact}: the artifact of trial {result.number} is missing, so nothing can be timed beside it")

    def measured(self, recipe: Recipe) -> TrialResult:
        """A trial of the study with this recipe, an earlier measurement of it for `explain`, or a new one."""
        if recipe.digest in self.known:
            return self.known[recipe.digest]
        files = self.paths.undone(recipe.digest)
        if files.result.exists():
            kept = read_json(files.result, TrialResult)
            if kept.measurement is None or files.artifact.is_dir() or self.timed_beside(files) is not None:
                return kept
        try:
            check_recipe(recipe, self.bench.layers, "recipe")
        except InvalidRecipe as error:
            return TrialResult(recipe=recipe, target=self.bench.target, outcome="infeasible", message=str(error))
        result = evaluate(recipe, self.bench, Gate(), files.folder)
        write_text(files.recipe, to_yaml(recipe))
        write_text(files.result, to_json(result))
        return result

    def timed_beside(self, files: TrialPaths) -> Beside | None:
        """What an earlier call found of this trial and what lies in ``files``."""
        found = read_json(files.beside, Beside) if files.beside.exists() else None
        return found if found is not None and found.trial == self.result.recipe.digest else None

    def beside(self, other: TrialResult) -> Beside:
        """Both artifacts timed in alternating blocks, or what an earlier call found."""
        digest, files = other.recipe.digest, self.paths.undone(other.recipe.digest)
        if (found := self.timed_beside(files)) is not None:
            return found
        artifact = self.paths.trial(self.known[digest].number).artifact if digest in self.known else files.artifact
        chosen = opened(self.result.recipe, self.bench, self.paths.trial(self.result.number).artifact)
        timing, _ = compare_batches(chosen, opened(other.recipe, self.bench, artifact), self.bench.batches, PATIENCE)
        made = Beside(
            trial=self.result.recipe.digest,
            ratio=timing.speedup,
            ratio_low=timing.low,
            ratio_high=timing.high,
            latency_ms=timing.latency_ms,
            trial_latency_ms=timing.baseline_latency_ms,
        )
        write_text(files.beside, to_json(made))
        return made
