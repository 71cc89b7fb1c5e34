"""What runs in integers and what does not is what the recipe says, in the session that any user opens too."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.blocks import FakeQuantized
from autocompress.compress.quantize import fold_batch_norm
from autocompress.measure.machine import this_machine
from autocompress.runtimes.onnx_runtime import FILE, RUNTIME, OnnxDeployed, operators
from autocompress.runtimes.runtime import deploy
from tests.runtimes.quantized import quantized
from tests.small_models import Net, conv, inputs, outputs, residual, trained_digits

Trained = tuple[nn.Module, Tensor, Tensor, Tensor]
CONVS = ("stem.0", "block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2", "block3.conv1", "block3.conv2", "block3.shortcut.0",
         "block4.conv1", "block4.conv2")  # fmt: skip
LAYERS = (*CONVS, "head")
BITS = [bits for bits in (7, 8) if not RUNTIME.weight_bits(this_machine())[bits]]


@pytest.fixture(scope="module")
def trained() -> Trained:
    return trained_digits()


def integer(model: nn.Module, names: tuple[str, ...], calibration: Tensor, bits: int = 7) -> FakeQuantized:
    return quantized(model, dict.fromkeys(names, (bits, 8)), calibration)


def counted(folder: Path) -> Counter[str]:
    return Counter(operators(folder))


def in_a_default_session(folder: Path, x: Tensor) -> tuple[np.ndarray, Counter[str]]:
    """Outputs and operators with nothing set but the file in which the operators are written down."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "as-run.onnx")
    options.log_severity_level = 3  # it warns that a file optimized for this machine may not run on another
    session = onnxruntime.InferenceSession(folder / FILE, options, providers=["CPUExecutionProvider"])
    types = Counter(node.op_type for node in onnx.load(folder / "as-run.onnx").graph.node)
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0], types


@pytest.mark.parametrize("bits", BITS)
def test_int8_of_a_trained_residual_network_agrees_with_pytorch_on_real_scans(trained: Trained, tmp_path: Path, bits: int) -> None:
    model, calibration, x, classes = trained
    wrapped = integer(model, LAYERS, calibration, bits)
    reference = outputs(wrapped, x).numpy()
    got = deploy(RUNTIME, wrapped, x[:1], tmp_path, threads=1).run(x.numpy())
    assert len(x) == 800
    assert (got.argmax(1) == reference.argmax(1)).mean() >= 0.99
    assert np.abs(got - reference).max() <= 0.01 * np.ptp(reference)  # a value on the edge of a step may fall to either side
    assert np.abs(got - reference).mean() <= 1e-4 * np.ptp(reference)
    right = [(values.argmax(1) == classes.numpy()).mean() for values in (outputs(model, x).numpy(), got)]
    assert right[0] > 0.95
    assert right[1] >= right[0] - 0.01


@pytest.mark.parametrize("bits", BITS)
def test_a_wholly_quantized_residual_network_runs_in_integer_kernels_alone(trained: Trained, tmp_path: Path, bits: int) -> None:
    model, calibration, x, _ = trained
    deploy(RUNTIME, integer(model, LAYERS, calibration, bits), x[:1], tmp_path, threads=1)
    for found in (counted(tmp_path), in_a_default_session(tmp_path, x)[1]):
        assert (found["QLinearConv"], found["QLinearAdd"], found["QLinearGlobalAveragePool"], found["QGemm"]) == (10, 4, 1, 1)
        floats = set(found) & {"Conv", "FusedConv", "Add", "Gemm", "FusedGemm", "MatMul", "GlobalAveragePool", "ReduceMean", "Relu", "Clip"}
        assert not floats
        assert found["QuantizeLinear"] == 1  # the input; the last kernel gives floats itself
        assert found["DequantizeLinear"] == 0


MIXED = {
    "one float layer in the middle of a block": ("block2.conv1",),
    "one float layer before a sum": ("block2.conv2",),
    "a whole float block": ("block2.conv1", "block2.conv2"),
    "a float shortcut": ("block3.shortcut.0",),
    "a float stem": ("stem.0",),
    "a float head": ("head",),
    "several": ("stem.0", "block2.conv1", "block2.conv2", "block3.shortcut.0", "head"),
    "all but one": tuple(name for name in LAYERS if name != "block1.conv1"),
    "all but the head": CONVS,
}


@pytest.mark.parametrize("name", MIXED)
def test_layers_that_a_mixed_recipe_leaves_in_float_run_in_float_and_the_others_in_integers(
    trained: Trained, tmp_path: Path, name: str
) -> None:
    model, calibration, x, _ = trained
    floats = MIXED[name]
    wrapped = integer(model, tuple(layer for layer in LAYERS if layer not in floats), calibration)
    artifact = deploy(RUNTIME, wrapped, x[:1], tmp_path, threads=1)
    reference = outputs(wrapped, x).numpy()
    default, default_types = in_a_default_session(tmp_path, x)
    for got, found in ((artifact.run(x.numpy()), counted(tmp_path)), (default, default_types)):
        convs = sum(layer in CONVS for layer in floats)
        assert (found["Conv"] + found["FusedConv"], found["QLinearConv"]) == (convs, 10 - convs)
        assert (found["Gemm"] + found["FusedGemm"], found["QGemm"]) == (("head" in floats), ("head" not in floats))
        assert (got.argmax(1) == reference.argmax(1)).mean() >= 0.99
        assert np.abs(got - reference).max() <= 0.01 * np.ptp(reference)
        assert np.abs(got - reference).mean() <= 1e-4 * np.ptp(reference)


def test_a_float_model_has_no_quantized_operator(tmp_path: Path) -> None:
    deploy(RUNTIME, fold_batch_norm(residual(4), inputs(1, 1, 8, 8)), inputs(1, 1, 8, 8), tmp_path, threads=1)
    found = counted(tmp_path)
    assert not [name for name in found if "Quantize" in name or name.startswith("Q")]
    assert found["Conv"] + found["FusedConv"] == 10


def pooled(relu: nn.Module) -> Net:
    layers = {"a": conv(2, 8), "b": conv(8, 8), "c": conv(16, 8), "head": nn.Linear(8 * 9, 3), "relu": relu}

    def run(m: Net, x: Tensor) -> Tensor:
        first = m.relu(m.a(x))
        both = torch.cat([first, m.relu(m.b(first))], 1)
        return m.head(torch.flatten(F.max_pool2d(m.relu(m.c(both)), 2), 1))

    return Net(run, **layers)


@pytest.mark.parametrize("relu", [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6()], ids=["relu", "in place", "relu6"])
def test_concatenation_max_pool_and_flatten_keep_their_neighbours_in_integers(tmp_path: Path, relu: nn.Module) -> None:
    torch.manual_seed(0)
    x = inputs(64, 2, 6, 6)
    wrapped = integer(pooled(relu), ("a", "b", "c", "head"), x)
    got = deploy(RUNTIME, wrapped, x[:1], tmp_path, threads=1).run(x.numpy())
    reference, found = outputs(wrapped, x).numpy(), counted(tmp_path)
    assert (found["QLinearConv"], found["QGemm"]) == (3, 1)
    assert not set(found) & {"Conv", "FusedConv", "Gemm", "Relu", "Clip", "Concat"}
    assert np.abs(got - reference).max() <= 0.02 * np.ptp(reference)


def test_factors_of_a_linear_layer_of_three_dimensions_agree_with_pytorch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Net(lambda m, x: m.b(F.relu(m.a(x))), a=nn.Linear(8, 16), b=nn.Linear(16, 4)), inputs(64, 5, 8)
    wrapped = integer(model, ("a", "b"), x)
    got, reference = deploy(RUNTIME, wrapped, x[:1], tmp_path, threads=1).run(x.numpy()), outputs(wrapped, x).numpy()
    assert np.abs(got - reference).max() <= 0.02 * np.ptp(reference)
    assert not set(counted(tmp_path)) & {"Gemm", "MatMul"}


@pytest.mark.parametrize("threads", [1, 2])
def test_a_session_has_the_threads_of_the_target_and_does_not_spin_between_calls(tmp_path: Path, threads: int) -> None:
    artifact = deploy(RUNTIME, residual(4), inputs(1, 1, 8, 8), tmp_path, threads=threads)
    assert isinstance(artifact, OnnxDeployed)
    options = artifact.session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (threads, 1)
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_asking_for_the_operators_leaves_no_file_behind(tmp_path: Path) -> None:
    deploy(RUNTIME, residual(4), inputs(1, 1, 8, 8), tmp_path, threads=1)
    operators(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


def test_an_int8_file_is_about_a_quarter_of_the_float_one(tmp_path: Path) -> None:
    model, x = residual(32), inputs(8, 1, 8, 8)
    sizes = [
        deploy(RUNTIME, item, x[:1], tmp_path / name, threads=1).size_bytes
        for name, item in (("float", fold_batch_norm(model, x[:1])), ("integer", integer(model, LAYERS, x)))
    ]
    assert 0.25 < sizes[1] / sizes[0] < 0.35


@pytest.mark.parametrize(
    ("sets", "possible"), [((), (7, 32)), (("avx2",), (7, 32)), (("avx2", "avx512_vnni"), (7, 8, 32)), (("asimddp",), (7, 8, 32))]
)
def test_eight_bit_weights_need_instructions_that_do_not_saturate(sets: tuple[str, ...], possible: tuple[int, ...]) -> None:
    answers = RUNTIME.weight_bits(this_machine().model_copy(update={"instruction_sets": sets}))
    assert tuple(bits for bits, reason in answers.items() if not reason) == possible
    assert all("VNNI" in answers[8] for _ in [0] if 8 not in possible)


WITHOUT_VNNI = ("avx2",)


@pytest.mark.parametrize(
    ("kind", "scheme", "bits", "expected"),
    [
        ("linear", "static", 8, (False, False)),
        ("linear", "dynamic", 8, (False, False)),
        ("lstm", "dynamic", 8, (False, False)),
        ("linear", "static", 7, (True, True)),
        ("linear", "dynamic", 7, (True, True)),
        ("linear", "weight_only", 8, (True, False)),  # computed in float
        ("linear", "weight_only", 4, (True, True)),
        ("gru", "dynamic", 8, (True, False)),
    ],
)
def test_without_vnni_eight_bits_are_refused_wherever_they_would_saturate(
    kind: str, scheme: str, bits: int, expected: tuple[bool, bool]
) -> None:
    machine = this_machine().model_copy(update={"instruction_sets": WITHOUT_VNNI})
    found = RUNTIME.support(kind, scheme, bits, machine)  # type: ignore[arg-type]
    assert found[:2] == expected
    assert ("VNNI" in found.reason) == (bits == 8 and kind != "gru")


@pytest.mark.parametrize(
    ("kind", "scheme", "bits", "reason"),
    [
        ("linear", "weight_only", 3, "they run in the one for 4"),
        ("linear", "weight_only", 5, "they run in the one for 8"),
        ("linear", "static", 3, "they run in the one for 8"),
        ("conv2d", "weight_only", 4, "computed with in float"),
        ("linear", "half", 16, "no half-precision kernels"),
        ("linear", "static", 16, "the layer runs in float"),
    ],
)
def test_what_runs_and_is_not_faster_says_in_which_kernel_it_does(kind: str, scheme: str, bits: int, reason: str) -> None:
    found = RUNTIME.support(kind, scheme, bits, this_machine())  # type: ignore[arg-type]
    assert found[:2] == (True, False)
    assert reason in found.reason
