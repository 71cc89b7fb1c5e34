"""Timing finds what a script of times hides: the ratio, its interval, when to stop; whatever the machine does meanwhile."""

import contextlib
import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import pytest

from autocompress.measure import latency
from autocompress.measure.latency import DEFAULT, GATE, HOLDOUT, LEAST, SEARCH, SEGMENT, Effort, compare, interval
from autocompress.measure.machine import Work
from autocompress.runtimes.runtime import Array, Call, Deployed

X: Array = np.zeros((1, 2), np.float32)
ONE_LOOK = Effort(width=0.0, seconds=0.0, segments=6)  # stops as soon as it may
PAIRS = SEGMENT * ONE_LOOK.segments


@pytest.fixture(autouse=True)
def _no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "WARM_UP_SECONDS", 0.0)


class Scripted(Deployed):
    """Says that a call took what ``script`` gives next, and writes its name into ``log`` for every series."""

    def __init__(self, script: Iterator[float], name: str = "", log: list[tuple[str, int]] | None = None) -> None:
        super().__init__(Path())
        self.script, self.name, self.log = script, name, log if log is not None else []

    def reopened(self) -> Self:
        self.log.append((self.name, 0))
        return self

    def timed(self, inputs: Array, calls: int) -> list[Call]:
        self.log.append((self.name, calls))
        return [Call(next(self.script)) for _ in range(calls)]


def around(seconds: float, noise: float, seed: int) -> Iterator[float]:
    random = np.random.default_rng(seed)
    while True:
        yield seconds * float(np.exp(noise * random.normal()))


def test_a_known_ratio_is_found_and_lies_in_its_interval() -> None:
    timing = compare(Scripted(around(0.002, 0.05, 1)), Scripted(around(0.001, 0.05, 2)), X, SEARCH)
    assert timing.low < 2.0 < timing.high
    assert timing.speedup == pytest.approx(2.0, rel=0.03)
    assert (timing.baseline_latency_ms, timing.latency_ms) == (pytest.approx(2.0, rel=0.05), pytest.approx(1.0, rel=0.05))
    assert timing.resolved


def test_a_machine_that_slows_down_meanwhile_does_not_change_the_ratio() -> None:
    calls = iter(range(10**9))

    def drifting(seconds: float) -> Iterator[float]:
        while True:
            yield seconds * (1 + next(calls) / 300)  # twice as slow after 300 calls of either

    timing = compare(Scripted(drifting(0.003)), Scripted(drifting(0.002)), X, ONE_LOOK)
    assert timing.latency_ms > 2.2
    assert timing.speedup == pytest.approx(1.5, rel=0.02)


def test_a_stall_now_and_then_does_not_change_the_ratio() -> None:
    def stalling(seconds: float, every: int) -> Iterator[float]:
        while True:
            yield from [seconds] * every
            yield 50 * seconds

    timing = compare(Scripted(stalling(0.003, 13)), Scripted(stalling(0.002, 17)), X, ONE_LOOK)
    assert timing.speedup == pytest.approx(1.5, rel=1e-6)


@pytest.mark.parametrize("effort", [GATE, SEARCH, DEFAULT, HOLDOUT], ids=["gate", "search", "default", "holdout"])
def test_a_model_against_itself_is_one_within_the_interval_about_as_often_as_it_says(effort: Effort) -> None:
    once = replace(effort, width=math.inf)  # the first look, which is after as many segments as it asks for
    pairs = ((Scripted(around(0.01, 0.05, 2 * seed)), Scripted(around(0.01, 0.05, 2 * seed + 1)), seed) for seed in range(150))
    timings = [compare(baseline, candidate, X, once, seed=seed) for baseline, candidate, seed in pairs]
    assert {timing.blocks for timing in timings} == {SEGMENT * effort.segments}
    assert np.mean([timing.low <= 1 <= timing.high for timing in timings]) >= 0.88
    assert np.mean([timing.speedup for timing in timings]) == pytest.approx(1.0, abs=0.01)


def test_blocks_alternate_and_either_may_come_first() -> None:
    log: list[tuple[str, int]] = []
    compare(Scripted(around(0.002, 0.0, 0), "a", log), Scripted(around(0.002, 0.0, 0), "b", log), X, ONE_LOOK)
    names = "".join(name if calls else name.upper() for name, calls in log[2:])
    segments = [part for part in re.split("AB|BA", names) if part]
    assert len(segments) == ONE_LOOK.segments
    assert all(len(part) == 2 + 2 * SEGMENT for part in segments)  # one call of each to warm up, then the pairs
    pairs = [part[start : start + 2] for part in segments for start in range(2, len(part), 2)]
    assert {"ab", "ba"} == set(pairs)
    assert PAIRS // 4 <= pairs.count("ab") <= PAIRS - PAIRS // 4


def test_both_are_loaded_anew_for_every_segment_in_either_order() -> None:
    log: list[tuple[str, int]] = []
    compare(Scripted(around(0.002, 0.0, 0), "a", log), Scripted(around(0.002, 0.0, 0), "b", log), X, ONE_LOOK)
    loads = "".join(name for name, calls in log if not calls)
    orders = [loads[start : start + 2] for start in range(0, len(loads), 2)]
    assert len(orders) == ONE_LOOK.segments
    assert set(orders) == {"ab", "ba"}


def test_what_is_slow_to_load_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "CHEAP_LOADING_SECONDS", -1.0)
    log: list[tuple[str, int]] = []
    compare(Scripted(around(0.002, 0.0, 0), "a", log), Scripted(around(0.002, 0.0, 0), "b", log), X, ONE_LOOK)
    assert sorted(name for name, calls in log if not calls) == ["a", "b"]


def test_luck_that_lasts_as_long_as_a_loading_widens_the_interval() -> None:
    class Lucky(Scripted):
        """Its time depends by a few percent on where its memory lies."""

        def reopened(self) -> Self:
            self.script = itertools.repeat(0.01 * float(np.exp(0.03 * random.normal())))
            return self

    inside = []
    for seed in range(150):
        random = np.random.default_rng(seed)
        timing = compare(Lucky(iter([0.01] * 9)), Lucky(iter([0.01] * 9)), X, Effort(0.0, 0.0, segments=12), seed=seed)
        inside.append(timing.low <= 1 <= timing.high)
    assert np.mean(inside) >= 0.88


def test_a_block_of_the_faster_model_has_more_calls_so_that_blocks_last_equally_long() -> None:
    log: list[tuple[str, int]] = []
    compare(Scripted(around(0.0004, 0.0, 0), "slow", log), Scripted(around(0.0001, 0.0, 0), "fast", log), X, ONE_LOOK)
    assert dict(log[-2:]) == {"slow": 1 + 10, "fast": 1 + 40}


def test_two_that_are_about_as_fast_have_equally_many_calls_a_block() -> None:
    log: list[tuple[str, int]] = []
    compare(Scripted(around(0.00101, 0.0, 0), "a", log), Scripted(around(0.00099, 0.0, 0), "b", log), X, ONE_LOOK)
    assert dict(log[-2:]) == {"a": 1 + 4, "b": 1 + 4}


def test_the_first_call_after_the_other_model_does_not_count() -> None:
    class Cold(Scripted):
        """The first call of a series takes longer, as with caches that are not its own."""

        def timed(self, inputs: Array, calls: int) -> list[Call]:
            return [Call(0.001 * (1.5 if place == 0 else 1.0)) for place in range(calls)]

    timing = compare(Cold(iter(())), Cold(iter(())), X, ONE_LOOK)
    assert timing.latency_ms == timing.p99_ms == pytest.approx(1.0)


def test_a_very_slow_model_still_has_three_calls_a_block() -> None:
    log: list[tuple[str, int]] = []
    compare(Scripted(around(9.0, 0.0, 0), "a", log), Scripted(around(9.0, 0.0, 0), "b", log), X, ONE_LOOK)
    assert dict(log[-2:]) == {"a": 1 + 3, "b": 1 + 3}


def test_sampling_stops_as_soon_as_the_interval_is_narrow_enough() -> None:
    still = compare(Scripted(around(0.002, 0.0, 1)), Scripted(around(0.001, 0.0, 2)), X, HOLDOUT)
    assert (still.blocks, still.resolved) == (SEGMENT * HOLDOUT.segments, True)
    assert still.low == still.speedup == still.high
    noisy = compare(Scripted(around(0.004, 0.3, 1)), Scripted(around(0.004, 0.3, 2)), X, Effort(0.15, seconds=20, segments=5))
    assert noisy.resolved
    assert noisy.blocks > 5 * SEGMENT
    assert noisy.high - noisy.low <= 0.15 * noisy.speedup


def test_at_the_cap_the_result_says_that_it_is_not_resolved() -> None:
    timing = compare(Scripted(around(0.004, 0.5, 1)), Scripted(around(0.004, 0.5, 2)), X, Effort(0.001, seconds=0.05, segments=5))
    assert not timing.resolved
    assert timing.high - timing.low > 0.001 * timing.speedup


def test_a_cap_that_is_spent_ends_it_before_all_segments_but_never_below_the_least() -> None:
    timing = compare(Scripted(around(0.004, 0.5, 1)), Scripted(around(0.004, 0.5, 2)), X, Effort(0.001, seconds=0.0, segments=5 * LEAST))
    assert timing.blocks == SEGMENT * LEAST
    assert not timing.resolved


def test_it_looks_again_only_when_a_quarter_more_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def never_narrow(ratios: np.ndarray, random: np.random.Generator) -> tuple[float, float]:
        seen.append(len(ratios) // SEGMENT)
        return 0.0, 9.0 if len(seen) < 4 else 0.0

    monkeypatch.setattr(latency, "interval", never_narrow)
    compare(Scripted(around(0.004, 0.5, 1)), Scripted(around(0.004, 0.5, 2)), X, Effort(0.01, seconds=60.0, segments=8))
    assert seen == [8, 10, 13, 17]


def test_more_is_asked_of_later_timings() -> None:
    assert GATE.width > SEARCH.width == DEFAULT.width > HOLDOUT.width
    assert GATE.seconds < SEARCH.seconds < DEFAULT.seconds < HOLDOUT.seconds
    assert GATE.segments < SEARCH.segments < DEFAULT.segments < HOLDOUT.segments


def test_without_an_effort_the_interval_is_asked_to_be_within_three_percent() -> None:
    timing = compare(Scripted(around(0.004, 0.0, 1)), Scripted(around(0.004, 0.0, 2)), X)
    assert (DEFAULT.width, timing.blocks) == (0.06, SEGMENT * DEFAULT.segments)


def test_equal_seeds_and_times_give_an_equal_result() -> None:
    twice = [compare(Scripted(around(0.002, 0.1, 1)), Scripted(around(0.001, 0.1, 2)), X, ONE_LOOK, seed=5) for _ in range(2)]
    assert replace(twice[0], busy=None) == replace(twice[1], busy=None)


def test_the_interval_of_equal_ratios_is_that_ratio() -> None:
    assert interval(np.full(20, 1.7), np.random.default_rng(0)) == (1.7, 1.7)


def test_the_interval_of_a_median_is_that_of_order_statistics() -> None:
    ratios = np.repeat(np.random.default_rng(1).permutation(np.arange(1.0, 102.0)), SEGMENT)  # 101 segments of equal pairs
    low, high = interval(ratios, np.random.default_rng(0), draws=4000)
    assert low == pytest.approx(41, abs=2)  # the exact binomial 95 % interval of the median of 101 values: the 41st to the 61st
    assert high == pytest.approx(61, abs=2)


DISTRIBUTIONS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "normal": lambda random: random.normal(1.5, 0.2, 80),
    "long tail": lambda random: 1.5 * np.exp(random.standard_t(2, 80) * 0.1),
    "uniform": lambda random: random.uniform(1.0, 2.0, 80),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_interval_holds_the_true_median_in_about_95_of_100_cases(name: str) -> None:
    random = np.random.default_rng(0)
    intervals = [interval(DISTRIBUTIONS[name](random), random, draws=300) for _ in range(300)]
    inside = np.mean([low <= 1.5 <= high for low, high in intervals])
    assert 0.88 <= inside <= 0.99


class Interrupted(Deployed):
    """A call takes ``seconds``; of ``every`` calls the last one loses its core for eight milliseconds."""

    def __init__(self, seconds: float, every: int) -> None:
        super().__init__(Path())
        self.alone, self.every, self.count = seconds, every, 0

    def timed(self, inputs: Array, calls: int) -> list[Call]:
        places = range(self.count, self.count + calls)
        self.count += calls
        hit = [place % self.every == self.every - 1 for place in places]
        return [Call(self.alone + 0.008 * is_hit, is_hit) for is_hit in hit]


def test_a_call_that_lost_its_core_counts_in_the_tail_and_not_in_the_ratio() -> None:
    timing = compare(Interrupted(0.0015, every=2), Interrupted(0.001, every=3), X, ONE_LOOK)
    assert timing.speedup == pytest.approx(1.5)
    assert (timing.low, timing.high) == (pytest.approx(1.5), pytest.approx(1.5))
    assert (timing.latency_ms, timing.baseline_latency_ms) == (pytest.approx(1.0), pytest.approx(1.5))
    assert (timing.p90_ms, timing.baseline_p90_ms) == (pytest.approx(9.0), pytest.approx(9.5))
    assert 1 / 3 < timing.interrupted < 1 / 2


def test_a_block_whose_calls_were_all_interrupted_is_timed_again() -> None:
    class OnceHit(Interrupted):
        """The first four calls of every thirty-two are hit: a whole block."""

        def timed(self, inputs: Array, calls: int) -> list[Call]:
            self.count += calls
            return [Call(self.alone + 0.008 * hit, hit) for hit in [(self.count - calls) % 32 < 4] * calls]

    timing = compare(OnceHit(0.001, 0), OnceHit(0.001, 0), X, ONE_LOOK)
    assert timing.interrupted > 0
    assert (timing.low, timing.speedup, timing.high) == (1.0, 1.0, 1.0)
    assert timing.latency_ms == pytest.approx(1.0)


def test_calls_that_are_always_interrupted_still_end_in_a_number() -> None:
    timing = compare(Interrupted(0.002, every=1), Interrupted(0.002, every=1), X, ONE_LOOK)
    assert timing.interrupted == 1.0
    assert timing.latency_ms == pytest.approx(10.0)


def test_tails_are_those_of_single_calls_and_not_of_blocks() -> None:
    def with_a_slow_tenth(seconds: float) -> Iterator[float]:
        yield from [seconds] * 3  # the warm-up
        while True:
            yield from [seconds] * 6 + [3 * seconds] + [seconds] * 7

    timing = compare(Scripted(with_a_slow_tenth(0.002)), Scripted(with_a_slow_tenth(0.001)), X, ONE_LOOK)
    assert (timing.latency_ms, timing.baseline_latency_ms) == (pytest.approx(1.0), pytest.approx(2.0))
    assert (timing.p90_ms, timing.baseline_p90_ms) == (pytest.approx(1.0), pytest.approx(2.0))
    assert (timing.p99_ms, timing.baseline_p99_ms) == (pytest.approx(3.0), pytest.approx(6.0))
    assert timing.calls == 4 * PAIRS  # a block of 4 ms is four calls of 1 ms


@pytest.mark.parametrize(("candidate", "faster"), [(0.001, 1.0), (0.003, 0.0), (0.002, 0.5)], ids=["faster", "slower", "tied"])
def test_the_probability_of_being_faster_counts_a_tie_for_half(candidate: float, faster: float) -> None:
    timing = compare(Scripted(itertools.repeat(0.002)), Scripted(itertools.repeat(candidate)), X, ONE_LOOK)
    assert timing.faster == faster


def test_the_probability_of_being_faster_is_a_share_of_the_pairs() -> None:
    timing = compare(Scripted(around(0.004, 0.1, 1)), Scripted(around(0.0038, 0.1, 2)), X, replace(HOLDOUT, width=math.inf))
    assert 0.5 < timing.faster < 1.0


def test_one_timing_waits_for_another_on_the_same_device(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    @contextlib.contextmanager
    def noted(device: str) -> Iterator[None]:
        taken.append(device)
        yield
        taken.append("free")

    monkeypatch.setattr(latency, "turn", noted)
    compare(Scripted(around(0.002, 0.0, 0)), Scripted(around(0.002, 0.0, 0)), X, ONE_LOOK, device="cuda:0")
    assert taken == ["cuda:0", "free"]


def test_a_timing_says_what_others_did_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    works = iter([Work(0.0, 10.0, 5.0), Work(2.0, 15.0, 7.0)])
    monkeypatch.setattr(latency, "work", lambda: next(works))
    timing = compare(Scripted(around(0.002, 0.0, 0)), Scripted(around(0.002, 0.0, 0)), X, ONE_LOOK)
    assert timing.busy == pytest.approx(1.5)  # 5 s of work of all in 2 s, 2 s of them its own
