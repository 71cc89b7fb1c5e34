"""Static layers: their traced weights, QuantizeLinear and DequantizeLinear of a float constant, become the int8 constant itself."""

import numpy as np
from onnx import NodeProto, helper

from autocompress.runtimes.grids import Grid
from autocompress.runtimes.qdq import Graph


def static_weight(graph: Graph, weight: str, grid: Grid) -> None:
    """Whoever reads the rounded initializer ``weight`` reads one DequantizeLinear of ``grid.codes`` instead."""
    rounded = f"{weight}:rounded"
    readers = [(node, value) for value in _rounded(graph, weight) for node in graph.readers[value]]
    if not readers:
        return
    scale = grid.scale.cpu().numpy().astype(np.float32)
    scale = scale.reshape(()) if scale.size == 1 else scale
    names = [
        graph.add(f"{weight}:codes", grid.steps().astype(np.int8).reshape(grid.codes.shape)),
        graph.add(f"{weight}:scale", scale),
        graph.add(f"{weight}:zero", np.zeros(scale.shape, np.int8)),
    ]
    graph.graph.node.insert(0, helper.make_node("DequantizeLinear", names, [rounded], name=rounded, axis=0))
    for node, value in readers:
        for index, name in enumerate(node.input):
            if name == value:
                node.input[index] = rounded


def _rounded(graph: Graph, weight: str) -> list[str]:
    """What the trace made of the weight, once for each call of the layer: a pair, and the shape of the weight again."""
    found = []
    for pair in _next(graph, weight, "QuantizeLinear"):
        for value in _next(graph, pair.output[0], "DequantizeLinear"):
            shapes = _next(graph, value.output[0], "Reshape")
            found.append(shapes[0].output[0] if shapes else value.output[0])
    return found


def _next(graph: Graph, value: str, operator: str) -> list[NodeProto]:
    return [node for node in graph.readers[value] if node.op_type == operator and node.input[0] == value]
