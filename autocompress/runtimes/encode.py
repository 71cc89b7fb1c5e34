"""Weights on grids, layer by layer, in the form that ONNX Runtime is fastest with. What rounds activations of static layers was traced;
layers whose weights alone are on a grid, or whose inputs get one at run time, left no trace in the exported graph.
"""

import onnx

from autocompress.blocks import FakeQuantized
from autocompress.runtimes.dynamic import DOMAIN, dynamic_linear, dynamic_lstm
from autocompress.runtimes.grids import grids, halves, layers
from autocompress.runtimes.qdq import Graph
from autocompress.runtimes.static import static_weight
from autocompress.runtimes.stored import store_half, store_integers
from autocompress.runtimes.weight_only import to_blocks


def encode(graph_model: onnx.ModelProto, model: FakeQuantized) -> None:
    """Rewrite in place the weights of ``graph_model`` that ``model`` (frozen) has on grids, and the operators that read them."""
    on_grid = grids(model)
    alias = _aliases(graph_model, model)
    done: set[str] = set()
    for layer in layers(model):
        if layer.scheme == "dynamic" and layer.kind == "lstm":
            dynamic_lstm(Graph(graph_model), f"model.{layer.name}.weight", on_grid)
            continue
        for name in layer.parameters:
            graph, weight = Graph(graph_model), alias.get(name, name)
            if name not in on_grid or weight not in graph.constants or weight in done:
                continue
            done.add(weight)
            if layer.scheme == "static":
                static_weight(graph, weight, on_grid[name])
            elif layer.scheme == "dynamic" and layer.kind == "linear":
                dynamic_linear(graph, weight, on_grid[name])
            elif layer.kind != "linear" or not to_blocks(graph, weight, on_grid[name]):
                store_integers(graph, weight, on_grid[name])
    for name, dtype in halves(model).items():
        graph, parameter = Graph(graph_model), alias.get(name, name)
        if parameter in graph.constants:
            store_half(graph, parameter, dtype)
    if any(node.domain == DOMAIN for node in graph_model.graph.node):
        graph_model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))


def own_copies(graph_model: onnx.ModelProto, model: FakeQuantized) -> None:
    """The exporter keeps one of several equal parameters and reads the others from it through Identity: where one of them is encoded,
    all get their values back under their own names.
    """
    graph = Graph(graph_model)
    encoded = {*grids(model), *halves(model)}
    for name, value in model.named_parameters(remove_duplicate=False):
        node = graph.producer.get(name)
        if node is not None and node.op_type == "Identity" and encoded & {name, node.input[0]}:
            graph.replace(node, [])
            graph.add(name, value.detach().cpu().float().contiguous().numpy())


def _aliases(graph_model: onnx.ModelProto, model: FakeQuantized) -> dict[str, str]:
    """Name of a tied parameter -> the name of the same one that is in the graph."""
    present = {item.name for item in graph_model.graph.initializer}
    named = dict(model.named_parameters(remove_duplicate=False))
    by_identity = {id(value): name for name, value in named.items() if name in present}
    return {name: by_identity[id(value)] for name, value in named.items() if id(value) in by_identity}
