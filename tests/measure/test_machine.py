"""The fingerprint says what times depend on, and only that is a difference."""

import os
from typing import Any

import pytest
import torch

from autocompress.measure.machine import PACKAGES, cores, differences, this_machine
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
