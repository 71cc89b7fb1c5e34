"""RunPaths: every file name under runs/<study>/; atomic writes; reading back what was written; one driver at a time.

``result.json`` is the truth: a trial is finished when it exists, and it appears only whole.
"""

import contextlib
import fcntl
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import ValidationError

from autocompress.config import SearchConfig
from autocompress.errors import InvalidStudy, UserError, explain
from autocompress.recipe import Frozen, to_yaml
from autocompress.records import Attribution, Baseline, Inspection, LayerInfo, Machine, Measurement, Survey, TrialResult

Record = TypeVar("Record", bound=Frozen)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Layers(Frozen):
    """layers.json: the survey as a list."""

    layers: tuple[LayerInfo, ...]


def check_name(name: str) -> str:
    """A study's name is one folder name; raises InvalidStudy where it could be a path."""
    if not NAME.fullmatch(name):
        raise InvalidStudy(
            f"--study: {name!r} is not a study name: letters, digits, '.', '_' and '-' only, beginning with a letter or digit, "
            "at most 100, no path separators. The folder that holds the studies is --runs."
        )
    return name


@dataclass(frozen=True)
class TrialPaths:
    """The files of one trial."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def result(self) -> Path:
        return self.folder / "result.json"

    @property
    def holdout(self) -> Path:
        return self.folder / "holdout.json"

    @property
    def remeasured(self) -> Path:
        """The measurement with a longer timing: it takes the place of the one in result.json, which stays as it was told."""
        return self.folder / "remeasured.json"

    @property
    def beside(self) -> Path:
        return self.folder / "beside.json"

    @property
    def inspection(self) -> Path:
        return self.folder / "inspection.json"

    @property
    def attribution(self) -> Path:
        return self.folder / "attribution.json"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def artifact(self) -> Path:
        return self.folder / "artifact"


@dataclass(frozen=True)
class RunPaths:
    """The files of one study under ``runs``."""

    runs: Path
    study: str

    def __post_init__(self) -> None:
        check_name(self.study)

    @property
    def folder(self) -> Path:
        return self.runs / self.study

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def machine(self) -> Path:
        return self.folder / "machine.json"

    @property
    def layers(self) -> Path:
        return self.folder / "layers.json"

    @property
    def survey(self) -> Path:
        return self.folder / "survey.json"

    @property
    def baseline(self) -> Path:
        return self.folder / "baseline.json"

    @property
    def baseline_artifact(self) -> Path:
        return self.folder / "baseline"

    @property
    def database(self) -> Path:
        return self.folder / "study.db"

    @property
    def pareto(self) -> Path:
        return self.folder / "pareto.json"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def figures(self) -> Path:
        return self.folder / "figures"

    @property
    def trials_csv(self) -> Path:
        return self.folder / "trials.csv"

    @property
    def lock(self) -> Path:
        return self.folder / "driver.lock"

    def trial(self, number: int) -> TrialPaths:
        return TrialPaths(self.folder / "trials" / f"{number:04d}")

    def undone(self, digest: str) -> TrialPaths:
        """A recipe that `explain` measured: that of a trial without some of its decisions, by its digest."""
        return TrialPaths(self.folder / "undone" / digest)

    def results(self) -> list[TrialResult]:
        """Every finished trial, by number, with its longest timing. Raises InvalidStudy naming a file that does not read."""
        files = sorted((self.folder / "trials").glob("*/result.json"))
        return sorted((_with_longest_timing(TrialPaths(file.parent)) for file in files), key=lambda result: result.number)

    def holdouts(self) -> dict[int, Measurement]:
        """Holdout measurements of the trials that have one, by trial number."""
        files = sorted((self.folder / "trials").glob("*/holdout.json"))
        return {int(file.parent.name): read_json(file, Measurement) for file in files}

    def inspections(self) -> dict[int, Inspection]:
        """What else was looked at of the trials on holdout, by trial number."""
        files = sorted((self.folder / "trials").glob("*/inspection.json"))
        return {int(file.parent.name): read_json(file, Inspection) for file in files}

    def attributions(self) -> dict[int, Attribution]:
        """What each decision bought, of the trials that `explain` was asked about."""
        files = sorted((self.folder / "trials").glob("*/attribution.json"))
        return {int(file.parent.name): read_json(file, Attribution) for file in files}

    def write_result(self, result: TrialResult) -> None:
        """recipe.yaml, then result.json, which is what makes the trial finished; both whole or absent."""
        files = self.trial(result.number)
        write_text(files.recipe, to_yaml(result.recipe))
        write_text(files.result, to_json(result))

    def read_config(self) -> SearchConfig:
        if not self.config.exists():
            known = ", ".join(studies(self.runs)) or "none"
            raise InvalidStudy(f"study {self.study!r} does not exist in {self.runs}/. Studies there: {known}.")
        try:
            return SearchConfig.model_validate(yaml.safe_load(self.config.read_text(encoding="utf-8")))
        except yaml.YAMLError as error:
            raise InvalidStudy(f"{self.config}: not valid YAML: {' '.join(str(error).split())}") from None
        except ValidationError as error:
            raise InvalidStudy(explain(error, str(self.config))) from None

    def write_config(self, config: SearchConfig) -> None:
        write_text(self.config, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))

    def read_machine(self) -> Machine:
        return read_json(self.machine, Machine)

    def read_layers(self) -> tuple[LayerInfo, ...]:
        return read_json(self.layers, Layers).layers

    def read_survey(self) -> Survey | None:
        """None where the study measured none."""
        return read_json(self.survey, Survey) if self.survey.exists() else None

    def read_baseline(self) -> Baseline:
        return read_json(self.baseline, Baseline)


def studies(runs: Path) -> list[str]:
    """Names of the studies under a folder, oldest first."""
    configs = sorted(runs.glob("*/config.yaml"), key=lambda file: file.stat().st_mtime)
    return [file.parent.name for file in configs]


def free_name(runs: Path, stem: str) -> str:
    """``stem``, or ``stem-2``, ``stem-3``, ...: the first that no study has."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "study"
    names = (stem if count == 1 else f"{stem}-{count}" for count in range(1, 1_000_000))
    return next(name for name in names if not (runs / name).exists())


def to_json(record: Frozen) -> str:
    return record.model_dump_json(indent=1) + "\n"


def read_json(path: Path, kind: type[Record]) -> Record:
    """Read one record; raises InvalidStudy that names the file and the field."""
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidStudy(f"{path}: this file of the study is missing") from None
    except ValidationError as error:
        raise InvalidStudy(explain(error, str(path))) from None


def _with_longest_timing(files: TrialPaths) -> TrialResult:
    result = read_json(files.result, TrialResult)
    if not files.remeasured.exists():
        return result
    return result.model_copy(update={"measurement": read_json(files.remeasured, Measurement)})


def write_text(path: Path, text: str) -> None:
    """Atomically: the file is the old one or the new one, also after a power cut or on a full disk."""
    write_atomically(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """``write`` fills a draft beside ``path``, which is flushed to disk and renamed; on any failure the draft is removed.

    Raises UserError where the disk is full or the folder is not writable.
    """
    draft: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".draft", dir=path.parent)
        os.close(handle)
        draft = Path(name)
        draft.chmod(0o666 & ~_umask())
        write(draft)
        flush(draft)
        draft.replace(path)
        flush(path.parent)
    except OSError as error:
        raise UserError(
            f"{path} could not be written: {error.strerror or error}. Nothing half-written was left; "
            "free some space or choose another folder with --runs, then `autocompress resume`."
        ) from error
    finally:
        if draft is not None:
            draft.unlink(missing_ok=True)


def write_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """A folder that appears whole: filled under another name beside it, then renamed. An older one is replaced."""
    draft: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".draft", dir=folder.parent))
        fill(draft)
        for file in draft.rglob("*"):
            flush(file)
        draft.chmod(0o777 & ~_umask())
        if folder.exists():
            older = folder.rename(draft.with_suffix(".older"))
            draft.replace(folder)
            shutil.rmtree(older)
        else:
            draft.replace(folder)
        flush(folder.parent)
    except OSError as error:
        raise UserError(f"{folder} could not be written: {error.strerror or error}. Nothing half-written was left.") from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)


def _umask() -> int:
    """The process's file mode mask; there is no way to read it but to set it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def flush(path: Path) -> None:
    """fsync a file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def only_driver(paths: RunPaths) -> Iterator[None]:
    """Hold the study's lock; the kernel releases it when the process dies, however it dies.

    Raises InvalidStudy with pid and host of the process that holds it.
    """
    try:
        paths.folder.mkdir(parents=True, exist_ok=True)
        lock = paths.lock.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--runs: {paths.runs} is not writable: {error.strerror}. Choose another folder with --runs.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise InvalidStudy(f"study {paths.study!r} is being run by {lock.read().strip() or 'another process'}.") from None
        lock.truncate(0)
        lock.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        sweep(paths.folder)
        yield


def sweep(folder: Path) -> None:
    """Remove what a killed driver left half-written; only for the holder of the lock."""
    for leftover in [*folder.rglob(".*.draft"), *folder.rglob(".*.older")]:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def is_running(paths: RunPaths) -> bool:
    """Does a process hold the study's lock?"""
    if not paths.lock.exists():
        return False
    with paths.lock.open(encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
