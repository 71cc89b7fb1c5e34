"""The latency model finds costs again that times were made of, and its error is that of structures that it did not see."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from autocompress.latency_model import loads_of, predict_ms
from autocompress.recipe import LayerPlan, Recipe
from autocompress.records import LayerInfo, Target
from autocompress.survey.latency import FEWEST, fit, non_negative
from autocompress.survey.probes import Probe, rows_of

A = LayerInfo(name="a", kind="conv2d", macs=9 * 8 * 16 * 64, params=9 * 8 * 16, in_channels=8, out_channels=16, kernel=(3, 3), group="a")
B = LayerInfo(name="b", kind="conv2d", macs=9 * 16 * 16 * 64, params=9 * 16 * 16, in_channels=16, out_channels=16, kernel=(3, 3), group="b",
              in_group="a")  # fmt: skip
C = LayerInfo(name="c", kind="linear", macs=160, params=160, in_channels=16, out_channels=10, in_group="b")
LAYERS = (A, B, C)
SITE: Any = SimpleNamespace(layers=LAYERS, baseline_ms=1.0, target=Target(), calibration=torch.zeros(1, 8, 8, 8))


def recipe(a: float, b: float, bits: int = 32) -> Recipe:
    inputs = 8 if bits < 32 else 32
    plans = (LayerPlan(name="a", keep=a), LayerPlan(name="b", keep=b, weight_bits=bits, activation_bits=inputs), LayerPlan(name="c"))
    return Recipe(layers=plans)


def probe(one: Recipe, noise: float = 0.0, rest: float = 0.02) -> Probe:
    """Times by a law: 5 microseconds a kernel, and the multiply-adds; integer ones three times as fast."""
    times = {}
    for name, load in loads_of(one, LAYERS).items():
        macs = load.macs * {layer.name: layer.macs for layer in LAYERS}[name]
        times[name] = 0.005 + macs / 1e7 / (3 if load.scheme == "static" else 1)
    rows = tuple(rows_of(one, LAYERS, times))
    total = (sum(times.values()) + rest) * (1 + noise)
    return Probe(model="m", recipe=one.digest, rows=rows, rest_ms=total - sum(times.values()), total_ms=total)


SHARES = (1.0, 0.75, 0.5, 0.25)
RECIPES = [recipe(a, b, bits) for index, a in enumerate(SHARES) for b in SHARES[index % 2 :: 2] for bits in (32, 7)]


def test_it_predicts_structures_that_it_never_saw() -> None:
    taken = [(one, probe(one)) for one in RECIPES]
    model = fit(SITE, taken, [row for _, found in taken for row in found.rows])
    assert model is not None
    assert model.error < 0.05
    assert model.probes == len(RECIPES)
    for a, b, bits in ((0.5, 0.25, 7), (0.25, 1.0, 32), (0.75, 0.5, 7)):
        assert predict_ms(model, recipe(a, b, bits), LAYERS) == pytest.approx(probe(recipe(a, b, bits)).total_ms, rel=0.05)


def test_the_stated_error_grows_with_the_noise_of_the_times() -> None:
    random = np.random.default_rng(0)
    errors = []
    for spread in (0.0, 0.1, 0.3):
        taken = [(one, probe(one, float(spread * random.standard_normal()))) for one in RECIPES]
        model = fit(SITE, taken, [])
        assert model is not None
        errors.append(model.error)
    assert errors[0] < errors[1] < errors[2]
    assert errors[2] > 0.2


def test_too_few_probes_predict_nothing() -> None:
    taken = [(one, probe(one)) for one in RECIPES[: FEWEST - 1]]
    assert fit(SITE, taken, []) is None


def test_costs_are_never_below_zero_and_the_least_squares_solution_where_that_is_allowed() -> None:
    random = np.random.default_rng(1)
    design, wanted = random.random((20, 4)), random.standard_normal(20)
    found = non_negative(design, wanted)
    assert (found >= 0).all()
    gradient = design.T @ (design @ found - wanted)  # the conditions of Karush, Kuhn and Tucker
    assert (gradient >= -1e-9).all()
    assert gradient @ found == pytest.approx(0.0, abs=1e-9)
    exact = np.array([1.0, 0.5, 2.0, 0.25])
    np.testing.assert_allclose(non_negative(design, design @ exact), exact)


def test_layers_of_one_shape_share_what_was_measured(tmp_path: Path) -> None:
    """A layer that no probe of this model changed is known from another model's rows."""
    other = [row for one in RECIPES for row in probe(one).rows]
    taken = [(one, probe(one)) for one in (recipe(1.0, share) for share in SHARES)] + [(recipe(0.5, 0.5), probe(recipe(0.5, 0.5)))]
    alone, helped = fit(SITE, taken, []), fit(SITE, taken, [row for _, found in taken for row in found.rows] + other)
    assert alone is not None
    assert helped is not None
    assert {cost.scheme for cost in alone.costs} == {"none"}
    assert {cost.scheme for cost in helped.costs} == {"none", "static"}
