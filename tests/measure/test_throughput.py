"""Throughput: batches grow until nothing is gained, and what stopped them is said; no lack of memory is a crash."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from autocompress.errors import UserError
from autocompress.measure import throughput
from autocompress.measure.throughput import batch_of, has_stopped, is_out_of_memory, sweep, sweep_threads
from autocompress.runtimes import find_runtime
from autocompress.runtimes.runtime import Array, Deployed, deploy

X: Array = np.arange(6, dtype=np.float32).reshape(3, 2)


class Priced(Deployed):
    """A call costs ``fixed`` + ``each`` seconds a sample, divided by its threads; ``log`` holds the batch sizes of its series."""

    def __init__(self, fixed: float, each: float, threads: int = 1, log: list[tuple[float, int]] | None = None) -> None:
        super().__init__(Path())
        self.fixed, self.each, self.threads = fixed, each, threads
        self.log: list[tuple[float, int]] = log if log is not None else []

    def with_threads(self, threads: int) -> "Priced":
        return Priced(self.fixed, self.each, threads, self.log)

    def seconds(self, inputs: Array, calls: int) -> list[float]:
        self.log.append((self.fixed, len(inputs)))
        return [(self.fixed + self.each * len(inputs)) / self.threads] * calls


class Small(Priced):
    """Has memory for seven samples."""

    error: Exception = MemoryError()

    def with_threads(self, threads: int) -> "Small":
        return self

    def seconds(self, inputs: Array, calls: int) -> list[float]:
        if len(inputs) > 7:
            raise self.error
        return super().seconds(inputs, calls)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "SIZE_SECONDS", 0.0)


def test_batches_double_until_neither_gains_five_percent_twice() -> None:
    found = sweep(Priced(0.0, 0.002), Priced(0.008, 0.001), X, threads=1)
    assert [row.batch_size for row in found.rows] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    assert [row.samples_per_s for row in found.rows] == pytest.approx([n / (0.008 + 0.001 * n) for n in (2**k for k in range(10))])
    assert [row.baseline_samples_per_s for row in found.rows] == pytest.approx([500.0] * 10)
    assert "gained less than 5 %" in found.stopped


def test_other_work_on_the_machine_does_not_end_a_sweep_early(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)

    class Disturbed(Priced):
        """Two blocks of three are three times as slow."""

        def with_threads(self, threads: int) -> "Disturbed":
            return self

        def seconds(self, inputs: Array, calls: int) -> list[float]:
            factor = random.choice((1.0, 3.0, 3.0))
            return [factor * one for one in super().seconds(inputs, calls)]

    monkeypatch.setattr(throughput, "PAIRS", 20)
    found = sweep(Disturbed(0.008, 0.001), Disturbed(0.008, 0.001), X, threads=1)
    assert found.rows[-1].batch_size == 512


def test_a_model_that_never_gains_is_tried_at_three_sizes() -> None:
    assert [row.batch_size for row in sweep(Priced(0.0, 0.002), Priced(0.0, 0.001), X, threads=1).rows] == [1, 2, 4]


def test_the_largest_size_ends_a_sweep_that_still_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "MOST_SAMPLES", 8)
    found = sweep(Priced(0.01, 0.0), Priced(0.01, 0.0), X, threads=1)
    assert [row.batch_size for row in found.rows] == [1, 2, 4, 8]
    assert found.stopped == "batch 8 is the largest that is tried"


def test_time_that_is_spent_ends_a_sweep_after_its_first_size() -> None:
    found = sweep(Priced(0.01, 0.0), Priced(0.01, 0.0), X, threads=1, most_seconds=0.0)
    assert [row.batch_size for row in found.rows] == [1]
    assert found.stopped == "batch 2 was not tried: 0 s are spent"


TORCH_SAYS = RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ...")


@pytest.mark.parametrize("error", [MemoryError(), TORCH_SAYS, RuntimeError("std::bad_alloc")], ids=["numpy", "torch", "c++"])
def test_memory_that_runs_out_ends_a_sweep_and_keeps_its_rows(error: Exception) -> None:
    small = Small(0.01, 0.0)
    small.error = error
    found = sweep(Priced(0.01, 0.0), small, X, threads=1)
    assert [row.batch_size for row in found.rows] == [1, 2, 4]
    assert found.stopped == "batch 8 ran out of memory"


def test_an_error_that_is_no_lack_of_memory_goes_through() -> None:
    small = Small(0.01, 0.0)
    small.error = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        sweep(Priced(0.01, 0.0), small, X, threads=1)


def test_a_batch_that_might_not_fit_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Greedy(Priced):
        """Touches 10 MB a sample."""

        def with_threads(self, threads: int) -> "Greedy":
            return self

        def seconds(self, inputs: Array, calls: int) -> list[float]:
            np.ones(len(inputs) * 10**7, np.uint8)
            return super().seconds(inputs, calls)

    monkeypatch.setattr(throughput, "MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal: 999999999 kB\nMemAvailable: 200000 kB\n", encoding="ascii")
    found = sweep(Priced(0.01, 0.0), Greedy(0.01, 0.0), X, threads=1)
    assert [row.batch_size for row in found.rows] == [1, 2, 4, 8]  # the next would take 160 of 205 MB
    assert found.stopped == "batch 16 was not tried: it might not fit into memory"


def test_blocks_of_both_alternate_at_every_size() -> None:
    log: list[tuple[float, int]] = []
    sweep(Priced(0.01, 0.0, log=log), Priced(0.02, 0.0, log=log), X, threads=1, most_seconds=0.0)
    timed = [name for name, _ in log[4:]]  # after the calls that warm up and fix the length of a block
    pairs = [timed[start : start + 2] for start in range(0, len(timed), 2)]
    assert len(pairs) == throughput.PAIRS
    assert all(set(pair) == {0.01, 0.02} for pair in pairs)


def test_every_number_of_threads_is_a_row_with_both_loaded_anew() -> None:
    rows = sweep_threads(Priced(0.0, 0.002), Priced(0.0, 0.001), X, threads=(1, 2, 4))
    assert [(row.threads, row.batch_size) for row in rows] == [(1, 3), (2, 3), (4, 3)]
    assert [row.samples_per_s for row in rows] == pytest.approx([1000.0, 2000.0, 4000.0])
    assert [row.baseline_samples_per_s for row in rows] == pytest.approx([500.0, 1000.0, 2000.0])


def test_no_threads_at_all_is_refused() -> None:
    with pytest.raises(UserError, match="threads: must be at least 1, got 0"):
        sweep_threads(Priced(0.0, 0.002), Priced(0.0, 0.001), X, threads=(1, 0))


@pytest.mark.parametrize("name", ["onnxruntime", "eager"])
def test_a_real_runtime_is_loaded_with_the_threads_asked_for_and_computes_the_same(name: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
    one = deploy(find_runtime(name), model, torch.zeros(1, 2), tmp_path / "a", threads=1)
    two = one.with_threads(2)
    assert (one.threads, two.threads) == (1, 2)  # type: ignore[attr-defined]
    assert np.allclose(one.run(X), two.run(X))
    assert one.only_batch is None
    rows = sweep_threads(one, two, X, threads=(2, 1))
    assert all(row.samples_per_s > 0 and row.baseline_samples_per_s > 0 for row in rows)


def test_a_file_with_a_fixed_batch_is_timed_at_that_one_and_the_sweep_says_so(tmp_path: Path) -> None:
    deployed = deploy(find_runtime("onnxruntime"), nn.Linear(2, 3), torch.zeros(1, 2), tmp_path / "a", threads=1)
    graph = onnx.load(tmp_path / "a" / "model.onnx")
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(graph, tmp_path / "a" / "model.onnx")
    found = sweep(deployed, deployed.reopened(), X, threads=1)
    assert [row.batch_size for row in found.rows] == [2]
    assert found.stopped == "the artifact takes batch 2 only"


LIMITED = """
import resource, sys
import numpy as np
from pathlib import Path
from autocompress.measure.throughput import is_out_of_memory
from autocompress.runtimes.onnx_runtime import OnnxDeployed
deployed = OnnxDeployed(Path(sys.argv[1]), 1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20,) * 2)
try:
    deployed.run(np.zeros((256, 1, 64, 64), np.float32))
except Exception as error:
    print(type(error).__name__, is_out_of_memory(error))
"""


def test_what_onnx_runtime_raises_without_memory_is_known_for_it(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1))  # 268 MB a layer
    deploy(find_runtime("onnxruntime"), model, torch.zeros(1, 1, 64, 64), tmp_path / "a", threads=1)
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path / "a")], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1:] == ["True"], done.stderr
    assert done.stdout.split()[0] not in ("MemoryError", "RuntimeError")


def test_a_batch_has_real_samples_repeated_where_there_are_too_few() -> None:
    assert np.array_equal(batch_of(X, 2), X[:2])
    assert np.array_equal(batch_of(X, 7), np.concatenate([X, X, X])[:7])


def test_rates_have_stopped_only_after_two_without_gain() -> None:
    assert not has_stopped([100.0, 101.0])
    assert has_stopped([100.0, 101.0, 104.0])
    assert not has_stopped([100.0, 90.0, 106.0])
    assert not has_stopped([100.0, 106.0, 107.0])


def test_an_ordinary_error_is_no_lack_of_memory() -> None:
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_sweep_of_a_real_model_ends_within_its_time(tmp_path: Path) -> None:
    deployed = deploy(find_runtime("onnxruntime"), nn.Linear(64, 64), torch.zeros(1, 64), tmp_path / "a", threads=1)
    started = time.monotonic()
    found = sweep(deployed, deployed.reopened(), np.zeros((4, 64), np.float32), threads=1, most_seconds=1.0)
    assert time.monotonic() - started < 20
    assert [row.batch_size for row in found.rows] == [2**power for power in range(len(found.rows))]
    assert all(row.samples_per_s > 0 and row.baseline_samples_per_s > 0 for row in found.rows)
    assert found.stopped
