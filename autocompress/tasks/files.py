"""Files of a task as a user brings them: found or told where to get, read whole and bounded, and refused in one line otherwise."""

import csv
import gzip
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autocompress.errors import InvalidTask

BLOCK_BYTES = 2**20
MOST_TEXT_BYTES = 2**30
MOST_CELL = 2**20  # characters of one cell of a csv


@dataclass(frozen=True)
class Table:
    """Rows of a csv by column; ``lines`` are the line numbers that the rows end on, for messages."""

    file: Path
    columns: dict[str, list[str]]
    lines: list[int]

    def column(self, name: str, option: str) -> list[str]:
        """Raises InvalidTask where there is none of this name."""
        if name not in self.columns:
            has = ", ".join(map(repr, self.columns))
            raise InvalidTask(f"{self.file}: line 1: there is no column {name!r}; it has {has}. Name it with --option {option}=COLUMN")
        return self.columns[name]


def given_path(data: str, task: str, wanted: str) -> Path:
    """What --data names. Raises InvalidTask with ``wanted``, what it is and where to get it, for one that is missing or not there."""
    if not data:
        raise InvalidTask(f"task {task}: --data is missing: {wanted}")
    path = Path(data).expanduser()
    if not path.exists():
        raise InvalidTask(f"--data: {path}: no such file or folder; {wanted}")
    return path


def first_of(folder: Path, names: Sequence[str], wanted: str) -> Path:
    """The first of the files that is in ``folder``."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InvalidTask(f"--data: {folder}: there is no {' or '.join(names)} in it; {wanted}")


def read_up_to(file: Path, most: int) -> bytes:
    """The content of a file, unpacked where its name ends in .gz; one byte more than ``most`` where there is more.

    Raises InvalidTask where it cannot be read or unpacked.
    """
    parts, left = [], most + 1
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            while left > 0 and (part := stream.read(min(left, BLOCK_BYTES))):
                parts.append(part)
                left -= len(part)
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidTask(f"{file}: cannot be read: {error or type(error).__name__}; the file is broken or incomplete") from None
    return b"".join(parts)


def read_text(file: Path) -> str:
    """The whole of a text file. Raises InvalidTask, with the line, where it is not UTF-8, and where it is larger than 1 GiB."""
    content = read_up_to(file, MOST_TEXT_BYTES)
    if len(content) > MOST_TEXT_BYTES:
        raise InvalidTask(f"{file}: larger than {MOST_TEXT_BYTES} bytes, which is the most that is held in memory; give a part of it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidTask(f"{file}: line {line}: byte {error.start} is not UTF-8 ({error.reason}); convert the file to UTF-8") from None


def read_csv(file: Path) -> Table:
    """A csv with a header (RFC 4180: commas, double quotes). Raises InvalidTask with the line that is wrong."""
    text = read_text(file)
    if "\0" in text:
        raise InvalidTask(f"{file}: line {text.count(chr(10), 0, text.index(chr(0))) + 1}: a NUL character; this is no text file")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    outside = csv.field_size_limit(MOST_CELL)
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        for row in reader:
            if row:  # a blank line
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise InvalidTask(f"{file}: line {reader.line_num}: not readable as csv: {error}") from None
    finally:
        csv.field_size_limit(outside)
    if not rows:
        raise InvalidTask(f"{file}: empty; the first line must name the columns")
    header = [name.strip() for name in rows[0]]
    if len(set(header)) < len(header) or not all(header):
        raise InvalidTask(f"{file}: line {lines[0]}: every column needs a name of its own, got {', '.join(map(repr, header))}")
    if len(rows) < 2:
        raise InvalidTask(f"{file}: there is a header and no row below it")
    for row, line in zip(rows[1:], lines[1:], strict=True):
        if len(row) != len(header):
            raise InvalidTask(f"{file}: line {line}: {len(row)} cells where the header has {len(header)} columns")
    return Table(file, {name: [row[index] for row in rows[1:]] for index, name in enumerate(header)}, lines[1:])


def flag(option: str, text: str) -> bool:
    """``yes`` or ``no``."""
    found = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}.get(text.lower())
    if found is None:
        raise InvalidTask(f"--option {option}: must be yes or no, got {text!r}")
    return found


def count(option: str, text: str, least: int = 1, most: int = 10**6) -> int:
    """A whole number in a range."""
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not least <= int(text) <= most:
        raise InvalidTask(f"--option {option}: must be a whole number from {least} to {most}, got {text!r}")
    return int(text)
