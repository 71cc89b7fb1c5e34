"""Threads are borrowed and given back; weights survive the file; half layers are half."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.measure.machine import this_machine
from autocompress.runtimes.eager import Eager, EagerDeployed, threads
from autocompress.runtimes.runtime import deploy
from autocompress.runtimes.weights import read_weights
from tests.runtimes.quantized import KINDS, distance, quantized
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


HALVES = {"fp16": (torch.float16, 2e-3), "bf16": (torch.bfloat16, 1.5e-2)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("half", HALVES)
def test_layers_of_16_bits_really_compute_in_them(kind: str, half: str, tmp_path: Path) -> None:
    make, shape, names = KINDS[kind]
    dtype, tolerance = HALVES[half]
    model = quantized(make(), dict.fromkeys(names, (16, 16)), inputs(32, *shape), half=half)
    artifact = deploy(Eager(), model, inputs(1, *shape), tmp_path, threads=1)
    assert isinstance(artifact, EagerDeployed)
    for name in names:
        assert {value.dtype for value in artifact.model.get_submodule(name).parameters()} == {dtype}
    assert artifact.run(inputs(2, *shape).numpy()).dtype == np.float32
    assert distance(artifact, make(), shape) < tolerance
    assert distance(artifact, model, shape) < tolerance
    assert {value.dtype for value in model.parameters()} == {torch.float32}  # it is still there to be compared with


def test_half_weights_with_float_inputs_are_stored_in_half_and_computed_with_in_float(tmp_path: Path) -> None:
    make, shape, names = KINDS["linear"]
    model = quantized(make(), dict.fromkeys(names, (16, 32)), inputs(32, *shape))
    artifact = deploy(Eager(), model, inputs(1, *shape), tmp_path / "half", threads=1)
    plain = deploy(Eager(), make(), inputs(1, *shape), tmp_path / "float", threads=1)
    assert artifact.size_bytes < 0.6 * plain.size_bytes
    assert distance(artifact, model, shape) < 1e-6


@pytest.mark.parametrize(("sets", "real"), [((), False), (("avx2", "avx512_bf16"), True), (("amx_bf16",), True)])
def test_half_floats_are_faster_only_with_instructions_for_them(sets: tuple[str, ...], real: bool) -> None:
    machine = this_machine().model_copy(update={"instruction_sets": sets})
    assert Eager().support("linear", "half", 16, machine)[:2] == (True, real)
