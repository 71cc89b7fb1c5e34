"""The one function that costs money: what it measures is one artifact, and how a trial may end."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import toy_runs
import toy_task
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.evaluate import Bench, confirm, evaluate, prepare, timed_inputs
from autocompress.gate import Curve, Gate
from autocompress.progress import Progress
from autocompress.recipe import Distillation, LayerPlan, Recipe, Recovery, Student
from autocompress.records import CHECKS, LatencyModel, Measurement, Survey, Target
from autocompress.runtimes.runtime import Call, Deployed
from autocompress.tasks.task import Task, score, with_holdout

ROOM, LINE = import_module("autocompress.evaluate"), import_module("autocompress.compress.build")
CPU = torch.device("cpu")
LAYERS = ("conv1", "conv2", "head")
SHORT = Recovery(steps=3, quantized_steps=2)


def bench_of(folder: Path, task: Task, runtime: str = "fake") -> Bench:
    target = Target(runtime=runtime, threads=1)
    return prepare(with_holdout(task, 0), target, CPU, folder, Progress(quiet=True))


def recipe(keep: float = 1.0, bits: int = 32, recovery: Recovery = SHORT) -> Recipe:
    shares = {"conv1": keep, "conv2": keep, "head": 1.0}
    activation = 8 if bits < 32 else 32
    plans = (LayerPlan(name=name, keep=shares[name], weight_bits=bits, activation_bits=activation) for name in LAYERS)
    return Recipe(layers=tuple(plans), recovery=recovery)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return bench_of(tmp_path_factory.mktemp("real"), toy_task.make(), "onnxruntime")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return bench_of(tmp_path_factory.mktemp("fake"), toy_task.make())


def fail(*arguments: Any, **options: Any) -> Any:
    pytest.fail("this should not have been called")


# ---- one artifact ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [32, 7])
def test_accuracy_and_size_are_those_of_the_artifact_that_stays(real: Bench, tmp_path: Path, bits: int) -> None:
    result = evaluate(recipe(0.5, bits), real, Gate(), tmp_path)
    measured = result.measurement
    assert result.outcome == "measured"
    assert measured is not None
    file = tmp_path / "artifact" / "model.onnx"
    inputs, targets = real.splits["search"]
    outputs = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"input": inputs.numpy()})[0]
    assert score(real.task, torch.from_numpy(outputs), targets) == pytest.approx(measured.accuracy, abs=1e-4)
    assert measured.deployed_bytes == file.stat().st_size
    assert measured.size_bytes == (tmp_path / "artifact" / "weights.safetensors").stat().st_size
    assert measured.samples == len(targets) == 150
    assert measured.drop == pytest.approx(real.baseline.accuracy - measured.accuracy)
    assert 0 < measured.speedup_low <= measured.speedup <= measured.speedup_high
    assert measured.agreement >= 0.99
    assert measured.machine == real.machine.digest
    assert toy_runs.leftovers(tmp_path) == []


def test_the_stored_weights_rebuild_the_same_model_for_the_holdout_split(real: Bench, tmp_path: Path) -> None:
    evaluate(recipe(0.5, 7), real, Gate(), tmp_path)
    measured = confirm(recipe(0.5, 7), real, tmp_path / "artifact")
    assert measured.split == "holdout"
    assert measured.samples == 157
    assert measured.baseline_accuracy == real.baseline.holdout_accuracy
    assert measured.agreement >= 0.99
    assert measured.size_bytes == (tmp_path / "artifact" / "weights.safetensors").stat().st_size


def test_fewer_bits_make_the_file_smaller_whatever_kernel_runs_them(real: Bench, tmp_path: Path) -> None:
    sizes = {}
    for bits in (32, 8, 4, 2):
        result = evaluate(recipe(bits=bits, recovery=Recovery(steps=0, quantized_steps=0)), real, Gate(), tmp_path / str(bits))
        assert result.measurement is not None, result.message
        sizes[bits] = result.measurement.size_bytes
    weights = 16 * 9 + 16 * 16 * 9 + 256 * 10
    assert sizes[32] > 4 * weights
    assert 0.8 * weights * 4 / 8 < sizes[8] - sizes[4] < 1.2 * weights * 4 / 8
    assert sizes[4] - sizes[2] > 0.8 * weights * 2 / 8  # ternary weights are mostly 0: a bitmask may save more still


def test_an_untouched_recipe_without_recovery_has_the_accuracy_of_the_baseline(real: Bench, tmp_path: Path) -> None:
    result = evaluate(recipe(recovery=Recovery(steps=0, quantized_steps=0)), real, Gate(), tmp_path)
    assert result.measurement is not None
    assert result.measurement.drop == 0
    assert result.measurement.max_difference < 1e-3


def test_recovery_gives_back_accuracy(bench: Bench, tmp_path: Path) -> None:
    cut = evaluate(recipe(0.5, recovery=Recovery(steps=0, quantized_steps=0)), bench, Gate(), tmp_path / "cut")
    trained = evaluate(recipe(0.5, recovery=Recovery(steps=60, learning_rate=3e-3)), bench, Gate(), tmp_path / "trained")
    assert cut.measurement is not None
    assert trained.measurement is not None
    assert trained.measurement.accuracy > cut.measurement.accuracy + 5


def test_the_trial_tells_where_its_time_went(bench: Bench, tmp_path: Path) -> None:
    result = evaluate(recipe(0.5, 7), bench, Gate(), tmp_path)
    assert set(result.seconds) == {"shrink", "deploy", "measure", "recover", "quantize"}
    assert all(seconds >= 0 for seconds in result.seconds.values())
    log = (tmp_path / "log.txt").read_text()
    assert recipe(0.5, 7).digest in log
    assert log.endswith("measured\n")


# ---- the gate -------------------------------------------------------------------------------------------------------


def test_a_model_that_is_too_slow_is_not_trained_and_leaves_no_artifact(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LINE, "recover_", fail)
    result = evaluate(recipe(0.5), bench, Gate(min_speedup=1000), tmp_path)
    assert result.outcome == "gated"
    assert result.measurement is None
    assert result.gate_speedup is not None
    assert result.gate_speedup < 1000
    assert "below min_speedup 1000" in result.message
    assert [file.name for file in tmp_path.iterdir()] == ["log.txt"]


def test_an_audit_of_a_model_that_is_too_slow_runs_to_its_end_and_says_so(bench: Bench, tmp_path: Path) -> None:
    result = evaluate(recipe(0.5), bench, Gate(min_speedup=1000, audit=True), tmp_path)
    assert (result.outcome, result.audit) == ("measured", True)
    assert "below min_speedup 1000" in result.message
    kept = evaluate(recipe(0.5), bench, Gate(audit=True), tmp_path)
    assert (kept.audit, kept.message) == (False, "")  # the gate would not have stopped it


LONG = Recovery(steps=8, quantized_steps=1)
HOPELESS = Gate(max_drop=-50.0, curves=tuple(Curve({4: 10.0}, 9.0) for _ in range(8)))


def test_the_drop_is_looked_at_before_recovery_and_at_every_quarter_of_it(bench: Bench, tmp_path: Path) -> None:
    result = evaluate(recipe(0.5, recovery=LONG), bench, Gate(), tmp_path)
    assert [point.step for point in result.curve] == [0, 2, 4, 6, 8]
    assert result.measurement is not None
    assert result.curve[-1].drop == pytest.approx(result.measurement.drop, abs=1e-4)  # the toy's search split is small: all of it is seen
    assert result.curve[0].drop > result.curve[-1].drop


def test_looking_changes_nothing_of_what_is_trained(bench: Bench, tmp_path: Path) -> None:
    weights = []
    for part in (bench.part, None):
        blind = replace(bench, part=part)
        result = evaluate(recipe(0.5, 7, LONG), blind, Gate(), tmp_path / str(part is None))
        assert (part is None) == (result.curve == ())
        weights.append((tmp_path / str(part is None) / "artifact" / "weights.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_a_trial_without_hope_stops_at_its_rung_and_leaves_no_artifact(bench: Bench, tmp_path: Path) -> None:
    result = evaluate(recipe(0.5, recovery=LONG), bench, HOPELESS, tmp_path)
    assert (result.outcome, result.measurement) == ("gated", None)
    assert [point.step for point in result.curve] == [0, 2, 4]
    assert "after 4 steps" in result.message
    assert result.gate_drop == pytest.approx(result.curve[-1].drop - 1.0)
    assert [file.name for file in tmp_path.iterdir()] == ["log.txt"]


def test_an_audit_without_hope_runs_to_its_end(bench: Bench, tmp_path: Path) -> None:
    result = evaluate(recipe(0.5, recovery=LONG), bench, replace(HOPELESS, audit=True), tmp_path)
    assert (result.outcome, result.audit) == ("measured", True)
    assert "after 4 steps" in result.message


def test_a_metric_that_is_not_finite_on_the_way_leaves_a_gap_in_the_curve(bench: Bench, tmp_path: Path) -> None:
    scores = iter([math.inf, 50.0, math.nan, 60.0, 70.0, 80.0])
    picky = replace(bench, task=replace(bench.task, metric=lambda outputs, targets: next(scores)))
    result = evaluate(recipe(0.5, recovery=LONG), picky, Gate(), tmp_path)
    assert [point.step for point in result.curve] == [2, 6, 8]
    assert result.measurement is not None
    assert result.measurement.accuracy == 80.0


# ---- speed that is known --------------------------------------------------------------------------------------------


def test_a_structure_is_timed_once_whatever_else_differs(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = replace(bench, speeds={}, lowered=set())
    first = evaluate(recipe(0.5), fresh, Gate(min_speedup=1000), tmp_path)
    monkeypatch.setattr(ROOM, "compare_batches", fail)
    other = recipe(0.5, recovery=LONG).model_copy(update={"distillation": None})
    again = evaluate(other, fresh, Gate(min_speedup=1000), tmp_path)
    assert (again.outcome, again.gate_speedup) == ("gated", first.gate_speedup)


def surveyed(bench: Bench, error: float) -> Bench:
    """With a model that says of every recipe what the baseline takes, 1x."""
    correction, baseline_ms = (bench.baseline.latency_ms, 0.0, 0.0), bench.baseline.latency_ms
    latency = LatencyModel(
        costs=(), correction=correction, baseline_ms=baseline_ms, error=error, probes=9, batch_size=1, input_shape=(1, 8, 8)
    )
    return replace(bench, survey=Survey(tried=(), layer_ms={}, latency=latency, samples=1), speeds={}, lowered=set())


def test_what_is_surely_too_slow_as_predicted_is_not_even_deployed(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ROOM, "deploy", fail)
    result = evaluate(recipe(0.5), surveyed(bench, 0.1), Gate(min_speedup=1.21), tmp_path)
    assert (result.outcome, result.gate_speedup, result.seconds) == ("gated", pytest.approx(1.0), {})
    assert "1.00x as predicted is below min_speedup 1.21" in result.message
    assert result.gate_predicted  # so that nobody takes it for a timing


def test_what_the_error_of_the_prediction_leaves_open_is_timed(bench: Bench, tmp_path: Path) -> None:
    result = evaluate(recipe(0.5), surveyed(bench, 0.2), Gate(min_speedup=1.21), tmp_path)
    assert result.outcome == "measured"
    assert result.gate_speedup != pytest.approx(1.0)
    assert not result.gate_predicted


def test_where_nothing_is_asked_of_the_speed_it_is_not_timed_before_training(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = replace(bench, speeds={}, lowered=set())
    assert evaluate(recipe(0.25), fresh, Gate(), tmp_path / "first").gate_speedup is not None  # it could have been infeasible
    monkeypatch.setattr(ROOM, "deploy", fail)
    result = evaluate(recipe(0.5), fresh, Gate(), tmp_path / "second")
    assert (result.outcome, result.gate_speedup) == ("measured", None)


def test_what_is_surely_fast_enough_is_timed_once_only_when_its_kind_was_lowered_before(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = surveyed(bench, 0.1)
    evaluate(recipe(0.25), known, Gate(min_speedup=0.5), tmp_path / "first")  # could be infeasible: it is deployed before it is trained
    assert len(known.speeds) == 1
    monkeypatch.setattr(ROOM, "deploy", fail)
    result = evaluate(recipe(0.5), known, Gate(min_speedup=0.5), tmp_path / "second")
    assert result.outcome == "measured"
    assert result.gate_speedup == pytest.approx(1.0)


# ---- expected endings, and bugs -------------------------------------------------------------------------------------


def test_bits_without_a_kernel_end_as_infeasible_with_the_reason_and_leave_nothing(real: Bench, tmp_path: Path) -> None:
    half = Recipe(layers=(LayerPlan(name="head", weight_bits=16, activation_bits=16),), recovery=SHORT)
    result = evaluate(half, real, Gate(), tmp_path)
    assert result.outcome == "infeasible"
    assert "head" in result.message
    assert "16" in result.message
    assert [file.name for file in tmp_path.iterdir()] == ["log.txt"]


def test_unequal_shares_inside_a_prune_group_end_as_infeasible(bench: Bench, tmp_path: Path) -> None:
    uneven = Recipe(layers=(LayerPlan(name="conv1", keep=0.5),), recovery=SHORT)
    result = evaluate(uneven, bench, Gate(), tmp_path)
    assert result.outcome == "infeasible"
    assert "conv1: 0.5, conv2: 1" in result.message


def not_finite(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets) * float("inf")


def finite_with_broken_gradient(outputs: Tensor, targets: Tensor) -> Tensor:
    """The root has an infinite slope at 0: the loss is finite, the gradient is not a number."""
    return F.cross_entropy(outputs, targets) + (outputs - outputs.detach()).abs().sum().sqrt()


@pytest.mark.parametrize("loss", [not_finite, finite_with_broken_gradient])
@pytest.mark.parametrize("steps", [1, 3])
def test_training_that_is_not_finite_ends_as_diverged(
    tmp_path: Path, loss: Callable[[Tensor, Tensor], Tensor], steps: int
) -> None:
    bench = bench_of(tmp_path / "bench", replace(toy_task.make(), loss=loss))
    short = Recovery(steps=steps, quantized_steps=0)
    result = evaluate(recipe(0.5, recovery=short), bench, Gate(), tmp_path / "trial")
    assert result.outcome == "diverged"
    assert "learning rate" in result.message
    assert toy_runs.leftovers(tmp_path / "trial") == []


def test_an_artifact_whose_outputs_are_not_finite_ends_as_diverged(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ROOM, "predict", lambda deployed, inputs: torch.full((len(inputs), 10), torch.nan))
    result = evaluate(recipe(0.5), bench, Gate(), tmp_path)
    assert (result.outcome, result.measurement) == ("diverged", None)
    assert "outputs on the search split are not all finite" in result.message


def test_a_learning_rate_of_10_ends_as_measured_or_diverged(bench: Bench, tmp_path: Path) -> None:
    wild = Recovery(steps=20, quantized_steps=2, learning_rate=10.0)
    assert evaluate(recipe(0.5, 7, wild), bench, Gate(), tmp_path).outcome in ("measured", "diverged")


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_running_out_of_memory_is_an_outcome(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(LINE, "recover_", raising(error))
    result = evaluate(recipe(0.5), bench, Gate(), tmp_path)
    assert result.outcome == "out_of_memory"
    assert "out of memory" in result.message


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyboardInterrupt(), ZeroDivisionError()])
def test_anything_else_goes_through_and_the_log_is_still_written(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr(LINE, "recover_", raising(error))
    with pytest.raises(type(error)):
        evaluate(recipe(0.5), bench, Gate(), tmp_path)
    assert "before recovery" in (tmp_path / "log.txt").read_text()


def raising(error: BaseException) -> Callable[..., Any]:
    def raise_it(*arguments: Any, **options: Any) -> Any:
        raise error

    return raise_it


# ---- the same again -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [32, 7])
def test_the_same_recipe_twice_gives_the_same_accuracy(bench: Bench, tmp_path: Path, bits: int) -> None:
    first = evaluate(recipe(0.5, bits), bench, Gate(), tmp_path / "first").measurement
    torch.rand(10)
    second = evaluate(recipe(0.5, bits), bench, Gate(), tmp_path / "second").measurement
    assert repeatable(first) == repeatable(second)  # the fake runtime's clock is no clock


def repeatable(measured: Measurement | None) -> Measurement:
    """Without what other programs did meanwhile."""
    assert measured is not None
    return measured.model_copy(update={"busy": None})


def test_another_seed_of_recovery_gives_other_weights(bench: Bench, tmp_path: Path) -> None:
    differences = []
    for seed in (0, 1):
        other = SHORT.model_copy(update={"seed": seed})
        measured = evaluate(recipe(0.5, recovery=other), bench, Gate(), tmp_path / str(seed)).measurement
        assert measured is not None
        differences.append((tmp_path / str(seed) / "artifact" / "weights.safetensors").read_bytes())
    assert differences[0] != differences[1]


class Dropping(nn.Module):
    """The toy with dropout, which draws from the global random state while it trains."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.dropout = inner, nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner.head(self.dropout(self.inner.features(x)))


@pytest.mark.parametrize("kept_bytes", [0, 2**29])
def test_the_global_random_state_is_left_as_it_was_and_accuracy_repeats_whether_batches_are_kept_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_bytes: int
) -> None:
    monkeypatch.setattr(ROOM, "KEPT_SAMPLES_BYTES", kept_bytes)
    bench = bench_of(tmp_path / "bench", replace(toy_task.make(), model=Dropping(toy_task.make().model).eval()))
    plans = tuple(LayerPlan(name=f"inner.{name}", weight_bits=7, activation_bits=8) for name in LAYERS)
    before = torch.get_rng_state()
    wanted = Recipe(layers=plans, recovery=SHORT)
    results = [evaluate(wanted, bench, Gate(), tmp_path / name).measurement for name in ("first", "second")]
    assert torch.equal(torch.get_rng_state(), before)
    assert repeatable(results[0]) == repeatable(results[1])


def test_batches_that_are_not_kept_are_the_same_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, found = bench_of(tmp_path, toy_task.make()), []
    for size in (2**29, 0):
        monkeypatch.setattr(ROOM, "KEPT_SAMPLES_BYTES", size)
        bench.lectures.clear()
        for _ in range(2):  # the second reading is that of kept batches, or of some kept and the rest made anew
            found.append(list(islice(ROOM.materials(bench, recipe()).samples, 5)))
    for samples in found[1:]:
        for one, other in zip(found[0], samples, strict=True):
            assert all(map(torch.equal, one[:3], other[:3]))


def test_the_teacher_answers_once_for_all_trials_of_a_study(tmp_path: Path) -> None:
    bench, asked = bench_of(tmp_path / "bench", toy_task.make()), []
    evaluate(recipe(0.5), bench, Gate(), tmp_path / "first")  # its survey and its cuts have run the model by now
    bench.lectures.clear()
    handle = bench.teachers["model"].register_forward_hook(lambda module, args, out: asked.append(len(out)))
    for _ in range(3):
        list(islice(ROOM.materials(bench, recipe()).samples, 4))
    list(islice(ROOM.materials(bench, recipe(bits=7)).samples, 5))
    handle.remove()
    assert len(asked) == 5


def test_recipes_that_are_taught_otherwise_have_lessons_of_their_own(bench: Bench) -> None:
    bench.lectures.clear()
    usual = recipe()
    for settings in (Distillation(), Distillation(soft_weight=0.5), Distillation(augmentation="mixup"), None):
        next(ROOM.materials(bench, usual.model_copy(update={"distillation": settings})).samples)
    assert len(bench.lectures) == 3  # the weights of the loss change no batch


def test_a_teacher_that_the_task_does_not_have_ends_as_infeasible(bench: Bench, tmp_path: Path) -> None:
    wanted = Recipe(distillation=Distillation(teachers={"large": 1.0}), recovery=SHORT)
    result = evaluate(wanted, bench, Gate(), tmp_path)
    assert result.outcome == "infeasible"
    assert result.message == "distillation.teachers: the task has no teacher 'large'; it has model."


def test_a_student_of_its_own_is_measured_like_any_other_recipe(tmp_path: Path) -> None:
    task = replace(toy_task.make(), build_student=lambda width, depth: toy_task.Toy(round(16 * width)))
    bench = bench_of(tmp_path / "bench", task, "onnxruntime")
    wanted = Recipe(student=Student(width=0.5, weight_bits=7, activation_bits=8), recovery=SHORT)
    result = evaluate(wanted, bench, Gate(), tmp_path / "trial")
    assert result.measurement is not None, result.message
    assert result.measurement.size_bytes < bench.baseline.size_bytes / 2
    held = confirm(wanted, bench, tmp_path / "trial" / "artifact")
    assert held.agreement >= 0.99


def test_the_model_of_the_task_is_left_alone(tmp_path: Path) -> None:
    task = toy_task.make()
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    bench = bench_of(tmp_path / "bench", task)
    evaluate(recipe(0.5, 7), bench, Gate(), tmp_path / "trial")
    confirm(recipe(0.5, 7), bench, tmp_path / "trial" / "artifact")
    after = task.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert not task.model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in task.model.parameters())


# ---- several batch sizes --------------------------------------------------------------------------------------------


class Slowed(Deployed):
    """Runs what it is given; says that a call takes ``first`` seconds and ``each`` more a sample."""

    def __init__(self, deployed: Deployed, first: float, each: float) -> None:
        super().__init__(deployed.folder)
        self.deployed, self.first, self.each = deployed, first, each

    @property
    def size_bytes(self) -> int:
        return self.deployed.size_bytes

    def run(self, inputs: Any) -> Any:
        return self.deployed.run(inputs)

    def timed(self, inputs: Any, calls: int) -> list[Call]:
        return [Call(self.first + self.each * len(inputs))] * calls


def over_batches(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The baseline takes 8 ms a sample; candidates 8 ms a call and 1 ms a sample: 8/9 at batch 1, 4 at batch 8."""
    opened = type(bench.runtime).open
    monkeypatch.setattr(type(bench.runtime), "open", lambda *arguments: Slowed(opened(*arguments), 0.008, 0.001))
    return replace(bench, target=Target(runtime="fake", batch_sizes=(8, 1)), deployed=Slowed(bench.deployed, 0.0, 0.008), speeds={})


def test_over_several_batch_sizes_the_speed_is_the_geometric_mean_and_each_is_told(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = over_batches(bench, monkeypatch)
    measured = evaluate(recipe(0.5), several, Gate(), tmp_path).measurement
    assert measured is not None
    assert [(one.batch_size, one.speedup) for one in measured.batches] == [(1, pytest.approx(8 / 9)), (8, pytest.approx(4.0))]
    assert measured.speedup == pytest.approx((8 / 9 * 4) ** 0.5)
    assert measured.worst == measured.batches[0]
    assert (measured.latency_ms, measured.baseline_latency_ms) == (pytest.approx(9.0), pytest.approx(8.0))
    held = confirm(recipe(0.5), several, tmp_path / "artifact")
    assert [one.speedup for one in held.batches] == pytest.approx([8 / 9, 4.0])


@pytest.mark.parametrize(("least", "outcome"), [(1.5, "measured"), (2.0, "gated")])
def test_the_gate_asks_for_the_mean_over_the_batch_sizes(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: float, outcome: str
) -> None:
    result = evaluate(recipe(0.5), over_batches(bench, monkeypatch), Gate(min_speedup=least), tmp_path)
    assert result.outcome == outcome
    assert result.gate_speedup == pytest.approx((8 / 9 * 4) ** 0.5)


def test_over_one_batch_size_there_is_no_list_of_them(bench: Bench, tmp_path: Path) -> None:
    measured = evaluate(recipe(0.5), bench, Gate(), tmp_path).measurement
    assert measured is not None
    assert measured.batches == ()
    assert measured.worst is None


# ---- the bench ------------------------------------------------------------------------------------------------------


def test_the_baseline_is_the_given_model_in_the_runtime_of_the_target(real: Bench) -> None:
    baseline = real.baseline
    assert baseline.size_bytes == (real.deployed.folder / "weights.safetensors").stat().st_size
    assert baseline.params == sum(parameter.numel() for parameter in real.task.model.parameters())
    assert baseline.macs == 64 * 16 * 9 + 64 * 16 * 16 * 9 + 256 * 10
    assert baseline.input_shape == (1, 8, 8)
    assert baseline.latency_ms > 0
    assert baseline.eager_latency_ms > 0
    for split, accuracy in (("search", baseline.accuracy), ("holdout", baseline.holdout_accuracy)):
        x, y = real.splits[split]  # type: ignore[index]
        assert accuracy == pytest.approx(score(real.task, real.task.model(x), y), abs=1e-4)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_latency_is_timed_on_real_samples_of_the_asked_batch_size(size: int) -> None:
    x = toy_task.data()[0][0][:300]
    (batch,) = timed_inputs(x, Target(batch_size=size))
    assert batch.shape == (size, 1, 8, 8)
    assert np.array_equal(batch[:300], x[:size].numpy()[:300])


def test_every_batch_size_that_was_asked_is_timed() -> None:
    x = toy_task.data()[0][0][:30]
    assert [len(batch) for batch in timed_inputs(x, Target(batch_sizes=(32, 1, 8)))] == [1, 8, 32]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Equal work gives equal bits; this machine is shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- more than one number of accuracy -------------------------------------------------------------------------------


def test_a_measurement_has_the_interval_of_its_drop_and_the_checks_on_both_splits(real: Bench, tmp_path: Path) -> None:
    result = evaluate(recipe(0.5, 7), real, Gate(), tmp_path)
    assert result.measurement is not None
    for measured in (result.measurement, confirm(recipe(0.5, 7), real, tmp_path / "artifact")):
        assert measured.drop_low is not None
        assert measured.drop_high is not None
        assert measured.drop_low - 1e-4 <= measured.drop <= measured.drop_high + 1e-4
        assert list(measured.checks) == list(CHECKS)
        assert measured.checks["worst_class_drop"] >= measured.drop  # no mean is above its largest part
        assert Measurement.model_validate_json(measured.model_dump_json()) == measured


def mean_loss(outputs: Tensor, targets: Tensor) -> float:
    return F.cross_entropy(outputs, targets).item()


def test_where_lower_is_better_a_drop_is_a_rise(tmp_path: Path) -> None:
    task = replace(toy_task.make(), metric=mean_loss, metric_name="cross entropy", metric_unit="nats", higher_is_better=False)
    bench = bench_of(tmp_path / "bench", task)
    assert (bench.baseline.metric_unit, bench.baseline.higher_is_better) == ("nats", False)
    untrained = Recovery(steps=0, quantized_steps=0)
    measured = evaluate(recipe(0.25, recovery=untrained), bench, Gate(), tmp_path / "trial").measurement
    assert measured is not None
    assert measured.accuracy > bench.baseline.accuracy
    assert measured.drop == pytest.approx(measured.accuracy - bench.baseline.accuracy)
    assert measured.drop > 0
    assert measured.checks["worst_class_drop"] > 0


def test_outputs_that_are_no_classes_have_an_interval_and_no_checks(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))
    splits = {name: [(x, y[:, None].float())] for name, (x, y) in zip(("train", "search", "holdout"), toy_task.data(), strict=True)}
    task = Task(
        "size", model, **splits, loss=F.mse_loss, metric=lambda outputs, targets: F.mse_loss(outputs, targets).item(),
        metric_name="squared error", metric_unit="", higher_is_better=False,
        distillation_loss=lambda student, teacher, temperature: F.mse_loss(student, teacher),
    )  # fmt: skip
    bench = bench_of(tmp_path / "bench", task)
    plans = Recipe(layers=(LayerPlan(name="1", keep=0.5),), recovery=Recovery(steps=2, quantized_steps=0))
    result = evaluate(plans, bench, Gate(), tmp_path / "trial")
    assert result.measurement is not None, result.message
    assert result.measurement.checks == {}
    assert result.measurement.drop_high is not None
