"""What a summary says beside the front: which of its members are equally fast as far as the machine can tell."""

from collections.abc import Callable

from autocompress.config import SearchConfig
from autocompress.records import TrialResult
from autocompress.study.summary import summary

MakeTrial = Callable[..., TrialResult]


def with_interval(result: TrialResult, low: float, high: float) -> TrialResult:
    assert result.measurement is not None
    return result.model_copy(update={"measurement": result.measurement.model_copy(update={"speedup_low": low, "speedup_high": high})})


def test_neighbours_on_the_front_whose_intervals_overlap_are_equals(
    make_trial: MakeTrial, make_config: Callable[..., SearchConfig]
) -> None:
    fast = with_interval(make_trial(0, 4.0, 2.0), 3.9, 4.1)
    near = with_interval(make_trial(1, 3.95, 1.0), 3.8, 4.05)
    slow = with_interval(make_trial(2, 3.0, 0.0), 2.9, 3.1)
    dominated = with_interval(make_trial(3, 2.99, 0.5), 2.9, 3.1)
    told = summary(make_config(), None, [fast, near, slow, dominated], {}, state="finished")
    assert [row["trial"] for row in told["front"]] == [0, 1, 2]
    assert told["equals"] == [[0, 1]]
