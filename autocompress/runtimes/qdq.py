"""From a traced graph with QuantizeLinear/DequantizeLinear pairs to one that integer kernels can take.

Biases become int32 initializers on the grid (input scale * weight scale), means over height and width GlobalAveragePool, Identity nodes
go, and ``encode`` puts weights on their grids. A graph without pairs is only cleaned.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

BIASED = ("Conv", "Gemm")
EIGHT_BITS = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)


class Graph:
    """An ONNX graph with the lookups that rewriting needs: constants by name, the node that makes a value, the nodes that read it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.graph = model, model.graph
        self.constants = {item.name: item for item in self.graph.initializer}
        for node in self.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t
        self.producer: dict[str, NodeProto] = {output: node for node in self.graph.node for output in node.output}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.graph.node:
            for value in node.input:
                self.readers[value].append(node)

    def array(self, name: str) -> NDArray[Any] | None:
        """The constant called ``name``, also behind Identity nodes, or None."""
        while name not in self.constants and name in self.producer and self.producer[name].op_type == "Identity":
            name = self.producer[name].input[0]
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def add(self, name: str, value: NDArray[Any]) -> str:
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def replace(self, old: NodeProto, new: list[NodeProto]) -> None:
        position = next(index for index, node in enumerate(self.graph.node) if node is old)
        del self.graph.node[position]
        for offset, node in enumerate(new):
            self.graph.node.insert(position + offset, node)


def fold(model: onnx.ModelProto, encode: Callable[[onnx.ModelProto], None] | None = None) -> onnx.ModelProto:
    """Rewrite ``model`` in place, check it, and return it; ``encode`` then finds its weights with their names, before their readers."""
    _remove_identities(Graph(model))
    _constant_casts(Graph(model))
    _pool(Graph(model))
    if encode is not None:
        encode(model)
    _integer_biases(Graph(model))
    _shield_floats(Graph(model))
    _remove_unused(Graph(model))
    onnx.checker.check_model(model)
    return model


def _remove_identities(graph: Graph) -> None:
    """Initializers shared by equal layers come through Identity nodes; read the initializer itself."""
    results = {output.name for output in graph.graph.output}
    for node in list(graph.graph.node):
        if node.op_type == "Identity" and node.output[0] not in results:
            for reader in graph.readers[node.output[0]]:
                for index, value in enumerate(reader.input):
                    if value == node.output[0]:
                        reader.input[index] = node.input[0]
            graph.readers[node.input[0]] += graph.readers[node.output[0]]
            graph.replace(node, [])


def _constant_casts(graph: Graph) -> None:
    """Zero points are traced as int32 constants cast to eight bits: the cast constant instead."""
    for node in list(graph.graph.node):
        value = graph.array(node.input[0]) if node.op_type == "Cast" and node.attribute[0].i in EIGHT_BITS else None
        if value is not None:
            graph.add(node.output[0], value.astype(helper.tensor_dtype_to_np_dtype(node.attribute[0].i)))
            graph.replace(node, [])


def _pool(graph: Graph) -> None:
    """ReduceMean never fuses: over the last two of four axes it is a GlobalAveragePool, followed by Flatten without keepdims."""
    ranks = _ranks(graph.model)
    for node in list(graph.graph.node):
        if node.op_type != "ReduceMean" or ranks.get(node.input[0]) != 4:
            continue
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        if sorted(attributes.get("axes", [])) not in ([2, 3], [-2, -1]):
            continue
        if attributes.get("keepdims", 1):
            graph.replace(node, [helper.make_node("GlobalAveragePool", [node.input[0]], [node.output[0]], name=node.name)])
            continue
        pooled = f"{node.output[0]}_pooled"
        pool = helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=node.name)
        graph.replace(node, [pool, *_flatten(graph, node, pooled)])


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    """Number of axes of every value whose shape onnx can infer."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        item.name: len(item.type.tensor_type.shape.dim)
        for item in (*graph.input, *graph.value_info, *graph.output)
        if item.type.tensor_type.HasField("shape")
    }


def _flatten(graph: Graph, mean: NodeProto, pooled: str) -> list[NodeProto]:
    """Flatten after the pool, with the pair that follows on both of its sides, so that pool and linear layer both stay integer."""
    readers = graph.readers[mean.output[0]]
    if not readers or readers[0].op_type != "QuantizeLinear":
        return [helper.make_node("Flatten", [pooled], [mean.output[0]], axis=1)]
    scale, zero = readers[0].input[1], readers[0].input[2]
    names = [f"{mean.output[0]}_{part}" for part in ("quantized", "rounded")]
    return [
        helper.make_node("QuantizeLinear", [pooled, scale, zero], [names[0]]),
        helper.make_node("DequantizeLinear", [names[0], scale, zero], [names[1]]),
        helper.make_node("Flatten", [names[1]], [mean.output[0]], axis=1),
    ]


def _integer_biases(graph: Graph) -> None:
    """A float bias between integer operands becomes int32 with scale = input scale * weight scale, zero point 0."""
    for node in list(graph.graph.node):
        if node.op_type not in BIASED or len(node.input) < 3:
            continue
        sources = [graph.producer.get(name) for name in node.input[:2]]
        bias = graph.array(node.input[2])
        if bias is None or any(source is None or source.op_type != "DequantizeLinear" for source in sources):
            continue
        scales = [graph.array(source.input[1]) for source in sources if source is not None]
        scale = (np.asarray(scales[0]) * np.asarray(scales[1])).astype(np.float32).reshape(-1)
        scale = np.broadcast_to(scale, bias.shape) if scale.size == 1 else scale
        name = f"{node.output[0]}_bias"
        steps = np.rint(bias.astype(np.float64) / scale).clip(-(2**31), 2**31 - 1).astype(np.int32)
        zeros = np.zeros(scale.shape, np.int32)
        inputs = [graph.add(f"{name}_int", steps), graph.add(f"{name}_scale", scale), graph.add(f"{name}_zero", zeros)]
        dequantize = helper.make_node("DequantizeLinear", inputs, [name], name=f"{node.name}_bias", axis=0)
        node.input[2] = name
        graph.replace(node, [dequantize, node])


def _shield_floats(graph: Graph) -> None:
    """A Clip without bounds before every float layer that reads a DequantizeLinear: without it ONNX Runtime quantizes that layer too
    (its WeightBiasQuantization), which the recipe did not ask for and nobody measured.
    """
    for node in list(graph.graph.node):
        if node.op_type not in BIASED:
            continue
        sources = [graph.producer.get(name) for name in node.input[:2]]
        reads_integers, is_integer = (source is not None and source.op_type == "DequantizeLinear" for source in sources)
        if reads_integers and not is_integer:
            name = f"{node.output[0]}_float"
            shield = helper.make_node("Clip", [node.input[0]], [name], name=name)
            node.input[0] = name
            graph.replace(node, [shield, node])


def _remove_unused(graph: Graph) -> None:
    """Nodes and initializers that nobody reads any more."""
    results = {output.name for output in graph.graph.output}
    while True:
        read = {value for node in graph.graph.node for value in node.input} | results
        unused = [node for node in graph.graph.node if not read & set(node.output)]
        if not unused:
            break
        for node in unused:
            graph.graph.node.remove(node)
    kept = [item for item in graph.graph.initializer if item.name in read]
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(kept)
