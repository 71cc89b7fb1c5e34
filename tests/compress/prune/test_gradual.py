"""Several cuts reach exactly what one would, along the curve of Zhu and Gupta (2017)."""

import itertools
from fractions import Fraction

import pytest
import torch

from autocompress.compress.prune import cubic, keeps_at, prune, structure, widths
from tests.small_models import residual

DIGIT = torch.zeros(1, 1, 8, 8)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 10, 100])
def test_the_curve_is_equation_1_of_zhu_and_gupta_and_ends_at_exactly_1(count: int) -> None:
    expected = [1 - (1 - Fraction(step, count)) ** 3 for step in range(1, count + 1)]
    found = cubic(count)
    assert found == pytest.approx([float(value) for value in expected])
    assert found[-1] == 1.0
    assert list(found) == sorted(set(found))


def test_no_cut_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^iterations must be at least 1, got 0"):
        cubic(0)


def test_what_stays_falls_from_all_to_exactly_what_is_asked() -> None:
    keep = {"a": 0.1, "b": 1.0, "c": 0.7}
    assert keeps_at(keep, 0.0) == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert keeps_at(keep, 0.5) == pytest.approx({"a": 0.55, "b": 1.0, "c": 0.85})
    assert keeps_at(keep, 1.0) == keep


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_outside_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"^share must be in 0 to 1"):
        keeps_at({"a": 0.5}, share)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.77])
def test_successive_cuts_never_grow_a_layer_and_end_at_the_widths_of_one_cut(kept: float) -> None:
    model = residual(8)
    keep = {member: kept for group in structure(model, DIGIT).groups for member in group.members}
    full, work, seen = widths(model), model, [widths(model)]
    for share in cubic(4):
        work = prune(work, keeps_at(keep, share), DIGIT, widths=full)
        seen.append(widths(work))
    for earlier, later in itertools.pairwise(seen):
        assert all(later[name] <= earlier[name] for name in later)
    assert seen[-1] == widths(prune(model, keep, DIGIT))
    assert len({widths["block4.conv2"] for widths in seen}) > 2
    work.train()(DIGIT.repeat(2, 1, 1, 1)).sum().backward()
