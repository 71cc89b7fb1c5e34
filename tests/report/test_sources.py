"""Who proposed what, as the page shows it."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from autocompress.config import Sampler
from autocompress.report.facts import Facts, read_facts
from autocompress.report.sources import SOURCES, sources_section
from benchmarks.report import made_up_study, told


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    paths = made_up_study(tmp_path_factory.mktemp("runs"), trials=30, layers=4)
    return read_facts(paths, told(paths))


def test_every_source_has_a_row_with_what_it_earned(facts: Facts) -> None:
    sources = facts.summary["sources"]
    assert sum(one["trials"] for one in sources.values()) == 30
    html = sources_section(facts)
    assert html.count("<tr") == 1 + len(sources)
    for name, one in sources.items():
        assert f"<td>{name}</td>" in html
        assert f"<td>{one['lost_without']:.3f}</td>" in html


def test_a_summary_of_a_time_before_sources_were_counted_shows_nothing(tmp_path: Path, facts: Facts) -> None:
    older = {name: value for name, value in facts.summary.items() if name != "sources"}
    assert sources_section(replace(facts, summary=older)) == ""


def test_every_source_that_a_proposal_can_have_is_explained() -> None:
    own = {"analytic", "anchor", "mutation", "drift", "crossover", "transfer"}
    assert own | set(get_args(Sampler)) - {"auto"} <= set(SOURCES)
