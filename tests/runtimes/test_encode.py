"""Which operators run for every scheme, and that they compute what the fake-quantized model does."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.blocks.attention import NarrowAttention
from autocompress.errors import InfeasibleRecipe
from autocompress.runtimes import weight_only
from autocompress.runtimes.onnx_runtime import FILE, RUNTIME, operators
from autocompress.runtimes.runtime import Deployed, deploy
from tests.runtimes.quantized import KINDS, convolution, distance, linear, quantized, recurrent, seeded
from tests.small_models import Net, conv, inputs, outputs

LINEARS = ("a", "b", "c", "head")  # `linear` calls c twice
EXACT = 2e-6  # float sums in another order
ROUNDED = 1e-2  # inputs rounded to 8 bits on the way

GRANULARITIES: list[dict[str, Any]] = [{"granularity": "group", "group_size": 16}, {"granularity": "channel"}, {"granularity": "tensor"}]


def deployed(model: nn.Module, shape: tuple[int, ...], folder: Path) -> tuple[Deployed, Counter[str]]:
    artifact = deploy(RUNTIME, model, inputs(1, *shape), folder / "artifact", threads=1)
    return artifact, Counter(operators(folder / "artifact"))


def weight_only_model(bits: int, **settings: Any) -> nn.Module:
    return quantized(linear(), dict.fromkeys(LINEARS, (bits, 32)), inputs(32, 64), **settings)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("settings", GRANULARITIES, ids=str)
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_weight_only_linear_layers_run_in_the_block_kernel(bits: int, settings: dict[str, Any], symmetric: bool, tmp_path: Path) -> None:
    model = weight_only_model(bits, symmetric=symmetric, **settings)
    artifact, found = deployed(model, (64,), tmp_path)
    assert distance(artifact, model, (64,)) < ROUNDED
    if bits == 2 and settings.get("group_size") == 16:
        assert found["MatMulNBits"] == 0  # the two-bit kernel is slower than float with blocks of 16
    else:
        assert found["MatMulNBits"] == 5
        assert not set(found) & {"Gemm", "FusedGemm", "MatMul", "Add"}


def test_groups_that_no_kernel_takes_are_folded_into_float_layers(tmp_path: Path) -> None:
    model = quantized(linear(48), dict.fromkeys(("a", "b"), (4, 32)), inputs(32, 48), granularity="group", group_size=8)
    artifact, found = deployed(model, (48,), tmp_path)
    assert distance(artifact, model, (48,)) < EXACT
    assert found == deployed(linear(48), (48,), tmp_path / "float")[1]


def test_a_group_of_three_blocks_has_its_scale_in_each_of_them(tmp_path: Path) -> None:
    model = quantized(linear(96), {"a": (4, 32), "b": (4, 32)}, inputs(32, 96), granularity="group", group_size=16)
    wide = quantized(linear(96), {"a": (4, 32)}, inputs(32, 96), granularity="group", group_size=48, symmetric=False)
    for name, item, count in (("16", model, 2), ("48", wide, 1)):
        artifact, found = deployed(item, (96,), tmp_path / name)
        assert distance(artifact, item, (96,)) < ROUNDED
        assert found["MatMulNBits"] == count


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_stored_blocks_are_the_weights_of_the_model_to_the_bit(bits: int, symmetric: bool, tmp_path: Path) -> None:
    model = quantized(linear(), {"a": (bits, 32)}, inputs(32, 64), granularity="group", group_size=32, symmetric=symmetric)
    deployed(model, (64,), tmp_path)
    held = {item.name: numpy_helper.to_array(item) for item in onnx.load(tmp_path / "artifact" / FILE).graph.initializer}
    packed, scale = held["model.a.weight:codes"], held["model.a.weight:scale"]
    assert packed.shape == (32, 2, 32 * bits // 8)
    expected = model.model.a.weight.detach().numpy()  # type: ignore[union-attr]
    for row in range(32):
        for block in range(2):
            stream = int.from_bytes(packed[row, block].tobytes(), "little")
            zero = 2 ** (bits - 1)
            if not symmetric:
                zeros = int.from_bytes(held["model.a.weight:zero"][row].tobytes(), "little")
                zero = (zeros >> (block * bits)) % 2**bits
            codes = [(stream >> (place * bits)) % 2**bits for place in range(32)]
            values = (np.array(codes) - zero).astype(np.float32) * scale[row, block]
            np.testing.assert_array_equal(values, expected[row, 32 * block : 32 * block + 32])


def test_a_processor_on_which_the_block_kernel_is_wrong_computes_in_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = dict.fromkeys(("avx512_f", "avx512_vnni", "avx_vnni", "amx_int8"), False) | {"architecture": "x86_64"}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: old)
    for name, bits, symmetric, count in (("zero points", 4, False, 0), ("eight bits", 8, True, 0), ("four bits", 4, True, 5)):
        model = weight_only_model(bits, symmetric=symmetric)
        artifact, found = deployed(model, (64,), tmp_path / name)
        assert found["MatMulNBits"] == count, name
        assert distance(artifact, model, (64,)) < (ROUNDED if count else EXACT)


def test_where_torch_cannot_tell_eight_bits_are_computed_in_float_to_be_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    model = weight_only_model(8)
    artifact, found = deployed(model, (64,), tmp_path)
    assert found["MatMulNBits"] == 0
    assert distance(artifact, model, (64,)) < EXACT


def test_two_bits_run_in_the_kernel_for_four_where_there_is_none_for_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert weight_only.container(2) == (2 if weight_only.has_two_bits() else 4)
    monkeypatch.setattr(weight_only, "has_two_bits", lambda: False)
    model = weight_only_model(2)
    artifact, found = deployed(model, (64,), tmp_path)
    attributes = [item for node in onnx.load(tmp_path / "artifact" / FILE).graph.node for item in node.attribute]
    assert {item.i for item in attributes if item.name == "bits"} == {4}
    assert found["MatMulNBits"] == 5
    assert distance(artifact, model, (64,)) < ROUNDED


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("bits", [4, 7, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_dynamic_linear_layers_run_in_the_integer_kernel(bits: int, granularity: str, symmetric: bool, tmp_path: Path) -> None:
    settings = {"activations": "dynamic", "granularity": granularity, "symmetric": symmetric}
    model = quantized(linear(), dict.fromkeys(LINEARS, (bits, 8)), inputs(32, 64), **settings)
    artifact, found = deployed(model, (64,), tmp_path)
    assert distance(artifact, model, (64,)) < ROUNDED
    assert found["DynamicQuantizeMatMul"] == 5
    assert not set(found) & {"Gemm", "FusedGemm", "MatMul", "Add"}


LSTMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two layers, both directions": {"num_layers": 2, "bidirectional": True},
    "without biases": {"bias": False},
    "time first": {"batch_first": False},
    "another width": {"hidden_size": 12},
}


@pytest.mark.parametrize("name", LSTMS)
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_dynamic_lstm_runs_in_the_integer_kernel(name: str, granularity: str, tmp_path: Path) -> None:
    options = LSTMS[name]
    model = quantized(recurrent(nn.LSTM, **options), {"cell": (8, 8)}, inputs(32, 5, 16), activations="dynamic", granularity=granularity)
    artifact, found = deployed(model, (5, 16), tmp_path)
    assert distance(artifact, model, (5, 16)) < 0.02
    assert found["DynamicQuantizeLSTM"] == options.get("num_layers", 1)
    assert found["LSTM"] == 0


def test_an_lstm_that_starts_from_a_given_state_keeps_it(tmp_path: Path) -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        state = (m.start(x[:, 0]).unsqueeze(0), x[:, 1, :8].unsqueeze(0).contiguous())
        return m.cell(x, state)[1][0][0]

    model = Net(run, cell=nn.LSTM(16, 8, batch_first=True), start=nn.Linear(16, 8)).eval()
    wrapped = quantized(model, {"cell": (8, 8)}, inputs(32, 5, 16), activations="dynamic")
    artifact, found = deployed(wrapped, (5, 16), tmp_path)
    assert found["DynamicQuantizeLSTM"] == 1
    assert distance(artifact, wrapped, (5, 16)) < 0.02


STORED: dict[str, tuple[str, tuple[int, int], dict[str, Any]]] = {
    "a weight-only convolution": ("conv2d", (4, 32), {"granularity": "channel"}),
    "a weight-only convolution with groups": ("conv2d", (3, 32), {"granularity": "group", "group_size": 9, "symmetric": False}),
    "a weight-only lstm": ("lstm", (8, 32), {"granularity": "channel"}),
    "a weight-only gru, asymmetric": ("gru", (8, 32), {"granularity": "channel", "symmetric": False}),
    "fp16 linear layers": ("linear", (16, 32), {"half": "fp16"}),
    "bf16 convolutions": ("conv2d", (16, 32), {"half": "bf16"}),
    "fp16 lstm": ("lstm", (16, 32), {"half": "fp16"}),
    "bf16 gru": ("gru", (16, 32), {"half": "bf16"}),
}


@pytest.mark.parametrize("name", STORED)
def test_what_has_no_kernel_is_stored_small_and_runs_in_the_operators_of_the_float_model(name: str, tmp_path: Path) -> None:
    kind, bits, settings = STORED[name]
    make, shape, names = KINDS[kind]
    model = quantized(make(), dict.fromkeys(names, bits), inputs(32, *shape), **settings)
    artifact, found = deployed(model, shape, tmp_path)
    plain, float_found = deployed(make(), shape, tmp_path / "float")
    assert found == float_found  # nothing is dequantized at run time
    assert distance(artifact, model, shape) < EXACT
    weights = sum(value.numel() for key, value in make().named_parameters() if key.split(".")[0] in names)
    assert stored_bytes(tmp_path) < stored_bytes(tmp_path / "float") - 1.6 * weights
    assert artifact.size_bytes > 0 < plain.size_bytes


def stored_bytes(folder: Path) -> int:
    return sum(numpy_helper.to_array(item).nbytes for item in onnx.load(folder / "artifact" / FILE).graph.initializer)


def test_a_dynamic_gru_is_stored_in_eight_bits_and_runs_in_float(tmp_path: Path) -> None:
    model = quantized(recurrent(nn.GRU), {"cell": (8, 8)}, inputs(32, 5, 16), activations="dynamic")
    artifact, found = deployed(model, (5, 16), tmp_path)
    assert found["GRU"] == 1
    assert distance(artifact, model, (5, 16)) < 0.02  # its input is not rounded here


def test_the_file_of_four_bit_weights_is_about_half_of_that_of_eight(tmp_path: Path) -> None:
    sizes = {}
    for bits in (4, 8):
        big = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512)).eval()
        model = quantized(big, dict.fromkeys("02", (bits, 32)), inputs(8, 512), granularity="channel")
        sizes[bits] = deployed(model, (512,), tmp_path / str(bits))[0].size_bytes
    assert 0.45 < sizes[4] / sizes[8] < 0.6


def test_every_scheme_in_one_model(tmp_path: Path) -> None:
    """Static convolutions, a weight-only hidden layer, a half head: what is in front of a layer in float does not become integer."""

    def run(m: Net, x: Tensor) -> Tensor:
        x = F.relu(m.b(F.relu(m.a(x)))).mean((2, 3))
        return m.head(F.relu(m.second(F.relu(m.first(x)))))

    layers = {"a": conv(4, 16), "b": conv(16, 32), "first": nn.Linear(32, 48), "second": nn.Linear(48, 48), "head": nn.Linear(48, 10)}
    torch.manual_seed(0)
    bits = {"a": (8, 8), "b": (7, 8), "first": (4, 32), "second": (8, 32), "head": (16, 32)}
    model = quantized(Net(run, **layers), bits, inputs(64, 4, 6, 6))
    artifact, found = deployed(model, (4, 6, 6), tmp_path)
    assert distance(artifact, model, (4, 6, 6)) < 0.02
    assert (found["QLinearConv"], found["MatMulNBits"], found["Gemm"] + found["FusedGemm"], found["QGemm"]) == (2, 2, 1, 0)


def test_static_and_dynamic_never_meet_but_half_weights_with_integer_inputs_do(tmp_path: Path) -> None:
    model = quantized(convolution(), {"a": (8, 8), "b": (32, 8), "head": (16, 8)}, inputs(64, 4, 6, 6))
    artifact, found = deployed(model, (4, 6, 6), tmp_path)
    assert distance(artifact, model, (4, 6, 6)) < 0.02
    assert (found["QLinearConv"], found["Conv"] + found["FusedConv"], found["Gemm"] + found["FusedGemm"]) == (1, 1, 1)


@pytest.mark.parametrize(("bits", "granularity"), [(2, "channel"), (4, "channel"), (6, "channel"), (4, "tensor"), (7, "tensor")])
def test_static_layers_of_any_bits_run_in_the_eight_bit_kernels(bits: int, granularity: str, tmp_path: Path) -> None:
    settings = {"granularity": granularity}
    model = quantized(convolution(), dict.fromkeys(("a", "b", "head"), (bits, 8)), inputs(64, 4, 6, 6), **settings)
    artifact, found = deployed(model, (4, 6, 6), tmp_path)
    assert (found["QLinearConv"], found["QGemm"]) == (2, 1)
    assert distance(artifact, model, (4, 6, 6)) < 0.02


def test_equal_layers_of_different_bits_are_not_mixed_up(tmp_path: Path) -> None:
    model = Net(lambda m, x: m.b(F.relu(m.a(x))), a=nn.Linear(32, 32), b=nn.Linear(32, 32)).eval()
    model.a.weight.data = model.a.weight.data.sign()  # on every grid: the exporter finds the two equal and keeps one
    model.b.load_state_dict(model.a.state_dict())
    for number, bits in enumerate([{"a": (4, 32)}, {"b": (4, 32)}, {"a": (4, 32), "b": (8, 32)}, {"a": (16, 32), "b": (4, 32)}]):
        wrapped = quantized(model, bits, inputs(16, 32))
        artifact, found = deployed(wrapped, (32,), tmp_path / str(number))
        assert distance(artifact, wrapped, (32,)) < ROUNDED
        assert found["MatMulNBits"] == sum(pair[0] <= 8 for pair in bits.values())


def test_tied_layers_are_encoded_once_and_right(tmp_path: Path) -> None:
    model = Net(lambda m, x: m.b(F.relu(m.a(x))), a=nn.Linear(32, 32), b=nn.Linear(32, 32)).eval()
    model.b.weight = model.a.weight
    wrapped = quantized(model, {"a": (4, 32), "b": (4, 32)}, inputs(16, 32))
    artifact, found = deployed(wrapped, (32,), tmp_path)
    assert distance(artifact, wrapped, (32,)) < ROUNDED
    assert found["MatMulNBits"] == 2


class Attention(nn.Module):
    """Torch's attention, or the one that stands in for it once heads were pruned, and a feed-forward part. x (N, 7, 32) -> (N, 10)"""

    def __init__(self, narrow: bool) -> None:
        super().__init__()
        given = nn.MultiheadAttention(32, 4, batch_first=True)
        self.attention = NarrowAttention(given) if narrow else given
        self.norm, self.up, self.down, self.head = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return self.head((x + self.down(F.relu(self.up(x)))).mean(1))


ATTENTIONS: dict[str, tuple[bool, tuple[int, int], dict[str, str], dict[str, int]]] = {
    "torch's own, weight-only": (False, (4, 32), {}, {"MatMulNBits": 4}),
    "narrow, weight-only": (True, (4, 32), {}, {"MatMulNBits": 7}),
    "narrow, static": (True, (8, 8), {}, {"MatMulIntegerToFloat": 6, "QGemm": 1}),
    "narrow, dynamic": (True, (8, 8), {"activations": "dynamic"}, {"DynamicQuantizeMatMul": 7}),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_projections_of_attention_run_like_any_linear_layer(name: str, tmp_path: Path) -> None:
    narrow, bits, settings, expected = ATTENTIONS[name]
    plain = seeded(lambda: Attention(narrow))
    names = [layer for layer, module in plain.named_modules() if isinstance(module, nn.Linear)]
    model = quantized(plain, dict.fromkeys(names, bits), inputs(32, 7, 32), **settings)
    artifact, found = deployed(model, (7, 32), tmp_path)
    assert {operator: found[operator] for operator in expected} == expected
    assert distance(artifact, model, (7, 32)) < 0.02


REFUSED: dict[str, tuple[str, tuple[int, int], dict[str, Any], str]] = {
    "half inputs": ("linear", (16, 16), {}, r"activation_bits 16: .*no half-precision kernels"),
    "half inputs of float weights": ("linear", (32, 16), {}, r"activation_bits 16: .*no half-precision kernels"),
    "dynamic convolution": ("conv2d", (8, 8), {"activations": "dynamic"}, r"^a: .*[Uu]se activations:? static"),
    "groups, dynamic": ("linear", (8, 8), {"activations": "dynamic", "granularity": "group"}, r"^a: .*granularity group"),
    "groups, static": ("linear", (8, 8), {"granularity": "group"}, r"^a: .*granularity group"),
    "asymmetric, static": ("conv2d", (8, 8), {"symmetric": False}, r"^a: .*symmetric"),
    "asymmetric lstm": ("lstm", (8, 8), {"activations": "dynamic", "symmetric": False}, r"^cell: .*symmetric"),
    "static lstm": ("lstm", (8, 8), {}, r"^cell: .*dynamic"),
    "static gru": ("gru", (8, 8), {}, r"^cell: .*dynamic"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_kernel_takes_is_refused_with_the_layer_and_what_to_do(name: str, tmp_path: Path) -> None:
    kind, bits, settings, message = REFUSED[name]
    make, shape, names = KINDS[kind]
    with pytest.raises(InfeasibleRecipe, match=message):
        deployed(quantized(make(), dict.fromkeys(names, bits), inputs(8, *shape), **settings), shape, tmp_path)


def test_lowering_changes_neither_the_model_nor_its_outputs(tmp_path: Path) -> None:
    model = weight_only_model(4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reference = outputs(model, inputs(4, 64))
    deployed(model, (64,), tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(outputs(model, inputs(4, 64)), reference)
