"""A file that is wrong is refused in one line, with its name and the place; what is right is read whole."""

import gzip
from pathlib import Path

import pytest

from autocompress.errors import InvalidTask
from autocompress.tasks.files import count, flag, given_path, read_csv, read_text, read_up_to

WRONG_CSV = {
    "empty": (b"", "empty; the first line must name the columns"),
    "header only": (b"text,label\n", "there is a header and no row below it"),
    "ragged": (b"text,label\na,b\nc,d,e\n", "line 3: 3 cells where the header has 2 columns"),
    "short": (b"text,label\na\n", "line 2: 1 cells where the header has 2 columns"),
    "ragged after a cell of two lines": (b'text,label\n"a\nb",c\nd\n', "line 4: 1 cells"),
    "not UTF-8": (b"text,label\na,b\n\xff\xfe,c\n", "line 3: byte 15 is not UTF-8"),
    "UTF-16": ("text,label\na,b\n".encode("utf-16"), "line 1: byte 0 is not UTF-8"),
    "binary": (b"text,label\na\0b,c\n", "line 2: a NUL character"),
    "an open quote": (b'text,label\n"a,b\n', "not readable as csv"),
    "twice the same column": (b"text,text\na,b\n", "line 1: every column needs a name of its own"),
    "a column without a name": (b"text,\na,b\n", "line 1: every column needs a name of its own"),
    "a cell without end": (b"text,label\n" + b"a" * (2**20 + 1) + b",b\n", "line 2: not readable as csv: field larger"),
}


@pytest.mark.parametrize("case", WRONG_CSV)
def test_a_csv_that_is_wrong_is_told_in_one_line_with_file_and_place(tmp_path: Path, case: str) -> None:
    content, said = WRONG_CSV[case]
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(InvalidTask) as caught:
        read_csv(tmp_path / "x.csv")
    assert f"{tmp_path / 'x.csv'}: " in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_csv_keeps_quotes_commas_newlines_and_the_lines_that_rows_end_on(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes('\ufefftext, label\r\n"a, ""b""\nc",d\r\n\r\ne,\u00e9\r\n'.encode())
    table = read_csv(tmp_path / "x.csv")
    assert table.columns == {"text": ['a, "b"\nc', "e"], "label": ["d", "\u00e9"]}
    assert table.lines == [3, 5]
    with pytest.raises(InvalidTask, match=r"there is no column 'category'; it has 'text', 'label'. Name it with --option label=COLUMN"):
        table.column("category", "label")


def test_no_more_is_unpacked_than_was_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "bomb.gz"
    file.write_bytes(gzip.compress(bytes(50 * 2**20)))
    assert len(read_up_to(file, 1000)) == 1001


PACKED = gzip.compress(b"ab" * 99)


@pytest.mark.parametrize("content", [b"no gzip", PACKED[:-12], PACKED[:20] + b"\xff" * 30], ids=["no gzip", "cut off", "garbled"])
def test_a_broken_gz_is_told_as_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gz").write_bytes(content)
    with pytest.raises(InvalidTask, match=r"x\.gz: cannot be read: .*; the file is broken or incomplete"):
        read_up_to(tmp_path / "x.gz", 10**6)


def test_a_text_says_the_line_that_is_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"one\ntwo \xe9\n")
    with pytest.raises(InvalidTask, match=r"x\.txt: line 2: byte 8 is not UTF-8"):
        read_text(tmp_path / "x.txt")


def test_missing_data_are_told_with_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(InvalidTask, match=r"^task x: --data is missing: files from https://there$"):
        given_path("", "x", "files from https://there")
    with pytest.raises(InvalidTask, match=r"^--data: .*/gone: no such file or folder; files from https://there$"):
        given_path(str(tmp_path / "gone"), "x", "files from https://there")


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "a", "1_0", "\u0663", "9" * 30])
def test_a_count_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidTask, match="--option length: must be a whole number from 1 to 1000000"):
        count("length", text)


def test_yes_and_no_are_read_and_nothing_else() -> None:
    assert (flag("x", "Yes"), flag("x", "no")) == (True, False)
    with pytest.raises(InvalidTask, match="--option x: must be yes or no, got 'maybe'"):
        flag("x", "maybe")
