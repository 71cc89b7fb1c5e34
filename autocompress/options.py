"""What the commands share: exit codes, options, and JSON as the last line of stdout."""

import json
from pathlib import Path
from typing import Annotated

import typer

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


def dumped(content: object) -> str:
    """One line of strict JSON: a number that is not one would break the scripts that read it, so it is a bug of ours."""
    from pydantic_core import to_jsonable_python

    return json.dumps(content, allow_nan=False, default=to_jsonable_python)
