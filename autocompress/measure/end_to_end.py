"""End to end: raw samples in, answers out. A user waits for preprocessing and postprocessing too, which no compression makes faster."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autocompress.measure.batches import at_batch
from autocompress.measure.latency import Effort, compare
from autocompress.records import EndToEnd
from autocompress.runtimes.eager import threads as torch_threads
from autocompress.runtimes.runtime import Array, Call, Deployed
from autocompress.tasks.task import Task

ALONE_SECONDS = 0.2
FEWEST_CALLS = 5

Before = Callable[[Array], Array]
After = Callable[[Array], object]


class Pipeline(Deployed):
    """An artifact with what goes before and after it; torch gets as many threads as the artifact has, and gives them back."""

    def __init__(self, deployed: Deployed, before: Before, after: After, threads: int) -> None:
        super().__init__(deployed.folder)
        self.deployed, self.before, self.after, self.threads = deployed, before, after, threads

    @property
    def size_bytes(self) -> int:
        return self.deployed.size_bytes

    def run(self, inputs: Array) -> Array:
        outputs = self.deployed.run(self.before(inputs))
        self.after(outputs)
        return outputs

    def reopened(self) -> "Pipeline":
        return Pipeline(self.deployed.reopened(), self.before, self.after, self.threads)

    def timed(self, inputs: Array, calls: int) -> list[Call]:
        with torch_threads(self.threads), torch.no_grad():
            return super().timed(inputs, calls)


def end_to_end(task: Task, both: tuple[Deployed, Deployed], inputs: Array, threads: int, effort: Effort) -> EndToEnd | None:
    """Baseline and candidate of ``both``, each with the task's preprocess and postprocess, in alternating blocks; None without either.

    inputs (batch, ...) says how many samples a call takes. They are what the model reads where the task has no ``preprocess``; where it
    has one, every call makes its inputs anew from as many of ``task.raw``, repeated where there are too few.
    """
    if task.preprocess is None and task.postprocess is None:
        return None
    before, after = _before(task, len(inputs)), _after(task)
    baseline, candidate = (Pipeline(one, before, after, threads) for one in both)
    timing = compare(baseline, candidate, inputs, effort)
    outputs = both[1].run(before(inputs))
    with torch_threads(threads), torch.no_grad():
        alone = (_median_ms(lambda: before(inputs)), _median_ms(lambda: after(outputs)))
    return EndToEnd(
        **at_batch(len(inputs), timing).model_dump(),
        preprocess_ms=alone[0] if task.preprocess is not None else None,
        postprocess_ms=alone[1] if task.postprocess is not None else None,
    )


def _before(task: Task, count: int) -> Before:
    """Takes the place of the model's inputs with what ``preprocess`` makes of ``count`` raw samples."""
    preprocess = task.preprocess
    if preprocess is None:
        return lambda inputs: inputs
    assert task.raw is not None, "check(task) asks for both"
    samples: Sequence[Any] = [task.raw[index % len(task.raw)] for index in range(count)]
    return lambda inputs: _array(preprocess(samples))


def _after(task: Task) -> After:
    postprocess = task.postprocess
    return (lambda outputs: outputs) if postprocess is None else (lambda outputs: postprocess(torch.from_numpy(outputs)))


def _array(inputs: Tensor) -> Array:
    return np.ascontiguousarray(inputs.detach().cpu().numpy())


def _median_ms(call: Callable[[], object]) -> float:
    call()
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < FEWEST_CALLS or time.perf_counter() - begun < ALONE_SECONDS:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1000 * float(np.median(times))
