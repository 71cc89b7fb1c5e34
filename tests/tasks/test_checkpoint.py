"""Weights of the user's: read without running anything of them, and only where they fit."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from autocompress.errors import InvalidTask
from autocompress.tasks.checkpoint import load_weights_


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


class Command:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch ran",)


FORMS = {
    "plain": lambda state: state,
    "in a training script's": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {}},
    "of DataParallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "compiled, nested": lambda state: {"model": {f"_orig_mod.{name}": value for name, value in state.items()}},
    "of an old version": lambda state: {name: value for name, value in state.items() if "num_batches" not in name},
    "half": lambda state: {name: value.half() if value.is_floating_point() else value for name, value in state.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_weights_arrive_in_whatever_form_they_were_saved(tmp_path: Path, form: str) -> None:
    torch.save(FORMS[form](net(1).state_dict()), tmp_path / "w.pt")
    model = net()
    load_weights_(model, tmp_path / "w.pt")
    for name, value in net(1).state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, atol=1e-3, rtol=1e-3)


def test_safetensors_arrive(tmp_path: Path) -> None:
    save_file(net(1).state_dict(), tmp_path / "w.safetensors")
    model = net()
    load_weights_(model, tmp_path / "w.safetensors")
    assert torch.equal(model[0].weight, net(1)[0].weight)


def test_a_checkpoint_that_wants_to_run_code_is_refused_and_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": net().state_dict(), "x": Command()}, tmp_path / "w.pt")
    with pytest.raises(InvalidTask, match=r"w\.pt: it wants to run code while it is read, which is refused .*safetensors$") as caught:
        load_weights_(net(), tmp_path / "w.pt")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_whole_model_as_pickle_is_refused(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "w.pt")
    with pytest.raises(InvalidTask, match="it wants to run code while it is read, which is refused"):
        load_weights_(net(), tmp_path / "w.pt")


def changed(**values: Tensor | None) -> dict[str, object]:
    state = {name: value.clone() for name, value in net().state_dict().items()}
    state.update({name.replace("__", "."): value for name, value in values.items() if value is not None})
    return {name: value for name, value in state.items() if values.get(name.replace(".", "__"), 0) is not None}


UNFIT = {
    "one lacks": (changed(**{"2__bias": None}), r"not the weights of this model: it lacks 2\.bias\. Give the architecture with --model"),
    "one too many": (changed(extra=torch.zeros(1)), "the model has no extra"),
    "another shape": (changed(**{"0__weight": torch.zeros(4, 5)}), r"0\.weight is \(4, 5\) where the model has \(4, 3\)"),
    "NaN": (changed(**{"0__bias": torch.tensor([0.0, float("nan"), 0, 0])}), r"NaN or infinite values in 0\.bias"),
    "infinite": (changed(**{"1__running_var": torch.full((4,), float("inf"))}), r"NaN or infinite values in 1\.running_var"),
    "no tensor": ({"0.weight": 3}, r"must hold tensors by name, a state_dict; 0\.weight is none"),
    "a list": ([torch.zeros(1)], "must hold weights by name, a state_dict, got list"),
    "nothing": ({}, "must hold weights by name"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_weights_that_do_not_fit_are_told_by_name_and_the_model_stays_as_it_was(tmp_path: Path, case: str) -> None:
    content, said = UNFIT[case]
    torch.save(content, tmp_path / "w.pt")
    model = net(5)
    with pytest.raises(InvalidTask, match=said) as caught:
        load_weights_(model, tmp_path / "w.pt")
    assert str(caught.value).startswith(f"--weights: {tmp_path / 'w.pt'}: ")
    assert all(torch.equal(value, net(5).state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 broken zip"])
def test_a_broken_file_is_told_in_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidTask, match="not readable as") as caught:
        load_weights_(net(), tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidTask, match=r"--weights: .*gone\.pt: no such file"):
        load_weights_(net(), tmp_path / "gone.pt")
