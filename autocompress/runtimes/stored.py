"""Weights without a kernel of their width: stored as 8-bit integers or half floats, and turned into float by Cast, Sub and Mul.

ONNX Runtime folds these operators when it loads the file (DequantizeLinear it would run at every call): a smaller file, the same speed.
"""

import numpy as np
import torch
from onnx import NodeProto, TensorProto, helper

from autocompress.runtimes.grids import Grid
from autocompress.runtimes.qdq import Graph


def store_integers(graph: Graph, weight: str, grid: Grid) -> None:
    """The initializer called ``weight`` becomes what Cast, Sub and Mul make of 8-bit ``grid.codes``."""
    shape = list(graph.constants[weight].dims)
    rows = grid.steps()
    names = [f"{weight}:{part}" for part in ("codes", "zero", "scale", "float", "steps", "rows", "shape")]
    codes, zero, scale, cast, steps, scaled, form = names
    source = cast
    nodes = [helper.make_node("Cast", [codes], [cast], to=TensorProto.FLOAT)]
    by_channel = len(rows) in (1, shape[0])
    column = [len(rows)] + [1] * (len(shape) - 1 if by_channel else 1)
    if rows.min(initial=0) >= -128 and rows.max(initial=0) <= 127:
        integers = rows.astype(np.int8)
    else:  # asymmetric in 8 bits: up to 255 steps from the zero point
        low = rows.min(1, keepdims=True)
        integers = (rows - low).astype(np.uint8)
        graph.add(zero, (-low).astype(np.float32).reshape(column))
        nodes.append(helper.make_node("Sub", [cast, zero], [steps]))
        source = steps
    graph.add(codes, integers.reshape(shape) if by_channel else integers)
    graph.add(scale, grid.scale.cpu().numpy().astype(np.float32).reshape(column))
    nodes.append(helper.make_node("Mul", [source, scale], [weight if by_channel else scaled]))
    if not by_channel:
        graph.add(form, np.array(shape, np.int64))
        nodes.append(helper.make_node("Reshape", [scaled, form], [weight]))
    _replace_initializer(graph, weight, nodes)


def store_half(graph: Graph, parameter: str, dtype: torch.dtype) -> None:
    """The initializer called ``parameter`` becomes a Cast of its values in fp16 or bf16."""
    value = graph.array(parameter)
    assert value is not None
    half = torch.from_numpy(value.copy()).to(dtype)
    kind = TensorProto.FLOAT16 if dtype == torch.float16 else TensorProto.BFLOAT16
    raw = half.view(torch.int16).numpy().tobytes()
    graph.graph.initializer.append(helper.make_tensor(f"{parameter}:half", kind, value.shape, raw, raw=True))
    _replace_initializer(graph, parameter, [helper.make_node("Cast", [f"{parameter}:half"], [parameter], to=TensorProto.FLOAT)])


def _replace_initializer(graph: Graph, name: str, nodes: list[NodeProto]) -> None:
    position = next(index for index, item in enumerate(graph.graph.initializer) if item.name == name)
    del graph.graph.initializer[position]
    for offset, node in enumerate(nodes):
        node.name = f"{node.output[0]}:{node.op_type}"
        graph.graph.node.insert(offset, node)
