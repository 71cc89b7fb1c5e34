"""Times from raw sample to answer: what goes around the model is in both times, so that the ratio is the one a user sees."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_task
from torch import Tensor

from autocompress.measure.end_to_end import end_to_end
from autocompress.measure.latency import Effort
from autocompress.runtimes import find_runtime
from autocompress.runtimes.runtime import Array, Deployed, deploy

LOOK = Effort(width=0.5, seconds=0.0, segments=4)
X: Array = np.zeros((4, 2), np.float32)


class Sleeping(Deployed):
    """Takes ``wait`` seconds a call and remembers what it read."""

    def __init__(self, wait: float) -> None:
        super().__init__(Path())
        self.wait, self.read = wait, X[:0]

    def run(self, inputs: Array) -> Array:
        time.sleep(self.wait)
        self.read = inputs
        return inputs + 1


def plus(**fields: Any) -> Any:
    return replace(toy_task.make(), **fields)


def stacked(samples: Sequence[Any]) -> Tensor:
    time.sleep(0.004)
    return torch.tensor(np.stack(samples))


def test_a_task_with_nothing_around_its_model_has_no_such_time() -> None:
    assert end_to_end(plus(), (Sleeping(0.001), Sleeping(0.001)), X, 1, LOOK) is None


def test_what_goes_around_the_model_is_in_both_times_and_told_apart() -> None:
    task = plus(raw=[np.zeros(2, np.float32)], preprocess=stacked, postprocess=lambda outputs: time.sleep(0.002))
    found = end_to_end(task, (Sleeping(0.012), Sleeping(0.002)), X, 1, LOOK)
    assert found is not None
    assert found.batch_size == 4
    assert found.baseline_latency_ms > 18
    assert found.latency_ms > 8
    assert 1.4 < found.speedup < 3  # 18 / 8 and not 12 / 2
    assert found.speedup_low <= found.speedup <= found.speedup_high
    assert found.preprocess_ms is not None
    assert found.postprocess_ms is not None
    assert found.preprocess_ms > 4 > found.postprocess_ms > 2


def test_the_model_reads_what_preprocess_makes_of_as_many_raw_samples() -> None:
    raw = [np.full(2, value, np.float32) for value in (5, 6, 7)]
    one, other = Sleeping(0.0), Sleeping(0.0)
    found = end_to_end(plus(raw=raw, preprocess=lambda samples: torch.tensor(np.stack(samples))), (one, other), X, 1, LOOK)
    assert one.read[:, 0].tolist() == other.read[:, 0].tolist() == [5, 6, 7, 5]
    assert found is not None
    assert found.postprocess_ms is None


def test_postprocess_gets_the_outputs_and_without_preprocess_the_model_its_inputs() -> None:
    seen: list[Tensor] = []
    one = Sleeping(0.0)
    found = end_to_end(plus(postprocess=seen.append), (one, Sleeping(0.0)), X, 1, LOOK)
    assert np.array_equal(one.read, X)
    assert all(torch.equal(outputs, torch.ones(4, 2)) for outputs in seen)
    assert found is not None
    assert found.preprocess_ms is None
    assert found.postprocess_ms is not None


def test_preprocess_has_the_threads_of_the_target_and_torch_gets_its_own_back() -> None:
    seen: set[int] = set()

    def preprocess(samples: Sequence[Any]) -> Tensor:
        seen.add(torch.get_num_threads())
        return torch.tensor(np.stack(samples))

    before = torch.get_num_threads()
    end_to_end(plus(raw=list(X), preprocess=preprocess), (Sleeping(0.0), Sleeping(0.0)), X, 3, LOOK)
    assert 3 in seen
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("name", ["onnxruntime", "eager"])
def test_a_real_artifact_is_timed_with_what_goes_around_it(name: str, tmp_path: Path) -> None:
    task = toy_task.make()
    x = toy_task.data()[1][0]
    deployed = deploy(find_runtime(name), task.model, x[:1], tmp_path / "a", threads=1)
    whole = replace(task, raw=[sample.numpy() for sample in x], preprocess=stacked, postprocess=lambda outputs: outputs.argmax(1).tolist())
    found = end_to_end(whole, (deployed, deployed.reopened()), x[:2].numpy(), 1, LOOK)
    assert found is not None
    assert found.latency_ms > 4
    assert 0.7 < found.speedup < 1.4
