"""Facts, not wishes: where it must be fast, what a layer is, what was measured. Plain frozen data that crosses files."""

import hashlib
import json
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from autocompress.recipe import Frozen, Recipe, Scheme

Outcome = Literal["measured", "gated", "infeasible", "out_of_memory", "diverged", "timed_out", "died"]
Split = Literal["search", "holdout"]
CHECKS = {  # what Measurement.checks may hold, in points of the metric unless said otherwise; empty where outputs are no class logits
    "worst_class_drop": "the largest drop of any class",
    "hard_drop": "drop on the tenth of the samples with the smallest margin of the baseline",
    "rare_drop": "drop on the rarest classes",
    "calibration_error_rise": "by how much the expected calibration error grew, in percent",
    "mcnemar_p": "how likely so uneven a change of answers is by chance, 0..1 (McNemar's exact test)",
}


class Target(Frozen):
    """Where the model must be fast. ``batch_size=8``, which studies of one batch size wrote, is read as ``batch_sizes=(8,)``."""

    runtime: str = "onnxruntime"
    device: str = "cpu"
    batch_sizes: tuple[int, ...] = Field(default=(1,), min_length=1, description="ascending; a speed is the geometric mean over them")
    threads: int = Field(default=1, ge=1)
    dtype: Literal["float32"] = "float32"

    @model_validator(mode="before")
    @classmethod
    def _one_batch_size(cls, content: Any) -> Any:
        if isinstance(content, dict) and "batch_size" in content and "batch_sizes" not in content:
            return {name: value for name, value in content.items() if name != "batch_size"} | {"batch_sizes": (content["batch_size"],)}
        return content

    @field_validator("batch_sizes")
    @classmethod
    def _ascending(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if min(sizes) < 1:
            raise ValueError("every batch size must be at least 1")
        return tuple(sorted(set(sizes)))

    @property
    def batch_size(self) -> int:
        """The smallest: what a latency in milliseconds, of which there is one, is that of."""
        return self.batch_sizes[0]

    @property
    def batches(self) -> str:
        """The batch sizes in words: ``1``, ``1 and 8``, ``1, 8 and 32``."""
        *firsts, last = map(str, self.batch_sizes)
        return f"{', '.join(firsts)} and {last}" if firsts else last

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.runtime} on {self.device}, batch {self.batches}, {threads}"


class Machine(Frozen):
    """The machine and the versions that a time was measured with."""

    cpu: str
    cores: int
    instruction_sets: tuple[str, ...]
    memory_bytes: int
    system: str
    python: str
    gpu: str | None = None
    governor: str | None = Field(default=None, description="of the clock's frequency; None: the system shows none")
    gpu_driver: str | None = None
    versions: dict[str, str]

    @property
    def digest(self) -> str:
        later = ("governor", "gpu_driver")  # left out while unknown, so that digests stored before these fields stay true
        known = {name: value for name, value in self.model_dump(mode="json").items() if name not in later or value is not None}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]


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


class Tried(Frozen):
    """One choice of a survey, tried alone on the given model and not trained: ``kind`` and ``name`` as in the name of a dimension
    (``keep:<group>``, ``rank:<layer>``), ``value`` as in its choices. What could not be tried has None and a reason.
    """

    kind: Literal["keep", "heads", "drop", "sparsity", "rank", "energy", "weight_bits"]
    name: str
    value: float | str
    harm: float | None = Field(default=None, description="rise of the task's loss on the calibration samples")
    divergence: float | None = Field(default=None, description="from the given model's outputs: KL for logits, else mean square")
    reason: str = ""


class LayerCost(Frozen):
    """Time of one layer under one scheme, in ms a batch: ``terms`` times (kernels, kept share of inputs, of outputs, of multiply-adds).

    ``kernels`` is 1 for the dense layer and 2 or 3 for a low-rank one.
    """

    name: str
    scheme: Scheme
    terms: tuple[float, float, float, float]


class LatencyModel(Frozen):
    """What `latency_model` predicts a recipe's time from: costs of layers fitted to profiles, and what their sum leaves out.

    ``correction`` times (1, sum of the layers and changes in ms, mean over layers of the kept share of outputs) is the whole model's
    time. ``error``: the relative error of nine in ten probes that the fit did not see (leave-one-out).
    """

    costs: tuple[LayerCost, ...]
    correction: tuple[float, float, float]
    change_ms: float = Field(default=0.0, ge=0, description="for every two neighbouring layers, one static integer and one not")
    baseline_ms: float
    error: float
    probes: int
    batch_size: int
    input_shape: tuple[int, ...]


class Survey(Frozen):
    """survey.json: what every choice of a space would harm and save, measured before any trial."""

    tried: tuple[Tried, ...]
    layer_ms: dict[str, float] = Field(description="time of each layer in the fp32 baseline, from the runtime's profile; ms a batch")
    latency: LatencyModel | None = Field(default=None, description="None: this runtime has no profile; `notes` say so")
    samples: int = Field(description="calibration samples that harms were measured on")
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


class Measurement(Frozen):
    """Numbers read off one deployed artifact. ``speedup`` = latency of the fp32 baseline in the same runtime / latency of this one,
    timed in alternating blocks, with a bootstrap 95 % interval; ``drop`` = how much worse the task's metric is, in its unit (percentage
    points for "%"). ``size_bytes`` is the packed weights file (integers at their own width, with scales and zero points),
    ``deployed_bytes`` what the runtime loads. ``accuracy`` is the metric, whatever it is called.
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
    macs: int | None = Field(default=None, description="multiply-adds of one sample: where they lie, times and sizes do not")
    params: int | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    baseline_p90_ms: float | None = None
    baseline_p99_ms: float | None = None
    faster: float | None = Field(default=None, description="probability (0..1) that a block of calls beats the baseline's beside it")
    busy: float | None = Field(default=None, description="cores that other processes kept busy meanwhile, on average")
    batches: tuple["BatchTiming", ...] = Field(default=(), description="each batch size, where several were asked; speedup is their mean")
    drop_low: float | None = Field(default=None, description="paired 95 % interval of drop: both models saw the same samples")
    drop_high: float | None = None
    checks: dict[str, float] = Field(default={}, description="numbers that a search may bound, by name: worst_class_drop, ...")
    agreement: float = Field(description="share of the first 512 samples whose top-1 equals that of the PyTorch model it was lowered from")
    max_difference: float = Field(description="largest absolute difference of any output from that PyTorch model, on the same samples")
    machine: str = Field(description="digest of the Machine")

    @property
    def worst(self) -> "BatchTiming | None":
        """The batch size with the smallest speedup, where several were asked."""
        return min(self.batches, key=lambda one: one.speedup, default=None)


class BatchTiming(Frozen):
    """One of several batch sizes; ``speedup`` of the Measurement is then the geometric mean of theirs, its latencies those of the first."""

    batch_size: int
    latency_ms: float
    baseline_latency_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float
    resolved: bool


class Usage(Frozen):
    """What a process of its own needs that only loads one artifact and runs it; None: not available here, and the reasons say why."""

    load_ms: float | None = None
    peak_bytes: int | None = Field(
        default=None, description="resident size (CPU) or allocated bytes (CUDA) beyond what the process had before loading, at most"
    )
    mean_bytes: int | None = Field(default=None, description="the same on average over the calls")
    reserved_bytes: int | None = Field(default=None, description="CUDA: what the allocator holds; beyond peak_bytes it is fragmentation")
    utilisation: float | None = Field(default=None, description="share (0..1) of the device, or of the threads asked for, that was busy")
    energy_mj: float | None = Field(default=None, description="millijoules a call")
    reasons: dict[str, str] = Field(default={}, description="field -> why it is None")


class Throughput(Frozen):
    """Samples a second at one batch size, of the artifact and of the baseline."""

    batch_size: int
    threads: int
    samples_per_s: float
    baseline_samples_per_s: float


class EndToEnd(BatchTiming):
    """Preprocessing, model and postprocessing of one batch together, paired as a Measurement's latency is, which is the model's alone."""

    preprocess_ms: float | None = Field(default=None, description="median alone; None: the task has none")
    postprocess_ms: float | None = None


class Part(Frozen):
    """The metric on a part of the samples, or on all of them under a shift of their inputs; before (baseline) and after."""

    name: str
    samples: int
    score: float
    baseline_score: float


class Inspection(Frozen):
    """More about one artifact than every trial is measured for; taken on the holdout split, beside its Measurement.

    Indices are places in that split. What the task's outputs do not allow (classes, for a regression) is empty; ``notes`` say so.
    """

    split: Split = "holdout"
    usage: Usage
    baseline_usage: Usage
    throughput: tuple[Throughput, ...] = ()
    end_to_end: EndToEnd | None = Field(default=None, description="None: the task has neither preprocess nor postprocess")
    classes: tuple[Part, ...] = Field(default=(), description="a part a class, in the order of the classes")
    hard: Part | None = Field(default=None, description="the tenth of the samples with the smallest margin of the baseline")
    rare: Part | None = Field(default=None, description="samples of the rarest classes")
    shifts: tuple[Part, ...] = Field(default=(), description="noise, blur, brightness, contrast, FGSM, each with its strength in the name")
    broken: tuple[int, ...] = Field(default=(), description="right before, wrong now")
    righted: tuple[int, ...] = Field(default=(), description="wrong before, right now")
    calibration_error: float | None = Field(default=None, description="expected calibration error, 15 bins, in percent (Guo et al. 2017)")
    baseline_calibration_error: float | None = None
    notes: tuple[str, ...] = ()


class Undone(Frozen):
    """What one decision of a recipe bought: the recipe without it, measured."""

    decision: str
    layers: tuple[str, ...]
    speedup: float = Field(description="without this decision: the trial's, times their ratio when timed side by side")
    drop: float
    bought_ms: float = Field(description="latency without it minus latency with it, of the two timed side by side")
    cost_points: float = Field(description="drop with it minus drop without it")
    bought_bytes: int = Field(default=0, description="weights file without it minus weights file with it")
    bought: bool = Field(description="false: without it no slower (by 3 % at most) and, for a setting of training or grids, no worse")


class Beside(Frozen):
    """A recipe timed in alternating blocks with that of a trial: latency of the trial / latency of this one, with its interval."""

    trial: str = Field(description="digest of the trial's recipe")
    ratio: float
    ratio_low: float
    ratio_high: float
    latency_ms: float
    trial_latency_ms: float


class Attribution(Frozen):
    """Each decision of one recipe undone in turn, and the recipe that is left when those that bought nothing are dropped."""

    trial: int
    metric_unit: str = "%"
    decisions: tuple[Undone, ...]
    simpler: Recipe | None = None
    simpler_measurement: Measurement | None = None
    notes: tuple[str, ...] = Field(default=(), description="decisions that could not be undone, and why nothing simpler is offered")


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
    input_dtype: str = "float32"
    metric: str
    metric_unit: str = "%"
    higher_is_better: bool = True
    target: Target
    task_digest: str
    machine: str


class CurvePoint(Frozen):
    """The drop of a trial after so many steps of its recovery, on the part of the search split that rungs look at."""

    step: int
    drop: float


class TrialResult(Frozen):
    """One finished trial: what was asked, how it ended, what was measured, where the time went (seconds a stage).

    ``gate_drop``: the drop that the gate let it hope for, where that stopped it. ``audit``: the gate would have stopped it, and it ran to
    its end all the same; ``message`` says where.
    """

    number: int = 0
    source: str = "given"
    params: dict[str, int] = {}
    recipe: Recipe
    target: Target
    outcome: Outcome
    gate_speedup: float | None = None
    gate_predicted: bool = Field(default=False, description="gate_speedup is what the survey predicts, not a timing")
    gate_drop: float | None = None
    curve: tuple[CurvePoint, ...] = ()
    audit: bool = False
    measurement: Measurement | None = None
    message: str = ""
    seconds: dict[str, float] = {}
    finished_at: str = ""


class GateSavings(Frozen):
    """What stopping trials on their way was worth in a study, and what it may have cost; seconds are estimated.

    ``seconds``: what the gated trials would have taken more, had they taken as long as the measured ones on average. ``lost``: audits,
    which ran to their end though the gate would have stopped them, that are on the front within the bounds.
    """

    gated: int
    audits: int
    seconds: float
    lost: int

    def __str__(self) -> str:
        saved = f"{self.gated} trials stopped on their way, about {self.seconds:.0f} s saved"
        if not self.audits:
            return f"{saved}; no audit yet, so nobody knows what it lost"
        return f"{saved}; {self.audits} more ran to their end as audits, {self.lost} of them on the front"
