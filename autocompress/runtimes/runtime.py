"""Runtime turns a module into a Deployed callable: a folder of files that would be shipped, loaded the way it would be loaded."""

import resource
import time
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.recipe import Scheme
from autocompress.records import Machine
from autocompress.runs import write_folder

Array = NDArray[np.float32]
Kind = Literal["conv2d", "linear", "lstm", "gru"]
REST = "(rest)"  # in a profile: what belongs to no layer


class Support(NamedTuple):
    """``runs``: can be deployed here. ``real``: a kernel of this width makes it faster, not just smaller. ``reason``: why not."""

    runs: bool
    real: bool
    reason: str = ""


def impossible(kind: Kind, scheme: Scheme, weight_bits: int) -> str:
    """Why no runtime can have a layer of this kind with these bits by this scheme, or an empty string."""
    if scheme == "static" and kind in ("lstm", "gru"):
        return "the states of a recurrent layer have no range before it runs; use activations: dynamic"
    if scheme == "dynamic" and kind == "conv2d":
        return "no kernel takes the range of a convolution's input at run time and is faster than float; use activations: static"
    if scheme == "weight_only" and weight_bits > 8:
        return "a weight-only scheme needs integer weights, of 2 to 8 bits"
    return ""


class Call(NamedTuple):
    """Wall-clock seconds of one call. ``is_interrupted``: the kernel took a core away from this process meanwhile, to run another."""

    seconds: float
    is_interrupted: bool = False


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

    def with_threads(self, threads: int) -> "Deployed":
        """The same artifact loaded once more, to run on ``threads`` threads."""
        raise NotImplementedError

    @property
    def only_batch(self) -> int | None:
        """The batch size that the files fix; None where any goes."""
        return None

    def timed(self, inputs: Array, calls: int) -> list[Call]:
        """``calls`` calls one after the other, each with its time; what overrides how calls are timed overrides this."""
        series, switches = [], _switches()
        for _ in range(calls):
            started = time.perf_counter()
            self.run(inputs)
            seconds = time.perf_counter() - started
            before, switches = switches, _switches()
            series.append(Call(seconds, switches > before))
        return series

    def seconds(self, inputs: Array, calls: int) -> list[float]:
        """Wall-clock seconds of each of ``calls`` calls one after the other."""
        return [call.seconds for call in self.timed(inputs, calls)]

    def profile(self, inputs: Array, layers: Collection[str], calls: int = 30) -> dict[str, float]:
        """Milliseconds a call of each of ``layers``, by its name in the given model, and of what belongs to none under ``REST``.

        The factors of a low-rank layer and what rounds its inputs count to it. Empty where the runtime cannot tell.
        """
        return {}


def _switches() -> int:
    """How often a thread of this process lost its core against its will (getrusage(2))."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


class Runtime(Protocol):
    """One way to run a model on a device."""

    name: str
    channel_multiple: int  # channels that one vector instruction takes; other widths waste lanes

    def weight_bits(self, machine: Machine) -> dict[int, str]:
        """Bits of weights that run here in real static kernels -> an empty string; other bits -> the reason why they do not."""
        ...

    def support(self, kind: Kind, scheme: Scheme, weight_bits: int, machine: Machine) -> Support:
        """What becomes here of a layer of this kind whose weights have these bits, by this scheme."""
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
