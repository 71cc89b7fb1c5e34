"""An exported folder as files: what was measured of it, and whether it is still what was exported. Loads no model."""

import hashlib
import re
from pathlib import Path

from autocompress.errors import InvalidArtifact, InvalidStudy
from autocompress.recipe import Frozen
from autocompress.records import Baseline, Inspection, Machine, Measurement, Target
from autocompress.runs import read_json

MEASURED, RECIPE, CHECKSUMS = "measured.json", "recipe.yaml", "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
BLOCK_BYTES = 2**20


class Measured(Frozen):
    """measured.json. ``task``: the name that finds the task again, with its options; absent in folders exported before there was one."""

    target: Target
    search: Measurement | None = None
    holdout: Measurement | None = None
    baseline: Baseline
    machine: Machine
    input_shape: tuple[int, ...]
    task: str | None = None
    task_options: dict[str, str] = {}
    trial: int | None = None
    inspection: Inspection | None = None

    @property
    def claimed(self) -> Measurement | None:
        """What a user reads: the holdout numbers, or where there are none those of the search split."""
        return self.holdout or self.search


def is_artifact(folder: Path) -> bool:
    return (folder / MEASURED).is_file()


def write_checksums(folder: Path) -> None:
    """SHA256SUMS of every file in ``folder``, as ``sha256sum --check SHA256SUMS`` reads it there."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != CHECKSUMS)
    lines = [f"{_sha256(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def check_files(folder: Path) -> None:
    """Raises InvalidArtifact with a line for every file that is missing or no longer what it was; files of others do not count."""
    if not folder.is_dir():
        raise InvalidArtifact(f"{folder}: no such folder; give one that `autocompress export` wrote")
    sums = folder / CHECKSUMS
    if not sums.is_file():
        what = f"{sums}: missing" if is_artifact(folder) else f"{folder}: not an exported folder, {CHECKSUMS} and {MEASURED} are missing"
        raise InvalidArtifact(f"{what}; without it nothing tells a changed file. Export again with `autocompress export`.")
    complaints = []
    listed = _read_sums(sums)
    for name, expected in listed.items():
        file = folder / name
        if not file.is_file():
            complaints.append(f"{file}: missing, though {CHECKSUMS} lists it; export again or copy the folder whole")
        elif (found := _sha256(file)) != expected:
            complaints.append(f"{file}: changed since it was exported (sha256 {found[:12]}..., was {expected[:12]}...); export again")
    complaints += [f"{sums}: does not list {name}; export again" for name in (MEASURED, RECIPE) if name not in listed]
    if complaints:
        raise InvalidArtifact("\n".join(complaints))


def read_measured(folder: Path) -> Measured:
    """Raises InvalidArtifact that names the field where measured.json is missing or does not read."""
    file = folder / MEASURED
    if not file.is_file():
        raise InvalidArtifact(f"{file}: missing; {folder} is not a folder that `autocompress export` wrote")
    try:
        return read_json(file, Measured)
    except (InvalidStudy, UnicodeDecodeError) as error:
        raise InvalidArtifact(str(error) if isinstance(error, InvalidStudy) else f"{file}: not UTF-8: {error}") from None


def _read_sums(file: Path) -> dict[str, str]:
    """File name -> hex digest. Raises InvalidArtifact for a line that is none."""
    sums = {}
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        found = LINE.fullmatch(line)
        if found is None:
            raise InvalidArtifact(f"{file}: line {number} is not a sha256 sum and a file name: {line[:80]!r}; export again")
        sums[found[2]] = found[1]
    return sums


def _sha256(file: Path) -> str:
    sha = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            sha.update(block)
    return sha.hexdigest()
