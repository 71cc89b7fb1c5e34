"""Studies of the toy task: made by real processes, copied, and looked at from outside."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from toy_task import SPACE
from typer.testing import CliRunner, Result

from autocompress.cli import app
from autocompress.records import TrialResult
from autocompress.runs import RunPaths

TESTS = Path(__file__).resolve().parent
COMMAND = [sys.executable, "-c", "from autocompress.cli import main; main()"]
PATIENCE_S = 120


class Finished(NamedTuple):
    """A study that a process made, and what that process said."""

    paths: RunPaths
    code: int
    out: str
    err: str

    @property
    def summary(self) -> dict[str, Any]:
        """The last line of stdout."""
        found: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return found


def space_file(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "toy.yaml"
    file.write_text(SPACE, encoding="utf-8")
    return file


def search_arguments(runs: Path, study: str, budget: int | str, runtime: str) -> list[str]:
    """A search whose bounds every recipe meets."""
    where = ["--runtime", runtime, "--threads", "1", "--device", "cpu", "--runs", str(runs), "--study", study]
    bounds = ["--max-drop", "100", "--min-speedup", "0.01", "--budget", str(budget)]
    survey = ["--without", "survey"] if runtime == "fake" else []  # its seconds are real
    return ["search", "--task", "toy_task:make", "--space", str(space_file(runs.parent)), *where, *bounds, *survey]


def start(*arguments: str, **environment: str) -> "subprocess.Popen[str]":
    """The command line in a process of its own, in the folder of the tests; one thread, so that equal work gives equal bits."""
    quiet = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "COLUMNS")}
    own = quiet | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)} | environment
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*COMMAND, *arguments], cwd=TESTS, env=own, **pipes)


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    with process:
        try:
            out, err = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    return process.returncode, out, err


def finished(folder: Path, study: str, budget: int, runtime: str) -> Finished:
    runs = folder / "runs"
    code, out, err = ended(start(*search_arguments(runs, study, budget, runtime), "--json"))
    assert code == 0, err
    return Finished(RunPaths(runs, study), code, out, err)


def call(*arguments: str) -> Result:
    """The command line in this process."""
    return CliRunner().invoke(app, arguments)


def copied(paths: RunPaths, folder: Path) -> RunPaths:
    """A study of one's own to change."""
    shutil.copytree(paths.folder, folder / "runs" / paths.study)
    return RunPaths(folder / "runs", paths.study)


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Until the condition holds or the process has ended."""
    until = time.monotonic() + PATIENCE_S
    while not condition() and process.poll() is None:
        if time.monotonic() > until:
            kill(process)
            raise AssertionError("the search does not get there")
        time.sleep(0.005)


def kill(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def result_files(paths: RunPaths) -> list[Path]:
    return sorted(paths.folder.glob("trials/*/result.json"))


def fingerprints(paths: RunPaths) -> dict[str, tuple[int, str]]:
    """Every finished trial's result.json: when it was written, and its content."""
    return {file.parent.name: (file.stat().st_mtime_ns, hashlib.sha256(file.read_bytes()).hexdigest()) for file in result_files(paths)}


def leftovers(folder: Path) -> list[Path]:
    """Drafts of any kind under a folder."""
    return [file for file in folder.rglob("*") if "draft" in file.name or file.name.endswith(".older")]


def repeatable(result: TrialResult) -> dict[str, Any]:
    """A result without the clock, and without what other programs did meanwhile."""
    return result.model_dump(mode="json", exclude={"seconds": True, "finished_at": True, "measurement": {"busy"}})


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """As on a full disk, and without root: this process can write no file larger than ``size`` bytes."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
