"""Ranks that save nothing are refused with the numbers; ranks of stored factors are read back."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autocompress.compress.factorize import cost, factorize, ranks_from_state
from autocompress.compress.factorize.rank import least_rank, method_for
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import LayerPlan
from tests.compress.factorize.single import KERNELS, MATRICES, alone, block_of, plan
from tests.small_models import conv, inputs


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12), st.floats(0.01, 0.99))
def test_the_least_rank_keeps_the_energy_and_one_less_does_not(values: list[float], energy: float) -> None:
    squares = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    rank, total = least_rank(squares, energy), float(squares.sum())
    assert squares[:rank].sum() >= energy * total * (1 - 1e-12)
    assert squares[: rank - 1].sum() < energy * total * (1 + 1e-12)


def test_a_linear_rank_that_is_not_smaller_than_the_matrix_is_refused_with_the_rule() -> None:
    with pytest.raises(InfeasibleRecipe, match=r"layer: rank 8 is not smaller than min\(weight shape\) = 8; .*Lower the rank"):
        block_of(nn.Linear(8, 12), 8)
    with pytest.raises(InfeasibleRecipe, match=r"layer: energy 0\.999 needs rank 8, which is not smaller than .* = 8; .*Lower the energy"):
        block_of(nn.Linear(8, 12), energy=0.999)


@pytest.mark.parametrize("method", KERNELS)
def test_a_rank_larger_than_any_is_refused_with_the_largest(method: str) -> None:
    with pytest.raises(InfeasibleRecipe, match=rf"^layer: rank 999 is larger than \d+, the largest that {method} can use"):
        block_of(conv(8, 12), 999, method=method)


def test_a_rank_of_zero_is_refused() -> None:
    unchecked = plan(3).model_copy(update={"rank": 0})
    with pytest.raises(InfeasibleRecipe, match=r"^layer: rank 0 is below 1"):
        factorize(alone(nn.Linear(8, 12)), {"layer": unchecked})


LARGEST = [
    (nn.Linear(8, 12), "svd", 4),
    (nn.Linear(8, 12), "activation_svd", 4),
    (conv(8, 12, 1), "svd", 4),
    (conv(8, 12), "tucker2", 9),
    (conv(8, 12), "cp", 29),
    (conv(8, 12), "spatial_svd", 14),
    (conv(8, 12, stride=2), "tucker2", 7),
    (conv(8, 12, stride=2), "cp", 16),
    (conv(8, 12, stride=2), "spatial_svd", 10),
]


@pytest.mark.parametrize(("layer", "method", "largest"), LARGEST, ids=lambda value: str(value).split("(")[0])
def test_a_rank_with_no_fewer_multiply_adds_than_the_dense_layer_is_refused(layer: nn.Module, method: str, largest: int) -> None:
    outer, inner, *kernel = layer.weight.shape
    dense, x = layer.weight.numel(), inputs(16, 8)
    block = block_of(layer, largest, method=method, x=x)
    spent = cost(outer, inner, (kernel[0], kernel[1]) if kernel else 1, largest, method, getattr(layer, "stride", 1))
    assert spent < dense
    if getattr(layer, "stride", (1, 1)) == (1, 1):
        assert spent == sum(value.numel() for name, value in block.named_parameters() if "weight" in name)
    with pytest.raises(InfeasibleRecipe, match=rf"layer: rank {largest + 1} needs \d+ multiply-adds a position, the dense layer {dense}"):
        block_of(layer, largest + 1, method=method, x=x)


def test_the_cost_without_a_method_is_that_of_the_usual_one() -> None:
    assert cost(12, 8, 1, 3) == cost(12, 8, (1, 1), 3, "svd") == 60
    assert cost(12, 8, 9, 3) == cost(12, 8, (3, 3), 3, "tucker2") == 8 * 3 + 3 * 3 * 9 + 3 * 12
    assert cost(12, 8, 9, 10) == 8 * 8 + 8 * 10 * 9 + 10 * 12
    with pytest.raises(ValueError, match=r"needs \(kh, kw\), not their product 9"):
        cost(12, 8, 9, 3, "spatial_svd")
    with pytest.raises(ValueError, match="'magic' is not known"):
        method_for(9, "magic")


ASKED = [*((nn.Linear(24, 20), method) for method in MATRICES), (conv(24, 20, 1), "auto"), *((conv(12, 16), method) for method in KERNELS)]


@pytest.mark.parametrize(("layer", "method"), [*ASKED, (conv(4, 32), "auto")], ids=lambda value: str(value).split("(")[0])
def test_an_energy_is_read_back_from_stored_factors_as_the_rank_that_they_have(layer: nn.Module, method: str) -> None:
    asked, x = {"layer": plan(energy=0.4, method=method)}, inputs(16, 24)
    made = factorize(alone(layer), asked, x)
    read = ranks_from_state(asked, made.state_dict())
    assert (read["layer"].energy, read["layer"].factorization) == (None, method)
    other = alone(copy.deepcopy(layer))
    other.layer.reset_parameters()
    again = factorize(other, read, x)
    assert again.load_state_dict(made.state_dict()).missing_keys == []
    torch.testing.assert_close(again.layer.weight, made.layer.weight)


def test_plans_that_a_state_says_nothing_about_stay_as_they_are() -> None:
    plans = {"a": plan(rank=3, name="a"), "b": plan(energy=0.5, name="b"), "c": LayerPlan(name="c", keep=0.5)}
    assert ranks_from_state(plans, {"c.weight": torch.zeros(1), "a.reduce.weight": torch.zeros(2, 2)}) == plans


def test_every_rank_below_the_first_that_saves_nothing_saves() -> None:
    for method in KERNELS:
        spent = [cost(24, 16, (3, 3), rank, method, 2) for rank in range(1, 25)]
        assert spent == sorted(spent), method
        assert spent[0] < 24 * 16 * math.prod((3, 3))
