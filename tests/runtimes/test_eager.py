"""Threads are borrowed and given back; weights survive the file."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import UserError
from autocompress.runtimes.eager import WEIGHTS, Eager, read_weights, threads
from autocompress.runtimes.runtime import deploy
from tests.small_models import Net, inputs


def test_the_thread_count_is_borrowed_and_given_back_even_after_an_error() -> None:
    before, inside = torch.get_num_threads(), []

    def fail() -> None:
        with threads(before + 1):
            inside.append(torch.get_num_threads())
            raise RuntimeError("oops")

    with pytest.raises(RuntimeError, match="oops"):
        fail()
    assert inside == [before + 1]
    assert torch.get_num_threads() == before


def test_timed_calls_run_with_the_threads_of_the_target(tmp_path: Path) -> None:
    seen: list[int] = []

    def run(m: Net, x: Tensor) -> Tensor:
        seen.append(torch.get_num_threads())
        return m.a(x)

    before = torch.get_num_threads()
    artifact = deploy(Eager(), Net(run, a=nn.Linear(3, 2)), inputs(1, 3), tmp_path, threads=before + 1)
    artifact.seconds(inputs(1, 3).numpy(), 2)
    assert seen == [before + 1] * 2
    assert torch.get_num_threads() == before


def test_weights_that_share_memory_or_are_not_contiguous_survive_the_file(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    model[0].bias.data = torch.arange(8.0)[::2]
    deploy(Eager(), model, inputs(1, 4), tmp_path, threads=1)
    stored = read_weights(tmp_path)
    assert stored.keys() == model.state_dict().keys()
    assert all(torch.equal(stored[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("content", [None, b"not safetensors"])
def test_weights_that_cannot_be_read_are_an_error_that_names_the_file(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.safetensors: the weights cannot be read .*export the artifact again"):
        read_weights(tmp_path)
