"""Task `text-classification`: csv files, words as numbers, disjoint splits with every class."""

from pathlib import Path

import pytest
import torch
from toy_tokens import texts

from autocompress.errors import InvalidTask
from autocompress.progress import Progress
from autocompress.tasks.find import find_task
from autocompress.tasks.task import Task, check, gather, outputs_of, score
from autocompress.tasks.text_classification import Tokenizer, split_words
from tests.tasks.real_data import real

TINY = {"length": "8", "words": "30", "epochs": "6", "model": "toy_tokens:classifier"}


def found(data: Path, cache: Path, **options: str) -> Task:
    return find_task("text-classification", cache, Progress(quiet=True), {"data": str(data), **TINY, **options})


def inputs(task: Task) -> list[set[tuple[int, ...]]]:
    return [set(map(tuple, gather(split, "split")[0].tolist())) for split in (task.train, task.search, task.holdout or ())]


def test_words_are_numbered_by_how_often_they_are_and_texts_cut_and_filled() -> None:
    tokenizer = Tokenizer.of(["The cat, the dog!", "the CAT"], 3, 4)
    assert split_words("Don't stop-me") == ["don", "'", "t", "stop", "-", "me"]
    assert tokenizer.words == {"the": 2, "cat": 3, "!": 4}  # of equally frequent ones the first in the alphabet
    assert tokenizer(["the cat", "A the cat ! cat", ""]).tolist() == [[2, 3, 0, 0], [1, 2, 3, 4], [1, 0, 0, 0]]


def test_one_file_is_split_by_seed_and_the_trained_model_tells_topics_apart(tmp_path: Path) -> None:
    task = found(texts(tmp_path / "t.csv"), tmp_path)
    check(task)
    sizes = [len(gather(split, "split")[1]) for split in (task.train, task.search, task.holdout or ())]
    assert sum(sizes) == 240
    assert sizes == pytest.approx([168, 36, 36], abs=3)
    x, y = gather(task.holdout or (), "holdout")
    assert score(task, outputs_of(task.model, x), y) > 90


def test_train_and_test_of_a_folder_keep_their_parts_and_columns_have_any_names(tmp_path: Path) -> None:
    for name, count in (("train", 100), ("test", 40)):
        texts(tmp_path / f"{name}.csv", count, ("words", "topic"), seed=count)
    names = {"text": "words", "label": "topic", "epochs": "1"}
    task = found(tmp_path, tmp_path / "cache", **names)
    halved = found(tmp_path, tmp_path / "cache", **names, split_test="yes")
    sizes = [[len(gather(split, "split")[1]) for split in (one.train, one.search, one.holdout or ())] for one in (task, halved)]
    assert sum(sizes[0][:2]) == 100
    assert sizes[0][2] == 40
    assert sizes[1] == [100, 20, 20]
    assert "halves of test.csv: asked for" in halved.notes[0]


def test_the_model_does_not_see_the_filling(tmp_path: Path) -> None:
    task = found(texts(tmp_path / "t.csv"), tmp_path, epochs="1")
    x = torch.zeros(2, 8, dtype=torch.int64)
    x[:, :3] = torch.tensor([5, 6, 7])
    before = outputs_of(task.model, x)
    task.model.encoder.places.weight.data[3:] += torch.linspace(-5, 5, 32)  # the places of the filling
    torch.testing.assert_close(outputs_of(task.model, x), before)
    task.model.encoder.places.weight.data[0] += torch.linspace(-5, 5, 32)
    assert not torch.allclose(outputs_of(task.model, x), before)


WRONG = {
    "another name": ("text,category\na,b\n", "line 1: there is no column 'label'; it has 'text', 'category'. Name it with --option label="),
    "an empty label": ("text,label\na,b\nc, \n", "line 3: the label (column 'label') is empty"),
    "a single class": ("text,label\na,b\nc,b\n", "column 'label' holds a single label, 'b'; there is nothing to tell apart"),
    "too few": ("text,label\na,b\nc,d\n", "2 samples are too few to split"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_csv_that_is_wrong_is_told(tmp_path: Path, case: str) -> None:
    content, said = WRONG[case]
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(InvalidTask) as caught:
        found(tmp_path / "t.csv", tmp_path)
    assert said in str(caught.value)


def test_a_label_that_train_does_not_have_is_told_with_its_line(tmp_path: Path) -> None:
    texts(tmp_path / "train.csv", 60)
    (tmp_path / "test.csv").write_text("text,label\na,sea\nb,desert\n")
    with pytest.raises(InvalidTask, match=r"test\.csv: line 3: label 'desert' is not among the 3 of train\.csv"):
        found(tmp_path, tmp_path)


def test_the_real_banking77_has_77_intents_and_its_splits_share_no_row(tmp_path: Path) -> None:
    found = find_task(
        "text-classification", tmp_path, Progress(quiet=True),
        {"data": str(real("text/banking77")), "label": "category", "epochs": "1", "model": "toy_tokens:classifier", "length": "32"},
    )  # fmt: skip
    parts = [gather(split, "split") for split in (found.train, found.search, found.holdout or ())]
    assert len(parts[0][1]) + len(parts[1][1]) == 10_003
    assert len(parts[2][1]) == 3_080
    for x, y in parts:
        assert (x.dtype, x.shape[1]) == (torch.int64, 32)
        assert sorted(set(y.tolist())) == list(range(77))
