"""Time of each layer in ONNX Runtime, from its own profiler: what the optimizer fused or renamed is led back to the exported graph.

The exporter names an operator by the modules it runs in, ``/block1/conv1/Conv``. The optimizer keeps that name, adds to it
(``_nchwc``, ``_token_7``), or takes that of the last value of what it fused: ``/block1/Relu_output_0`` for a convolution and its ReLU.
"""

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from autocompress.runtimes.runtime import REST, Array
from autocompress.runtimes.session import FILE, session_options

HEAVY = re.compile("Conv|Gemm|MatMul|LSTM|GRU|Attention")  # operators that a layer's weights are read by, fused and integer ones included
SUFFIX = re.compile(r"(_token_\d+|_nchwc|_float|_quantized|:\w+)+$")
KERNEL = "_kernel_time"
MOST_EVENTS = 20_000  # of all calls together: a profile is read as a whole
WARM_UP = 3


def layer_times(folder: Path, threads: int, inputs: Array, layers: Collection[str], whole_ms: float, calls: int) -> dict[str, float]:
    """Milliseconds a call of each of ``layers`` that ran, and of all else under ``REST``; together ``whole_ms``, the time unprofiled.

    The profiler adds some microseconds to every kernel: what is over is taken off evenly, down to a tenth of the shortest one.
    """
    origins = Origins(onnx.load(folder / FILE).graph, layers)
    durations = kernel_durations(folder, threads, inputs, min(calls, max(5, MOST_EVENTS // max(len(origins.nodes), 1))))
    over = sum(durations.values()) - 1000 * whole_ms
    each = min(max(over, 0.0) / len(durations), 0.9 * min(durations.values()))
    left = {key: spent - each for key, spent in durations.items()}
    scale = whole_ms / max(sum(left.values()), 1e-9)
    found: dict[str, float] = defaultdict(float)
    names = origins.resolved(left)
    for key, spent in left.items():
        found[names[key]] += spent * scale
    return dict(found)


Kernel = tuple[str, str]  # its name in the optimized graph, its operator


def kernel_durations(folder: Path, threads: int, inputs: Array, calls: int) -> dict[Kernel, float]:
    """Microseconds a call of every kernel, in the order in which they run: the mean of the faster third, for others use the cores too."""
    with tempfile.TemporaryDirectory() as scratch:
        options = session_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(scratch) / "profile")
        session = onnxruntime.InferenceSession(folder / FILE, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        for _ in range(WARM_UP + calls):
            session.run(None, {name: inputs})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    series: dict[Kernel, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(KERNEL):
            series[event["name"].removesuffix(KERNEL), event["args"]["op_name"]].append(float(event["dur"]))
    found = {}
    for key, spent in series.items():
        a_call = np.array(spent).reshape(WARM_UP + calls, -1).sum(1)[WARM_UP:] if len(spent) % (WARM_UP + calls) == 0 else np.array(spent)
        found[key] = float(np.sort(a_call)[: (len(a_call) + 2) // 3].mean())
    return found


class Origins:
    """Which layer a kernel of the optimized graph comes from."""

    def __init__(self, graph: onnx.GraphProto, layers: Collection[str]) -> None:
        self.layers = set(layers)
        self.nodes = {node.name: node for node in graph.node}
        self.makers = {value: node for node in graph.node for value in node.output}
        self.memory: dict[str, str | None] = {}

    def resolved(self, kernels: Iterable[Kernel]) -> dict[Kernel, str]:
        """Kernel -> its layer, or ``REST``. Those that their name tells come first: a fused one may then only be a layer that is left.

        What rounds the input of a layer bears its name too, and is not the kernel that it is looked for.
        """
        found: dict[Kernel, str] = {}
        for kernel in kernels:
            found[kernel] = self.by_path(kernel[0]) or REST
        told = {layer for (_, operator), layer in found.items() if HEAVY.search(operator)}
        for name, operator in found:
            if found[name, operator] == REST and HEAVY.search(operator):
                found[name, operator] = self.by_graph(name, told) or REST
                told.add(found[name, operator])
        return found

    def by_path(self, name: str) -> str | None:
        """The innermost of the layers whose scope is on the path ``/block3/shortcut/shortcut.0/reduce/Conv``."""
        if name not in self.memory:
            parts = [part for part in re.sub(r"^\W*fused ", "", name).split("/") if part]
            self.memory[name] = self._innermost(parts)
        return self.memory[name]

    def by_weight(self, node: onnx.NodeProto) -> str | None:
        """The layer that a parameter among the node's inputs, ``model.head.weight:codes``, belongs to."""
        found = (self._innermost(value.split(":")[0].split(".")) for value in node.input if value not in self.makers or ":" in value)
        return next((layer for layer in found if layer is not None), None)

    def _innermost(self, parts: list[str]) -> str | None:
        path, before, found = "", "", None
        for part in parts:
            within = path.removesuffix(before) if before and part.startswith(f"{before}.") else f"{path}." if path else ""
            path, before = within + part, part  # a Sequential gives its children its own name too: /stem/stem.0
            inside = path.removeprefix("model.")  # of a fake-quantized model; a layer of the user's may be called so too
            found = path if path in self.layers else inside if inside in self.layers else found
        return found

    def by_graph(self, name: str, told: Collection[str]) -> str | None:
        """The nearest layer upstream of the node or value of this name that no other kernel is known to be."""
        start = self.nodes.get(name) or self.makers.get(name) or self._named(name)
        queue, seen = [start] if start is not None else [], set()
        while queue:
            node = queue.pop(0)
            layer = self.by_path(node.name) or self.by_weight(node)
            if layer is not None and HEAVY.search(node.op_type):
                if layer not in told:
                    return layer
                continue  # beyond another layer nothing was fused into this kernel
            for value in node.input:
                maker = self.makers.get(value)
                if maker is not None and maker.name not in seen:
                    seen.add(maker.name)
                    queue.append(maker)
        return None

    def _named(self, name: str) -> onnx.NodeProto | None:
        """The node or value whose name is the longest beginning of this one."""
        plain = SUFFIX.sub("", name)
        if plain in self.nodes or plain in self.makers:
            return self.nodes.get(plain) or self.makers.get(plain)
        known = [other for other in (*self.nodes, *self.makers) if other and other in name]
        longest = max(known, key=len, default="")
        return self.nodes.get(longest) or self.makers.get(longest)
