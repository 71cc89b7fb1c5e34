"""What an artifact takes from a machine: memory, time to load, threads kept busy; read in a process of its own that does nothing else."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from autocompress.errors import UserError
from autocompress.measure.alone import INPUTS, USED
from autocompress.records import Usage
from autocompress.runtimes.runtime import Array

PACKAGE = Path(__file__).resolve().parents[2]
PATIENCE_S = 120.0  # for loading and the first calls, on top of the seconds that were asked for
FROM_FILES_ALONE = {"onnxruntime"}
WEIGHTS_ONLY = (
    "not available: {runtime} has no files that load without the task's own code, so no process can load nothing but the artifact"
)
ON_THE_CPU = "not available: {runtime} runs this artifact on the CPU, and only an allocator of CUDA reserves memory"
NO_METER = "not available on this machine: NVML measures GPUs, and {runtime} runs this artifact on the CPU"


def usage(folder: Path, runtime: str, threads: int, inputs: Array, seconds: float = 1.0, patience: float = PATIENCE_S) -> Usage:
    """Load the artifact in ``folder`` in a fresh process that imports the runtime and nothing of torch, and run it for ``seconds``.

    inputs (batch, ...), float32. ``peak_bytes`` and ``mean_bytes`` are resident memory beyond what that process had when the runtime
    was imported and the inputs were read: the weights as they lie in memory, activations, and the runtime's workspace (a first session
    of ONNX Runtime takes some 10 MB whatever the model); pages of files count once touched. The peak is the kernel's own count and
    includes loading; the mean is over the calls, read between them. ``load_ms`` is opening the artifact, whose file is in the page cache
    as a rule. ``utilisation`` is CPU seconds of the process by wall seconds x ``threads`` during the calls, waiting in a spinning loop
    included. Where a runtime loads nothing from files alone (eager PyTorch), and for what this device has not, a field is None and
    ``reasons`` say why.
    Raises UserError where that process dies, fails, or takes ``patience`` seconds more than it was given.
    """
    if runtime not in FROM_FILES_ALONE:
        return Usage(reasons=dict.fromkeys(("load_ms", "peak_bytes", "mean_bytes", "utilisation"), WEIGHTS_ONLY.format(runtime=runtime)))
    with tempfile.TemporaryDirectory(prefix="autocompress-usage-") as place:
        np.save(Path(place) / INPUTS, np.ascontiguousarray(inputs), allow_pickle=False)
        arguments = [str(folder.resolve()), str(threads), place, str(seconds)]
        _run(folder, arguments, seconds + patience)
        used = json.loads((Path(place) / USED).read_text(encoding="utf-8"))
    return Usage(
        load_ms=used["load_ms"],
        peak_bytes=used["peak_bytes"],
        mean_bytes=round(used["mean_bytes"]),
        utilisation=min(used["utilisation"], 1.0),  # the two clocks tick apart
        reasons={name: text.format(runtime=runtime) for name, text in (("reserved_bytes", ON_THE_CPU), ("energy_mj", NO_METER))},
    )


def _run(folder: Path, arguments: list[str], seconds: float) -> None:
    """Raises UserError with what became of the process."""
    paths = [str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-P", "-m", "autocompress.measure.alone", *arguments]  # -P: a numpy.py beside the user is not numpy
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    what = f"usage: the process that loads {folder} and runs it"
    try:
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"{what} took more than {seconds:g} s and was stopped; give it more time or a smaller batch") from None
    if done.returncode < 0:
        raise UserError(
            f"{what} was killed by signal {-done.returncode}; 9 is what the kernel sends where memory ran out: use a smaller batch"
        )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise UserError(f"{what} failed: {lines[-1][:300] if lines else f'exit code {done.returncode}'}. Is the folder whole?")
