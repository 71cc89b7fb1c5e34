"""Each observer finds the range that its definition says, on distributions whose answer is known, whatever comes in which order."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.quantization.calibrate import HistogramCollector
from torch import Tensor

from autocompress.blocks.observers import (
    SIDE,
    Entropy,
    Histogram,
    MeanSquare,
    MinMax,
    MovingAverage,
    Observer,
    Percentile,
    divergence_of,
    observer_of,
)
from autocompress.blocks.rounding import fake_quantize, grid_of
from autocompress.recipe import Quantization
from tests.small_models import inputs

KINDS = ("minmax", "moving_average", "percentile", "entropy", "mse")


def seen(observer: Observer, *batches: Tensor) -> tuple[float, float]:
    for batch in batches:
        observer.see(batch)
    low, high = observer.range()
    return low.item(), high.item()


def error(x: Tensor, low: float, high: float) -> float:
    """Mean squared error of x on the uint8 grid of a range, in float64."""
    scale, zero = grid_of(torch.tensor(low).double(), torch.tensor(high).double(), 0, 255, False)
    return float((fake_quantize(x.double(), scale, zero, 0, 255) - x.double()).square().mean())


@pytest.mark.parametrize("kind", KINDS)
def test_the_settings_name_the_observer(kind: Any) -> None:
    made = observer_of(Quantization(observer=kind, percentile=99.0))
    classes = {"minmax": MinMax, "moving_average": MovingAverage, "percentile": Percentile, "entropy": Entropy, "mse": MeanSquare}
    assert type(made) is classes[kind]
    assert not isinstance(made, torch.nn.Module)


@given(st.lists(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=6), min_size=1, max_size=5))
def test_min_max_is_that_of_all_batches_and_zero(batches: list[list[float]]) -> None:
    values = [0.0, *(value for batch in batches for value in batch)]
    assert seen(MinMax(), *map(torch.tensor, batches)) == (min(values), max(values))


def test_a_moving_average_is_the_mean_of_the_batches_extremes_and_moves_on_slowly() -> None:
    batches = [torch.tensor([-float(n), 2.0 * n]) for n in (1, 2, 6)]
    observer = MovingAverage()
    low, high = seen(observer, *batches)
    assert (low, high) == (pytest.approx(-3.0), pytest.approx(6.0))
    steady, later = MovingAverage(), torch.tensor([-2.0, 11.0])
    seen(steady, *[torch.tensor([-1.0, 1.0])] * 200)
    assert seen(steady, later) == (pytest.approx(-1.01), pytest.approx(1.1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, 3.7, -2.5, 1e-20, 1e20])
def test_a_constant_has_a_finite_range_that_holds_it_and_zero(kind: Any, value: float) -> None:
    low, high = seen(observer_of(Quantization(observer=kind)), torch.full((8,), value), torch.full((2, 3), value))
    assert math.isfinite(low)
    assert math.isfinite(high)
    assert low == min(0.0, torch.tensor(value).item())
    assert high == max(0.0, torch.tensor(value).item())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_makes_a_range_that_is_not(kind: Any, wrong: float) -> None:
    low, high = seen(observer_of(Quantization(observer=kind)), inputs(20), torch.tensor([1.0, wrong]), inputs(20))
    assert not (math.isfinite(low) and math.isfinite(high))


@pytest.mark.parametrize("kind", KINDS)
def test_empty_batches_layouts_and_half_floats_are_taken(kind: Any) -> None:
    x = inputs(4, 6, 5, 5)
    one, other = (observer_of(Quantization(observer=kind)) for _ in range(2))
    assert seen(one, torch.zeros(0, 3), x.to(memory_format=torch.channels_last)) == seen(other, x.flatten())
    low, high = seen(observer_of(Quantization(observer=kind)), x.bfloat16())
    assert low < -1
    assert high > 1


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.lists(st.sampled_from([0.0, 0.01, 1.0, 3.0, 50.0]), min_size=1, max_size=5))
def test_a_histogram_grows_by_merging_bins_and_loses_no_value(seed: int, sizes: list[float]) -> None:
    random = torch.Generator().manual_seed(seed)
    batches = [torch.randn(40, generator=random) * size for size in sizes]
    observer = Histogram()
    for batch in batches:
        observer.see(batch)
    values = torch.cat(batches)
    assert observer.zeros + int(observer.counts.sum()) == len(values)
    if observer.reach:
        assert values.abs().max() <= observer.reach < 2 * max(values.abs().max(), batches[0].abs().max()) + 1e-9
        inner = observer.counts[SIDE : SIDE + SIDE // 4].sum()  # bins of a quarter of the positive side
        margin = values[(values / observer.reach - 0.25).abs() > 1e-6]
        assert abs(int(inner) + observer.zeros - int(((margin >= 0) & (margin < observer.reach / 4)).sum())) <= len(values) - len(margin)


def test_a_percentile_is_numpys_within_a_bin_and_100_is_min_max() -> None:
    x = torch.cat([inputs(50_000), torch.tensor([40.0, -3.0])])
    bin_width = 2 * 40 / (2 * SIDE)
    for percentile in (90.0, 99.0, 99.9):
        cut = (100 - percentile) / 2
        found = seen(Percentile(percentile), *x.split(10_000))
        expected = np.percentile(x.numpy(), [cut, 100 - cut])
        assert np.abs(np.array(found) - expected).max() <= 2 * bin_width
    assert seen(Percentile(100.0), *x.split(10_000)) == (x.min().item(), x.max().item())


def test_a_percentile_of_relu_outputs_has_zero_for_its_low_end() -> None:
    low, high = seen(Percentile(99.0), inputs(20_000).relu())
    assert low == 0
    assert high == pytest.approx(np.percentile(inputs(20_000).relu().numpy(), 99.5), abs=0.01)


def collected(method: str, batches: list[Tensor], **options: Any) -> tuple[float, float]:
    """What onnxruntime's calibrator of this method says about the batches."""
    usual = {"symmetric": False, "num_bins": 2 * SIDE, "num_quantized_bins": 128, "percentile": 99.9, "scenario": "same"}
    collector = HistogramCollector(method=method, **{**usual, **options})
    for batch in batches:
        collector.collect({"x": batch.numpy()})
    found = collector.compute_collection_result()["x"]
    return float(found[0]), float(found[1])


@pytest.mark.parametrize("percentile", [90.0, 99.905])  # neither cut falls between two values, where rounding would decide
def test_a_percentile_is_that_of_onnxruntimes_calibrator(percentile: float) -> None:
    batches = [inputs(20_000, seed=seed) + 0.3 for seed in range(3)]
    theirs = collected("percentile", batches, percentile=percentile)
    ours = seen(Percentile(percentile), *batches)
    assert np.abs(np.array(ours) - np.array(theirs)).max() < 3 * 10 / (2 * SIDE)


@pytest.mark.parametrize("tail", ["gauss", "laplace"])
def test_an_entropy_threshold_is_near_that_of_onnxruntimes_calibrator(tail: str) -> None:
    """Theirs tries every bin and spreads levels otherwise, so the two agree on the valley, not on its last bin."""
    x = inputs(100_000)
    x = x if tail == "gauss" else torch.where(x > 0, 1, -1) * -torch.rand(len(x), generator=torch.Generator().manual_seed(3)).log()
    theirs = collected("entropy", [x], num_bins=1024)
    ours = seen(Entropy(128), x)
    assert ours[1] == pytest.approx(theirs[1], rel=0.2)
    assert ours[1] < x.max()


def test_the_divergence_is_that_of_the_definition() -> None:
    counts = torch.zeros(16, dtype=torch.float64)
    counts[4:12] = torch.tensor([4.0, 2.0, 0.0, 6.0, 1.0, 1.0, 3.0, 5.0])
    counts[13] = 2.0  # an outlier, which P has in its last bin
    p = np.array([4, 2, 0, 6, 1, 1, 3, 7.0])
    q = np.array([3, 3, 0, 6, 1, 1, 4, 4.0])  # levels of two bins, spread over those that are filled
    p, q = (np.maximum(values, 1e-4) / np.maximum(values, 1e-4).sum() for values in (p, q))
    assert divergence_of(counts, 4, 12, 4) == pytest.approx((p * np.log(p / q)).sum(), rel=1e-9)


def test_entropy_keeps_all_of_an_even_distribution_and_cuts_a_few_outliers_off() -> None:
    even = torch.linspace(-2, 6, 100_000)
    assert seen(Entropy(256), even) == (pytest.approx(-2.0), pytest.approx(6.0, abs=0.1))
    low, high = seen(Entropy(256), torch.cat([inputs(100_000).relu(), torch.tensor([60.0])]))
    assert low == 0
    assert 3 < high < 20


@pytest.mark.parametrize("shape", ["gauss", "outliers", "relu", "one-sided tail"])
def test_the_range_of_the_least_squared_error_is_nearly_that_of_a_brute_force_search(shape: str) -> None:
    x = inputs(5000)
    x = {
        "gauss": x, "outliers": torch.cat([x, torch.tensor([25.0, -18.0])]), "relu": torch.cat([x.relu(), torch.tensor([9.0])]),
        "one-sided tail": torch.nn.functional.silu(3 * x),
    }[shape]  # fmt: skip
    least = min(error(x, x.min().item() * a, x.max().item() * b) for a in np.linspace(0.05, 1, 20) for b in np.linspace(0.05, 1, 20))
    low, high = seen(MeanSquare(256, False), *x.split(1000))
    assert error(x, low, high) <= least * 1.03
    assert error(x, low, high) <= error(x, *seen(MinMax(), x)) * 1.001


def test_the_least_squared_error_of_a_symmetric_grid_is_where_calculus_says() -> None:
    """n values rounded to steps of t / 127 and one outlier at 30 cut off at t: n (t / 127)^2 / 12 + (30 - t)^2 is least there."""
    count = 100_000
    expected = 60 / (2 + count / (6 * 127**2))
    low, high = seen(MeanSquare(256, True), torch.cat([inputs(count), torch.tensor([30.0])]))
    assert high == pytest.approx(expected, rel=0.02)
    assert low >= -high


@pytest.mark.parametrize("kind", KINDS)
def test_an_observer_can_be_copied_and_goes_on(kind: Any) -> None:
    observer = observer_of(Quantization(observer=kind))
    observer.see(inputs(50))
    twin = copy.deepcopy(observer)
    assert seen(twin, 3 * inputs(50, seed=1)) == seen(observer, 3 * inputs(50, seed=1))
