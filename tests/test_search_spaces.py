"""Every space in search_spaces/ loads, explains itself, fits a small model and can be sampled."""

import pytest

from autocompress.config import SPACES, Budget, SearchConfig, load_space
from autocompress.records import LayerInfo, Target, TrialResult
from autocompress.study.propose import Memory, Proposal, propose, question_of
from autocompress.study.space import anchors, dimensions, sampled, space_size

NAMES = sorted(file.stem for file in SPACES.glob("*.yaml"))


def convolution(number: int, integer: bool) -> LayerInfo:
    return LayerInfo(
        name=f"conv{number}",
        kind="conv2d",
        macs=1000,
        params=9216,
        in_channels=64,
        out_channels=64,
        kernel=(3, 3),
        group=f"g{number}",
        in_group=f"g{number - 1}" if number else None,
        channel_multiple=8,
        weight_bits=(32, 7) if integer else (32,),
        factorizable=True,
    )


LAYERS = tuple(convolution(number, integer=number < 3) for number in range(4))


def test_the_spaces_that_the_program_promises_are_there() -> None:
    assert {"default", "small", "large"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_space_loads_by_name_describes_itself_and_can_be_sampled(name: str) -> None:
    config = SearchConfig(study="s", task="t", space=load_space(name), budget=Budget(trials=1), target=Target())
    assert config.space.description
    question, memory = question_of(config, LAYERS), Memory()
    results: list[TrialResult] = []
    for number in range(14):
        proposal = propose(question, memory, results, number)
        assert isinstance(proposal, Proposal)
        assert [plan.name for plan in proposal.recipe.layers] == [layer.name for layer in LAYERS]
        own = {"params": proposal.params, "recipe": proposal.recipe, "target": Target(), "outcome": "gated"}
        results.append(TrialResult(number=number, gate_speedup=1.0 + number / 10, **own))
    assert any(plan.weight_bits == 7 for result in results for plan in result.recipe.layers)
    assert any(plan.keep < 1 for result in results for plan in result.recipe.layers)


@pytest.mark.parametrize("name", NAMES)
def test_every_ladder_of_a_space_starts_from_what_leaves_the_layer_as_it_is(name: str) -> None:
    space = load_space(name)
    assert (space.keep.choices[-1], space.rank.choices[-1], space.weight_bits.choices[-1]) == (1.0, 1.0, 32)


def test_the_spaces_are_ordered_by_size() -> None:
    small, default, large = (space_size(dimensions(load_space(name), LAYERS)) for name in ("small", "default", "large"))
    assert 100 < small < default < large


def test_the_default_space_starts_from_six_anchors_at_most_and_samples_channels_ranks_and_bits() -> None:
    dims = dimensions(load_space("default"), LAYERS)
    assert {dim.kind for dim in sampled(dims)} == {"keep", "rank", "weight_bits", "temperature", "soft_weight", "learning_rate"}
    assert 4 <= len(anchors(dims)) <= 6
