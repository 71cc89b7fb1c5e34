"""ONNX Runtime on the CPU: fp32; static int8 as QuantizeLinear/DequantizeLinear pairs that it turns into integer kernels; dynamic,
weight-only and half layers as operators of its own or as constants that it folds.

The TorchScript exporter traces the model as it runs (``torch.fake_quantize_*`` becomes Q/DQ); ``qdq`` then folds the weights and
``encode`` rewrites the layers that leave no such trace.
"""

import warnings
from collections.abc import Collection
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from autocompress.blocks import FakeQuantized
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import HALF_BITS, Scheme
from autocompress.records import Machine
from autocompress.runtimes.encode import encode, own_copies
from autocompress.runtimes.grids import Grid, Layer, grids, layers
from autocompress.runtimes.onnx_profile import layer_times
from autocompress.runtimes.qdq import fold
from autocompress.runtimes.runtime import Array, Deployed, Kind, Support, impossible
from autocompress.runtimes.session import FILE, open_session, session_options
from autocompress.runtimes.weight_only import container, has_two_bits

OPSET = 17
VNNI = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp")  # eight bits times eight without saturation in 16-bit sums


class OnnxDeployed(Deployed):
    """A session over model.onnx; its thread pool stops spinning when a call returns, so that it disturbs nothing else in the process."""

    def __init__(self, folder: Path, threads: int) -> None:
        super().__init__(folder)
        self.threads = threads
        self.session = open_session(folder, threads)
        self.input = self.session.get_inputs()[0].name

    def reopened(self) -> "OnnxDeployed":
        return OnnxDeployed(self.folder, self.threads)

    def with_threads(self, threads: int) -> "OnnxDeployed":
        return OnnxDeployed(self.folder, threads)

    @property
    def only_batch(self) -> int | None:
        size = self.session.get_inputs()[0].shape[0]
        return size if isinstance(size, int) else None

    @property
    def size_bytes(self) -> int:
        return (self.folder / FILE).stat().st_size

    def run(self, inputs: Array) -> Array:
        outputs: list[Array] = self.session.run(None, {self.input: inputs})
        return outputs[0]

    def profile(self, inputs: Array, layers: Collection[str], calls: int = 30) -> dict[str, float]:
        """See Deployed; by ONNX Runtime's own profiler, in a session of its own."""
        whole_ms = 1000 * float(np.median(self.seconds(inputs, calls + 1)[1:]))
        return layer_times(self.folder, self.threads, inputs, layers, whole_ms, calls)


class OnnxRuntime:
    """See Runtime."""

    name = "onnxruntime"
    channel_multiple = 8

    def weight_bits(self, machine: Machine) -> dict[int, str]:
        saturates = "" if set(VNNI) & set(machine.instruction_sets) else "8-bit weights saturate on a CPU without VNNI; 7 bits do not"
        reasons = dict.fromkeys((32, 7), "") | {8: saturates}
        return {bits: reasons.get(bits, "no integer kernel for this width here; 8 and 7 bits have one") for bits in (*range(2, 17), 32)}

    def support(self, kind: Kind, scheme: Scheme, weight_bits: int, machine: Machine) -> Support:
        reason = refusal(kind, scheme, weight_bits)
        saturates = self.weight_bits(machine)[8]
        if not reason and saturates and weight_bits == 8 and scheme in ("static", "dynamic") and kind != "gru":
            reason = saturates
        if reason:
            return Support(False, False, reason)
        slow = no_kernel(kind, scheme, weight_bits) or (saturates if scheme == "weight_only" and weight_bits == 8 else "")
        return Support(True, not slow, slow)

    def write(self, model: nn.Module, example: Tensor, folder: Path) -> None:
        lower(model, example, folder / FILE)

    def open(self, folder: Path, threads: int, model: nn.Module) -> OnnxDeployed:
        return OnnxDeployed(folder, threads)


def lower(model: nn.Module, example: Tensor, file: Path) -> None:
    """Write ``model`` as ONNX with a free batch dimension; example (1, ...) is on the model's device."""
    if isinstance(model, FakeQuantized):
        check(model)
    free = {0: "batch"}
    with warnings.catch_warnings():
        # the TorchScript exporter announces its end and every shape that it fixes; the dynamo one cannot lower fake quantization
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", TracerWarning)
        warnings.filterwarnings("ignore", "Constant folding", UserWarning)  # it says so of every strided slice
        # the batch is free in the states of an LSTM as well; the contract test runs it at several batch sizes
        warnings.filterwarnings("ignore", "Exporting a model to ONNX with a batch_size", UserWarning)
        torch.onnx.export(
            model.eval(), (example,), file, dynamo=False, opset_version=OPSET, do_constant_folding=not isinstance(model, FakeQuantized),
            input_names=["input"], output_names=["output"], dynamic_axes={"input": free, "output": free},
        )  # fmt: skip
    traced = onnx.load(file)
    if isinstance(model, FakeQuantized):
        own_copies(traced, model)
    onnx.save(fold(traced, partial(encode, model=model) if isinstance(model, FakeQuantized) else None), file)


def refusal(kind: Kind, scheme: Scheme, weight_bits: int) -> str:
    """Why a layer of this kind cannot be deployed with these bits by this scheme, or an empty string."""
    if impossible(kind, scheme, weight_bits):
        return impossible(kind, scheme, weight_bits)
    if scheme == "dynamic" and weight_bits > 8:
        return "inputs that are quantized at run time need integer weights, of 2 to 8 bits"
    if scheme == "half" and weight_bits != HALF_BITS:
        return "no half-precision kernels on a CPU; activation_bits 16 saves nothing here"
    return ""


def no_kernel(kind: Kind, scheme: Scheme, weight_bits: int) -> str:
    """Why what can be deployed is no faster for these bits, or an empty string."""
    smaller = "a smaller file, the same speed"
    if scheme == "half":
        return f"no half-precision kernels on a CPU; weights are stored in 16 bits and computed with in float: {smaller}"
    if scheme == "weight_only" and kind != "linear":
        return f"no weight-only kernel for {kind}; weights are stored in 8 bits and computed with in float: {smaller}"
    if scheme == "weight_only" and (weight_bits not in (4, 8) and not (weight_bits == 2 and has_two_bits())):
        return f"no kernel for {weight_bits} bits; they run in the one for {container(weight_bits)}: {smaller} as there"
    if scheme == "dynamic" and kind == "gru":
        return f"no integer kernel for a GRU; weights are stored in 8 bits and computed with in float: {smaller}"
    if scheme in ("static", "dynamic") and weight_bits > 8:
        return "no kernel for float weights with integer inputs: the layer runs in float"
    if scheme in ("static", "dynamic") and weight_bits < 7:
        return f"no kernel for {weight_bits} bits; they run in the one for 8: {smaller} as there"
    return ""


def check(model: FakeQuantized) -> None:
    """Raises InfeasibleRecipe for the first layer that cannot be lowered."""
    on_grid = grids(model)
    for layer in layers(model):
        bits = f"{layer.name}: weight_bits {layer.weight_bits}, activation_bits {layer.activation_bits}"
        reason = refusal(layer.kind, layer.scheme, layer.weight_bits)
        if reason:
            raise InfeasibleRecipe(f"{bits}: {reason}.")
        if layer.activation_bits == HALF_BITS:
            raise InfeasibleRecipe(f"{bits}: onnxruntime has no half-precision kernels on a CPU. Set activation_bits to 32.")
        for grid in (on_grid[name] for name in layer.parameters if name in on_grid):
            reason = refused_grid(layer, grid)
            if reason:
                raise InfeasibleRecipe(f"{bits}: {reason}.")


def refused_grid(layer: Layer, grid: Grid) -> str:
    """Why no kernel takes weights on this grid, or an empty string; what is stored and computed with in float is free."""
    if layer.scheme not in ("static", "dynamic") or layer.kind == "gru":
        return ""
    if grid.scale.numel() not in (1, grid.codes.shape[0]):
        return f"granularity group with {layer.scheme} inputs: kernels have one scale a channel. Set granularity to channel"
    if not grid.is_symmetric() and (layer.scheme == "static" or layer.kind == "lstm"):
        return f"asymmetric weights with {layer.scheme} inputs: no such kernel for {layer.kind}. Set symmetric to true"
    return ""


def operators(folder: Path, threads: int = 1) -> list[str]:
    """Types of the operators that really run: those of the graph after ONNX Runtime's own optimization."""
    options = session_options(threads)
    optimized = folder / "optimized.onnx"
    options.optimized_model_filepath = str(optimized)
    try:
        onnxruntime.InferenceSession(folder / FILE, options, providers=["CPUExecutionProvider"])
        return [node.op_type for node in onnx.load(optimized).graph.node]
    finally:
        optimized.unlink(missing_ok=True)


def float32(x: Tensor) -> Array:
    """(N, ...) tensor -> contiguous float32 array, whatever its memory format was."""
    return np.ascontiguousarray(x.detach().cpu().numpy().astype(np.float32, copy=False))


RUNTIME = OnnxRuntime()
