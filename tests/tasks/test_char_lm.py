"""Task `char-lm`: windows of a text, disjoint, and perplexity as its metric."""

import math
from pathlib import Path

import pytest
import torch
from toy_tokens import prose

from autocompress.errors import InvalidTask
from autocompress.progress import Progress
from autocompress.tasks.char_lm import perplexity, windows
from autocompress.tasks.find import find_task
from autocompress.tasks.task import Task, check, gather, outputs_of, score
from tests.tasks.real_data import real


def found(data: Path, cache: Path, **options: str) -> Task:
    tiny = {"length": "16", "epochs": "2", "model": "toy_tokens:characters"}
    return find_task("char-lm", cache, Progress(quiet=True), {"data": str(data), **tiny, **options})


def test_the_next_character_is_the_target_and_no_character_is_read_in_two_splits() -> None:
    text = "".join(chr(1000 + place) for place in range(401))  # every character once
    *parts, kinds = windows(Path("x"), text, 4)
    assert [len(x) for x, _ in parts] == [90, 5, 5]
    assert kinds == 361
    for x, y in parts[:1]:
        assert torch.equal(x[:, 1:], y[:, :-1])
    assert all((x == 0).all() for x, _ in parts[1:])  # train does not have them
    assert len(set(parts[0][0].flatten().tolist())) == 360


def test_perplexity_is_the_exponential_of_the_mean_cross_entropy() -> None:
    logits, targets = torch.zeros(70, 5, 3), torch.zeros(70, 3, dtype=torch.int64)
    assert perplexity(logits, targets) == pytest.approx(5, rel=1e-6)
    logits[:, 0] = math.log(4)
    assert perplexity(logits, targets) == pytest.approx(2, rel=1e-6)
    assert perplexity(1e4 * (torch.arange(5.0)[None, :, None] + logits), targets) == math.inf


def test_the_model_learns_and_no_place_sees_what_comes_after_it(tmp_path: Path) -> None:
    task = found(prose(tmp_path / "p.txt"), tmp_path)
    check(task)
    assert (task.metric_name, task.metric_unit, task.higher_is_better) == ("perplexity", "ppl", False)
    x, y = gather(task.holdout or (), "holdout")
    outputs = outputs_of(task.model, x)
    assert outputs.shape == (len(x), 20, 16)  # 19 characters, and the number of all others
    assert score(task, outputs, y) < 15  # 19 for a model that knows nothing
    later = x.clone()
    later[:, 9:] = 3
    torch.testing.assert_close(outputs_of(task.model, later)[:, :, :9], outputs[:, :, :9])


@pytest.mark.parametrize(("text", "said"), [
    ("", "0 characters are 0 windows of 16 and the character after them; ten are needed"),
    ("a" * 160, "160 characters are 9 windows of 16"),
])  # fmt: skip
def test_a_text_too_short_is_told(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "p.txt").write_text(text)
    with pytest.raises(InvalidTask, match=said):
        found(tmp_path / "p.txt", tmp_path)


def test_a_folder_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(InvalidTask, match="must be a file; a UTF-8 text file"):
        found(tmp_path, tmp_path)


def test_the_real_shakespeare_has_65_characters() -> None:
    text = real("text/tinyshakespeare.txt").read_text()
    (x, _), (search, _), (holdout, _), kinds = windows(Path("x"), text, 64)
    assert kinds in (65, 66)  # a rare character may be in no window of train
    assert 64 * (len(x) + len(search) + len(holdout)) == pytest.approx(len(text), abs=64)
    assert int(x.max()) == kinds - 1
