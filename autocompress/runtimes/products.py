"""How a Linear looks in an exported graph, whatever its number of axes: x @ weight.T + bias, once for every call of the layer."""

from typing import NamedTuple

from onnx import NodeProto

from autocompress.runtimes.qdq import Graph


class Product(NamedTuple):
    """The nodes of one call, the last of which makes ``output``; ``bias`` is the name of a constant, or empty."""

    nodes: tuple[NodeProto, ...]
    input: str
    output: str
    bias: str


def products(graph: Graph, weight: str) -> list[Product]:
    """Every Gemm of ``weight`` (out, in), and every MatMul of its Transpose with the Add of a bias where there is one."""
    found = []
    for reader in graph.readers[weight]:
        if reader.op_type == "Gemm" and reader.input[1] == weight:
            found.append(Product((reader,), reader.input[0], reader.output[0], reader.input[2] if len(reader.input) > 2 else ""))
        elif reader.op_type == "Transpose":
            matmuls = (node for node in graph.readers[reader.output[0]] if node.op_type == "MatMul" and node.input[1] == reader.output[0])
            found += [_with_bias(graph, node) for node in matmuls]
    return found


def _with_bias(graph: Graph, matmul: NodeProto) -> Product:
    readers = graph.readers[matmul.output[0]]
    if len(readers) == 1 and readers[0].op_type == "Add":
        bias = next((name for name in readers[0].input if name != matmul.output[0]), "")
        value = graph.array(bias) if bias else None
        if value is not None and value.ndim == 1:
            return Product((matmul, readers[0]), matmul.input[0], readers[0].output[0], bias)
    return Product((matmul,), matmul.input[0], matmul.output[0], "")


def substitute(graph: Graph, product: Product, node: NodeProto) -> None:
    """``node`` in the place of the last node of ``product``; the others go."""
    for old in product.nodes[:-1]:
        graph.replace(old, [])
    graph.replace(product.nodes[-1], [node])
