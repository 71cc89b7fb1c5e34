"""Layers with integer weights whose input ranges are taken from each input: ONNX Runtime's DynamicQuantizeMatMul and DynamicQuantizeLSTM.

Inputs: uint8, one affine scale a tensor, zero inside the range. Weights: int8, one scale a channel or tensor. The LSTM kernel
quantizes its hidden state as well, anew at every step.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from autocompress.runtimes.grids import Grid
from autocompress.runtimes.products import products, substitute
from autocompress.runtimes.qdq import Graph

DOMAIN = "com.microsoft"
GATES = [0, 3, 1, 2]  # torch's order i f g o -> ONNX's i o f c


def dynamic_linear(graph: Graph, weight: str, grid: Grid) -> None:
    """Every product with ``weight`` (out, in) becomes a DynamicQuantizeMatMul."""
    out_features, in_features = graph.constants[weight].dims
    integers, zero = _int8(grid)
    names = [
        graph.add(f"{weight}:codes", np.ascontiguousarray(integers.reshape(out_features, in_features).T)),
        graph.add(f"{weight}:scale", _by_channel(grid.scale.cpu().numpy(), out_features)),
        "" if zero is None else graph.add(f"{weight}:zero", _by_channel(zero, out_features)),
    ]
    for product in products(graph, weight):
        inputs = [product.input, *names, product.bias]
        node = helper.make_node("DynamicQuantizeMatMul", inputs, [product.output], name=f"{product.output}:dynamic", domain=DOMAIN)
        substitute(graph, product, node)


def dynamic_lstm(graph: Graph, prefix: str, grids: dict[str, Grid]) -> None:
    """Every LSTM operator of the layer whose parameters start with ``prefix`` becomes a DynamicQuantizeLSTM."""
    for node in [node for node in graph.graph.node if node.op_type == "LSTM"]:
        sources = [_sources(graph, node.input[index], prefix) for index in (1, 2)]  # a name for each direction, of weight_ih and weight_hh
        if not all(sources):
            continue
        inputs = [*node.input, *[""] * (8 - len(node.input))]
        scales = []
        for index, names in zip((1, 2), sources, strict=True):
            inputs[index], *more = _recurrent(graph, f"{node.output[0]}:{index}", [grids[name] for name in names])
            scales += more
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        new = helper.make_node("DynamicQuantizeLSTM", [*inputs, *scales], list(node.output), node.name, domain=DOMAIN, **attributes)
        graph.replace(node, [new])


def _sources(graph: Graph, value: str, prefix: str) -> list[str]:
    """Names of the parameters under ``prefix`` that the constant expression ``value`` is made of, forward direction first."""
    waiting, found = [value], set()
    while waiting:
        name = waiting.pop()
        if name in graph.producer:
            waiting += graph.producer[name].input
        elif name.startswith(prefix):
            found.add(name)
    return sorted(found)  # "..._l0" < "..._l0_reverse"


def _recurrent(graph: Graph, name: str, directions: list[Grid]) -> tuple[str, str, str]:
    """Grids of (4 * hidden, in) weights, one a direction -> initializers (directions, in, 4 * hidden), scales, zero points."""
    codes, scales = [], []
    for grid in directions:
        integers, zero = _int8(grid)
        assert zero is None, name
        rows = grid.codes.shape[0]
        by_gate = integers.reshape(4, rows // 4, -1)[GATES]
        codes.append(by_gate.reshape(rows, -1).T)
        scales.append(_by_channel(grid.scale.cpu().numpy(), rows).reshape(4, -1)[GATES].reshape(-1))
    scale = np.stack(scales).astype(np.float32)
    return (
        graph.add(f"{name}_codes", np.stack(codes)),
        graph.add(f"{name}_scale", scale),
        graph.add(f"{name}_zero", np.zeros(scale.shape, np.int8)),
    )


def _int8(grid: Grid) -> tuple[NDArray[np.int8], NDArray[np.int8] | None]:
    """(n, elements a scale) and zero points (n,), None where all are 0; no larger than the bits of the grid, so that 7 do not saturate."""
    steps = grid.steps()
    if grid.is_symmetric():
        return steps.astype(np.int8), None
    zero = grid.zeros() - 2 ** (grid.bits - 1)
    return (steps + zero[:, None]).astype(np.int8), zero.astype(np.int8)


def _by_channel(values: NDArray[Any], channels: int) -> NDArray[Any]:
    return np.broadcast_to(values, (channels,)) if values.size == 1 else values
