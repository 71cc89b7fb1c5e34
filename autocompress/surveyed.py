"""The measured survey of a study, or of a task alone: the choices come from the study's half, what they do from the evaluator's."""

from pathlib import Path

from autocompress.bench import CACHE
from autocompress.config import SearchConfig
from autocompress.evaluate import Bench
from autocompress.measure.samples import no_classes
from autocompress.progress import Progress
from autocompress.records import Survey
from autocompress.runs import RunPaths, to_json, write_text
from autocompress.study.question import question_of
from autocompress.study.soundings import alone, structures
from autocompress.survey import Judge, Site, measured
from autocompress.tasks.task import labelled, outputs_of

PROBES = 14


def survey_bench(config: SearchConfig, bench: Bench, runs: Path, progress: Progress) -> Survey:
    """Measure every choice of the space on the bench. Raises InvalidSpace where the space does not fit the model."""
    question = question_of(config, bench.layers)
    inputs, targets = labelled(bench.task)
    outputs = outputs_of(bench.task.model, inputs[:2])
    judge = Judge(inputs, targets, bench.task.loss, not no_classes(bench.task, outputs, targets[:2]))
    site = Site(
        model=bench.task.model, layers=bench.layers, runtime=bench.runtime, target=bench.target, machine=bench.machine,
        calibration=bench.calibration, batch=bench.inputs, baseline=bench.deployed, baseline_ms=bench.baseline.latency_ms,
        cache=runs / CACHE, say=progress.say,
    )  # fmt: skip
    return measured(
        site,
        alone(question.dimensions, config.space, bench.layers),
        structures(question.dimensions, config.space, bench.layers, PROBES),
        judge,
        progress,
    )


def survey_study(paths: RunPaths, config: SearchConfig, bench: Bench, progress: Progress) -> None:
    """Put the survey of a study on its bench: that on disk, or one that is measured now, once a study; none without that part."""
    wanted = "survey" in config.parts
    bench.survey = paths.read_survey() if wanted else None
    if wanted and bench.survey is None and not paths.results():
        bench.survey = survey_bench(config, bench, paths.runs, progress)
        write_text(paths.survey, to_json(bench.survey))
