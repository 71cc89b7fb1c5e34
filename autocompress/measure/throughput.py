"""Samples a second: over growing batches until nothing is gained, and over threads; baseline and candidate in alternating blocks."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from autocompress.errors import UserError
from autocompress.measure.alone import Since
from autocompress.measure.batches import batch_of
from autocompress.records import Throughput
from autocompress.runtimes.runtime import Array, Deployed

GAIN = 1.05  # a batch that gives less than this over the best so far gains nothing
TRIES = 2  # batches without gain after which a model has stopped rising
MOST_SAMPLES = 4096
BLOCK_SECONDS = 0.02
SIZE_SECONDS = 0.5  # for one batch size; at least PAIRS pairs are timed, however long they take
PAIRS = 3
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Sweep:
    """A row a batch size, and why the next one was not tried."""

    rows: tuple[Throughput, ...]
    stopped: str


def sweep(baseline: Deployed, candidate: Deployed, inputs: Array, threads: int, most_seconds: float = 20.0) -> Sweep:
    """Batch 1, 2, 4, ... of ``inputs`` (N, ...), repeated where there are too few, until both gain less than 5 % twice in a row.

    It stops before that where an allocator has no more memory, where the next batch might take half of what this machine has left, where
    the next one would outlast ``most_seconds``, and at batch 4096. Both are opened with ``threads``. Samples a second are those of the
    median block; whether a batch gains is asked of the fastest blocks, for other work on the machine makes a block slow and never fast.
    An artifact with a fixed batch size is timed at that one, and ``stopped`` says so.
    """
    both, started, spent = (baseline.with_threads(threads), candidate.with_threads(threads)), time.monotonic(), 0.0
    rows: list[Throughput] = []
    fastest: list[tuple[float, float]] = []
    fixed = baseline.only_batch or candidate.only_batch
    for batch_size in (fixed,) if fixed else _doubling():
        if time.monotonic() - started + spent > most_seconds and rows:
            return Sweep(tuple(rows), f"batch {batch_size} was not tried: {most_seconds:g} s are spent")
        began, memory = time.monotonic(), Since()
        try:
            row, rates = _row(both, batch_of(inputs, batch_size), threads)
        except Exception as error:  # allocators have no class in common; what is no lack of memory goes through
            if not is_out_of_memory(error):
                raise
            return Sweep(tuple(rows), f"batch {batch_size} ran out of memory")
        rows.append(row)
        fastest.append(rates)
        spent = 2 * (time.monotonic() - began)
        if all(has_stopped([rates[index] for rates in fastest]) for index in (0, 1)):
            return Sweep(tuple(rows), f"the last {TRIES} batches gained less than {100 * (GAIN - 1):.0f} %")
        if 2 * memory.peak() > _available_bytes() / 2:
            return Sweep(tuple(rows), f"batch {2 * batch_size} was not tried: it might not fit into memory")
    why = f"the artifact takes batch {fixed} only" if fixed else f"batch {MOST_SAMPLES} is the largest that is tried"
    return Sweep(tuple(rows), why)


def sweep_threads(
    baseline: Deployed, candidate: Deployed, inputs: Array, threads: Sequence[int], most_seconds: float = 20.0
) -> tuple[Throughput, ...]:
    """A row for each number of threads, both loaded anew with it; inputs (batch, ...) is the batch that is timed.

    What ``most_seconds`` leave no time for is left out, the first one never. Raises UserError for a number of threads below 1.
    """
    wrong = [count for count in threads if count < 1]
    if wrong:
        raise UserError(f"threads: must be at least 1, got {wrong[0]}; give 1, 2, ... up to the cores of this machine")
    started = time.monotonic()
    rows: list[Throughput] = []
    for count in threads:
        if rows and time.monotonic() - started > most_seconds:
            break
        rows.append(_row((baseline.with_threads(count), candidate.with_threads(count)), inputs, count)[0])
    return tuple(rows)


def has_stopped(rates: Sequence[float]) -> bool:
    """Did the last TRIES rates gain less than GAIN over the best before them?"""
    return len(rates) > TRIES and max(rates[-TRIES:]) < GAIN * max(rates[:-TRIES])


def is_out_of_memory(error: Exception) -> bool:
    """numpy raises MemoryError, torch's allocators a RuntimeError, ONNX Runtime classes of its own over what C++ said."""
    words = ("not enough memory", "out of memory", "can't allocate memory", "bad_alloc", "failed to allocate memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error).lower() for word in words)


def _doubling() -> Iterator[int]:
    size = 1
    while size <= MOST_SAMPLES:
        yield size
        size *= 2


def _row(both: tuple[Deployed, Deployed], batch: Array, threads: int) -> tuple[Throughput, tuple[float, float]]:
    """Both in alternating blocks of about equal length, in random order, until SIZE_SECONDS are spent; and samples a second of the
    fastest block of each.
    """
    calls = []
    for deployed in both:
        deployed.seconds(batch, 1)  # the first call at a size allocates for it
        calls.append(int(np.clip(BLOCK_SECONDS / max(deployed.seconds(batch, 1)[0], 1e-9), 1, 1000)))
    times: tuple[list[float], list[float]] = ([], [])
    random, started = np.random.default_rng(0), time.monotonic()
    while len(times[0]) < PAIRS or time.monotonic() - started < SIZE_SECONDS:
        for index in random.permutation(2):
            times[index].append(float(np.median(both[index].seconds(batch, calls[index]))))
    rates = [len(batch) / float(np.median(series)) for series in times]
    row = Throughput(batch_size=len(batch), threads=threads, samples_per_s=rates[1], baseline_samples_per_s=rates[0])
    return row, (len(batch) / min(times[0]), len(batch) / min(times[1]))


def _available_bytes() -> float:
    """Memory that can still be had without swapping; without end where the system does not tell."""
    lines = MEMINFO.read_text(encoding="ascii").splitlines() if MEMINFO.exists() else []
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), float("inf"))
