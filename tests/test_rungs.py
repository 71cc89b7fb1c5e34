"""Looks on the way: which samples they see, when they look, when they end the work."""

from dataclasses import replace

import pytest
import torch
import toy_task
from torch import Tensor, nn

from autocompress.gate import Curve, Gate
from autocompress.rungs import SAMPLES, Hopeless, Looks, Part, part_of

X, Y = torch.arange(1000.0)[:, None], torch.arange(1000) % 10
TASK = toy_task.make()


def part(count: int) -> Part:
    found = part_of(TASK, (X[:count], Y[:count]), torch.eye(10)[Y[:count]])
    assert found is not None
    return found


@pytest.mark.parametrize("count", [1000, 333, SAMPLES, 7])
def test_a_part_is_spread_over_the_whole_split(count: int) -> None:
    seen = part(count)
    assert len(seen.inputs) == len(seen.targets) == min(count, SAMPLES)
    assert len(set(seen.inputs[:, 0].tolist())) == len(seen.inputs)
    assert seen.inputs[-1, 0] >= count * (1 - 1 / SAMPLES) - 1
    assert torch.equal(seen.targets, Y[seen.inputs[:, 0].long()])
    assert seen.reference == 100.0


def test_a_metric_that_needs_the_whole_split_has_no_part() -> None:
    def whole(outputs: Tensor, targets: Tensor) -> float:
        assert len(outputs) == 1000, "all of it, or nothing"
        return 1.0

    assert part_of(replace(TASK, metric=whole), (X, Y), torch.eye(10)[Y]) is None


class Answers(nn.Module):
    """Right for the inputs below ``right``, 3 for all others."""

    def __init__(self, right: float) -> None:
        super().__init__()
        self.right = right

    def forward(self, x: Tensor) -> Tensor:
        return torch.eye(10)[torch.where(x[:, 0] < self.right, x[:, 0].long() % 10, 3)]


def test_a_look_is_taken_at_the_rungs_only_and_ends_the_work_where_there_is_no_hope() -> None:
    gate = Gate(max_drop=3.0, curves=tuple(Curve({0: 90.0, 10: 5.0, 15: 4.0}, 3.0) for _ in range(8)))
    looks = Looks(TASK, part(1000), gate, steps=20, high=9.0)
    for step in range(10):
        looks(Answers(500.0), step)
    assert [point.step for point in looks.curve] == [5]  # before recovery all stood at 90, and that tells nothing
    assert looks.curve[0].drop == pytest.approx(45.0, abs=2)  # of the wrong half, one in ten is a 3
    with pytest.raises(Hopeless, match="after 10 steps"):
        looks(Answers(500.0), 10)
    assert looks.hoped == pytest.approx(looks.curve[-1].drop - 2.0)


def test_an_audit_looks_on_and_keeps_what_was_said_first() -> None:
    gate = Gate(max_drop=3.0, curves=tuple(Curve({0: 90.0, 10: 5.0, 15: 4.0}, 3.0) for _ in range(8)), audit=True)
    looks = Looks(TASK, part(1000), gate, steps=20, high=9.0)
    for step in range(21):
        looks(Answers(500.0), step)
    assert "after 10 steps" in looks.reason
    assert [point.step for point in looks.curve] == [5, 10, 15, 20]


def test_a_rung_that_tells_nothing_is_passed_over() -> None:
    gate = Gate(max_drop=3.0, curves=tuple(Curve({0: 90.0}, 1.0) for _ in range(8)))
    looks = Looks(TASK, part(1000), gate, steps=20, high=9.0)
    looks(Answers(500.0), 0)
    assert looks.curve == []
