"""ONNX Runtime on the CPU: fp32, and static int8 as QuantizeLinear/DequantizeLinear pairs that it turns into integer kernels.

The TorchScript exporter traces the model as it runs (``torch.fake_quantize_*`` becomes Q/DQ); ``qdq`` then folds the weights.
"""

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from autocompress.blocks import FakeQuantized
from autocompress.errors import InfeasibleRecipe
from autocompress.records import Machine
from autocompress.runtimes.qdq import fold
from autocompress.runtimes.runtime import Array, Deployed

OPSET = 17
FILE = "model.onnx"
VNNI = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp")  # eight bits times eight without saturation in 16-bit sums


class OnnxDeployed(Deployed):
    """A session over model.onnx; its thread pool stops spinning when a call returns, so that it disturbs nothing else in the process."""

    def __init__(self, folder: Path, threads: int) -> None:
        super().__init__(folder)
        self.threads = threads
        self.session = onnxruntime.InferenceSession(folder / FILE, session_options(threads), providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name

    def reopened(self) -> "OnnxDeployed":
        return OnnxDeployed(self.folder, self.threads)

    @property
    def size_bytes(self) -> int:
        return (self.folder / FILE).stat().st_size

    def run(self, inputs: Array) -> Array:
        outputs: list[Array] = self.session.run(None, {self.input: inputs})
        return outputs[0]


class OnnxRuntime:
    """See Runtime."""

    name = "onnxruntime"
    channel_multiple = 8

    def weight_bits(self, machine: Machine) -> dict[int, str]:
        saturates = "" if set(VNNI) & set(machine.instruction_sets) else "8-bit weights saturate on a CPU without VNNI; 7 bits do not"
        reasons = dict.fromkeys((32, 7), "") | {8: saturates}
        return {bits: reasons.get(bits, "no integer kernel for this width here; 8 and 7 bits have one") for bits in (*range(2, 17), 32)}

    def write(self, model: nn.Module, example: Tensor, folder: Path) -> None:
        lower(model, example, folder / FILE)

    def open(self, folder: Path, threads: int, model: nn.Module) -> OnnxDeployed:
        return OnnxDeployed(folder, threads)


def lower(model: nn.Module, example: Tensor, file: Path) -> None:
    """Write ``model`` as ONNX with a free batch dimension; example (1, ...) is on the model's device."""
    if isinstance(model, FakeQuantized):
        for name, pair in model.bits.items():
            if not set(pair) <= {7, 8}:
                raise InfeasibleRecipe(f"{name}: weight_bits {pair[0]}, activation_bits {pair[1]}: onnxruntime has kernels for 8 and 7")
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
    onnx.save(fold(onnx.load(file)), file)


def session_options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


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
