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


def dumped(content: object) -> str:
    """One line of strict JSON: a number that is not one would break the scripts that read it, so it is a bug of ours."""
    from pydantic_core import to_jsonable_python

    return json.dumps(content, allow_nan=False, default=to_jsonable_python)
