"""Speed over several batch sizes: the geometric mean, an interval that holds it, each size told."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autocompress.measure import latency
from autocompress.measure.batches import compare_batches, overall
from autocompress.measure.latency import Effort, compare
from autocompress.records import BatchTiming
from autocompress.runtimes.runtime import Array, Call, Deployed

BATCHES: tuple[Array, ...] = tuple(np.zeros((size, 2), np.float32) for size in (1, 4))
ONE_LOOK = Effort(width=0.5, seconds=0.0, segments=6)


@pytest.fixture(autouse=True)
def _no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "WARM_UP_SECONDS", 0.0)


class Priced(Deployed):
    """A call costs ``first`` seconds and ``each`` more a sample, with noise of a few percent by seed."""

    def __init__(self, first: float, each: float, noise: Iterator[float] | None = None) -> None:
        super().__init__(Path())
        self.first, self.each, self.noise = first, each, noise

    def timed(self, inputs: Array, calls: int) -> list[Call]:
        return [Call((self.first + self.each * len(inputs)) * (next(self.noise) if self.noise else 1.0)) for _ in range(calls)]


def noise(seed: int, spread: float = 0.05) -> Iterator[float]:
    random = np.random.default_rng(seed)
    while True:
        yield float(np.exp(spread * random.normal()))


def timing(speedup: float, low: float, high: float, batch_size: int = 1) -> BatchTiming:
    return BatchTiming(
        batch_size=batch_size, latency_ms=1, baseline_latency_ms=1, speedup=speedup, speedup_low=low, speedup_high=high, resolved=True
    )  # fmt: skip


def test_each_size_has_its_ratio_and_all_of_them_the_geometric_mean() -> None:
    whole, batches = compare_batches(Priced(0.0, 0.004), Priced(0.003, 0.001), BATCHES, ONE_LOOK)
    assert [(one.batch_size, one.speedup) for one in batches] == [(1, pytest.approx(1.0)), (4, pytest.approx(16 / 7))]
    assert whole.speedup == pytest.approx((16 / 7) ** 0.5)
    assert (whole.baseline_latency_ms, whole.latency_ms) == (pytest.approx(4.0), pytest.approx(4.0))
    assert whole.resolved


def test_one_size_is_timed_as_ever_and_makes_no_list() -> None:
    both = [Priced(0.0, 0.004, noise(1)), Priced(0.003, 0.001, noise(2))]
    again = [Priced(0.0, 0.004, noise(1)), Priced(0.003, 0.001, noise(2))]
    found, batches = compare_batches(*both, BATCHES[1:], ONE_LOOK, 3)
    assert replace(found, busy=None) == replace(compare(*again, BATCHES[1], ONE_LOOK, 3), busy=None)  # other programs come and go
    assert batches == ()


def test_where_one_size_is_not_resolved_all_of_them_are_not() -> None:
    class Wild(Priced):
        """Noisy at batch 4 only."""

        def timed(self, inputs: Array, calls: int) -> list[Call]:
            return [Call(call.seconds * (next(wild) if len(inputs) == 4 else 1.0)) for call in super().timed(inputs, calls)]

    wild = noise(0, spread=1.0)
    whole, batches = compare_batches(Priced(0.0, 0.004), Wild(0.0, 0.004), BATCHES, Effort(width=0.01, seconds=0.0, segments=6))
    assert [one.resolved for one in batches] == [True, False]
    assert not whole.resolved


def test_the_mean_of_equal_intervals_is_narrower_by_the_root_of_their_number() -> None:
    speedup, low, high = overall([timing(4.0, 4.0 / 1.21, 4.0 * 1.44)] * 4)
    assert (speedup, low, high) == (pytest.approx(4.0), pytest.approx(4.0 / 1.1), pytest.approx(4.0 * 1.2))


def test_one_size_alone_keeps_its_interval() -> None:
    assert overall([timing(2.0, 1.5, 3.0)]) == pytest.approx((2.0, 1.5, 3.0))


def test_an_interval_that_reaches_below_zero_leaves_the_mean_without_a_lower_end() -> None:
    speedup, low, high = overall([timing(2.0, -0.1, 3.0), timing(8.0, 7.0, 9.0)])
    assert (speedup, low) == (pytest.approx(4.0), 0.0)
    assert 4.0 < high < 6.0


def test_the_interval_holds_the_true_mean_in_about_95_of_100_cases() -> None:
    random, inside = np.random.default_rng(0), []
    for _ in range(400):
        speeds = 2.0 * np.exp(random.normal(0.0, (0.02, 0.05, 0.1)))  # three sizes that are known unequally well
        known = [timing(x, x * np.exp(-1.96 * s), x * np.exp(1.96 * s)) for x, s in zip(speeds, (0.02, 0.05, 0.1), strict=True)]
        _, low, high = overall(known)
        inside.append(low <= 2.0 <= high)
    assert 0.92 <= np.mean(inside) <= 0.98
