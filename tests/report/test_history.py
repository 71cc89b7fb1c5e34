"""The history of a search ends where its summary stands, and only grows."""

from itertools import pairwise
from pathlib import Path

import pytest

from autocompress.report.facts import Facts, read_facts
from autocompress.report.history import progress
from autocompress.report.sensitivity import sensitivities
from autocompress.study import pareto
from benchmarks.report import made_up_study, told


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    paths = made_up_study(tmp_path_factory.mktemp("runs"), trials=60, layers=4)
    return read_facts(paths, told(paths))


def test_the_hypervolume_grows_to_that_of_all_trials(facts: Facts) -> None:
    minutes, areas = progress(facts)
    assert len(areas) == len(minutes) == 60
    assert all(early <= late for early, late in pairwise(areas))
    assert areas[-1] == pytest.approx(facts.summary["hypervolume"])
    assert areas[29] == pytest.approx(pareto.hypervolume(facts.results[:30], facts.config.max_drop))


def test_time_is_what_the_trials_took(facts: Facts) -> None:
    minutes, _ = progress(facts)
    assert minutes[-1] * 60 == pytest.approx(sum(sum(result.seconds.values()) for result in facts.results))


def test_sensitivities_come_strongest_first_and_find_what_the_study_was_made_of(facts: Facts) -> None:
    found = sensitivities(facts)
    assert [one.strength for one in found] == sorted((one.strength for one in found), reverse=True)
    kinds = {kind: [one.speedup for one in found if one.dimension.kind == kind] for kind in ("keep", "weight_bits", "temperature")}
    assert sum(kinds["keep"]) < -0.4  # keeping more is slower
    assert sum(kinds["weight_bits"]) < -0.4  # float is slower
    assert abs(sum(kinds["temperature"])) < 0.4  # the teacher's temperature changes no speed
    assert all(one.trials == len(facts.measured) for one in found)


def test_a_few_trials_say_nothing(tmp_path: Path) -> None:
    paths = made_up_study(tmp_path, trials=6, layers=2)
    assert sensitivities(read_facts(paths, told(paths))) == []
