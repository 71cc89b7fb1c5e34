"""A chosen trial -> an artifact folder that needs nothing of this package; and back into PyTorch with ``load``."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import nn

from autocompress.artifact import CHECKSUMS, MEASURED, RECIPE, write_checksums
from autocompress.compress.build import rebuild
from autocompress.errors import InfeasibleRecipe, InvalidRecipe, UserError
from autocompress.recipe import from_yaml, to_yaml
from autocompress.records import Baseline, Machine, Measurement, TrialResult
from autocompress.runs import write_folder
from autocompress.runtimes.weights import read_weights
from autocompress.tasks.task import Task, calibration
from autocompress.terminal import value

README = """\
# {title}

Compressed by autocompress: {speedup:.2f}x ({low:.2f} to {high:.2f}) as fast as the same model in fp32
in {runtime} at batch {batch}{worst}, {threads} thread(s); {metric} {accuracy} against {reference} on the {split} split.
All numbers: measured.json. What was done to each layer: recipe.yaml. Are the files whole: `sha256sum --check {checksums}`,
and do the numbers hold on your machine: `autocompress verify "this folder"`.

{how}

In PyTorch again (fake-quantized, for further training): `model = autocompress.load("this folder", task)` with the task it was made from.
"""
ONNX = """\
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = {threads}  # as it was timed
    session = onnxruntime.InferenceSession("model.onnx", options)
    outputs = session.run(None, {{"input": inputs}})[0]  # inputs: {dtype} array, shape (any batch, {shape}), preprocessed as in training"""
PYTORCH = "The weights are in weights.safetensors; inputs: {dtype}, shape (any batch, {shape}), preprocessed as in training."


class Origin(NamedTuple):
    """The name that finds the task again, and the options it was made with."""

    task: str
    options: Mapping[str, str]


def export(result: TrialResult, holdout: Measurement | None, artifact: Path, about: tuple[Baseline, Machine, Origin], out: Path) -> Path:
    """Copy what was measured to ``out``, with recipe.yaml, measured.json, a README and SHA256SUMS.

    ``about``: what it was measured beside, where, and of which task. Raises UserError where ``out`` is not empty or the artifact is gone.
    """
    if not artifact.is_dir():
        raise UserError(f"{artifact}: the artifact of trial {result.number} is missing; replay its recipe.yaml with `autocompress apply`")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out: {out} exists and is not empty; choose another folder")
    baseline, machine, origin = about

    def fill(folder: Path) -> None:
        shutil.copytree(artifact, folder, dirs_exist_ok=True)
        (folder / RECIPE).write_text(to_yaml(result.recipe), encoding="utf-8")
        measured = {
            "target": result.target.model_dump(mode="json"),
            "search": result.measurement.model_dump(mode="json") if result.measurement else None,
            "holdout": holdout.model_dump(mode="json") if holdout else None,
            "baseline": baseline.model_dump(mode="json"),
            "machine": machine.model_dump(mode="json"),
            "input_shape": list(baseline.input_shape),
            "task": origin.task,
            "task_options": dict(origin.options),
            "trial": result.number,
        }
        (folder / MEASURED).write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(readme(result, holdout, baseline), encoding="utf-8")
        write_checksums(folder)

    write_folder(out, fill)
    return out


def readme(result: TrialResult, holdout: Measurement | None, baseline: Baseline) -> str:
    """A dozen lines on what this is and how to load it; the holdout numbers where there are some."""
    measured = holdout or result.measurement
    assert measured is not None
    how = (ONNX if result.target.runtime == "onnxruntime" else PYTORCH).format(
        dtype=baseline.input_dtype, shape=", ".join(map(str, baseline.input_shape)), threads=result.target.threads
    )
    return README.format(
        title=f"Trial {result.number}",
        speedup=measured.speedup,
        low=measured.speedup_low,
        high=measured.speedup_high,
        runtime=result.target.runtime,
        batch=result.target.batches,
        worst=f" (their mean; the worst is {measured.worst.speedup:.2f}x at batch {measured.worst.batch_size})" if measured.worst else "",
        threads=result.target.threads,
        metric=baseline.metric,
        accuracy=value(measured.accuracy, baseline.metric_unit),
        reference=value(measured.baseline_accuracy, baseline.metric_unit),
        split=measured.split,
        checksums=CHECKSUMS,
        how=how,
    )


def load(folder: str | Path, task: Task) -> nn.Module:
    """The PyTorch module of an exported folder, in eval mode: ``task``'s model cut as recipe.yaml says, with the stored weights.

    Raises InvalidRecipe where the recipe or the weights do not belong to the task's model.
    """
    folder = Path(folder)
    file = folder / RECIPE
    if not file.exists():
        raise InvalidRecipe(f"{file}: no such file; {folder} is not an exported folder")
    recipe = from_yaml(file.read_text(encoding="utf-8"), str(file))
    known = {name for name, _ in task.model.named_modules()}
    strangers = [plan.name for plan in recipe.layers if plan.name not in known]
    if strangers and recipe.student is None:
        raise InvalidRecipe(f"{file}: the model of task {task.name!r} has no layer {', '.join(strangers)}; give the task it was made from")
    try:
        model = rebuild(task.model, recipe, calibration(task), read_weights(folder), task.build_student)
    except InfeasibleRecipe as error:
        raise InvalidRecipe(f"{file}: {error}") from None
    except RuntimeError as error:  # torch lists names and shapes that do not fit, a line each
        first = " ".join(str(error).splitlines()[1:2]).strip() or str(error)
        raise InvalidRecipe(f"{folder}: the weights do not fit the model of task {task.name!r}: {first}") from None
    return model
