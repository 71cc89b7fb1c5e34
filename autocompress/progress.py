"""What a long job tells while it runs: stages with time left on a terminal, plain lines elsewhere, nothing when quiet."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Column

from autocompress.config import SearchConfig
from autocompress.terminal import Terminal, bounds, plain

Advance = Callable[[int], None]
LINE_EVERY_S = 10.0
BARS_PER_S = 2.0  # the refreshing thread runs beside the timing of latencies: ten times a second would be noise in them


class Progress:
    """Stages and lines on stderr; stdout stays free for results.

    ``seconds`` is the wall clock of each stage by name; the time of a stage inside another counts in both. ``study`` is the
    study's name once it is known, ``None`` before. ``quiet`` says nothing and still keeps both.
    """

    def __init__(self, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Terminal(stderr=True)
        self.quiet = quiet
        self.seconds: dict[str, float] = {}
        self.study: str | None = None
        self._bars: Bars | None = None
        self._depth = 0

    def begin(self, config: SearchConfig, folder: Path | None = None) -> None:
        """Say what was understood, before any work, and remember the study's name."""
        self.study = config.study
        self.say(
            f"study     {config.study}" + (f" in {folder}" if folder else "") + "\n"
            f"task      {config.task}, seed {config.seed}\n"
            f"budget    {config.budget}\n"
            f"target    {config.target}; recovery trains on {config.device}\n"
            f"bounds    {bounds(config.max_drop, config.min_speedup, config.constraints)}"
        )

    def say(self, text: str) -> None:
        """Plain text, above the bars where there are some; nothing in it is taken for markup or for a control of the terminal."""
        if not self.quiet:
            for line in text.split("\n"):
                self.console.print(plain(line), markup=False, emoji=False, highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None = None, *, done: int = 0) -> Iterator[Advance]:
        """A named stretch of work of ``total`` steps (``None``: unknown), ``done`` of them from before; yields what advances it.

        Stages nest: inside another one a stage is a second bar, or lines only where it lasts.
        """
        started = time.monotonic()
        self._depth += 1
        try:
            if self.quiet:
                yield lambda steps: None
            elif self.console.is_terminal and not self.console.is_dumb_terminal:
                yield from self._bar(name, total, done)
            else:
                yield from self._lines(name, total, done)
        finally:
            self._depth -= 1
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started

    def _bar(self, name: str, total: int | None, done: int) -> Iterator[Advance]:
        """A bar that stays while its stage runs; the outermost stage owns the display and leaves one line behind."""
        with self._display() as bars:
            started = time.monotonic()
            task = bars.add_task(plain(name), total=total, completed=done)
            bars.advance(task, 0)  # a first sample of the speed; without it the time left would be missing until the second step
            try:
                yield lambda steps: bars.advance(task, steps)
            finally:
                bars.remove_task(task)
        if self._bars is None:
            self.say(f"{name}: done in {duration(time.monotonic() - started)}")

    @contextlib.contextmanager
    def _display(self) -> Iterator[Bars]:
        if self._bars is not None:
            yield self._bars
            return
        bars = Bars(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            refresh_per_second=BARS_PER_S,
            speed_estimate_period=3600.0,  # a trial may last minutes: with rich's 30 s there would be no estimate at all
            expand=False,
        )
        with bars:
            self._bars = bars
            try:
                yield bars
            finally:
                self._bars = None

    def _lines(self, name: str, total: int | None, done: int) -> Iterator[Advance]:
        """Start, end, and at most a line every ten seconds between; inside another stage only what lasts that long is told."""
        started = shown = time.monotonic()
        first, outer, spoke = done, self._depth == 1, self._depth == 1

        def advance(steps: int) -> None:
            nonlocal done, shown, spoke
            done += steps
            now = time.monotonic()
            if now - shown >= LINE_EVERY_S and (total is None or done < total):
                shown, spoke = now, True
                self.say(f"{name}: {amount(done, total)}{left(done - first, total and total - done, now - started)}")

        if outer:
            self.say(f"{name}: started" + (f", {amount(done, total)}" if total else ""))
        yield advance
        if spoke:
            self.say(f"{name}: done in {duration(time.monotonic() - started)}")


def amount(done: int, total: int | None) -> str:
    return f"{done}" if total is None else f"{done} of {total}"


def left(done: int, remaining: int | None, seconds: float) -> str:
    """Words for the time left at the pace so far; none where there is no pace or no end."""
    if remaining is None or done <= 0:
        return f", {duration(seconds)} so far"
    return f", about {duration(seconds / done * remaining)} left"


def duration(seconds: float) -> str:
    """``7.3 s``, ``4 min 05 s``, ``2 h 03 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
