"""Contenders are timed longer, against the baseline, until their order is decided; what was timed is kept and read by all."""

from collections.abc import Callable
from pathlib import Path

import pytest
from toy_runs import Finished, call, copied, fingerprints

from autocompress import contest
from autocompress.contest import time_contenders
from autocompress.evaluate import Bench
from autocompress.measure.latency import Effort
from autocompress.progress import Progress
from autocompress.records import Measurement, TrialResult
from autocompress.runs import RunPaths
from autocompress.saved import Study
from autocompress.study.pareto import Bounds

WIDE = Bounds(max_drop=100.0, min_speedup=0.01)


@pytest.fixture
def paths(undisturbed: Finished, tmp_path: Path) -> RunPaths:
    """A study of three trials: 0 and 1 overlap, 2 is apart."""
    made = copied(undisturbed.paths, tmp_path)
    for number in range(3, 16):
        made.trial(number).result.unlink()
    for result, (speedup, drop, half) in zip(made.results(), ((4.0, 1.0, 0.4), (4.1, 2.0, 0.4), (2.0, 0.0, 0.4)), strict=True):
        measurement = result.measurement
        assert measurement is not None
        made.write_result(result.model_copy(update={"measurement": with_times(measurement, speedup, half, drop)}))
    for file in made.folder.glob("trials/*/remeasured.json"):
        file.unlink()
    return made


def with_times(measurement: Measurement, speedup: float, half: float, drop: float | None = None) -> Measurement:
    times = {"speedup": speedup, "speedup_low": speedup - half, "speedup_high": speedup + half}
    return measurement.model_copy(update=times if drop is None else times | {"drop": drop})


@pytest.fixture
def bench() -> Bench:
    return None  # type: ignore[return-value]  # what is timed is stubbed


@pytest.fixture
def retimed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Stub the timing: speed by trial number, half the width by round."""

    def stub(speeds: dict[int, float], halves: tuple[float, float] = (0.2, 0.01)) -> list[int]:
        calls: list[int] = []

        def retime(result: TrialResult, bench: Bench, artifact: Path, effort: Effort) -> Measurement:
            assert artifact.is_dir()
            calls.append(result.number)
            assert result.measurement is not None
            return with_times(result.measurement, speeds[result.number], halves[contest.ROUNDS.index(effort)])

        monkeypatch.setattr(contest, "retime", retime)
        return calls

    return stub


def test_only_contenders_are_timed_and_the_second_round_times_what_is_still_open(
    paths: RunPaths, bench: Bench, retimed: Callable[..., list[int]]
) -> None:
    calls = retimed({0: 4.2, 1: 4.0})
    assert time_contenders(paths, WIDE, bench, Progress(quiet=True)) == (1, 0)
    assert calls == [1, 0, 0, 1]
    assert not paths.trial(2).remeasured.exists()


def test_an_order_that_the_first_round_decides_needs_no_second(
    paths: RunPaths, bench: Bench, retimed: Callable[..., list[int]]
) -> None:
    calls = retimed({0: 5.0, 1: 4.0})
    time_contenders(paths, WIDE, bench, Progress(quiet=True))
    assert calls == [1, 0]


def test_the_longer_timing_is_read_by_all_and_the_result_stays_as_it_was_told(
    paths: RunPaths, bench: Bench, retimed: Callable[..., list[int]]
) -> None:
    before = fingerprints(paths)
    retimed({0: 5.0, 1: 4.0})
    assert [row["trial"] for row in Study(paths).front()] == [1, 0, 2]
    time_contenders(paths, WIDE, bench, Progress(quiet=True))
    assert fingerprints(paths) == before
    assert [(row["trial"], row["speedup"]) for row in Study(paths).front()] == [(0, 5.0), (2, 2.0)]  # 1 is slower and drops more
    assert "5.0" in Study(paths).csv()


def test_a_contender_is_settled_once(paths: RunPaths, bench: Bench, retimed: Callable[..., list[int]]) -> None:
    calls = retimed({0: 4.0, 1: 4.0}, (0.4, 0.4))
    time_contenders(paths, WIDE, bench, Progress(quiet=True))
    assert sorted(calls) == [0, 0, 1, 1]
    assert time_contenders(paths, WIDE, bench, Progress(quiet=True)) == ()
    assert len(calls) == 4


def test_equals_are_declared(
    paths: RunPaths, bench: Bench, retimed: Callable[..., list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    retimed({0: 4.0, 1: 4.001})
    time_contenders(paths, WIDE, bench, Progress())
    assert "trials 1 and 0: equally fast as far as this machine can tell" in capsys.readouterr().err


def test_the_time_for_all_of_them_has_a_cap(
    paths: RunPaths, bench: Bench, retimed: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = retimed({0: 4.0, 1: 4.0})
    monkeypatch.setattr(contest, "SECONDS", contest.ROUNDS[0].seconds + 1)  # room for rounds of the first kind only
    time_contenders(paths, WIDE, bench, Progress(quiet=True))
    assert calls == [1, 0]


def test_a_trial_whose_artifact_is_lost_is_left_as_it_is(
    paths: RunPaths, bench: Bench, retimed: Callable[..., list[int]]
) -> None:
    calls = retimed({1: 4.0})
    paths.trial(0).artifact.rename(paths.trial(0).folder / "gone")
    assert time_contenders(paths, WIDE, bench, Progress(quiet=True)) == (1,)
    assert set(calls) == {1}


def test_a_resume_times_the_contenders_of_a_real_study_before_it_confirms_the_front(paths: RunPaths) -> None:
    """With the fake runtime, whose times are exact: the made-up overlap is gone afterwards."""
    done = call("resume", paths.study, "--budget", "3", "--runs", str(paths.runs))
    assert done.exit_code == 0, done.stderr
    points = {result.number: result.measurement for result in paths.results()}
    for number in (0, 1):
        point = points[number]
        assert point is not None
        assert paths.trial(number).remeasured.exists()
        assert point.speedup_high - point.speedup_low < 1e-6
        assert point.drop == float(number + 1), "a longer timing changes times only"
    assert {row["trial"] for row in Study(paths).front()} <= set(paths.holdouts())
