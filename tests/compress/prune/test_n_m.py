"""N of every M neighbouring inputs of an output stay: those with the highest scores."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.compress.prune import masks_of, sparsify
from autocompress.compress.prune.n_m import n_of_m, parts_of
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import LayerPlan, Recipe
from tests.small_models import concat, flat


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 7), m=st.integers(2, 8), runs=st.integers(1, 4), out=st.integers(1, 5), seed=st.integers(0, 99))
def test_no_other_choice_keeps_more_of_the_score_of_a_run(n: int, m: int, runs: int, out: int, seed: int) -> None:
    n = min(n, m - 1)
    scores = torch.rand(out, runs * m, generator=torch.Generator().manual_seed(seed))
    mask = n_of_m(scores, n, m)
    for row, kept in zip(scores.view(-1, m), mask.view(-1, m), strict=True):
        assert int(kept.sum()) == n
        best = max(sum(row[list(choice)].tolist()) for choice in itertools.combinations(range(m), n))
        assert sum(row[kept].tolist()) == pytest.approx(best)


def test_runs_of_a_convolution_lie_along_its_flattened_inputs() -> None:
    model = flat()
    weight = model.a.weight.detach()  # (4, 3, 3, 3): 27 inputs, nine runs of three
    mask = masks_of(sparsify(model, Recipe(layers=(LayerPlan(name="a", pattern="1:3"),))))["a"]
    expected = weight.abs().reshape(4, 9, 3).argmax(2)
    assert torch.equal(mask.reshape(4, 9, 3).int().argmax(2), expected)
    assert torch.equal(mask.reshape(4, 9, 3).sum(2), torch.ones(4, 9, dtype=torch.long))


def test_equal_scores_leave_exactly_n() -> None:
    assert n_of_m(torch.ones(2, 8), 2, 4).tolist() == [[True, True, False, False] * 2] * 2


def test_inputs_that_do_not_divide_are_refused_with_the_layer() -> None:
    with pytest.raises(InfeasibleRecipe, match=r"^a: pattern 2:4 needs inputs that divide by 4, got 27 \(in \* kernel\)\."):
        sparsify(concat(), Recipe(layers=(LayerPlan(name="a", pattern="2:4"),)))


def test_a_pattern_reads_as_two_numbers() -> None:
    assert parts_of("2:4") == (2, 4)
    assert parts_of("11:16") == (11, 16)
