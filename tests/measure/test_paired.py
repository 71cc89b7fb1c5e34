"""The interval of a drop covers the truth, whatever the metric is; McNemar's test is that of the books."""

import time
from dataclasses import replace
from importlib import import_module
from math import comb

import numpy as np
import pytest
import torch
import toy_task
from torch import Tensor

from autocompress.measure.paired import mcnemar, paired
from autocompress.tasks.task import Task, lost, score

ROOM = import_module("autocompress.measure.paired")


@pytest.fixture(scope="module")
def task() -> Task:
    return toy_task.make()


def answers(right: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> Tensor:
    """Logits (N, 2) for targets of class 1."""
    return torch.tensor(np.stack([~right, right], 1), dtype=torch.float32)


def pair_of(count: int, broken: float, righted: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of a candidate and its baseline, and targets; shares of samples that break and mend."""
    kind = np.random.default_rng(seed).choice(4, size=count, p=[broken, righted, 0.05, 0.95 - broken - righted])
    return answers((kind == 1) | (kind == 3)), answers((kind == 0) | (kind == 3)), torch.ones(count, dtype=torch.int64)


@pytest.mark.parametrize(("count", "broken", "righted"), [(150, 0.002, 0.0), (400, 0.02, 0.005), (400, 0.1, 0.05), (50, 0.1, 0.05)])
def test_the_interval_of_accuracy_covers_the_true_drop(task: Task, count: int, broken: float, righted: float) -> None:
    truth, covered, repeats = 100 * (broken - righted), 0, 300
    for seed in range(repeats):
        interval = paired(task, *pair_of(count, broken, righted, seed), seed=seed)
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    assert covered >= 0.91 * repeats


def test_equal_answers_are_no_proof_that_none_ever_changes(task: Task) -> None:
    outputs, _, targets = pair_of(400, 0.0, 0.0, seed=0)
    low, high = paired(task, outputs, outputs, targets) or (0.0, 0.0)
    assert -1 < low < 0 < high < 1


def test_pairs_are_narrower_than_two_models_that_saw_other_samples(task: Task) -> None:
    outputs, baseline, targets = pair_of(2000, 0.01, 0.0, seed=0)
    low, high = paired(task, outputs, baseline, targets) or (0.0, 99.0)
    accuracies = [score(task, one, targets) for one in (outputs, baseline)]
    unpaired = 2 * 1.96 * sum(share * (100 - share) / len(targets) for share in accuracies) ** 0.5
    assert high - low < 0.5 * unpaired


def test_equal_seeds_give_equal_intervals_and_the_drop_lies_inside(task: Task) -> None:
    for count in (1, 2, 3, 400):
        outputs, baseline, targets = pair_of(count, 0.3, 0.1, seed=count)
        interval = paired(task, outputs, baseline, targets)
        assert interval == paired(task, outputs, baseline, targets)
        assert interval is not None
        drop = lost(task, score(task, baseline, targets), score(task, outputs, targets))
        assert interval[0] - 1e-4 <= drop <= interval[1] + 1e-4


def mean_loss(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs[:, 0] - targets).square().mean())


def sample_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs[:, 0] - targets).square()


@pytest.mark.parametrize("count", [300, 12_000])
def test_scores_of_samples_and_the_metric_itself_give_the_same_interval(task: Task, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ROOM, "METRIC_SECONDS", 60.0)  # all draws, however busy the machine is
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(count, generator=generator)
    baseline, outputs = (targets[:, None] + scale * torch.randn(count, 1, generator=generator) for scale in (0.5, 0.7))
    whole = replace(task, metric=mean_loss, metric_unit="", higher_is_better=False)
    low, high = paired(whole, outputs, baseline, targets) or (0.0, 0.0)
    near = paired(replace(whole, sample_scores=sample_loss), outputs, baseline, targets)
    assert near == pytest.approx((low, high), abs=0.3 * (high - low))
    assert 0 < low < 0.24 < high  # 0.7² - 0.5²: worse, where lower is better


def test_a_metric_of_a_whole_split_costs_little_and_a_slow_one_has_no_interval(task: Task) -> None:
    outputs, baseline, targets = pair_of(100, 0.1, 0.0, seed=0)

    def slow(outputs: Tensor, targets: Tensor) -> float:
        time.sleep(0.2)
        return 1.0

    started = time.monotonic()
    assert paired(replace(task, metric=slow), outputs, baseline, targets) is None
    assert time.monotonic() - started < 2


def test_few_draws_of_a_slow_metric_give_a_normal_interval(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ROOM, "METRIC_SECONDS", 60.0)
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(300, generator=generator)
    baseline, outputs = (targets[:, None] + scale * torch.randn(300, 1, generator=generator) for scale in (0.5, 0.7))
    whole = replace(task, metric=mean_loss, metric_unit="", higher_is_better=False)
    low, high = paired(whole, outputs, baseline, targets) or (0.0, 0.0)
    monkeypatch.setattr(ROOM, "METRIC_DRAWS", 12)
    few = paired(whole, outputs, baseline, targets)
    assert few is not None
    assert sum(few) / 2 == pytest.approx(mean_loss(outputs, targets) - mean_loss(baseline, targets), abs=1e-6)
    assert 0.6 < (few[1] - few[0]) / (high - low) < 2


def test_a_metric_without_a_value_on_most_resamples_has_no_interval(task: Task) -> None:
    outputs, baseline, targets = pair_of(100, 0.1, 0.0, seed=0)

    def whole_only(outputs: Tensor, targets: Tensor) -> float:
        return 1.0 if torch.equal(targets, TARGETS) else float("nan")

    TARGETS = targets = torch.arange(100)
    assert paired(replace(task, metric=whole_only), outputs, baseline, targets) is None


def test_mcnemar_is_the_exact_binomial_test() -> None:
    for broken in range(12):
        for righted in range(12):
            count = broken + righted
            tail = sum(comb(count, index) for index in range(min(broken, righted) + 1)) / 2**count
            assert mcnemar(broken, righted) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(6, 0) == pytest.approx(0.03125)
    assert mcnemar(0, 0) == 1
    assert 0 <= mcnemar(5000, 5200) <= 1
