"""The fingerprint says what times depend on, and only that is a difference."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from autocompress.measure import machine
from autocompress.measure.machine import PACKAGES, Work, busy_cores, cores, differences, in_words, this_machine, work
from autocompress.records import Machine

BEFORE = Machine(
    cpu="Some CPU",
    cores=2,
    instruction_sets=("avx", "avx2"),
    memory_bytes=8 * 2**30,
    system="Linux 6.1 x86_64",
    python="3.11.2",
    versions={"torch": "2.13", "onnxruntime": "1.31"},
)


def changed(**values: Any) -> list[str]:
    return differences(BEFORE, BEFORE.model_copy(update=values))


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ({}, []),
        ({"memory_bytes": 1}, []),
        ({"system": "Linux 6.2 x86_64"}, []),
        ({"cpu": "Another CPU"}, ["cpu: Some CPU -> Another CPU"]),
        ({"cores": 4, "python": "3.12.0"}, ["cores: 2 -> 4", "python: 3.11.2 -> 3.12.0"]),
        ({"gpu": "A GPU"}, ["gpu: None -> A GPU"]),
        ({"governor": "powersave"}, ["governor: None -> powersave"]),
        ({"gpu_driver": "550.54.15"}, ["gpu_driver: None -> 550.54.15"]),
        ({"instruction_sets": ("avx",)}, ["instruction_sets: ('avx', 'avx2') -> ('avx',)"]),
        ({"versions": {"torch": "2.14", "onnxruntime": "1.31"}}, ["torch: 2.13 -> 2.14"]),
        ({"versions": {"torch": "2.13"}}, ["onnxruntime: 1.31 -> absent"]),
        ({"versions": BEFORE.versions | {"new": "1"}}, ["new: absent -> 1"]),
    ],
)
def test_differences_list_what_times_depend_on_and_ignore_memory_and_kernel(values: dict[str, Any], lines: list[str]) -> None:
    assert changed(**values) == lines


def test_this_machine_is_the_same_when_asked_again_and_has_nothing_empty() -> None:
    machine = this_machine()
    assert this_machine() == machine
    assert machine.digest == this_machine().digest
    assert machine.cpu
    assert machine.memory_bytes > 2**28
    assert set(machine.versions) == set(PACKAGES)
    assert machine.versions["torch"] == torch.__version__


def test_cores_are_those_that_this_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert cores() == len(allowed)


def test_a_digest_is_that_of_before_there_was_a_governor_and_a_driver_while_none_is_known() -> None:
    assert BEFORE.digest == "5882949960ab"
    assert len({BEFORE.digest, *(BEFORE.model_copy(update={name: "x"}).digest for name in ("governor", "gpu_driver"))}) == 3


def test_the_governors_of_all_own_cores_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "GOVERNOR", str(tmp_path / "{}"))
    monkeypatch.setattr(machine, "_allowed", lambda: [0, 1, 7])
    assert this_machine().governor is None
    for number, name in ((0, "powersave"), (1, "performance"), (7, "powersave"), (8, "schedutil")):
        (tmp_path / str(number)).write_text(name + "\n", encoding="utf-8")
    assert this_machine().governor == "performance, powersave"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version:  12.2.0\n", "535.104.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build  (dvs-builder)\n", "550.54.15"),
        ("something else\n", None),
    ],
    ids=["closed", "open", "unknown"],
)
def test_the_driver_of_the_gpu_is_read_where_the_kernel_shows_it(
    text: str, version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "DRIVER", tmp_path / "version")
    assert this_machine().gpu_driver is None
    (tmp_path / "version").write_text(text, encoding="utf-8")
    assert this_machine().gpu_driver == version


STAT = """cpu  999 999 999 999 999 999 999 999 0 0
cpu0 {0} 20 30 4000 500 1 2 3 77 88
cpu1 {1} 0 0 0 0 0 0 0 0 0
cpu2 5000 0 0 0 0 0 0 0 0 0
intr 1 2 3
"""


def test_work_is_all_but_idle_and_waiting_of_the_cores_that_are_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "STAT", tmp_path / "stat")
    monkeypatch.setattr(machine, "_allowed", lambda: [0, 1])
    assert work() is None
    (tmp_path / "stat").write_text(STAT.format(100, 300), encoding="utf-8")
    now = work()
    assert now is not None
    assert now.busy * os.sysconf("SC_CLK_TCK") == pytest.approx(100 + 20 + 30 + 1 + 2 + 3 + 300)


def test_counters_that_do_not_count_are_no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "STAT", tmp_path / "stat")
    (tmp_path / "stat").write_text("cpu0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0\n", encoding="utf-8")
    assert work() is None


@pytest.mark.parametrize(
    ("before", "after", "busy"),
    [
        (Work(1.0, 100.0, 50.0), Work(3.0, 104.0, 52.0), 1.0),
        (Work(1.0, 100.0, 50.0), Work(3.0, 102.0, 52.5), 0.0),  # ticks are coarse: never less than nothing
        (Work(1.0, 100.0, 50.0), Work(1.01, 100.0, 50.0), None),
        (None, Work(1.0, 100.0, 50.0), None),
        (Work(1.0, 100.0, 50.0), None, None),
    ],
)
def test_busy_is_what_others_did_in_that_time(before: Work | None, after: Work | None, busy: float | None) -> None:
    assert busy_cores(before, after) == busy


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="this system has no /proc/stat")
def test_the_work_of_another_process_is_noticed_and_our_own_is_counted_as_ours() -> None:
    before = work()
    code = "import time\nuntil = time.process_time() + 0.6\nwhile time.process_time() < until: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    between = work()
    until = time.process_time() + 0.5
    while time.process_time() < until:
        pass
    after = work()
    assert before is not None
    assert between is not None
    assert after is not None
    busy = busy_cores(before, between)
    assert busy is not None
    assert busy * (between.wall - before.wall) >= 0.5
    assert after.own - between.own >= 0.45
    assert after.busy - between.busy >= 0.4  # all cores include ours, so that the difference leaves it out


@pytest.mark.parametrize(
    ("busy", "threads", "count", "said"),
    [
        (None, 1, 2, []),
        (0.19, 1, 2, []),
        (0.3, 1, 2, ["0.3 of 2 cores busy", "may be longer"]),
        (1.3, 1, 2, ["1.3 of 2 cores busy", "more than the timing left free", "Measure again"]),
        (0.5, 1, 1, ["0.5 of 1 core busy", "more than the timing left free"]),
        (3.0, 1, 64, []),
        (8.0, 1, 64, ["8.0 of 64 cores busy", "may be longer"]),
        (0.5, 2, 2, ["more than the timing left free"]),
    ],
)
def test_a_loaded_machine_is_said_and_a_quiet_one_is_not(busy: float | None, threads: int, count: int, said: list[str]) -> None:
    words = in_words(busy, threads, count)
    assert bool(words) == bool(said)
    assert all(part in words for part in said)
