"""A figure becomes part of the page: in its colours, with marks that speak, and with ids that no other figure has."""

import re
from collections.abc import Iterator

import pytest

from autocompress.report.drawing import (
    BLUE,
    PALETTE,
    Drawing,
    Mark,
    canvas,
    drawn_in_our_style,
    figure_html,
    scatter_,
    settled,
    shortened,
    svg_of,
)
from autocompress.report.page import STYLE


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    with drawn_in_our_style():
        yield


def drawing(name: str, *marks: Mark) -> Drawing:
    figure, (axes,) = canvas(2.0)
    axes.set(xlim=(0, 10), ylim=(0, 10))
    tips = scatter_(axes, "marks", marks, color=BLUE, label="a $b$ <c>")
    axes.legend()
    return Drawing(name, "Title <x>", 'label "y"', "", settled(figure), tips)


def html(made: Drawing) -> str:
    return figure_html(made, svg_of(made), {tip: index for index, tip in enumerate(tip for tips in made.tips.values() for tip in tips)})


@pytest.mark.parametrize("count", [1, 2, 50])
def test_every_mark_carries_the_number_of_its_text_in_order(count: int) -> None:
    found = html(drawing("a", *(Mark(index / 5, 5, f"mark {index}") for index in range(count))))
    assert [int(number) for number in re.findall(r'data-tip="(\d+)"', found)] == list(range(count))


def test_a_mark_outside_of_the_axes_is_drawn_on_their_edge() -> None:
    found = html(drawing("a", Mark(5, 5, "in"), Mark(-99, 5, "left of it"), Mark(5, 1e9, "above")))
    assert len(re.findall("data-tip", found)) == 3


def test_two_figures_share_no_id_and_every_reference_is_answered() -> None:
    pages = [html(drawing(name, Mark(1, 1, "one"), Mark(2, 2, "two"))) for name in ("a", "b")]
    ids = [set(re.findall(r' id="([^"]+)"', page)) for page in pages]
    assert ids[0] & ids[1] == set()
    for page, known in zip(pages, ids, strict=True):
        assert {one or other for one, other in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)} <= known


def test_no_colour_and_no_font_of_its_own_is_left_in_the_page() -> None:
    found = html(drawing("a", Mark(1, 1, "one"), Mark(2, 2, "two")))
    assert not re.search(r"#[0-9a-f]{6}\b", found)
    assert "font-family" not in found
    assert "var(--blue)" in found


def test_the_palette_of_the_figures_is_that_of_the_light_page() -> None:
    light = STYLE.read_text(encoding="utf-8").partition("@media")[0]
    assert {name: f"#{value}" for name, value in re.findall(r"--(\w+): #([0-9a-f]{6})", light)}.items() >= PALETTE.items()


def test_names_are_text_in_a_figure() -> None:
    found = html(drawing("a", Mark(1, 1, "one")))
    assert "a $b$ &lt;c&gt;" in found
    assert "Title &lt;x&gt;" in found


@pytest.mark.parametrize(("name", "expected"), [("short", "short"), ("a" * 20 + "b" * 20, "aaaa…bbbb"), ("two\nlines", "two lines")])
def test_a_long_name_keeps_both_ends(name: str, expected: str) -> None:
    assert shortened(name, 9) == expected


def test_a_mark_that_was_not_drawn_is_a_bug_and_no_wrong_text() -> None:
    made = drawing("a", Mark(1, 1, "one"), Mark(2, 2, "two"))
    wrong = Drawing("a", "", "", "", made.figure, {"marks": ["one"]})
    with pytest.raises(AssertionError, match="2 marks were drawn, and 1 have something to say"):
        html(wrong)
