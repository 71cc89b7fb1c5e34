"""What the commands share: exit codes, options, and JSON as the last line of stdout."""

import json
from pathlib import Path
from typing import Annotated

import typer

from autocompress.errors import UserError

FOUND, WRONG_INPUT, NOTHING_FOUND, OUTSIDE, INTERRUPTED, TERMINATED = 0, 2, 3, 4, 130, 143
RUNS = Path("runs")

StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="Name of the study: a folder under --runs.")]
Runs = Annotated[Path, typer.Option(metavar="DIR", help="Folder that holds the studies.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object as the last line of stdout.")]
SamplerName = Annotated[
    str, typer.Option(metavar="NAME", help="auto: the own search; tpe, nsga2, nsga3, gp, random, qmc: that sampler of Optuna alone.")
]
StopWhenFlat = Annotated[bool, typer.Option("--stop-when-flat", help="End early once the front stands still and nothing is expected.")]
Constraints = Annotated[
    list[str] | None, typer.Option(metavar="BOUND", help="One more bound: 'size_bytes <= 200000'; with soft, it costs. Repeatable.")
]
Storage = Annotated[str | None, typer.Option(metavar="URL", help="Optuna storage; SQLite in the study if not given.")]
WarmStart = Annotated[str | None, typer.Option(metavar="STUDY", help="Try the front of another study of --runs early.")]
Without = Annotated[list[str] | None, typer.Option(metavar="PART", hidden=True, help="Leave a part of the own search out.")]
RuntimeName = Annotated[str, typer.Option(metavar="NAME", help="Where it must be fast: onnxruntime, eager; auto: what fits.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="Where recovery trains: cpu, cuda; auto takes CUDA when there is one.")]
Threads = Annotated[int | None, typer.Option(min=1, metavar="N", help="Threads it may use there.  [default: 1]")]
TASK = "A built-in task (digits, fashion-mnist, cifar10, image-folder, text-classification, char-lm, tabular), or package.module:factory."
TaskName = Annotated[str, typer.Option("--task", metavar="TASK", help=TASK)]
Data = Annotated[str | None, typer.Option(metavar="PATH", help="Folder or file of the task's data; nothing is ever downloaded.")]
Weights = Annotated[str | None, typer.Option(metavar="FILE", help="Trained weights: safetensors, or a checkpoint without code.")]
Model = Annotated[str | None, typer.Option(metavar="FACTORY", help="package.module:factory of your architecture.")]
OPTION = "An option of the task, as label=category. Repeatable; an unknown one lists what there is."
Options = Annotated[list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help=OPTION)]


def task_options(data: str | None, weights: str | None, model: str | None, more: list[str] | None) -> dict[str, str]:
    """What was given, by name. Raises UserError for one that is no NAME=VALUE, or given twice."""
    found = {name: value for name, value in (("data", data), ("weights", weights), ("model", model)) if value is not None}
    for text in more or ():
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not name or not equals:
            raise UserError(f"--option: must be NAME=VALUE, as label=category, got {text!r}")
        if name in found:
            raise UserError(f"--option: {name} is given twice")
        found[name] = value
    return found


def dumped(content: object) -> str:
    """One line of strict JSON: a number that is not one would break the scripts that read it, so it is a bug of ours."""
    from pydantic_core import to_jsonable_python

    return json.dumps(content, allow_nan=False, default=to_jsonable_python)
