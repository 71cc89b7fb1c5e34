"""Linear layers with few-bit weights and float inputs as MatMulNBits, ONNX Runtime's kernel for 2, 4 and 8 bits in blocks.

It dequantizes block by block as it multiplies (reading a weight costs a quarter to a sixteenth of the memory traffic), and with
accuracy level 4 it rounds each block of the input to int8 on the way, which is where the speed comes from.
"""

import functools
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from autocompress.runtimes.grids import Grid
from autocompress.runtimes.products import products, substitute
from autocompress.runtimes.qdq import Graph

DOMAIN = "com.microsoft"
KERNEL_BITS = (2, 4, 8)
SMALLEST_BLOCK = {2: 32, 4: 16, 8: 16}  # with blocks of 16, two bits ran 10 times slower than float
LARGEST_BLOCK = 128
ACCURACY_LEVEL = 4  # int8 inputs; 0 to 3 compute in float, and slower than a float layer where the batch is larger than 1


def container(bits: int) -> int:
    """The fewest bits that a kernel here has and ``bits`` fit into."""
    return next(width for width in KERNEL_BITS if width >= bits and (width != 2 or has_two_bits()))


def block_of(grid: Grid, out_features: int, in_features: int) -> int:
    """Inputs that share a scale in the kernel: a power of two, or 0 where the grid has groups that no kernel takes."""
    groups = max(grid.scale.numel() // out_features, 1)
    smallest = SMALLEST_BLOCK[container(grid.bits)]
    if groups == 1:  # one scale a channel or tensor is repeated for every block; the last block is filled up with zeros
        wide = (block for block in (128, 64, 32) if -in_features % block <= in_features / 8)
        return next(wide, smallest)
    size = in_features // groups
    block = min(LARGEST_BLOCK, size & -size)
    return block if block >= smallest else 0


def is_sound(grid: Grid) -> bool:
    """Whether the kernel computes right on this processor.

    Without AVX-512, MLAS is wrong for zero points at batch 1 (onnxruntime issue 29853); without VNNI, eight bits times eight saturate.
    """
    can = processor()
    if can["architecture"] != "x86_64":
        return True
    has_vnni = any(can.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))
    return (grid.is_symmetric() or bool(can["avx512_f"])) and (container(grid.bits) < 8 or has_vnni)


def processor() -> Mapping[str, Any]:
    """What this processor can do, as far as the installed torch tells: older ones know of AVX-512 alone."""
    tell = getattr(torch.cpu, "get_capabilities", None)
    if tell is not None:
        return dict(tell())
    return {"architecture": platform.machine(), "avx512_f": torch.backends.cpu.get_cpu_capability() == "AVX512"}


def to_blocks(graph: Graph, weight: str, grid: Grid) -> bool:
    """Every product with ``weight`` (out, in) becomes a MatMulNBits; False, and nothing done, where no kernel takes its groups."""
    out_features, in_features = graph.constants[weight].dims
    block = block_of(grid, out_features, in_features)
    found = products(graph, weight)
    if not block or not found or not is_sound(grid):
        return False
    names = _add_weight(graph, weight, grid, block)
    for product in found:
        inputs = [product.input, *names, "", product.bias][: None if product.bias else -2]
        node = helper.make_node(
            "MatMulNBits", inputs, [product.output], name=f"{product.output}:MatMulNBits", domain=DOMAIN,
            K=in_features, N=out_features, bits=container(grid.bits), block_size=block, accuracy_level=ACCURACY_LEVEL,
        )  # fmt: skip
        substitute(graph, product, node)
    return True


def _add_weight(graph: Graph, weight: str, grid: Grid, block: int) -> list[str]:
    """Initializers of the packed codes, scales and zero points ("" where they are the middle of the range)."""
    out_features, in_features = graph.constants[weight].dims
    bits, blocks = container(grid.bits), -(-in_features // block)
    steps = grid.steps().reshape(out_features, in_features)
    zero = np.full((out_features, blocks), 2 ** (bits - 1))
    if not grid.is_symmetric():
        zero = _by_block(grid, grid.zeros(), (out_features, blocks))
    padded = np.pad(steps, ((0, 0), (0, blocks * block - in_features)))
    codes = padded.reshape(out_features, blocks, block) + zero[:, :, None]
    assert codes.min() >= 0, weight
    assert codes.max() < 2**bits, weight
    scale = _by_block(grid, grid.scale.cpu().numpy().astype(np.float32), (out_features, blocks))
    names = [graph.add(f"{weight}:codes", pack_low_first(codes, bits)), graph.add(f"{weight}:scale", scale)]
    return [*names, "" if grid.is_symmetric() else graph.add(f"{weight}:zero", pack_low_first(zero, bits))]


def _by_block(grid: Grid, values: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """One value a scale of the grid -> one a block, (out, blocks)."""
    groups = max(grid.scale.numel() // shape[0], 1)
    rows = np.broadcast_to(values.reshape(-1, groups), (shape[0], groups))
    return np.repeat(rows, shape[1] // groups, axis=1)


def pack_low_first(codes: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """(..., n) codes -> (..., n * bits / 8 rounded up) bytes, each with its first code in the lowest bits."""
    many = 8 // bits
    padded = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % many)]).astype(np.uint8)
    shifts = np.arange(many, dtype=np.uint8) * bits
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(padded.reshape(*padded.shape[:-1], -1, many) << shifts, axis=-1)
    return packed


@functools.cache
def has_two_bits() -> bool:
    """Whether the installed ONNX Runtime has the kernel for two bits, which came after those for four and eight."""
    node = helper.make_node("MatMulNBits", ["x", "codes", "scale"], ["y"], domain=DOMAIN, K=32, N=1, bits=2, block_size=32)
    parts = [numpy_helper.from_array(np.zeros((1, 1, 8), np.uint8), "codes"), numpy_helper.from_array(np.ones((1, 1), np.float32), "scale")]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width]) for name, width in (("x", 32), ("y", 1))]
    graph = helper.make_graph([node], "two bits", ends[:1], ends[1:], parts)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    try:
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except (onnxruntime.capi.onnxruntime_pybind11_state.Fail, onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException):
        return False
    return True
