"""The parts of the page: sections, notices, tables. Text that is given to them is escaped here, once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Html:
    """A piece that is HTML already."""

    html: str


def section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def notice(kind: str, title: str, text: str) -> str:
    return f'<div class="notice {kind}" role="status"><strong>{escape(title)}</strong> {escape(text)}</div>'


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def folded(title: str, *parts: str) -> str:
    """Behind a line that opens."""
    return f"<details><summary>{escape(title)}</summary>{''.join(parts)}</details>"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], kind: str = "numbers", marked: int = -1) -> str:
    """Cells are escaped, except those that are Html. Row ``marked`` is set off. ``kind``: a class of style.css."""
    lines = []
    for index, row in enumerate(rows):
        cells = "".join(f"<td>{cell.html if isinstance(cell, Html) else escape(str(cell))}</td>" for cell in row)
        lines.append(f"<tr{' class=marked' if index == marked else ''}>{cells}</tr>")
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    body = f"<thead><tr>{titles}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="scroll" tabindex="0"><table class="{kind}">{body}</table></div>'


def bar(share: float, text: str) -> Html:
    """A number with a bar of ``share`` (0 to 1) under it."""
    return Html(f'{escape(text)}<i class="bar" style="--share:{100 * min(max(share, 0.0), 1.0):.1f}%"></i>')
