"""A rank correlation says what went together in the trials: its sign, its strength, and nothing where there is nothing to say."""

import random

import pandas as pd
import pytest

from autocompress.report.sensitivity import rank_correlation


def test_it_is_spearmans_rho_with_ties_sharing_their_rank() -> None:
    one, other = pd.Series([1.0, 2, 2, 4, 5]), pd.Series([1.0, 3, 2, 9, 100])
    ranks, others = [1, 2.5, 2.5, 4, 5], [1, 3, 2, 4, 5]
    both = [(a - 3) * (b - 3) for a, b in zip(ranks, others, strict=True)]
    expected = sum(both) / (sum((a - 3) ** 2 for a in ranks) * sum((b - 3) ** 2 for b in others)) ** 0.5
    assert rank_correlation(one, other) == pytest.approx(expected)


@pytest.mark.parametrize(("sign", "values"), [(1, range(10)), (-1, range(10, 0, -1))])
def test_what_always_rises_or_falls_together_is_one(sign: int, values: range) -> None:
    dice = random.Random(0)
    steps = pd.Series([float(value) for value in values])
    grown = pd.Series(sorted(dice.random() for _ in values))
    assert rank_correlation(steps, grown) == pytest.approx(sign)


def test_trials_without_the_dimension_do_not_count() -> None:
    assert rank_correlation(pd.Series([1.0, None, 2.0, 3.0]), pd.Series([1.0, 99.0, 2.0, 3.0])) == pytest.approx(1)


@pytest.mark.parametrize("one", [[1.0, 1.0, 1.0], [None, None, None], [1.0, None, None]])
def test_what_never_varies_says_nothing(one: list[float | None]) -> None:
    assert rank_correlation(pd.Series(one, dtype=float), pd.Series([1.0, 2.0, 3.0])) == 0.0
