"""One measurement at a time on a machine: a file lock per device, held by whoever times, while all others wait for their turn."""

import contextlib
import fcntl
import logging
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

log = logging.getLogger(__name__)
_guard = threading.Lock()
_turns: dict[tuple[int, str], tuple[threading.RLock, list[int]]] = {}  # (process, device) -> its lock, the files it holds


def lock_path(device: str) -> Path:
    """The file that a measurement on ``device`` ("cpu", "cuda:0") locks; it stays there, empty, and a killed holder leaves it free."""
    return Path(tempfile.gettempdir()) / f"autocompress-{re.sub(r'[^a-z0-9]+', '-', device.lower())}.lock"


@contextlib.contextmanager
def turn(device: str = "cpu", waiting: Callable[[str], None] = log.warning) -> Iterator[None]:
    """Hold the turn on ``device``; ``waiting`` hears one line when another process holds it, and then no more until it is free.

    Nested calls of one thread pass, other threads of the process wait. A holder must not wait for a child process that takes a turn.
    Raises OSError where the system's temporary folder cannot be written to.
    """
    lock, held = _own(device)
    with lock:
        if held:
            yield
            return
        file = _open(lock_path(device))
        try:
            _acquire(file, device, waiting)
            held.append(file)
            try:
                yield
            finally:
                held.clear()
                fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough where a forked child has the file open too
        finally:
            os.close(file)


def _own(device: str) -> tuple[threading.RLock, list[int]]:
    """Keyed by process: what a parent holds is not held by the child that it forks."""
    with _guard:
        return _turns.setdefault((os.getpid(), device), (threading.RLock(), []))


def _acquire(file: int, device: str, waiting: Callable[[str], None]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waiting(f"another process measures on {device}; this one waits for its turn ({lock_path(device)})")
        fcntl.flock(file, fcntl.LOCK_EX)


def _open(path: Path) -> int:
    """For reading, which is all that a lock needs: in a shared folder Linux refuses O_CREAT on a file that another user made."""
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, os.O_RDONLY | flags)
    with contextlib.suppress(FileExistsError):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o644)
    return os.open(path, os.O_RDONLY | flags)
