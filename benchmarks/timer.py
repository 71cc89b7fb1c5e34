"""The timer against what is known, with the other core busy for half of the time: python benchmarks/timer.py [--quick]

A against A: two sessions of one file, whose ratio is 1. A known pair: one network with every other layer at two widths, whose ratio near
1.5 is taken from long runs first, without the load. Both are timed with the default precision in ONNX Runtime on one thread, while a child
process, pinned to the last core, spins for a second and sleeps for a second in turn. Prints every interval, a table and, as its last line,
one JSON object {"name", "figures", "met"}. Two cores, about four minutes, one with --quick: 10 repeats instead of 50.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from autocompress.measure.latency import DEFAULT, Effort, Timing, compare
from autocompress.measure.machine import cores, in_words
from autocompress.measure.turn import turn
from autocompress.runtimes import find_runtime
from autocompress.runtimes.runtime import Array, Deployed, deploy

REPEATS, QUICK = 50, 10
LEAST_GOOD, WIDEST, NEAR = 45 / 50, 0.06, 0.05
MOST_SECONDS, ABOUT_MS = 3.0, (0.5, 2.0)
LONG_RUNS, LONG = 3, Effort(width=0.0, seconds=6.0, segments=40)
OUTER, WIDTHS, SIDE = 64, (64, 96), 20  # 1.5 times the multiply-adds; the weights of both fit into the second-level cache
SPIN = """
import os, sys, time
parent, core = os.getppid(), max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
if core is not None:
    os.sched_setaffinity(0, {core})
while os.getppid() == parent:
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        pass
    time.sleep(1.0)
"""


@dataclass(frozen=True)
class Repeat:
    """One timing, and the wall-clock seconds that it took, sessions already loaded."""

    timing: Timing
    seconds: float

    @property
    def width(self) -> float:
        return (self.timing.high - self.timing.low) / self.timing.speedup

    def holds(self, truth: float) -> bool:
        return self.timing.low <= truth <= self.timing.high and self.width <= WIDEST

    def is_near(self, truth: float) -> bool:
        return abs(self.timing.speedup / truth - 1) <= NEAR


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} repeats instead of {REPEATS}")
    repeats = QUICK if parser.parse_args().quick else REPEATS
    with tempfile.TemporaryDirectory() as folder:
        small, wide = (deployed(width, Path(folder) / str(width)) for width in WIDTHS)
        inputs: Array = np.random.default_rng(0).normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)
        truths = [compare(wide, small, inputs, LONG, seed).speedup for seed in range(LONG_RUNS)]
        truth = float(np.median(truths))
        print(f"long runs, no load of ours: {', '.join(f'{value:.3f}' for value in truths)}; taken as true: {truth:.3f}")
        with half_busy():
            same = [timed(small, small.reopened(), inputs, seed) for seed in range(repeats)]
            pair = [timed(wide, small, inputs, seed) for seed in range(repeats)]
    report(same, pair, truths)


def deployed(width: int, folder: Path) -> Deployed:
    """A convolutional network whose every other layer has this width, in ONNX Runtime, about a millisecond a call."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, OUTER, 3, padding=1), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Conv2d(OUTER, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, OUTER, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(OUTER, 10)).eval()
    return deploy(find_runtime("onnxruntime"), model, torch.zeros(1, 3, SIDE, SIDE), folder, threads=1)


@contextlib.contextmanager
def half_busy() -> Iterator[None]:
    """A child that spins on the last core, a second on and a second off; it ends with its parent."""
    child = subprocess.Popen([sys.executable, "-c", SPIN])
    try:
        yield
    finally:
        child.kill()
        child.wait()


def timed(baseline: Deployed, candidate: Deployed, inputs: Array, seed: int) -> Repeat:
    with turn("cpu"):  # taken before the clock starts: to wait for another process that measures is no cost of this timing
        started = time.monotonic()
        timing = compare(baseline, candidate, inputs, DEFAULT, seed)
        return Repeat(timing, time.monotonic() - started)


def report(same: list[Repeat], pair: list[Repeat], truths: list[float]) -> None:
    truth, of = float(np.median(truths)), len(same)
    for name, repeats, true in (("A against A", same, 1.0), ("known pair", pair, truth)):
        print(f"\n{name}: speed, interval, seconds, cores kept busy by others, calls interrupted; * misses {true:.3f} or wider than 6 %")
        for repeat in repeats:
            timing = repeat.timing
            mark = " " if repeat.holds(true) else "*"
            load = "?" if timing.busy is None else f"{timing.busy:.2f}"
            interval = f"{timing.speedup:.3f} ({timing.low:.3f} to {timing.high:.3f}) {mark}"
            print(f"  {interval} {repeat.seconds:.2f} s  {load}  {100 * timing.interrupted:.0f} %")
    held, near = sum(repeat.holds(1.0) for repeat in same), sum(repeat.is_near(truth) for repeat in pair)
    slowest = max(repeat.seconds for repeat in same)
    call_ms = float(np.median([repeat.timing.latency_ms for repeat in same]))
    checks = {
        "A against A: contains 1, at most 6 % wide": (held >= LEAST_GOOD * of, f"{held} of {of}", f"at least {LEAST_GOOD * of:.0f}"),
        f"known pair: within 5 % of {truth:.3f}": (near >= LEAST_GOOD * of, f"{near} of {of}", f"at least {LEAST_GOOD * of:.0f}"),
        "cost of the default precision": (slowest <= MOST_SECONDS, f"at most {slowest:.2f} s", f"at most {MOST_SECONDS:g} s"),
        "the model": (ABOUT_MS[0] <= call_ms <= ABOUT_MS[1], f"{call_ms:.2f} ms a call", "about 1 ms"),
        "the pair": (1.4 <= truth <= 1.6, f"{truth:.3f}x", "near 1.5x"),
    }
    print()
    for name, (met, figure, bound) in checks.items():
        print(f"{name:45} {figure:>20} {bound:>20} {'met' if met else 'MISSED'}")
    loads = [repeat.timing.busy for repeat in (*same, *pair) if repeat.timing.busy is not None]
    busy = float(np.mean(loads)) if loads else None
    print(in_words(busy, 1, cores()))
    figures = {
        "a_against_a": summary(same, 1.0),
        "pair": {**summary(pair, truth), "truth": round(truth, 4), "long_runs": [round(value, 4) for value in truths], "near": near},
        "call_ms": round(call_ms, 3),
        "busy_cores": busy if busy is None else round(busy, 2),
    }
    print(json.dumps({"name": "timer", "figures": figures, "met": all(met for met, _, _ in checks.values())}))


def summary(repeats: list[Repeat], truth: float) -> dict[str, float]:
    """How many hold the truth, how many of the others lie on which side of it or are too wide; widths and seconds."""
    timings = [repeat.timing for repeat in repeats]
    return {
        "good": sum(repeat.holds(truth) for repeat in repeats),
        "of": len(repeats),
        "above": sum(timing.low > truth for timing in timings),
        "below": sum(timing.high < truth for timing in timings),
        "unresolved": sum(not timing.resolved for timing in timings),
        "widest": round(max(repeat.width for repeat in repeats), 4),
        "median_width": round(float(np.median([repeat.width for repeat in repeats])), 4),
        "slowest_s": round(max(repeat.seconds for repeat in repeats), 2),
        "median_s": round(float(np.median([repeat.seconds for repeat in repeats])), 2),
    }


if __name__ == "__main__":
    main()
