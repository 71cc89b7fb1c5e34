"""Runtime turns a module into a Deployed callable: a folder of files that would be shipped, loaded the way it would be loaded."""

import time
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.records import Machine
from autocompress.runs import write_folder

Array = NDArray[np.float32]


class Deployed:
    """One loaded artifact. ``folder`` holds what ships; ``run`` maps inputs (N, ...) to outputs (N, ...)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def size_bytes(self) -> int:
        """Bytes on disk of what is loaded to run it."""
        raise NotImplementedError

    def run(self, inputs: Array) -> Array:
        raise NotImplementedError

    def reopened(self) -> "Deployed":
        """The same artifact loaded once more, as a next process would; itself where loading means nothing."""
        return self

    def seconds(self, inputs: Array, calls: int) -> list[float]:
        """Wall-clock seconds of each of ``calls`` calls one after the other."""
        times = []
        for _ in range(calls):
            started = time.perf_counter()
            self.run(inputs)
            times.append(time.perf_counter() - started)
        return times


class Runtime(Protocol):
    """One way to run a model on a device."""

    name: str
    channel_multiple: int  # channels that one vector instruction takes; other widths waste lanes

    def weight_bits(self, machine: Machine) -> dict[int, str]:
        """Bits of weights that run here in real kernels -> an empty string; other bits -> the reason why they do not."""
        ...

    def write(self, model: nn.Module, example: Tensor, folder: Path) -> None:
        """Lower ``model`` (eval mode; frozen where fake-quantized) with ``example`` (1, ...) into the files that would ship.

        Raises InfeasibleRecipe for bits that no kernel realizes.
        """
        ...

    def open(self, folder: Path, threads: int, model: nn.Module) -> Deployed:
        """Load what ``write`` wrote; ``model`` is a module of the same structure, used where the files hold weights only."""
        ...


def deploy(runtime: Runtime, model: nn.Module, example: Tensor, folder: Path, threads: int) -> Deployed:
    """Write, whole or not at all, and load."""
    write_folder(folder, partial(runtime.write, model, example))
    return runtime.open(folder, threads, model)
