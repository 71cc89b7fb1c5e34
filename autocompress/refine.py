"""Once more around a good recipe: a new study of its neighbours, with longer recovery."""

from pathlib import Path

from autocompress.bench import named_task, same_machine
from autocompress.config import SearchConfig, parse_budget
from autocompress.errors import InvalidStudy
from autocompress.job import begin
from autocompress.progress import Progress
from autocompress.records import TrialResult
from autocompress.runs import RunPaths, free_name
from autocompress.saved import Study
from autocompress.study import pareto
from autocompress.study.space import sampled, whole_dimensions
from autocompress.tasks.task import Task

LONGER = 4  # times the steps of recovery


def refine(  # noqa: PLR0913 - the options of the command, and a task in memory
    study: str,
    *,
    trial: str | int = "best",
    budget: int | str = 10,
    name: str | None = None,
    runs: str | Path = "runs",
    task: Task | None = None,
    progress: Progress | None = None,
) -> Study:
    """A new study (``name``, or ``<study>-refined``) around a measured trial: every choice that is a number may move to its neighbours,
    names stay, and recovery takes four times the steps. It begins with the trial's own recipe, trained that long.

    ``trial``: best, fastest, smallest, knee or a number. The study that it starts from is not changed.
    Raises InvalidStudy where there is no such study, the trial was not measured or was not drawn from the study's space, or this is
    another machine.
    """
    progress = progress or Progress()
    paths = RunPaths(Path(runs), study)
    config = paths.read_config()
    result = pareto.pick(paths.results(), trial, pareto.bounds_of(config))
    wanted = named_task(config, task, "refine")
    same_machine(paths)
    closer = around(config, result, paths)
    asked = {"study": name or free_name(paths.runs, f"{study}-refined"), "budget": parse_budget(budget), "space": closer.space}
    progress.say(f"around trial {result.number} of {study}, with {LONGER} times the steps of recovery")
    return begin(config.model_copy(update=asked), wanted, paths.runs, progress)


def around(config: SearchConfig, result: TrialResult, paths: RunPaths) -> SearchConfig:
    """The configuration of a study with its space narrowed around a trial and longer recovery.

    A space that is narrowed already gives way to the whole of it: the trial may lie on its edge.
    """
    dims = whole_dimensions(config.space, paths.read_layers())
    near = indices(config, result, [dim.name for dim in sampled(dims)])
    recovery = config.space.recovery
    longer = {"steps": LONGER * recovery.steps, "quantized_steps": LONGER * recovery.quantized_steps}
    space = config.space.model_copy(update={"near": near, "recovery": recovery.model_copy(update=longer)})
    return config.model_copy(update={"space": space})


def indices(config: SearchConfig, result: TrialResult, names: list[str]) -> dict[str, int]:
    """The trial's choices as counted in the whole space. Raises InvalidStudy for a trial that was not drawn from it."""
    origin = config.space.near
    own = {name: index + max(0, origin[name] - 1) if name in origin else index for name, index in result.params.items()}
    near = {name: own.get(name, origin.get(name, -1)) for name in names}
    if min(near.values(), default=-1) < 0:
        raise InvalidStudy(
            f"trial {result.number} of study {config.study!r} was not drawn from its space ({result.source}), so it has no neighbours "
            "there. Choose another --trial."
        )
    return near
