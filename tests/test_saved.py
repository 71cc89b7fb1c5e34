"""A study as it lies on disk: what is said of it while it runs, when it was interrupted, when it is done."""

import json
from pathlib import Path

import pytest
from toy_runs import Finished, copied

from autocompress.errors import InvalidStudy
from autocompress.runs import only_driver
from autocompress.saved import list_studies, show


def test_a_study_is_shown_as_finished_running_or_interrupted(undisturbed: Finished, tmp_path: Path) -> None:
    paths = copied(undisturbed.paths, tmp_path)

    def state() -> str:
        return str(show(paths.study, paths.runs).summary["state"])

    assert state() == "finished"
    with only_driver(paths):
        assert state() == "running"
    assert state() == "finished"
    paths.trial(15).result.unlink()
    assert state() == "interrupted"
    paths.pareto.unlink()
    assert state() == "interrupted"


def test_a_study_without_a_baseline_yet_is_shown_with_nothing(undisturbed: Finished, tmp_path: Path) -> None:
    paths = copied(undisturbed.paths, tmp_path)
    for file in [paths.baseline, paths.pareto, *paths.folder.glob("trials/*/*.json")]:
        file.unlink()
    summary = show(paths.study, paths.runs).summary
    assert (summary["baseline"], summary["best"], summary["nearest"], summary["front"]) == (None, None, None, [])
    assert (summary["finished"], summary["state"], summary["outcomes"]) == (0, "interrupted", {})


def test_what_is_shown_is_what_the_search_returned(undisturbed: Finished) -> None:
    assert show(undisturbed.paths.study, undisturbed.paths.runs).summary == undisturbed.summary


def test_a_moved_study_is_shown_as_before(undisturbed: Finished, tmp_path: Path) -> None:
    assert show("study", copied(undisturbed.paths, tmp_path).runs).summary == undisturbed.summary


@pytest.mark.parametrize("text", ["", "[]", "{}", "{"])
def test_a_broken_summary_on_disk_is_named_with_what_to_do(undisturbed: Finished, tmp_path: Path, text: str) -> None:
    paths = copied(undisturbed.paths, tmp_path)
    paths.pareto.write_text(text)
    with pytest.raises(InvalidStudy, match=r"pareto\.json: .*delete it and `autocompress resume`") as caught:
        _ = show(paths.study, paths.runs).summary
    assert "\n" not in str(caught.value)


def test_a_broken_result_is_named(undisturbed: Finished, tmp_path: Path) -> None:
    paths = copied(undisturbed.paths, tmp_path)
    content = json.loads(paths.trial(3).result.read_text())
    paths.trial(3).result.write_text(json.dumps(content | {"outcome": "splendid"}))
    with pytest.raises(InvalidStudy, match=r"0003/result\.json: outcome"):
        _ = show(paths.study, paths.runs).summary


def test_the_list_has_a_row_a_study(undisturbed: Finished, shipped: Finished, tmp_path: Path) -> None:
    assert list_studies(tmp_path / "absent") == []
    copied(undisturbed.paths, tmp_path)
    paths = copied(shipped.paths, tmp_path)
    rows = {row["study"]: row for row in list_studies(paths.runs)}
    assert set(rows) == {"study", "shipped"}
    assert rows["shipped"]["best_speedup"] == shipped.summary["best"]["speedup"]
    assert (rows["study"]["finished"], rows["study"]["budget"], rows["study"]["task"]) == (16, 16, "toy_task:make")
