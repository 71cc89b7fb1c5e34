"""Training is given up where the loss is lost, and only there."""

import math
import re

import pytest

from autocompress.compress.recover.watch import PATIENCE, Watch
from autocompress.errors import Diverged


def ends_at(losses: list[float], unsettled: int = 0) -> int | None:
    """The step that ends it, if one does."""
    watch = Watch(len(losses), 0.1)
    for step, loss in enumerate(losses, 1):
        try:
            watch.see(step, loss, 1.0, settled=step > unsettled)
        except Diverged as error:
            told = re.search(rf"step (\d+) of {len(losses)}", str(error))
            return int(told[1]) if told and int(told[1]) == step else -1
    return None


def test_a_loss_that_falls_or_stays_ends_nothing() -> None:
    assert ends_at([2.0] * 200) is None
    assert ends_at([100 / step for step in range(1, 200)]) is None


def test_a_loss_that_climbs_ends_it_after_its_patience() -> None:
    found = ends_at([2.0] * 20 + [1000.0] * 100)
    assert found is not None
    assert 20 + PATIENCE <= found <= 20 + PATIENCE + 5


def test_a_kick_in_the_warm_up_is_borne() -> None:
    assert ends_at([2.0] * 10 + [300.0] + [2.0] * 60) is None


def test_a_network_that_begins_at_its_teacher_may_lose_a_little() -> None:
    assert ends_at([1e-4] * 5 + [0.5] * 200) is None
    assert ends_at([1e-4] * 5 + [50.0] * 200) is not None


def test_a_loss_whose_weights_still_rise_is_not_compared() -> None:
    assert ends_at([0.1 * step for step in range(100)] + [10.0] * 100, unsettled=100) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_ends_it_at_once_settled_or_not(value: float) -> None:
    assert ends_at([1.0, value, 1.0]) == 2
    assert ends_at([1.0, value, 1.0], unsettled=3) == 2
    with pytest.raises(Diverged, match="the gradient is"):
        Watch(3, 0.1).see(1, 1.0, value, settled=True)
