"""evaluate(recipe, bench, gate) -> TrialResult: the one function that costs money.

Speed first: the shrunk model is deployed and timed before any recovery, and stops there when no accuracy could help. After
recovery the artifact is made again from the trained values; latency, size and accuracy are all read off that one artifact.
"""

import contextlib
import copy
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.blocks import FakeQuantized
from autocompress.compress.build import Materials, compress, freeze_, provisional, rebuild, settle, shrink
from autocompress.compress.distill import Lesson, Sample, Teacher, distillation_loss, taught
from autocompress.compress.quantize import fold_batch_norm
from autocompress.errors import Diverged, InfeasibleRecipe
from autocompress.gate import Gate
from autocompress.measure.accuracy import agreement, predict
from autocompress.measure.batches import batch_of, compare_batches
from autocompress.measure.latency import GATE, HOLDOUT, SEARCH, Effort, Timing, compare
from autocompress.measure.machine import this_machine
from autocompress.measure.paired import paired
from autocompress.measure.quality import checks
from autocompress.measure.throughput import is_out_of_memory
from autocompress.progress import Progress
from autocompress.recipe import Recipe
from autocompress.records import Baseline, BatchTiming, LayerInfo, Machine, Measurement, Outcome, Split, Survey, Target, TrialResult
from autocompress.rungs import Hopeless, Looks, Part, part_of
from autocompress.runs import write_folder, write_text
from autocompress.runtimes import find_runtime
from autocompress.runtimes.eager import RUNTIME as EAGER
from autocompress.runtimes.runtime import Array, Deployed, Runtime, deploy
from autocompress.runtimes.weights import read_weights, weights_bytes, write_weights
from autocompress.speeds import Speed, kind_of, predicted_speed, structure_of
from autocompress.survey import multiply_adds, survey
from autocompress.tasks.task import Batch, Task, calibration, digest, gather, lost, outputs_of, score, stream

KEPT_SAMPLES_BYTES = 512 * 2**20  # recovery batches and teacher outputs up to this size are made once a study, larger ones every trial
GIVEN = "model"  # the uncompressed model, among the teachers
AGREEMENT_SAMPLES = 512  # fake quantization in PyTorch is some ten times slower than the artifact
GATE_SAMPLES = 64  # inputs for the provisional ranges of the first timing
SCORING_BATCHES = 4  # training batches that importances look at
ENDLESS = sys.maxsize
PREDICTED = "predicted"
ANY_SPEED = Speed(0.0, 0.0, math.inf)


@dataclass(eq=False)
class Bench:
    """What stays fixed in a study: the task and its gathered data, where it must be fast, the deployed baseline, the survey."""

    task: Task
    runtime: Runtime
    target: Target
    device: torch.device
    machine: Machine
    layers: tuple[LayerInfo, ...]
    baseline: Baseline
    deployed: Deployed
    splits: Mapping[Split, Batch]
    calibration: Tensor
    teachers: Mapping[str, nn.Module]
    outputs: Mapping[Split, Tensor]  # of the deployed baseline
    lectures: dict[object, "Lecture"] = field(default_factory=dict)
    survey: Survey | None = None
    part: Part | None = None  # what recoveries are looked at on; None: the task's metric needs the whole split
    speeds: dict[str, Speed] = field(default_factory=dict)  # timed before recovery, by structure
    lowered: set[object] = field(default_factory=set)  # kinds of recipes that the runtime took

    @property
    def example(self) -> Tensor:
        """One input, (1, ...)."""
        return self.calibration[:1]

    @property
    def inputs(self) -> Array:
        """The batch of the smallest size that is timed."""
        return self.batches[0]

    @property
    def batches(self) -> tuple[Array, ...]:
        return timed_inputs(self.calibration, self.target)


def timed_inputs(inputs: Tensor, target: Target) -> tuple[Array, ...]:
    """The batches that latency is timed on, (batch_size, ...) each: real samples, repeated where there are too few."""
    samples: Array = inputs.numpy()
    return tuple(batch_of(samples, size) for size in target.batch_sizes)


def prepare(task: Task, target: Target, device: torch.device, folder: Path, progress: Progress) -> Bench:
    """Survey the layers, deploy the baseline into ``folder`` and time it against eager PyTorch. ``task`` has its three splits."""
    assert task.holdout is not None
    runtime, machine, inputs = find_runtime(target.runtime), this_machine(), calibration(task)
    splits: dict[Split, Batch] = {"search": gather(task.search, "search"), "holdout": gather(task.holdout, "holdout")}
    with progress.stage("survey of the layers"):
        layers = survey(task.model, inputs[:1], runtime, machine)
    with progress.stage("timing the baseline"):
        folded = fold_batch_norm(task.model, inputs[:1])
        write_folder(folder, partial(_write_artifact, runtime, folded, inputs[:1]))
        deployed = runtime.open(folder, target.threads, folded)
        eager = deploy(EAGER, folded, inputs[:1], folder / "eager", target.threads)
        timing = compare(eager, deployed, timed_inputs(inputs, target)[0], SEARCH)
    outputs = {name: predict(deployed, x) for name, (x, _) in splits.items()}
    accuracies = {name: score(task, outputs[name], y, name) for name, (_, y) in splits.items()}
    baseline = Baseline(
        latency_ms=timing.latency_ms,
        eager_latency_ms=timing.baseline_latency_ms,
        accuracy=accuracies["search"],
        holdout_accuracy=accuracies["holdout"],
        size_bytes=weights_bytes(folder),
        macs=sum(layer.macs for layer in layers),
        params=sum(parameter.numel() for parameter in task.model.parameters()),
        input_shape=tuple(inputs.shape[1:]),
        input_dtype=str(inputs.dtype).removeprefix("torch."),
        metric=task.metric_name,
        metric_unit=task.metric_unit,
        higher_is_better=task.higher_is_better,
        target=target,
        task_digest=digest(task),
        machine=machine.digest,
    )
    own = {GIVEN: task.model, **task.teachers}
    teachers = {name: model if device.type == "cpu" else copy.deepcopy(model).to(device) for name, model in own.items()}
    bench = Bench(task, runtime, target, device, machine, layers, baseline, deployed, splits, inputs, teachers, outputs)
    bench.part = part_of(task, splits["search"], outputs["search"])
    return bench


def evaluate(recipe: Recipe, bench: Bench, gate: Gate, folder: Path) -> TrialResult:
    """Compress, time, recover, deploy and measure on the search split; the artifact stays in ``folder``/artifact, a log in log.txt.

    Expected endings become outcomes; whatever else is raised is a bug and goes through.
    """
    trial = _Trial(recipe, bench, folder)
    try:
        return trial.run(gate)
    except InfeasibleRecipe as error:
        return trial.end("infeasible", message=str(error))
    except Diverged as error:
        return trial.end("diverged", message=str(error))
    except Exception as error:  # allocators have no class in common; what is no lack of memory goes through
        if not is_out_of_memory(error):
            raise
        return trial.end("out_of_memory", message=str(error) or "out of memory")
    finally:
        write_text(folder / "log.txt", "".join(f"{line}\n" for line in trial.log))


class _Trial:
    """The stages of one evaluation, with the seconds of each."""

    def __init__(self, recipe: Recipe, bench: Bench, folder: Path) -> None:
        self.recipe, self.bench, self.folder = recipe, bench, folder
        self.seconds: dict[str, float] = {}
        self.log: list[str] = [f"recipe {recipe.digest}"]
        self.gate_speedup: float | None = None
        self.gate_predicted = False
        self.looks: Looks | None = None
        self.doubt = ""  # what the gate said of an audit

    def run(self, gate: Gate) -> TrialResult:
        bench = self.bench
        speed, reason = self.ask_speed(gate)
        if reason and not gate.audit:
            return self.end("gated", message=reason)
        self.doubt = reason
        given = materials(bench, self.recipe)
        if bench.part is not None:
            self.looks = Looks(bench.task, bench.part, gate, self.recipe.recovery.steps, speed.high)
        try:
            model = compress(bench.teachers[GIVEN], self.recipe, replace(given, look=self.looks), self.stage)
        except Hopeless as stop:
            return self.end("gated", message=f"{stop}; it was not trained further")
        with self.stage("deploy"):
            artifact = self.folder / "artifact"
            shutil.rmtree(artifact, ignore_errors=True)
            model.cpu()
            write_folder(artifact, partial(_write_artifact, bench.runtime, model, bench.example))
            deployed = bench.runtime.open(artifact, bench.target.threads, model)
        with self.stage("measure"):
            measurement = measure(bench, deployed, model, "search", SEARCH)
        self.doubt = self.doubt or (self.looks.reason if self.looks is not None else "")
        return self.end("measured", measurement, f"an audit: {self.doubt}" if self.doubt else "")

    def ask_speed(self, gate: Gate) -> tuple[Speed, str]:
        """How fast it will be, and why that is too slow, or an empty string; predicted where that decides it, else timed."""
        bench, recipe = self.bench, self.recipe
        kind, structure = kind_of(recipe, bench.layers), structure_of(provisional(recipe))
        if kind in bench.lowered and gate.asks_nothing:
            self.log.append("before recovery: nothing is asked of the speed")
            return ANY_SPEED, ""
        guess, known = predicted_speed(recipe, bench.survey, bench.layers, bench.target), bench.speeds.get(structure)
        if known is None and guess is not None:
            reason = gate.too_slow(guess.speedup, guess.high, "as predicted")
            if reason or (kind in bench.lowered and gate.is_fast_enough(guess.low)):
                return self.told(guess, PREDICTED), reason
        if known is None:
            known = bench.speeds[structure] = self.time_draft()
            bench.lowered.add(kind)
        return self.told(known, "before recovery"), gate.too_slow(known.speedup, known.high)

    def told(self, speed: Speed, how: str) -> Speed:
        self.gate_speedup, self.gate_predicted = speed.speedup, how == PREDICTED
        self.log.append(f"{how}: {speed.speedup:.3f}x ({speed.low:.3f} to {speed.high:.3f})")
        return speed

    def time_draft(self) -> Speed:
        """Time the untrained structure; its values are provisional and its artifact is thrown away."""
        bench, recipe, draft = self.bench, provisional(self.recipe), self.folder / "draft"
        with self.stage("shrink"):
            model = shrink(bench.task.model, recipe, bench.calibration, bench.task.build_student)
        with self.stage("deploy"):
            settled = settle(model, recipe, bench.calibration[:GATE_SAMPLES])
            freeze_(settled)
            deployed = deploy(bench.runtime, settled, bench.example, draft, bench.target.threads)
        with self.stage("measure"):
            timing, _ = compare_batches(bench.deployed, deployed, bench.batches, GATE)
        shutil.rmtree(draft)
        return Speed(timing.speedup, timing.low, timing.high)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
            self.log.append(f"{name}: {spent:.2f} s")

    def end(self, outcome: Outcome, measurement: Measurement | None = None, message: str = "") -> TrialResult:
        self.log.append(f"{outcome} {message}".strip())
        looks = self.looks
        return TrialResult(
            recipe=self.recipe, target=self.bench.target, outcome=outcome,
            gate_speedup=self.gate_speedup, gate_predicted=self.gate_predicted,
            gate_drop=looks.hoped if looks is not None and looks.reason else None, curve=tuple(looks.curve) if looks is not None else (),
            audit=bool(self.doubt), measurement=measurement, message=message, seconds=self.seconds,
        )  # fmt: skip


class Lecture:
    """Training batches on the device with their teachers' outputs, without end and the same each time: made when first read, kept while
    they fit, for every trial of a study that is taught alike.
    """

    def __init__(self, make: Callable[[], Iterator[Sample]]) -> None:
        self.make, self.source = make, make()
        self.kept: list[Sample] = []
        self.kept_bytes = 0

    def __iter__(self) -> Iterator[Sample]:
        for index in count():
            if index == len(self.kept):
                if self.kept_bytes > KEPT_SAMPLES_BYTES:
                    yield from islice(self.make(), index, None)
                    return
                sample = next(self.source)
                self.kept.append(sample)
                self.kept_bytes += sum(part.numel() * part.element_size() for part in sample if isinstance(part, Tensor))
            yield self.kept[index]


def materials(bench: Bench, recipe: Recipe) -> Materials:
    """What the stages of a recipe work with. Raises InfeasibleRecipe for a teacher that the task does not have."""
    task, settings, seed = bench.task, recipe.distillation, recipe.recovery.seed
    weights = dict(settings.teachers) if settings is not None and settings.teachers else {GIVEN: 1.0}
    strangers = sorted(set(weights) - set(bench.teachers))
    if strangers:
        raise InfeasibleRecipe(f"distillation.teachers: the task has no teacher {strangers[0]!r}; it has {', '.join(bench.teachers)}.")
    chosen = [Teacher(bench.teachers[name], weight, reads_inputs=name == GIVEN) for name, weight in weights.items() if weight]

    def make() -> Iterator[Sample]:
        return taught(stream(task, ENDLESS, seed), chosen, settings, seed, bench.device, task.distillation_loss is None)

    alike = None if settings is None else (settings.temperature, settings.augmentation, tuple(weights.items()), bool(settings.soft_weight))
    lecture = bench.lectures.setdefault((seed, alike), Lecture(make))
    first = islice(stream(task, SCORING_BATCHES, recipe.pruning.seed), SCORING_BATCHES)
    return Materials(
        calibration=bench.calibration.to(bench.device),
        lesson=Lesson(
            loss=task.loss,
            soft_loss=task.distillation_loss or distillation_loss,
            training_step=task.training_step,
            teacher=max(chosen, key=lambda one: one.weight).model,
        ),
        samples=iter(lecture),
        scoring=tuple(Sample(batch[0].to(bench.device), batch[1].to(bench.device)) for batch in first),
        build_student=task.build_student,
    )


def measure(bench: Bench, deployed: Deployed, model: nn.Module, split: Split, effort: Effort) -> Measurement:
    """Time, size and accuracy of one artifact; ``model`` is the PyTorch module that it was lowered from. Raises Diverged for NaN."""
    inputs, targets = bench.splits[split]
    timing, batches = compare_batches(bench.deployed, deployed, bench.batches, effort)
    outputs = predict(deployed, inputs)
    if outputs.is_floating_point() and not outputs.isfinite().all():
        raise Diverged(f"the artifact's outputs on the {split} split are not all finite; lower the learning rate or give it more bits")
    same, difference = agreement(outputs[:AGREEMENT_SAMPLES], outputs_of(model, inputs[:AGREEMENT_SAMPLES]))
    accuracy = score(bench.task, outputs, targets, split)
    reference = bench.baseline.accuracy if split == "search" else bench.baseline.holdout_accuracy
    drop_low, drop_high = paired(bench.task, outputs, bench.outputs[split], targets) or (None, None)
    return Measurement(
        split=split,
        **timing_fields(timing, batches),
        accuracy=accuracy,
        baseline_accuracy=reference,
        drop=lost(bench.task, reference, accuracy),
        drop_low=drop_low,
        drop_high=drop_high,
        checks=checks(bench.task, outputs, bench.outputs[split], targets),
        samples=len(targets),
        size_bytes=weights_bytes(deployed.folder),
        deployed_bytes=deployed.size_bytes,
        baseline_size_bytes=bench.baseline.size_bytes,
        macs=multiply_adds(model, bench.example),
        params=sum(parameter.numel() for parameter in (model.model if isinstance(model, FakeQuantized) else model).parameters()),
        agreement=same,
        max_difference=difference,
        machine=bench.machine.digest,
    )


def timing_fields(timing: Timing, batches: tuple[BatchTiming, ...]) -> dict[str, Any]:
    """What a Measurement holds of a timing, over all batch sizes where there are several."""
    alike = (
        "latency_ms", "baseline_latency_ms", "speedup", "resolved", "blocks", "p90_ms", "p99_ms", "baseline_p90_ms", "baseline_p99_ms",
        "faster", "busy",
    )  # fmt: skip
    ends = {"speedup_low": timing.low, "speedup_high": timing.high, "batches": batches}
    return {name: getattr(timing, name) for name in alike} | ends


def twin(recipe: Recipe, bench: Bench, artifact: Path) -> nn.Module:
    """The PyTorch module that a stored artifact was lowered from."""
    return rebuild(bench.task.model, recipe, bench.calibration, read_weights(artifact), bench.task.build_student)


def opened(recipe: Recipe, bench: Bench, artifact: Path) -> Deployed:
    """A stored artifact, loaded to be run."""
    return bench.runtime.open(artifact, bench.target.threads, twin(recipe, bench, artifact))


def retime(result: TrialResult, bench: Bench, artifact: Path, effort: Effort) -> Measurement:
    """The measurement of a stored artifact with another timing of it against the baseline; all else in it stays."""
    assert result.measurement is not None
    timing, batches = compare_batches(bench.deployed, opened(result.recipe, bench, artifact), bench.batches, effort)
    return result.measurement.model_copy(update=timing_fields(timing, batches))


def confirm(recipe: Recipe, bench: Bench, artifact: Path, split: Split = "holdout") -> Measurement:
    """The stored artifact again: timed longer, on the holdout split, which selects nothing. Raises Diverged for NaN."""
    model = twin(recipe, bench, artifact)
    return measure(bench, bench.runtime.open(artifact, bench.target.threads, model), model, split, HOLDOUT)


def _write_artifact(runtime: Runtime, model: nn.Module, example: Tensor, folder: Path) -> None:
    runtime.write(model, example, folder)
    write_weights(model, folder)
