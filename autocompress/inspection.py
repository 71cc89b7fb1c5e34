"""A closer look at the recipe that a study shows: memory, load time, throughput, classes, hard and rare samples, shifted inputs.

Takes some ten seconds an artifact, so it is made of the chosen one only, on the holdout split, which selects nothing.
"""

from pathlib import Path

from torch import Tensor

from autocompress.compress.quantize import fold_batch_norm
from autocompress.errors import UserError
from autocompress.evaluate import Bench, twin
from autocompress.measure.accuracy import predict
from autocompress.measure.end_to_end import end_to_end
from autocompress.measure.latency import SEARCH
from autocompress.measure.quality import inspect_outputs
from autocompress.measure.robustness import Run, Subject, shifts
from autocompress.measure.throughput import sweep
from autocompress.measure.turn import turn
from autocompress.measure.usage import usage
from autocompress.progress import Progress
from autocompress.records import Inspection, TrialResult
from autocompress.runs import RunPaths, to_json, write_text
from autocompress.runtimes.runtime import Deployed

SWEEP_SECONDS = 5.0


def inspect_trial(result: TrialResult, paths: RunPaths, bench: Bench, progress: Progress) -> None:
    """Look at a measured trial and keep what was found as its inspection.json; once."""
    files = paths.trial(result.number)
    if files.inspection.exists():
        return
    with progress.stage(f"a closer look at trial {result.number}"):
        try:
            with turn(bench.target.device, progress.say):
                found = inspect(result, bench, files.artifact, paths.baseline_artifact)
        except UserError as error:  # a process that died is no reason to end without the report
            progress.say(f"trial {result.number} is shown without memory, throughput and shifts: {error}")
        else:
            write_text(files.inspection, to_json(found))


def inspect(result: TrialResult, bench: Bench, artifact: Path, baseline_artifact: Path) -> Inspection:
    """Everything of an artifact that not every trial is measured for, beside the same of the baseline."""
    task, target, (x, y) = bench.task, bench.target, bench.splits["holdout"]
    model = twin(result.recipe, bench, artifact)
    deployed = bench.runtime.open(artifact, target.threads, model)
    used, used_before = (usage(folder, target.runtime, target.threads, bench.inputs) for folder in (artifact, baseline_artifact))
    throughput = sweep(bench.deployed, deployed, bench.inputs, target.threads, SWEEP_SECONDS)
    given = fold_batch_norm(task.model, bench.example)
    shifted = shifts(task, Subject(runs(deployed), model), Subject(runs(bench.deployed), given), x, y)
    parts = inspect_outputs(task, predict(deployed, x), bench.outputs["holdout"], y)
    notes = (*parts.notes, *shifted.notes, f"throughput: {throughput.stopped}")
    return Inspection(
        usage=used,
        baseline_usage=used_before,
        **parts._replace(notes=notes)._asdict(),
        throughput=throughput.rows,
        shifts=shifted.shifts,
        end_to_end=end_to_end(task, (bench.deployed, deployed), bench.inputs, target.threads, SEARCH),
    )


def runs(deployed: Deployed) -> Run:
    """Inputs (N, ...) -> outputs (N, ...) of the artifact."""

    def run(inputs: Tensor) -> Tensor:
        return predict(deployed, inputs)

    return run
