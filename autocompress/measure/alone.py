"""The process that ``usage`` starts: it loads one artifact, runs it and says what that took. ``python -m`` only; it imports no torch.

Three files in its folder: ``inputs.npy`` is what it reads, ``used.json`` what it writes. It tells bytes of resident memory, in which
pages of files count that are mapped and were touched; what the process had before it loaded the artifact is told apart.
"""

import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.runtimes.session import open_session

INPUTS, USED = "inputs.npy", "used.json"
FEWEST_CALLS = 3
SAMPLE_EVERY_S = 0.005  # reading the resident size takes longer than a call of a small model


def resident_bytes() -> int:
    """Resident set of this process: /proc on Linux, ``ps`` elsewhere."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    told = subprocess.run(["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, text=True, check=True)
    return 1024 * int(told.stdout)


def peak_bytes() -> int:
    """The most that was ever resident, or was since ``forget_peak_``: VmHWM, the value that the kernel itself keeps."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def forget_peak_() -> None:
    """Give back what importing left over, and let the kernel count the peak from here on (proc(5): 5 into clear_refs, Linux 4.0)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
    if trim is not None:
        trim(0)  # or a small model would live in pages that imports freed, and need nothing
    reset = Path("/proc/self/clear_refs")
    if reset.exists() and os.access(reset, os.W_OK):
        reset.write_text("5", encoding="ascii")


class Since:
    """Resident memory beyond what this process had when this was made."""

    def __init__(self) -> None:
        forget_peak_()
        self.before, self.peak_before = resident_bytes(), peak_bytes()

    def now(self) -> int:
        return resident_bytes() - self.before

    def peak(self) -> int:
        """At most so far. Where the kernel forgot no older and higher peak, the present size is all that is known."""
        peak = peak_bytes()
        return max(peak - self.before if peak > self.peak_before else 0, self.now(), 0)


def measured(folder: Path, threads: int, inputs: Any, seconds: float) -> dict[str, float]:
    """Load the artifact, call it once, then for ``seconds`` and three times at least; inputs (batch, ...)."""
    since = Since()
    started = time.perf_counter()
    session = open_session(folder, threads)
    loaded = time.perf_counter()
    feed = {session.get_inputs()[0].name: inputs}
    session.run(None, feed)
    sizes, calls, sampled = [since.now()], 0, 0.0
    begun, cpu_before = time.perf_counter(), time.process_time()
    while (now := time.perf_counter()) - begun < seconds or calls < FEWEST_CALLS:
        session.run(None, feed)
        calls += 1
        if now - sampled > SAMPLE_EVERY_S:
            sizes.append(since.now())
            sampled = now
    wall, cpu = time.perf_counter() - begun, time.process_time() - cpu_before
    return {
        "load_ms": 1000 * (loaded - started),
        "peak_bytes": max(since.peak(), *sizes),
        "mean_bytes": max(sum(sizes) / len(sizes), 0.0),
        "utilisation": cpu / (wall * threads),
    }


def main(folder: str, threads: str, place: str, seconds: str) -> None:
    inputs = np.load(Path(place) / INPUTS, allow_pickle=False)
    used = measured(Path(folder), int(threads), inputs, float(seconds))
    (Path(place) / USED).write_text(json.dumps(used), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
