"""Probes are taken once a machine and model, kept whole on disk, and made anew where the file is damaged."""

from dataclasses import replace
from pathlib import Path

import pytest

from autocompress.measure.machine import this_machine
from autocompress.recipe import LayerPlan, Recipe
from autocompress.records import Target
from autocompress.runtimes import find_runtime
from autocompress.runtimes.runtime import deploy
from autocompress.survey import probes, survey
from autocompress.survey.probes import Site, baseline_profile, probed, read_table, shape_of
from tests.small_models import inputs, residual

RECIPES = [
    Recipe(layers=(LayerPlan(name="block1.conv1", keep=0.5), LayerPlan(name="block3.conv2", weight_bits=7, activation_bits=8))),
    Recipe(layers=(LayerPlan(name="block3.conv1", rank=2),)),
]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    model, x, target = residual(8), inputs(16, 1, 8, 8), Target(runtime="fake")
    runtime, machine = find_runtime("fake"), this_machine()
    layers = survey(model, x[:1], runtime, machine)
    baseline = deploy(runtime, model, x[:1], tmp_path / "baseline", 1)
    whole = 1000 * baseline.seconds(x[:1].numpy(), 1)[0]
    return Site(model, layers, runtime, target, machine, x, x[:1].numpy(), baseline, whole, cache=tmp_path / "cache")


def test_times_of_the_layers_and_the_rest_sum_to_the_whole(site: Site) -> None:
    taken, rows = probed(site, RECIPES)
    assert [recipe.digest for recipe, _ in taken] == [recipe.digest for recipe in RECIPES]
    for _, probe in taken:
        assert sum(row.ms for row in probe.rows) + probe.rest_ms == pytest.approx(probe.total_ms)
        assert 0 < probe.total_ms < site.baseline_ms
    assert len(rows) == sum(len(probe.rows) for _, probe in taken)
    assert sum(baseline_profile(site).values()) == pytest.approx(site.baseline_ms)


def test_what_is_known_is_not_taken_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = probed(site, RECIPES)

    def never(*args: object) -> object:
        raise AssertionError("a probe was taken that is known")

    monkeypatch.setattr(probes, "_take", never)
    again, rows = probed(site, RECIPES)
    assert [probe for _, probe in again] == [probe for _, probe in first]
    assert rows


def test_another_model_takes_its_own_and_reads_the_rows_of_the_first(site: Site) -> None:
    first, _ = probed(site, RECIPES)
    other = replace(site, layers=tuple(layer.model_copy(update={"params": layer.params + 1}) for layer in site.layers))
    taken, rows = probed(other, RECIPES[:1])
    assert taken[0][1].model != first[0][1].model
    assert len(rows) > len(taken[0][1].rows)
    assert site.file == other.file


@pytest.mark.parametrize("content", ["{", '{"schema_version": 99}', '{"probes": [{"model": 3}]}'])
def test_a_damaged_table_is_told_and_made_anew(site: Site, content: str) -> None:
    said: list[str] = []
    probed(site, RECIPES[:1])
    assert site.file is not None
    site.file.write_text(content, encoding="utf-8")
    told = replace(site, say=said.append)
    taken, _ = probed(told, RECIPES[:1])
    assert len(taken) == 1
    assert len(said) == 1
    assert "made anew" in said[0]
    assert len(read_table(site)) == 1


def test_another_target_has_another_file(site: Site) -> None:
    targets = (Target(), Target(threads=2), Target(batch_sizes=(8,)), Target(runtime="eager"))
    files = {replace(site, target=target).file for target in targets}
    assert len(files) == 4


def test_a_slow_model_gets_fewer_probes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "LEAST_PROBES", 1)
    recipes = [Recipe(layers=(LayerPlan(name="block1.conv1", keep=share / 8),)) for share in range(1, 8)]
    taken, _ = probed(replace(site, seconds=0.0), recipes)
    assert len(taken) == 1


def test_a_recipe_that_cannot_be_deployed_is_left_out(site: Site) -> None:
    impossible = Recipe(layers=(LayerPlan(name="block1.conv1", rank=500),))
    assert [recipe for recipe, _ in probed(site, [impossible, *RECIPES])[0]] == RECIPES


def test_layers_that_cost_alike_are_of_one_shape(site: Site) -> None:
    shapes = {layer.name: shape_of(layer, "none") for layer in site.layers}
    assert shapes["block1.conv1"] == shapes["block2.conv2"]
    assert shapes["block1.conv1"] != shapes["block3.conv1"]  # its stride
    assert shapes["block3.conv2"].positions == 16
    assert shapes["head"].positions == 1
