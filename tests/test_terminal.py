"""Numbers and commands as people read them. The tables of a study are tested through the commands, in test_cli.py."""

import io
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.terminal import (
    Terminal,
    bounds,
    command,
    contents,
    interval,
    lost,
    milliseconds,
    percent,
    plain,
    points,
    size,
    table,
    times,
    value,
)


def printed(console_width: int, columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    out = io.StringIO()
    Terminal(file=out, width=console_width).print(table(columns, rows))
    return out.getvalue()


@given(st.text())
def test_plain_text_is_one_printable_line(text: str) -> None:
    assert plain(text).isprintable()


@given(st.text().filter(str.isprintable))
def test_printable_text_stays_as_it_is(text: str) -> None:
    assert plain(text) == text


@given(st.text(min_size=1, max_size=12))
def test_a_table_shows_every_cell_literally(text: str) -> None:
    shown = printed(200, ("name",), [(f"<{text}>",)])
    assert f"<{plain(text)}>" in shown


def test_what_is_too_wide_for_the_terminal_wraps_and_is_not_cut() -> None:
    name = "".join(chr(ord("a") + place % 26) for place in range(60))
    shown = printed(30, ("layer", "n"), [(name, 1)])
    assert "".join(line.split()[0] for line in shown.splitlines()[2:]) == name


@pytest.mark.parametrize(
    ("amount", "words"),
    [(0, "0 B"), (999, "999 B"), (61_386, "61.4 kB"), (999_700, "1 MB"), (1_174_073, "1.17 MB"), (3.2e12, "3.2e+03 GB")],
)
def test_sizes_read_well(amount: float, words: str) -> None:
    assert size(amount) == words


def test_what_is_missing_is_a_dash() -> None:
    assert {
        size(None),
        times(None),
        points(None),
        percent(None),
        milliseconds(None),
        interval(None),
        interval({"speedup": None}),
    } == {"-"}


def test_a_drop_that_rounds_to_nothing_has_no_sign() -> None:
    assert (points(-0.001), points(-0.28), points(0.555)) == ("0.00", "-0.28", "0.56")


def test_bounds_are_words() -> None:
    assert bounds(1.0, 4.0) == "drop at most 1 point, speed at least 4x"
    assert bounds(0.5, 2.5) == "drop at most 0.5 points, speed at least 2.5x"
    assert bounds(0.5, 2.5, ("p99_ms <= 2",), "nats") == "drop at most 0.5 nats, speed at least 2.5x, p99_ms <= 2"


def test_a_metric_carries_its_unit() -> None:
    assert (value(99.754, "%"), value(12.3456, "nats"), value(0.71234, ""), value(None, "nats")) == ("99.75 %", "12.35 nats", "0.7123", "-")
    assert (lost(0.5, "%"), lost(-0.03125, "nats"), lost(0.002, ""), lost(None, "")) == ("0.50 points", "-0.0312 nats", "0.002", "-")


@given(st.text(alphabet=st.characters(exclude_categories=("Cs", "Cc")), min_size=1))
def test_a_command_survives_the_shell(folder: str) -> None:
    words = shlex.split(command("resume", "digits", Path(folder)))
    assert words[:3] == ["autocompress", "resume", "digits"]
    assert words[3:] in ([], ["--runs", str(Path(folder))])


def test_contents_lists_the_files_of_a_folder(tmp_path: Path) -> None:
    assert contents(tmp_path) == str(tmp_path)
    (tmp_path / "b").touch()
    (tmp_path / "a").touch()
    assert contents(tmp_path) == f"{tmp_path}: a, b"
