"""A front of another study in this study's space: by name, by role, or not at all."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from autocompress.config import Budget, SearchConfig, Shares, Space
from autocompress.errors import InvalidStudy
from autocompress.records import LayerInfo, TrialResult
from autocompress.runs import Layers, RunPaths, to_json, write_text
from autocompress.study import pareto
from autocompress.study.propose import Proposal
from autocompress.study.study import run
from autocompress.study.transfer import counterparts, start_from

Evaluate = Callable[[Proposal], TrialResult]
MakeConfig = Callable[..., SearchConfig]
MakeLayer = Callable[..., LayerInfo]


@pytest.fixture
def other(
    tmp_path: Path, make_config: MakeConfig, chain: tuple[LayerInfo, ...], evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> RunPaths:
    """A finished study of the chain."""
    monkeypatch.setattr("autocompress.study.study.Mirror.catch_up", lambda self, results: None)
    paths, config = RunPaths(tmp_path, "other"), make_config(study="other", budget=Budget(trials=12), max_drop=6.0)
    paths.folder.mkdir()
    paths.write_config(config)
    write_text(paths.layers, to_json(Layers(layers=chain)))
    run(paths, config, chain, evaluate)
    return paths


def test_the_front_of_another_seed_is_tried_first_and_says_so(
    other: RunPaths, make_config: MakeConfig, chain: tuple[LayerInfo, ...], evaluate: Evaluate
) -> None:
    config = make_config(study="new", warm_start="other", seed=9, budget=Budget(trials=8), max_drop=6.0)
    paths = RunPaths(other.runs, "new")
    paths.folder.mkdir()
    run(paths, config, chain, evaluate)
    front = pareto.front([one for one in other.results() if one.measurement and one.measurement.drop <= 6.0])
    tried = [one for one in paths.results() if one.source == "transfer"]
    assert len(tried) == min(len(front), 6) > 1
    assert [one.recipe.layers for one in tried] == [one.recipe.layers for one in front[:6]]
    assert [one.source for one in paths.results()[: len(tried)]] == ["transfer"] * len(tried)


def test_a_resume_goes_on_when_the_study_to_start_from_is_gone(
    other: RunPaths, make_config: MakeConfig, chain: tuple[LayerInfo, ...], evaluate: Evaluate
) -> None:
    config = make_config(study="new", warm_start="other", seed=9, budget=Budget(trials=3), max_drop=6.0)
    paths = RunPaths(other.runs, "new")
    paths.folder.mkdir()
    run(paths, config, chain, evaluate)
    shutil.rmtree(other.folder)
    said: list[str] = []
    run(paths, config.model_copy(update={"budget": Budget(trials=6)}), chain, evaluate, say=said.append)
    assert len(paths.results()) == 6
    assert any("going on without the front of 'other'" in line for line in said)


def test_a_deeper_model_takes_each_layers_choice_from_the_same_relative_depth(
    other: RunPaths, make_config: MakeConfig, make_layer: MakeLayer
) -> None:
    deeper = tuple(make_layer(f"stage.{place}", in_group=f"group of stage.{place - 1}" if place else None) for place in range(6))
    points = start_from(other, make_config(max_drop=6.0), deeper)
    best = pareto.front([one for one in other.results() if one.measurement and one.measurement.drop <= 6.0])[0].params
    assert [points[0][f"keep:group of stage.{place}"] for place in range(6)] == [
        best[f"keep:group of conv{1 + round(place * 2 / 5)}"] for place in range(6)
    ]


def test_choices_that_this_space_lacks_go_to_the_nearest(other: RunPaths, make_config: MakeConfig, chain: tuple[LayerInfo, ...]) -> None:
    space = Space(keep=Shares(choices=(1.0, 0.625, 0.375)))
    for point in start_from(other, make_config(space=space, max_drop=6.0), chain):
        assert set(point) == {f"keep:group of conv{place}" for place in (1, 2, 3)}
        assert all(0 <= index < 3 for index in point.values())


def test_an_unrelated_model_is_refused_with_the_reason(other: RunPaths, make_config: MakeConfig, make_layer: MakeLayer) -> None:
    linear = tuple(make_layer(f"mlp.{place}", kind="linear", kernel=(1, 1)) for place in range(12))
    with pytest.raises(InvalidStudy, match=r"--warm-start: study 'other' is of an unrelated model: 0 of 12 layers"):
        start_from(other, make_config(), linear)


def test_a_study_without_a_trial_within_the_bound_is_refused(
    other: RunPaths, make_config: MakeConfig, chain: tuple[LayerInfo, ...]
) -> None:
    with pytest.raises(InvalidStudy, match=r"study 'other' has no measured trial within 0 points"):
        start_from(other, make_config(max_drop=0.0), chain)


def test_an_unknown_study_is_refused_before_any_trial(
    tmp_path: Path, make_config: MakeConfig, chain: tuple[LayerInfo, ...], evaluate: Evaluate
) -> None:
    with pytest.raises(InvalidStudy, match="study 'absent' does not exist"):
        run(RunPaths(tmp_path, "study"), make_config(warm_start="absent"), chain, evaluate)


def test_names_count_before_depth(chain: tuple[LayerInfo, ...]) -> None:
    turned = tuple(reversed(chain))
    assert counterparts(chain, turned) == {layer.name: layer.name for layer in chain}
