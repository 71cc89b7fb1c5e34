"""Recipes that differ only in what nothing uses are the same recipe."""

from typing import Any

import pytest

from autocompress.recipe import Distillation, LayerPlan, Pruning, Quantization, Recipe, Recovery
from autocompress.study.realized import realized

CUT, INTEGER, DENSE = LayerPlan(name="a", keep=0.5), LayerPlan(name="a", weight_bits=8, activation_bits=8), LayerPlan(name="a")
WEIGHTS = LayerPlan(name="a", weight_bits=4)
PERCENTILE = Quantization(observer="percentile")


def recipe(plan: LayerPlan, **changes: Any) -> Recipe:
    return Recipe(layers=(plan,), **changes)


@pytest.mark.parametrize(
    ("plan", "one", "other", "same"),
    [
        (CUT, {"quantization": Quantization(observer="mse")}, {}, True),
        (INTEGER, {"quantization": Quantization(observer="mse")}, {}, False),
        (INTEGER, {"quantization": Quantization(percentile=99.9)}, {}, True),
        (INTEGER, {"quantization": Quantization(observer="percentile", percentile=99.9)}, {"quantization": PERCENTILE}, False),
        (WEIGHTS, {"quantization": Quantization(activations="dynamic")}, {}, True),
        (INTEGER, {"quantization": Quantization(activations="dynamic")}, {}, False),
        (INTEGER, {"pruning": Pruning(importance={"taylor": 1.0})}, {}, True),
        (CUT, {"pruning": Pruning(importance={"taylor": 1.0})}, {}, False),
        (CUT, {"pruning": Pruning(iterations=7)}, {}, True),
        (CUT, {"pruning": Pruning(schedule="cubic", iterations=7)}, {"pruning": Pruning(schedule="cubic")}, False),
        (CUT, {"recovery": Recovery(quantized_steps=9)}, {}, True),
        (INTEGER, {"recovery": Recovery(quantized_steps=9)}, {}, False),
        (CUT, {"recovery": Recovery(learning_rate=0.5)}, {}, False),
        (CUT, {"recovery": Recovery(steps=0, learning_rate=0.5)}, {"recovery": Recovery(steps=0)}, True),
        (CUT, {"distillation": Distillation(temperature=9)}, {}, False),
        (DENSE, {"pruning": Pruning(global_sparsity=0.5, importance={"taylor": 1.0})}, {"pruning": Pruning(global_sparsity=0.5)}, False),
    ],
)  # fmt: skip
def test_what_nothing_uses_makes_no_other_recipe(plan: LayerPlan, one: dict[str, Any], other: dict[str, Any], same: bool) -> None:
    first, second = realized(recipe(plan, **one)), realized(recipe(plan, **other))
    assert (first.digest == second.digest) is same


def test_layers_of_a_block_that_is_left_out_do_not_matter() -> None:
    block, inside = LayerPlan(name="block", drop=True), LayerPlan(name="block.conv", keep=0.5)
    assert realized(Recipe(layers=(block, inside))).digest == realized(Recipe(layers=(block,))).digest
    stays = LayerPlan(name="block")
    assert realized(Recipe(layers=(stays, inside))).digest != realized(Recipe(layers=(stays,))).digest


def test_what_is_realized_is_realized_already() -> None:
    for plan in (CUT, INTEGER, DENSE, WEIGHTS):
        once = realized(recipe(plan, quantization=Quantization(percentile=99.0, observer="mse"), pruning=Pruning(iterations=9)))
        assert realized(once) == once
