"""Options of a task: by the names of its factory's arguments; a wrong one is told with those that there are."""

from pathlib import Path

import pytest
import toy_task

from autocompress.errors import InvalidTask
from autocompress.progress import Progress
from autocompress.tasks import TASKS
from autocompress.tasks.find import absolute, find_task

QUIET = Progress(quiet=True)


@pytest.mark.parametrize("name", sorted(set(TASKS) - {"digits"}))
def test_every_task_with_data_says_what_it_wants_and_where_to_get_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidTask, match=f"^task {name}: --data is missing: "):
        find_task(name, tmp_path, QUIET)
    with pytest.raises(InvalidTask, match=r"^--data: .*/gone: no such file or folder; "):
        find_task(name, tmp_path, QUIET, {"data": str(tmp_path / "gone")})
    with pytest.raises(InvalidTask, match=f"^task {name}: there is no option 'colour'; it has data, weights, model"):
        find_task(name, tmp_path, QUIET, {"colour": "red"})


def test_digits_has_no_options(tmp_path: Path) -> None:
    with pytest.raises(InvalidTask, match=r"^task digits: there is no option 'data'; it has none$"):
        find_task("digits", tmp_path, QUIET, {"data": "x"})


def test_a_factory_of_the_users_gets_its_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[str] = []

    def make(data: str, colour: str = "blue") -> object:
        seen.extend((data, colour))
        return toy_task.make()

    monkeypatch.setattr(toy_task, "with_options", make, raising=False)
    assert find_task("toy_task:with_options", tmp_path, QUIET, {"data": "x"}).name == "toy"
    assert seen == ["x", "blue"]
    with pytest.raises(InvalidTask, match=r"^task toy_task:with_options: there is no option 'size'; it has data, colour$"):
        find_task("toy_task:with_options", tmp_path, QUIET, {"size": "x"})
    with pytest.raises(InvalidTask, match=r"^task toy_task:make: there is no option 'data'; it has none$"):
        find_task("toy_task:make", tmp_path, QUIET, {"data": "x"})


def test_paths_of_files_are_made_absolute_and_other_options_are_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute({"data": "here/x", "label": "y"}) == {"data": str(tmp_path / "here" / "x"), "label": "y"}
