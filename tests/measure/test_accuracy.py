"""Accuracy is read off the artifact, all of it and in order; agreement counts and does not average away."""

from pathlib import Path

import numpy as np
import pytest
import torch

from autocompress.measure.accuracy import BATCH, agreement, predict
from autocompress.runtimes.runtime import Array, Deployed
from tests.small_models import inputs


class Doubling(Deployed):
    def __init__(self) -> None:
        super().__init__(Path())
        self.batches: list[int] = []

    def run(self, inputs: Array) -> Array:
        assert isinstance(inputs, np.ndarray)
        assert inputs.flags["C_CONTIGUOUS"]
        self.batches.append(len(inputs))
        return 2 * inputs


@pytest.mark.parametrize("count", [1, BATCH, 2 * BATCH + 3])
def test_predictions_come_in_the_order_of_the_inputs_and_none_is_lost(count: int) -> None:
    x, deployed = inputs(count, 3), Doubling()
    assert torch.equal(predict(deployed, x), 2 * x)
    assert sum(deployed.batches) == count
    assert max(deployed.batches) <= BATCH


def test_predicting_reads_any_memory_layout() -> None:
    x = inputs(5, 4, 3, 3).to(memory_format=torch.channels_last)
    assert torch.equal(predict(Doubling(), x), 2 * x)


def test_agreement_is_the_share_of_equal_top_classes_and_the_largest_difference_of_any_output() -> None:
    reference = torch.tensor([[1.0, 2.0, 3.0], [5.0, 1.0, 0.0], [0.0, 4.0, 1.0], [9.0, 8.0, 7.0]])
    outputs = reference.clone()
    outputs[1] = torch.tensor([0.5, 1.0, 0.0])
    outputs[2, 0] = -0.25
    same, difference = agreement(outputs, reference)
    assert same == 0.75
    assert difference == 4.5


def test_equal_outputs_agree_wholly() -> None:
    x = inputs(7, 10)
    assert agreement(x, x.clone()) == (1.0, 0.0)
