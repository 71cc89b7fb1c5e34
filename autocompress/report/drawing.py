"""A figure is drawn once, by matplotlib: as PNG and SVG for elsewhere, and the same SVG in the page, in the colours of its theme.

Colours are taken from PALETTE only: in the page each becomes the variable of style.css with that name, so that the dark theme can
change it. A mark that has something to say carries the number of its text, which report.js shows.
"""

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import Any, NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

PALETTE = {
    "card": "#ffffff", "ink": "#1c2126", "soft": "#5a646e", "line": "#dfe3e7", "blue": "#2a6fdb",
    "orange": "#c9560f", "green": "#1f7a4a", "red": "#b3261e", "grey": "#8b949e",
}  # fmt: skip
CARD, INK, SOFT, LINE, BLUE, ORANGE, GREEN, RED, GREY = PALETTE.values()
WIDTH = 5.0  # inches of 72 units: about one unit a pixel on a phone, and letters of 10 units can be read there
LETTERS, SMALL = 11.0, 9.5
PNG_DPI = 160
LONGEST_NAME = 40
SETTINGS: dict[Any, Any] = {  # Any: matplotlib lists its keys as literals
    "svg.fonttype": "none",  # text stays text: it can be searched, and takes the font of the page
    "svg.hashsalt": "autocompress",  # equal studies give equal files
    "text.parse_math": False,  # a pair of dollar signs in a name is no mathematics
    "path.simplify": False,
    "font.size": LETTERS,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "legend.handletextpad": 0.4,
    "legend.columnspacing": 1.2,
    "axes.facecolor": "none",
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": CARD,
    "savefig.facecolor": CARD,
}
ANONYMOUS = {"Date": None, "Creator": None, "Format": None, "Type": None}
COLOUR = re.compile("|".join(PALETTE.values()))
VARIABLES = {colour: f"var(--{name})" for name, colour in PALETTE.items()}

Tips = Mapping[str, Sequence[str]]


class Mark(NamedTuple):
    """Where a mark stands, in data units, and what it says."""

    x: float
    y: float
    tip: str


@dataclass(frozen=True)
class Drawing:
    """One figure. ``name`` is the stem of its files, ``label`` is for those who do not see it; all of it is text, not HTML.

    ``tips``: by the gid of a group of marks, what each of them says, in the order in which they are drawn.
    """

    name: str
    title: str
    label: str
    caption: str
    figure: Figure
    tips: Tips = field(default_factory=dict)

    def save(self, target: Any, kind: str) -> None:
        """``kind``: png or svg; ``target`` a path or an open file."""
        if kind == "png":
            self.figure.savefig(target, format="png", dpi=PNG_DPI)
        else:
            self.figure.savefig(target, format="svg", metadata=ANONYMOUS)


@contextmanager
def drawn_in_our_style() -> Iterator[None]:
    """Settings of matplotlib are global: borrowed for as long as figures are drawn and saved, then given back."""
    with matplotlib.rc_context(SETTINGS):
        yield


def canvas(height: float, *panels: float, **shared: Any) -> tuple[Figure, list[Axes]]:
    """A figure of ``height`` inches with panels side by side, of these relative widths; without pyplot and its global state."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    widths = panels or (1.0,)
    grid = figure.subplots(1, len(widths), squeeze=False, gridspec_kw={"width_ratios": widths}, **shared)
    for axes in grid[0][1:] if shared.get("sharey") else []:
        axes.tick_params(labelleft=False)
    return figure, list(grid[0])


def settled(figure: Figure) -> Figure:
    """With the layout worked out, once for all the files that are made of it."""
    engine = figure.get_layout_engine()
    assert engine is not None, "settled twice"
    engine.execute(figure)
    figure.set_layout_engine("none")
    return figure


def scatter_(axes: Axes, gid: str, marks: Sequence[Mark], **look: Any) -> Tips:
    """Draw marks, those outside of the axes on their edge; returns what they say, by ``gid``."""
    if not marks:
        return {}
    (left, right), (bottom, top) = axes.get_xlim(), sorted(axes.get_ylim())  # rows_ counts downwards
    across = [min(max(mark.x, left), right) for mark in marks]
    up = [min(max(mark.y, bottom), top) for mark in marks]
    axes.scatter(across, up, gid=gid, clip_on=False, **look)
    return {gid: [mark.tip for mark in marks]}


def told_(patches: Sequence[Patch], gid: str, tips: Sequence[str]) -> Tips:
    """Let each bar say its text."""
    for index, patch in enumerate(patches):
        patch.set_gid(f"{gid}-{index}")
    return {f"{gid}-{index}": [tip] for index, tip in enumerate(tips)}


def rows_(axes: Axes, names: Sequence[str], longest: int = 24) -> None:
    """A row a name, the first on top; what follows a colon and a space stands below it."""
    lines = ["\n".join(shortened(part, longest) for part in name.split(": ", 1)) for name in names]
    axes.set_yticks(range(len(names)), lines, fontsize=SMALL)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")


def shortened(name: str, longest: int = LONGEST_NAME) -> str:
    """A name in one line of at most ``longest`` signs, its middle left out where it has more: ends tell layers apart."""
    line = " ".join(name.split())
    half = (longest - 1) // 2
    return line if len(line) <= longest else f"{line[:half]}…{line[-half:]}"


def svg_of(drawing: Drawing) -> str:
    """The figure as an SVG file."""
    file = io.StringIO()
    drawing.save(file, "svg")
    return file.getvalue()


def figure_html(drawing: Drawing, svg: str, numbers: Mapping[str, int]) -> str:
    """``svg`` as part of the page, under its title; ``numbers``: the number of each text that a mark may say."""
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in ("metadata", "style")]:
            parent.remove(child)
    for gid, tips in drawing.tips.items():
        say_(marks_of(root, gid), [numbers[tip] for tip in tips], gid)
    in_the_colours_of_the_page_(root, drawing.name)
    viewed = {"viewBox": root.attrib["viewBox"], "role": "group", "aria-label": drawing.label}
    root.attrib = viewed | ({"tabindex": "0", "class": "live"} if drawing.tips else {})
    caption = f"<figcaption>{escape(drawing.caption)}</figcaption>" if drawing.caption else ""
    body = re.sub(r">\s+<", "><", ElementTree.tostring(root, encoding="unicode", short_empty_elements=False))
    return f'<figure id="figure-{drawing.name}"><h2>{escape(drawing.title)}</h2>{body}{caption}</figure>'


def marks_of(root: Element, gid: str) -> list[Element]:
    """The marks of a group: uses of one shape, or a single path."""
    group = next(element for element in root.iter("g") if element.get("id") == gid)
    return list(group.iter("use")) or group.findall("path")


def say_(marks: Sequence[Element], numbers: Sequence[int], gid: str) -> None:
    assert len(marks) == len(numbers), f"{gid}: {len(marks)} marks were drawn, and {len(numbers)} have something to say"
    for mark, number in zip(marks, numbers, strict=True):
        mark.set("data-tip", str(number))


def in_the_colours_of_the_page_(root: Element, prefix: str) -> None:
    """Colours become variables and fonts those of the page; ids, which several figures share, get a prefix or go."""
    texts = [value for element in root.iter() for value in element.attrib.values()]
    used = {name for text in texts for name in re.findall(r"^#(.+)$|url\(#(.+?)\)", text) for name in name if name}
    rename: Callable[[re.Match[str]], str] = lambda found: f"#{prefix}-{found[1]}"  # noqa: E731
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            if name == "id":
                element.attrib.pop("id")
                if value in used:
                    element.set("id", f"{prefix}-{value}")
            elif name == "style":
                style = COLOUR.sub(lambda found: VARIABLES[found[0]], re.sub(r"font-family: [^;]*;? ?", "", value))
                element.set("style", style)
            elif name in ("href", "clip-path"):
                element.set(name, re.sub(r"#([^)]+)", rename, value))
