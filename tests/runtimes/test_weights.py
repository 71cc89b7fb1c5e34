"""What a trial weighs: as few bytes as its bits promise, and not one bit lost."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autocompress.errors import UserError
from autocompress.runtimes.weights import WEIGHTS, read_weights, same_bits, weights_bytes, write_weights
from tests.runtimes.quantized import KINDS, linear, quantized, recurrent
from tests.small_models import concat, inputs, outputs


def restores(model: nn.Module, folder: Path) -> int:
    """Bytes of the file, from which every tensor of the model's state must come back bit for bit."""
    write_weights(model, folder)
    stored = read_weights(folder)
    assert stored.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert same_bits(stored[name], value), name
    return weights_bytes(folder)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_of_any_grid_come_back_bit_for_bit(bits: int, granularity: str, symmetric: bool, tmp_path: Path) -> None:
    names = ("a", "b", "c", "head")
    settings = {"granularity": granularity, "symmetric": symmetric, "group_size": 16}
    restores(quantized(linear(), dict.fromkeys(names, (bits, 32)), inputs(8, 64), **settings), tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("bits", "settings"), [((4, 32), {}), ((16, 32), {"half": "bf16"}), ((16, 32), {"half": "fp16"})], ids=str)
def test_every_kind_of_layer_comes_back_bit_for_bit(kind: str, bits: tuple[int, int], settings: dict[str, str], tmp_path: Path) -> None:
    make, shape, names = KINDS[kind]
    float_model = make()
    size = restores(quantized(float_model, dict.fromkeys(names, bits), inputs(8, *shape), **settings), tmp_path)
    write_weights(float_model, tmp_path)
    assert size < weights_bytes(tmp_path)


def test_static_and_dynamic_models_come_back_with_their_ranges(tmp_path: Path) -> None:
    make, shape, names = KINDS["conv2d"]
    restores(quantized(make(), dict.fromkeys((*names, "head"), (8, 8)), inputs(8, *shape)), tmp_path)
    restores(quantized(recurrent(nn.LSTM), {"cell": (8, 8)}, inputs(8, 5, 16), activations="dynamic"), tmp_path)


@pytest.mark.parametrize("settings", [{}, {"activations": "dynamic", "symmetric": False}, {"learned_step": True}], ids=str)
def test_another_model_of_the_same_structure_takes_the_file_and_gives_the_same_outputs(settings: dict[str, Any], tmp_path: Path) -> None:
    bits = {"a": (8, 8), "b": (4, 32), "c": (16, 32), "head": (4, 8)}
    model = quantized(linear(), bits, inputs(32, 64), **settings)
    write_weights(model, tmp_path)
    other = linear()
    for value in other.parameters():
        value.data += 0.1
    again = quantized(other, bits, 3 * inputs(4, 64, seed=5), **settings)
    again.load_state_dict(read_weights(tmp_path))
    x = inputs(16, 64, seed=9)
    assert torch.equal(outputs(again, x), outputs(model, x))


def test_a_model_whose_weights_left_their_grid_since_is_stored_as_it_is(tmp_path: Path) -> None:
    model = quantized(linear(), {"a": (4, 32)}, inputs(8, 64))
    model.model.a.weight.data += 0.37 * torch.rand(32, 64)
    restores(model, tmp_path)
    assert load_file(tmp_path / WEIGHTS)["model.a.weight"].dtype == torch.float32


@pytest.mark.parametrize(("bits", "share"), [(2, 1 / 16), (3, 3 / 32), (4, 1 / 8), (8, 1 / 4), (16, 1 / 2)])
def test_the_file_takes_the_bits_that_the_weights_have(bits: int, share: float, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512)).eval()
    write_weights(model, tmp_path)
    full = weights_bytes(tmp_path)
    write_weights(quantized(model, dict.fromkeys("02", (bits, 32)), inputs(8, 512)), tmp_path)
    assert weights_bytes(tmp_path) / full == pytest.approx(share, abs=0.006)  # scales and biases: 2 * 2 of 512 floats a layer


def test_the_zero_points_of_a_symmetric_grid_take_no_room(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(1024, 1024, bias=False)).eval()
    write_weights(quantized(model, {"0": (4, 32)}, inputs(8, 1024), granularity="group", group_size=16), tmp_path)
    groups = 1024 * 1024 / 16
    assert weights_bytes(tmp_path) == pytest.approx(1024 * 1024 / 2 + 4 * groups, abs=1500)


def test_quantizers_weigh_less_than_the_names_of_their_buffers_would(tmp_path: Path) -> None:
    make, shape, names = KINDS["conv2d"]
    model = quantized(make(), dict.fromkeys((*names, "head"), (8, 8)), inputs(8, *shape))
    buffers = {name: value for name, value in model.state_dict().items() if not name.startswith("model.")}
    size = restores(model, tmp_path)
    save_file({name: value.clone() for name, value in model.state_dict().items()}, tmp_path / "plain.safetensors")
    assert size < (tmp_path / "plain.safetensors").stat().st_size - 60 * len(buffers)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_masked_weights_are_a_bitmask_and_the_rest(share: float, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(256, 256, bias=False))
    keep = torch.rand(256, 256) >= share
    model[0].weight.data = model[0].weight.data * keep  # a negative weight leaves -0
    assert torch.signbit(model[0].weight[~keep]).any()
    size = restores(model, tmp_path)
    assert size < 256 * 256 * (4 * (1 - share) + 2 / 8) + 1500
    model[0].weight.data = torch.where(keep, model[0].weight.data, 0.0)
    assert restores(model, tmp_path) < size


def test_zeros_among_few_bit_weights_save_what_they_can_and_never_cost(tmp_path: Path) -> None:
    dense, sparse = (nn.Sequential(nn.Linear(256, 256)).eval() for _ in range(2))
    sparse[0].weight.data *= torch.rand(256, 256) >= 0.9
    sizes = {}
    for bits in (2, 8):
        for name, model in (("dense", dense), ("sparse", sparse)):
            sizes[bits, name] = restores(quantized(model, {"0": (bits, 32)}, inputs(8, 256)), tmp_path)
    assert sizes[8, "sparse"] < 0.4 * sizes[8, "dense"]
    assert sizes[2, "sparse"] <= 0.8 * sizes[2, "dense"]


def test_a_plain_model_is_a_plain_file(tmp_path: Path) -> None:
    model = concat()
    restores(model, tmp_path)
    plain = load_file(tmp_path / WEIGHTS)
    assert all(torch.equal(plain[name], value) for name, value in model.state_dict().items())


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    apart = restores(model, tmp_path)
    model[1].weight = model[0].weight
    assert restores(model, tmp_path) < 0.6 * apart


class Holder(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)


@given(st.lists(st.floats(width=32) | st.sampled_from([0.0, -0.0]), max_size=64), st.sampled_from([torch.float32, torch.float64]))
def test_any_floats_come_back_with_the_sign_of_their_zeros(values: list[float], dtype: torch.dtype) -> None:
    with tempfile.TemporaryDirectory() as folder:
        restores(Holder(torch.tensor(values * 20, dtype=dtype).reshape(20, -1)), Path(folder))


@pytest.mark.parametrize("content", [None, b"not safetensors", b""])
def test_weights_that_cannot_be_read_are_an_error_that_names_the_file(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.safetensors: the weights cannot be read .*export the artifact again"):
        read_weights(tmp_path)


@pytest.mark.parametrize("index", ["", "%%%", "e30=", json.dumps({"a": {"parts": [":codes"]}})])
def test_an_index_that_cannot_be_read_is_such_an_error_too(tmp_path: Path, index: str) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / WEIGHTS, metadata={"index": index})
    with pytest.raises(UserError, match="the weights cannot be read"):
        read_weights(tmp_path)


def test_half_of_a_file_is_such_an_error_too(tmp_path: Path) -> None:
    write_weights(concat(), tmp_path)
    content = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="the weights cannot be read"):
        read_weights(tmp_path)
