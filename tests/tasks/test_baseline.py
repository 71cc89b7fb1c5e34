"""The baseline of a task: the user's weights or architecture, or trained once and kept by all that its training depends on."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from autocompress.errors import InvalidTask
from autocompress.progress import Progress
from autocompress.tasks import baseline as room
from autocompress.tasks.baseline import Given, Training, baseline
from autocompress.tasks.batches import Batches

QUIET = Progress(quiet=True)
X = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))


class Net(nn.Sequential):
    def __init__(self, width: int = 8, classes: int = 2) -> None:
        super().__init__(nn.Linear(2, width), nn.ReLU(), nn.BatchNorm1d(width), nn.Linear(width, classes))


def training(x: Tensor = X, epochs: int = 8) -> Training:
    return Training(Batches(x, (x[:, 0] > 0).long(), 9), epochs, 0.05)  # 64 = 7 * 9 + 1: the last batch has a single sample


def wide(classes: int) -> nn.Module:
    return Net(16, classes)


def misfit() -> nn.Module:
    return nn.Linear(3, 2)


def no_model() -> int:
    return 3


NOTHING = Given()


def make(cache: Path, given: Given = NOTHING, plan: Training | None = None, width: int = 8) -> nn.Module:
    return baseline("x", lambda: Net(width), given, plan or training(), cache, QUIET)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


def test_it_is_trained_once_the_same_every_time_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = make(tmp_path / "a"), make(tmp_path / "b")
    assert same(first, other)
    assert (first(X).argmax(1) == (X[:, 0] > 0)).float().mean() > 0.95
    monkeypatch.setattr(room, "train_", lambda *arguments: pytest.fail("trained again"))
    assert same(make(tmp_path / "a"), first)
    assert not first.training


def test_other_data_settings_architectures_and_versions_of_torch_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = X.clone()
    moved[3, 1] += 1
    for plan in (training(), training(moved), training(epochs=2), replace(training(), rate=0.01)):
        make(tmp_path, plan=plan)
    make(tmp_path, width=9)
    monkeypatch.setattr(torch, "__version__", "0")
    make(tmp_path)
    assert len(list(tmp_path.iterdir())) == 6


def test_a_kept_file_that_is_broken_is_told_with_what_to_do(tmp_path: Path) -> None:
    make(tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(InvalidTask, match=r"x-\w+\.safetensors: the kept baseline does not read .*; delete it, and it is trained again"):
        make(tmp_path)


def test_given_weights_are_taken_and_nothing_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(Net().state_dict(), tmp_path / "w.safetensors")
    monkeypatch.setattr(room, "train_", lambda *arguments: pytest.fail("trained"))
    loaded = make(tmp_path / "cache", Given(weights=str(tmp_path / "w.safetensors")))
    assert not loaded.training
    assert not (tmp_path / "cache").exists()


def test_an_architecture_of_the_users_is_built_with_the_sizes_it_asks_for(tmp_path: Path) -> None:
    model = make(tmp_path, Given(model=f"{__name__}:wide", sizes={"classes": 2, "length": 3}))
    assert model[0].out_features == 16


REFUSED = {
    "misfit": r"--model .*:misfit: it does not fit this task, inputs \(2, 2\) torch\.float32, targets \(2,\) \(classes 2\): RuntimeError",
    "no_model": r"--model .*:no_model: must return a torch\.nn\.Module, it returned int",
    "wide2": r"--model .*:wide2: .* has no function 'wide2'",
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_architecture_that_is_none_is_refused_before_anything_is_trained(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidTask, match=REFUSED[name]) as caught:
        make(tmp_path, Given(model=f"{__name__}:{name}", sizes={"classes": 2}))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
