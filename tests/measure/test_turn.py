"""One measurement at a time: others wait and say so, nobody waits for himself, and who dies leaves it free."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from autocompress.measure.turn import lock_path, turn

HOLD = """
import sys
from autocompress.measure.turn import turn
with turn({device!r}, lambda line: print("waits", flush=True)):
    print("holds", flush=True)
    sys.stdin.readline()
print("done", flush=True)
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn of the test is no turn of whatever else measures on this machine."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture
def other() -> Iterator["Other"]:
    process = Other("cpu")
    yield process
    process.end()


class Other:
    """A process that takes the turn and holds it until it is told."""

    def __init__(self, device: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD.format(device=device)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def release(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def test_another_process_waits_until_the_turn_is_over_and_says_so(other: Other) -> None:
    assert other.says() == "holds"
    next_one = Other("cpu")
    try:
        assert next_one.says() == "waits"
        other.release()
        assert other.says() == "done"
        assert next_one.says() == "holds"
    finally:
        next_one.end()


def test_who_waits_hears_one_line_that_names_the_device_and_the_file(other: Other) -> None:
    assert other.says() == "holds"
    lines: list[str] = []

    def heard(line: str) -> None:
        lines.append(line)
        other.release()

    with turn("cpu", heard):
        assert other.says() == "done"
    assert len(lines) == 1
    assert "cpu" in lines[0]
    assert str(lock_path("cpu")) in lines[0]


def test_a_free_turn_is_taken_without_a_word() -> None:
    with turn("cpu", lambda line: pytest.fail(line)):
        pass


def test_nested_turns_of_one_process_pass_and_the_outer_one_still_holds() -> None:
    with turn("cpu"), turn("cpu"):
        with turn("cpu"):
            pass
        other = Other("cpu")
        assert other.says() == "waits"
    try:
        assert other.says() == "holds"
    finally:
        other.end()


def test_devices_do_not_wait_for_each_other(other: Other) -> None:
    assert other.says() == "holds"
    with turn("cuda:0", lambda line: pytest.fail(line)):
        assert lock_path("cuda:0") != lock_path("cpu")


def test_a_holder_that_is_killed_leaves_the_turn_free(other: Other) -> None:
    assert other.says() == "holds"
    os.kill(other.process.pid, signal.SIGKILL)
    other.process.wait()
    with turn("cpu", lambda line: pytest.fail(line)):
        pass


def test_a_turn_that_ends_with_an_error_is_free_again() -> None:
    with pytest.raises(ValueError, match="broken"), turn("cpu"):
        raise ValueError("broken")
    other = Other("cpu")
    try:
        assert other.says() == "holds"
    finally:
        other.end()


def test_another_thread_of_the_process_waits() -> None:
    order: list[str] = []
    entered = threading.Event()

    def second() -> None:
        entered.set()
        with turn("cpu"):
            order.append("second")

    thread = threading.Thread(target=second)
    with turn("cpu"):
        thread.start()
        assert entered.wait(10)
        thread.join(0.2)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_a_file_that_somebody_else_made_and_only_lets_read_is_enough() -> None:
    lock_path("cpu").touch(mode=0o444)
    with turn("cpu", lambda line: pytest.fail(line)):
        pass


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    lock_path("cpu").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic link"), turn("cpu"):
        pass
