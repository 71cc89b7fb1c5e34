"""Task `tabular`: numbers standardised, categories encoded, classes or a quantity predicted."""

import random
from pathlib import Path

import pytest
import torch

from autocompress.errors import InvalidTask
from autocompress.progress import Progress
from autocompress.tasks.find import find_task
from autocompress.tasks.task import Task, check, gather, outputs_of, score


def table(file: Path, count: int = 300, seed: int = 0) -> Path:
    """price = 1000 + 100 size + 50 if north; dear: price > 1000."""
    draw = random.Random(seed)
    lines = ["id,size,side,price,dear"]
    for row in range(count):
        size, side = draw.gauss(0, 1), draw.choice(["north", "south", "west"])
        price = 1000 + 100 * size + 50 * (side == "north")
        lines.append(f"{row},{'' if row % 50 == 49 else f'{size:.4f}'},{side},{price:.3f},{'yes' if price > 1000 else 'no'}")
    file.write_text("\n".join(lines) + "\n")
    return file


def found(data: Path, cache: Path, **options: str) -> Task:
    return find_task("tabular", cache, Progress(quiet=True), {"data": str(data), "epochs": "12", **options})


def held_out(task: Task) -> float:
    x, y = gather(task.holdout or (), "holdout")
    return score(task, outputs_of(task.model, x), y)


def test_classes_are_told_apart(tmp_path: Path) -> None:
    task = found(table(tmp_path / "t.csv"), tmp_path, target="dear", leave_out="id,price")
    check(task)
    assert (task.metric_name, task.metric_unit, task.higher_is_better) == ("accuracy", "%", True)
    assert held_out(task) > 88


def test_a_quantity_is_predicted_in_its_own_unit(tmp_path: Path) -> None:
    task = found(table(tmp_path / "t.csv"), tmp_path, target="price", leave_out="id,dear")
    check(task)
    assert (task.metric_name, task.metric_unit, task.higher_is_better) == ("rmse", "", False)
    _, y = gather(task.holdout or (), "holdout")
    assert score(task, torch.zeros(len(y), 1), y) == pytest.approx(110, abs=25)  # the mean for all
    assert held_out(task) < 50


def test_numbers_are_standardised_empty_cells_are_the_mean_and_categories_one_input_each(tmp_path: Path) -> None:
    task = found(table(tmp_path / "t.csv"), tmp_path, target="dear", leave_out="id,price", epochs="1")
    x, _ = gather(task.calibration or (), "calibration")
    assert x.shape[1] == 1 + 3
    filled = x[x[:, 0] != 0, 0]
    assert filled.mean().item() == pytest.approx(0, abs=1e-4)
    assert filled.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert (x[:, 0] == 0).any()  # an empty cell
    assert torch.equal(x[:, 1:].sum(1), torch.ones(len(x)))


def test_numbers_may_be_categories_and_a_folder_keeps_its_test_rows(tmp_path: Path) -> None:
    for name, count in (("train", 100), ("test", 30)):
        table(tmp_path / f"{name}.csv", count, seed=count)
    (tmp_path / "test.csv").write_text((tmp_path / "test.csv").read_text().replace("west", "nowhere"))
    task = found(tmp_path, tmp_path / "cache", target="dear", leave_out="price,size", categorical="id", epochs="1")
    x, y = gather(task.holdout or (), "holdout")
    assert len(y) == 30
    assert x.shape[1] == 64 + 3
    assert x[:, -3:].sum() == sum("nowhere" not in line for line in (tmp_path / "test.csv").read_text().splitlines()[1:])


def test_a_student_is_of_another_width_and_depth(tmp_path: Path) -> None:
    task = found(table(tmp_path / "t.csv"), tmp_path, target="dear", epochs="1")
    assert task.build_student is not None
    student = task.build_student(0.25, 0.5)
    assert [layer.out_features for layer in student.hidden] == [64]


WRONG = {
    "no target": ("a,b\n1,2\n", {}, "line 1: there is no column 'target'; it has 'a', 'b'. Name it with --option target=COLUMN"),
    "an empty target": ("a,target\n1,x\n2,\n", {}, "line 3: the target (column 'target') is empty"),
    "one class": ("a,target\n1,x\n2,x\n", {}, "column 'target' holds 1 classes; it must be 2 to 1000"),
    "words to regress": ("a,target\n1,2.5\n2,x\n", {"kind": "regression"}, "line 3: column 'target' must be a finite number, got 'x'"),
    "infinite": ("a,target\n1,2.5\n2,inf\n", {"kind": "regression"}, "line 3: column 'target' must be a finite number, got 'inf'"),
    "only a target": ("target\n" + "1.5\n2.5\n" * 10, {}, "there is no column beside the target 'target'"),
    "another kind": ("a,target\n1,x\n", {"kind": "clustering"}, "--option kind: must be auto, classification or regression"),
    "no such column": ("a,target\n1,x\n2,y\n", {"leave_out": "b"}, "--option leave_out: there is no column 'b'; it has a, target"),
    "too few": ("a,target\n1,x\n2,y\n", {}, "2 samples are too few to split"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_table_that_is_wrong_is_told(tmp_path: Path, case: str) -> None:
    content, options, said = WRONG[case]
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(InvalidTask) as caught:
        found(tmp_path / "t.csv", tmp_path, **options)
    assert said in str(caught.value)


@pytest.mark.parametrize(("old", "new", "said"), [
    ("-0.3", "much", r"test\.csv: line \d+: column 'size' must be a finite number, got 'much"),
    ("yes", "maybe", r"test\.csv: line \d+: class 'maybe' is not among the 2 of train\.csv"),
    ("side", "place", r"test\.csv: line 1: there is no column 'side', which train\.csv has"),
])  # fmt: skip
def test_test_rows_that_do_not_fit_train_are_told(tmp_path: Path, old: str, new: str, said: str) -> None:
    for name in ("train", "test"):
        table(tmp_path / f"{name}.csv", 100)
    text = (tmp_path / "test.csv").read_text()
    assert old in text
    (tmp_path / "test.csv").write_text(text.replace(old, new))
    with pytest.raises(InvalidTask, match=said):
        found(tmp_path, tmp_path / "cache", target="dear")
