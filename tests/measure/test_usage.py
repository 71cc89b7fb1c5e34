"""What an artifact takes, read in a process of its own: numbers that follow the model, and a clear line where that process ends badly."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autocompress.errors import UserError
from autocompress.measure.alone import Since
from autocompress.measure.usage import usage
from autocompress.runtimes import find_runtime
from autocompress.runtimes.runtime import Array, deploy

MB = 10**6


def written(folder: Path, model: nn.Module, shape: tuple[int, ...]) -> Path:
    deploy(find_runtime("onnxruntime"), model, torch.zeros(1, *shape), folder, threads=1)
    return folder


def zeros(*shape: int) -> Array:
    return np.zeros(shape, np.float32)


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of 64 MB."""
    return written(tmp_path_factory.mktemp("linear") / "artifact", nn.Sequential(nn.Linear(4096, 4000), nn.Linear(4000, 8)), (4096,))


def test_weights_are_in_memory_and_loading_them_takes_time(linear: Path, tmp_path: Path) -> None:
    small = usage(written(tmp_path / "small", nn.Linear(4096, 8), (4096,)), "onnxruntime", 1, zeros(1, 4096), seconds=0.1)
    large = usage(linear, "onnxruntime", 1, zeros(1, 4096), seconds=0.1)
    assert small.peak_bytes is not None
    assert large.peak_bytes is not None
    assert small.mean_bytes is not None
    assert large.mean_bytes is not None
    assert 60 * MB < large.mean_bytes - small.mean_bytes < 160 * MB
    assert 0 < small.mean_bytes <= small.peak_bytes < 40 * MB  # a process with torch in it would have hundreds
    assert large.mean_bytes <= large.peak_bytes
    assert small.load_ms is not None
    assert large.load_ms is not None
    assert large.load_ms > small.load_ms > 0


def test_activations_of_a_larger_batch_are_counted(tmp_path: Path) -> None:
    folder = written(tmp_path / "conv", nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)), (1, 32, 32))
    one, many = (usage(folder, "onnxruntime", 1, zeros(size, 1, 32, 32), seconds=0.1).peak_bytes for size in (1, 1024))
    assert one is not None
    assert many is not None
    assert many - one > 1024 * 16 * 32 * 32 * 4  # one output at least; the inputs are no part of it


def test_threads_that_have_nothing_to_do_lower_the_utilisation(tmp_path: Path) -> None:
    folder = written(tmp_path / "tiny", nn.Linear(8, 8), (8,))  # too small to share out
    one, four = (usage(folder, "onnxruntime", threads, zeros(1, 8), seconds=0.3).utilisation for threads in (1, 4))
    assert one is not None
    assert four is not None
    assert 0 < four < one <= 1
    assert four <= 0.3


def test_what_is_not_available_is_none_with_its_reason(linear: Path) -> None:
    used = usage(linear, "onnxruntime", 1, zeros(1, 4096), seconds=0.0)
    missing = {name for name, value in used if value is None}
    assert missing == set(used.reasons) == {"reserved_bytes", "energy_mj"}
    assert used.reasons["energy_mj"].startswith("not available on this machine: ")


def test_a_runtime_whose_files_hold_weights_only_says_so_and_makes_up_nothing(tmp_path: Path) -> None:
    used = usage(tmp_path, "eager", 1, zeros(1, 8))
    assert {name for name, value in used if value is None} >= {"load_ms", "peak_bytes", "mean_bytes", "utilisation"}
    assert "eager" in used.reasons["peak_bytes"]


def test_the_process_that_runs_an_artifact_imports_no_torch() -> None:
    code = "import sys, autocompress.measure.alone; print(sorted({'torch', 'optuna', 'onnx'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_file_beside_the_user_does_not_stand_in_for_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(tmp_path / "tiny", nn.Linear(8, 8), (8,))
    (tmp_path / "numpy.py").write_text("raise SystemExit('not numpy')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert usage(folder, "onnxruntime", 1, zeros(1, 8), seconds=0.0).load_ms is not None


@pytest.mark.parametrize("content", [None, b"not a model"], ids=["missing", "broken"])
def test_a_folder_without_a_sound_model_is_one_line_that_names_it(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(UserError, match=r"usage: the process that loads .* failed: .*Is the folder whole\?") as caught:
        usage(tmp_path, "onnxruntime", 1, zeros(1, 8))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def stand_in(file: Path, script: str) -> str:
    file.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return str(file)


def test_a_process_that_the_kernel_kills_is_told_as_memory_that_ran_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path / "python", "kill -9 $$"))
    with pytest.raises(UserError, match="was killed by signal 9; 9 is what the kernel sends where memory ran out"):
        usage(tmp_path, "onnxruntime", 1, zeros(1, 8))


def test_a_process_that_does_not_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path / "python", f"echo $$ > {tmp_path}/pid; exec sleep 60"))
    with pytest.raises(UserError, match=r"took more than 1\.1 s and was stopped"):
        usage(tmp_path, "onnxruntime", 1, zeros(1, 8), seconds=0.1, patience=1.0)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_memory_that_was_given_back_counts_in_the_peak_and_not_in_the_present_size() -> None:
    since = Since()
    held = np.ones(10 * MB)
    assert since.now() > 75 * MB
    del held
    assert since.now() < 40 * MB
    assert since.peak() > 75 * MB
    assert Since().peak() < 40 * MB
