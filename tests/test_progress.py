"""What a long job says, on a terminal and elsewhere."""

import io
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from autocompress import progress as module
from autocompress.config import Budget, SearchConfig, Space
from autocompress.progress import LINE_EVERY_S, Progress, duration
from autocompress.records import Target
from autocompress.terminal import Terminal

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Clock:
    """Stands in for the module ``time``; moves only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stopped = Clock()
    monkeypatch.setattr(module, "time", stopped)
    return stopped


def piped() -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    return Progress(console=Terminal(file=out, width=80)), out


def on_terminal() -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    settings = {"force_terminal": True, "width": 80, "height": 24, "color_system": None, "_environ": {"TERM": "xterm"}}
    return Progress(console=Terminal(file=out, **settings)), out


@pytest.fixture(params=[piped, on_terminal])
def anywhere(request: pytest.FixtureRequest) -> tuple[Progress, io.StringIO]:
    make: Callable[[], tuple[Progress, io.StringIO]] = request.param
    return make()


def test_elsewhere_a_stage_has_a_start_an_end_and_at_most_a_line_every_ten_seconds(clock: Clock) -> None:
    progress, out = piped()
    with progress.stage("trials", 50) as advance:
        for _ in range(50):
            clock.now += 1
            advance(1)
    lines = out.getvalue().splitlines()
    assert lines[0] == "trials: started, 0 of 50"
    assert lines[1] == "trials: 10 of 50, about 40.0 s left"
    assert lines[-1] == "trials: done in 50.0 s"
    assert len(lines) == 2 + 4  # after 10, 20, 30 and 40 s; the last step is told by the end


def test_elsewhere_no_stage_says_less_than_ten_seconds_apart(clock: Clock) -> None:
    progress, _ = piped()
    spoken: list[float] = []
    progress.say = lambda text: spoken.append(clock.now)  # type: ignore[method-assign]
    with progress.stage("survey", 1000) as advance:
        for _ in range(999):
            clock.now += 0.37
            advance(1)
    assert len(spoken) > 10
    assert all(later - earlier >= LINE_EVERY_S for earlier, later in pairwise(spoken[:-1]))


def test_elsewhere_a_short_stage_inside_another_says_nothing_and_a_long_one_speaks(clock: Clock) -> None:
    progress, out = piped()
    with progress.stage("trials", 2) as advance:
        for seconds in (3, 12):
            with progress.stage("recovery", 100) as step:
                clock.now += seconds
                step(50)
            advance(1)
    lines = [line for line in out.getvalue().splitlines() if line.startswith("recovery")]
    assert lines == ["recovery: 50 of 100, about 12.0 s left", "recovery: done in 12.0 s"]


def test_steps_from_before_an_interruption_do_not_shorten_the_time_left(clock: Clock) -> None:
    progress, out = piped()
    with progress.stage("trials", 50, done=40) as advance:
        clock.now += 20
        advance(2)
    assert "trials: started, 40 of 50\n" in out.getvalue()
    assert "trials: 42 of 50, about 1 min 20 s left\n" in out.getvalue()  # 10 s a trial, 8 to go


def test_a_stage_of_unknown_length_tells_how_far_it_is_and_invents_no_end(clock: Clock) -> None:
    progress, out = piped()
    with progress.stage("download") as advance:
        clock.now += 11
        advance(7)
    assert out.getvalue().splitlines() == ["download: started", "download: 7, 11.0 s so far", "download: done in 11.0 s"]


def test_elsewhere_there_is_no_escape_sequence_and_no_carriage_return(clock: Clock) -> None:
    progress, out = piped()
    with progress.stage("trials", 3) as advance:
        clock.now += 11
        advance(1)
        progress.say("trial 1: gated")
    assert not ANSI.search(out.getvalue())
    assert "\r" not in out.getvalue()


def test_on_a_terminal_the_bar_shows_stage_count_and_time_left() -> None:
    progress, out = on_terminal()
    with progress.stage("trials", 50) as advance:
        advance(20)
        assert progress._bars is not None
        progress._bars.refresh()
    shown = ANSI.sub("", out.getvalue())
    assert re.search(r"trials .*20/50 .*left \d:\d\d:\d\d", shown)
    assert all(len(line) <= 80 for line in re.split(r"[\r\n]+", shown))


def test_on_a_terminal_a_stage_inside_another_is_a_second_bar_that_goes_away() -> None:
    progress, out = on_terminal()
    with progress.stage("trials", 50) as advance:
        bars = progress._bars
        assert bars is not None
        for trial in range(3):
            with progress.stage("recovery", 200) as step:
                step(150)
                assert [(task.description, task.completed) for task in bars.tasks] == [("trials", trial), ("recovery", 150)]
                bars.refresh()
            advance(1)
        assert [(task.description, task.completed) for task in bars.tasks] == [("trials", 3)]
    assert "150/200" in out.getvalue()
    assert progress._bars is None


def test_on_a_terminal_a_stage_leaves_one_line_behind_and_the_cursor_visible() -> None:
    progress, out = on_terminal()
    with progress.stage("baseline", 2) as advance, progress.stage("survey", 1):
        advance(2)
    shown = out.getvalue()
    assert ANSI.sub("", shown).rstrip().endswith("baseline: done in 0.0 s")
    assert "survey: done" not in shown
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l") >= 0


def test_a_dumb_terminal_gets_plain_lines() -> None:
    out = io.StringIO()
    progress = Progress(console=Terminal(file=out, force_terminal=True, _environ={"TERM": "dumb"}))
    with progress.stage("baseline", 2) as advance:
        advance(2)
    assert out.getvalue() == "baseline: started, 0 of 2\nbaseline: done in 0.0 s\n"


def test_lines_appear_while_a_stage_runs(anywhere: tuple[Progress, io.StringIO]) -> None:
    progress, out = anywhere
    with progress.stage("trials", 50):
        progress.say("trial 3: 4.1x, drop 0.6")
        assert "trial 3: 4.1x, drop 0.6\n" in ANSI.sub("", out.getvalue())


@pytest.mark.parametrize("text", ["[red]conv[/red]", "[/]", "layers[3].keep", ":heart:", r"\[bold]"])
def test_nothing_that_is_said_is_taken_for_markup(text: str, anywhere: tuple[Progress, io.StringIO]) -> None:
    progress, out = anywhere
    with progress.stage(text, 1):
        progress.say(f"<{text}>")
        if progress._bars is not None:
            progress._bars.refresh()
    assert f"<{text}>" in out.getvalue()
    assert f"{text}: done" in out.getvalue()


def test_control_characters_never_reach_the_terminal(anywhere: tuple[Progress, io.StringIO]) -> None:
    progress, out = anywhere
    with progress.stage("st\x1b]0;title\x07age", 1):
        progress.say("clear \x1b[2J screen\r overwritten \u202e reversed")
        if progress._bars is not None:
            progress._bars.refresh()
    shown = out.getvalue()
    assert "\x1b]0;" not in shown
    assert "\x1b[2J" not in shown
    assert "\u202e" not in shown
    assert r"clear \x1b[2J screen\r overwritten \u202e reversed" in shown


def test_a_long_line_is_never_wrapped_so_that_a_path_can_be_copied() -> None:
    progress, out = piped()
    path = "/".join(["folder"] * 40)
    progress.say(f"written to {path}")
    assert out.getvalue() == f"written to {path}\n"


def test_quiet_says_nothing_and_counts_the_seconds_of_every_stage(clock: Clock) -> None:
    out = io.StringIO()
    progress = Progress(quiet=True, console=Terminal(file=out))
    progress.say("hello")
    with progress.stage("trials", 2) as advance:
        for _ in range(2):
            with progress.stage("recovery"):
                clock.now += 3
            advance(1)
    assert out.getvalue() == ""
    assert progress.seconds == {"trials": 6.0, "recovery": 6.0}


def test_the_seconds_of_a_stage_count_also_when_it_is_interrupted(clock: Clock, anywhere: tuple[Progress, io.StringIO]) -> None:
    progress, out = anywhere

    def interrupted() -> None:
        with progress.stage("trials", 50) as advance:
            advance(1)
            clock.now += 5
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert progress.seconds == {"trials": 5.0}
    assert "done" not in out.getvalue()
    with progress.stage("again", 1) as advance:
        advance(1)
    assert "again: done in" in out.getvalue()


def test_begin_tells_budget_target_bounds_and_folder_in_words() -> None:
    progress, out = piped()
    config = SearchConfig(
        study="digits-2",
        task="digits",
        space=Space(),
        budget=Budget(seconds=1200),
        target=Target(batch_size=4, threads=2),
        max_drop=1,
    )
    progress.begin(config, Path("runs/digits-2"))
    assert progress.study == "digits-2"
    assert [line.split(maxsplit=1)[1] for line in out.getvalue().splitlines()] == [
        "digits-2 in runs/digits-2",
        "digits, seed 0",
        "20 minutes of wall clock",
        "onnxruntime on cpu, batch 4, 2 threads; recovery trains on cpu",
        "drop at most 1 point, speed at least 2x",
    ]


def test_progress_goes_to_stderr_and_leaves_stdout_to_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    with progress.stage("baseline", 1) as advance:
        advance(1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "baseline: done" in captured.err


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (59.4, "59.4 s"), (60, "1 min 00 s"), (245, "4 min 05 s"), (3600, "1 h 00 min"), (7384, "2 h 03 min")],
)
def test_durations_read_well(seconds: float, words: str) -> None:
    assert duration(seconds) == words
