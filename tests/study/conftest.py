"""Hand-made layers and results: the study is tested without torch."""

from collections.abc import Callable
from typing import Any

import pytest

from autocompress.config import BitChoices, Budget, RecoverySpace, SearchConfig, Shares, Space
from autocompress.recipe import Recipe
from autocompress.records import LatencyModel, LayerCost, LayerInfo, Measurement, Survey, Target, TrialResult, Tried
from autocompress.study.propose import Proposal
from autocompress.study.question import Question, question_of


def layer(name: str, **changes: Any) -> LayerInfo:
    """A prunable 3x3 convolution, 32 to 32 channels, that runs 8 and 7 bits."""
    plain: dict[str, Any] = {
        "kind": "conv2d",
        "macs": 1000,
        "params": 9216,
        "in_channels": 32,
        "out_channels": 32,
        "kernel": (3, 3),
        "group": f"group of {name}",
        "channel_multiple": 8,
        "weight_bits": (32, 8, 7),
        "factorizable": True,
    }
    return LayerInfo(name=name, **{**plain, **changes})


def measurement(speedup: float, drop: float, size_bytes: int = 1000) -> Measurement:
    return Measurement(
        split="search",
        latency_ms=1 / speedup,
        baseline_latency_ms=1.0,
        speedup=speedup,
        speedup_low=0.98 * speedup,
        speedup_high=1.02 * speedup,
        resolved=True,
        blocks=9,
        accuracy=99.0 - drop,
        baseline_accuracy=99.0,
        drop=drop,
        samples=400,
        size_bytes=size_bytes,
        baseline_size_bytes=4000,
        agreement=1.0,
        max_difference=0.01,
        machine="abc",
    )


def trial(number: int, speedup: float | None = None, drop: float = 0.0, size_bytes: int = 1000, **changes: Any) -> TrialResult:
    """A measured trial, or a gated one where no speedup is given."""
    point = measurement(speedup, drop, size_bytes) if speedup is not None else None
    outcome = "gated" if point is None else "measured"
    plain = {"number": number, "recipe": Recipe(), "target": Target(), "outcome": outcome, "measurement": point}
    return TrialResult(**{**plain, **changes})


def evaluated(proposal: Proposal) -> TrialResult:
    """A pretended evaluation that is a pure function of the recipe: fewer channels are faster and worse; too slow is gated."""
    plans = proposal.recipe.layers
    cost = sum(plan.keep * (0.7 if plan.is_quantized else 1.0) for plan in plans) / len(plans)
    speedup, drop = round(1 / cost, 6), round(sum(4 * (1 - plan.keep) ** 3 for plan in plans), 6)
    if speedup < 1.5:
        return trial(0, recipe=proposal.recipe, gate_speedup=speedup)
    return trial(0, speedup, drop, recipe=proposal.recipe)


@pytest.fixture(scope="session")
def make_layer() -> Callable[..., LayerInfo]:
    return layer


@pytest.fixture(scope="session")
def make_trial() -> Callable[..., TrialResult]:
    return trial


@pytest.fixture(scope="session")
def make_measurement() -> Callable[..., Measurement]:
    return measurement


@pytest.fixture(scope="session")
def evaluate() -> Callable[[Proposal], TrialResult]:
    return evaluated


@pytest.fixture
def chain() -> tuple[LayerInfo, ...]:
    """Three convolutions in a row and the head, which keeps its width and stays float."""
    names = ("conv1", "conv2", "conv3")
    inputs = (None, "group of conv1", "group of conv2")
    convs = [layer(name, in_group=before) for name, before in zip(names, inputs, strict=True)]
    head = layer("fc", kind="linear", kernel=(1, 1), out_channels=10, in_group="group of conv3", group=None, weight_bits=(32,))
    return (*convs, head)


@pytest.fixture
def space() -> Space:
    return Space(
        keep=Shares(choices=(1.0, 0.75, 0.5, 0.25)),
        weight_bits=BitChoices(choices=(32, 8, 7)),
        recovery=RecoverySpace(steps=10, quantized_steps=5, learning_rate=(0.001, 0.002)),
    )


@pytest.fixture
def make_config(space: Space) -> Callable[..., SearchConfig]:
    def make(**changes: Any) -> SearchConfig:
        plain = {"study": "study", "task": "t", "space": space, "budget": Budget(trials=12), "target": Target(), "seed": 3}
        return SearchConfig(**{**plain, **changes})

    return make


@pytest.fixture
def make_question(make_config: Callable[..., SearchConfig], chain: tuple[LayerInfo, ...]) -> Callable[..., Question]:
    """The chain after a survey: every layer takes a fifth of a millisecond in float and half of it in integers, by its multiply-adds."""

    def make(*tried: Tried, error: float = 0.05, **changes: Any) -> Question:
        terms = {"none": (0.02, 0.0, 0.0, 0.18), "static": (0.02, 0.0, 0.0, 0.08)}
        every = [{"name": one.name, "scheme": scheme, "terms": terms[scheme]} for one in chain for scheme in terms]
        costs = map(LayerCost.model_validate, every)
        plain: dict[str, Any] = {"correction": (0.0, 1.0, 0.0), "baseline_ms": 0.8, "probes": 9, "batch_size": 1, "input_shape": (3, 8, 8)}
        survey = Survey(tried=tried, layer_ms={}, latency=LatencyModel(costs=tuple(costs), error=error, **plain), samples=64)
        return question_of(make_config(**changes), chain, survey)

    return make
