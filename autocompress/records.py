"""Facts, not wishes: where it must be fast, what a layer is, what was measured. Plain frozen data that crosses files."""

import hashlib
import json
from typing import Literal

from pydantic import Field

from autocompress.recipe import Frozen, Recipe, Scheme

Outcome = Literal["measured", "gated", "infeasible", "out_of_memory", "diverged", "timed_out", "died"]
Split = Literal["search", "holdout"]


class Target(Frozen):
    """Where the model must be fast."""

    runtime: str = "onnxruntime"
    device: str = "cpu"
    batch_size: int = Field(default=1, ge=1)
    threads: int = Field(default=1, ge=1)
    dtype: Literal["float32"] = "float32"

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.runtime} on {self.device}, batch {self.batch_size}, {threads}"


class Machine(Frozen):
    """The machine and the versions that a time was measured with."""

    cpu: str
    cores: int
    instruction_sets: tuple[str, ...]
    memory_bytes: int
    system: str
    python: str
    gpu: str | None = None
    versions: dict[str, str]

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:12]


class LayerInfo(Frozen):
    """What one layer, attention module, recurrent layer or residual block is, and what may be done to it on this target.

    ``out_channels`` of an attention module are its heads, of a recurrent layer its hidden units.
    ``group`` names the prune group that fixes its output width, ``in_group`` the one that fixes its input width (None: not
    prunable). ``channel_multiple`` is the multiple of channels that the target likes. ``weight_bits`` lists what the target
    runs in real kernels, the float 32 included; ``schemes`` all that it runs at all, by scheme: a width without a kernel of its own makes
    the file smaller, not the model faster. ``factorizable`` is false where a low-rank form is refused, ``droppable`` is true for a
    residual block that may be left out. The reasons say why not.
    """

    name: str
    kind: Literal["conv2d", "linear", "attention", "lstm", "gru", "block"]
    macs: int
    params: int
    in_channels: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    conv_groups: int = 1
    group: str | None = None
    in_group: str | None = None
    channel_multiple: int = 1
    weight_bits: tuple[int, ...] = (32,)
    schemes: dict[Scheme, tuple[int, ...]] = {}
    factorizable: bool = False
    droppable: bool = False
    keep_reason: str = ""
    rank_reason: str = ""
    bits_reason: str = ""
    drop_reason: str = ""


class Measurement(Frozen):
    """Numbers read off one deployed artifact. ``speedup`` = latency of the fp32 baseline in the same runtime / latency of this one,
    timed in alternating blocks, with a bootstrap 95 % interval; ``drop`` = lost points of the task's metric. ``size_bytes`` is the packed
    weights file (integers at their own width, with scales and zero points), ``deployed_bytes`` what the runtime loads.
    """

    split: Split
    latency_ms: float
    baseline_latency_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float
    resolved: bool = Field(description="false: the interval was still wider than asked when the cap was reached")
    blocks: int
    accuracy: float
    baseline_accuracy: float
    drop: float
    samples: int
    size_bytes: int
    baseline_size_bytes: int
    deployed_bytes: int = 0
    agreement: float = Field(description="share of the first 512 samples whose top-1 equals that of the PyTorch model it was lowered from")
    max_difference: float = Field(description="largest absolute difference of any output from that PyTorch model, on the same samples")
    machine: str = Field(description="digest of the Machine")


class Baseline(Frozen):
    """The given model in fp32 in the target's runtime, and in eager PyTorch as the second reference."""

    latency_ms: float
    eager_latency_ms: float
    accuracy: float
    holdout_accuracy: float
    size_bytes: int
    macs: int
    params: int
    input_shape: tuple[int, ...]
    metric: str
    target: Target
    task_digest: str
    machine: str


class TrialResult(Frozen):
    """One finished trial: what was asked, how it ended, what was measured, where the time went (seconds a stage)."""

    number: int = 0
    source: str = "given"
    params: dict[str, int] = {}
    recipe: Recipe
    target: Target
    outcome: Outcome
    gate_speedup: float | None = None
    measurement: Measurement | None = None
    message: str = ""
    seconds: dict[str, float] = {}
    finished_at: str = ""
