"""Eager PyTorch on the CPU: the reference. fp32, half floats where a recipe asks for them, and weight-only layers, which it computes
in float; it has no integer kernels for our blocks and simulates none.

What ships is weights.safetensors; the module is rebuilt from the recipe (see ``export.load``).
"""

import contextlib
import copy
import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.blocks import FakeQuantized
from autocompress.blocks.rounding import HALF
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import HALF_BITS, Scheme
from autocompress.records import Machine
from autocompress.runtimes.grids import KINDS
from autocompress.runtimes.grids import layers as layers_of
from autocompress.runtimes.runtime import REST, Array, Call, Deployed, Kind, Support, impossible
from autocompress.runtimes.weights import read_weights, weights_bytes, write_weights

BF16 = ("avx512_bf16", "amx_bf16")  # instructions that multiply bfloat16


class EagerDeployed(Deployed):
    """The module itself, with torch's thread count borrowed for every series of calls."""

    def __init__(self, folder: Path, threads: int, model: nn.Module) -> None:
        super().__init__(folder)
        self.threads, self.model = threads, model.cpu().eval()

    @property
    def size_bytes(self) -> int:
        return weights_bytes(self.folder)

    def with_threads(self, threads: int) -> "EagerDeployed":
        return type(self)(self.folder, threads, self.model)

    def run(self, inputs: Array) -> Array:
        with torch.no_grad():
            outputs: Array = self.model(torch.from_numpy(np.ascontiguousarray(inputs))).numpy()
        return outputs

    def timed(self, inputs: Array, calls: int) -> list[Call]:
        with threads(self.threads):
            return super().timed(inputs, calls)

    def profile(self, inputs: Array, layers: Collection[str], calls: int = 30) -> dict[str, float]:
        """See Deployed; by a clock before and after each layer's call. A layer that another one reads without calling it is in the rest."""
        spent: dict[str, list[float]] = defaultdict(list)
        started: dict[str, float] = {}
        hooks = []
        for name, module in self.model.named_modules():
            if name in layers:
                hooks.append(module.register_forward_pre_hook(lambda module, args, name=name: started.update({name: time.perf_counter()})))
                hooks.append(
                    module.register_forward_hook(
                        lambda module, args, out, name=name: spent[name].append(time.perf_counter() - started[name])
                    )
                )
        try:
            whole = self.seconds(inputs, calls + 1)[1:]
        finally:
            for hook in hooks:
                hook.remove()
        a_call = {name: len(times) / (calls + 1) for name, times in spent.items()}
        found = {name: 1000 * a_call[name] * float(np.median(times)) for name, times in spent.items()}
        return found | {REST: max(1000 * float(np.median(whole)) - sum(found.values()), 0.0)}


class Eager:
    """See Runtime."""

    name = "eager"
    channel_multiple = 8

    def weight_bits(self, machine: Machine) -> dict[int, str]:
        return {bits: "" if bits == 32 else "eager PyTorch has no integer kernels here" for bits in (*range(2, 17), 32)}

    def support(self, kind: Kind, scheme: Scheme, weight_bits: int, machine: Machine) -> Support:
        if scheme in ("static", "dynamic"):
            return Support(False, False, "eager PyTorch has no integer kernels here")
        if impossible(kind, scheme, weight_bits):
            return Support(False, False, impossible(kind, scheme, weight_bits))
        if scheme == "weight_only":
            return Support(True, False, "weights are stored packed and computed with in float: a smaller file, the same speed")
        if scheme == "half" and not set(BF16) & set(machine.instruction_sets):
            return Support(True, False, "this CPU has no instructions for bfloat16: a smaller file, no more speed")
        return Support(True, True)

    def write(self, model: nn.Module, example: Tensor, folder: Path) -> None:
        for layer in layers_of(model) if isinstance(model, FakeQuantized) else []:
            if layer.scheme in ("static", "dynamic"):
                bits = f"weight_bits {layer.weight_bits}, activation_bits {layer.activation_bits}"
                raise InfeasibleRecipe(f"{layer.name}: {bits}: eager PyTorch has no integer kernels here. Set both to 32, or to 16.")
        write_weights(model, folder)

    def open(self, folder: Path, threads: int, model: nn.Module) -> EagerDeployed:
        model.load_state_dict(read_weights(folder))
        return EagerDeployed(folder, threads, in_half(model) if isinstance(model, FakeQuantized) else model)


def in_half(model: FakeQuantized) -> nn.Module:
    """The wrapped model, whose weights are on their grids, with a copy of it where layers compute in half floats.

    Such a layer's parameters are in that type, its inputs are cast to it, and its outputs back to float.
    """
    names = [layer.name for layer in layers_of(model) if layer.activation_bits == HALF_BITS]
    if not names:
        return model.model
    inner, dtype = copy.deepcopy(model.model), HALF[model.settings.half]
    for name in names:
        layer = inner.get_submodule(name)
        if type(layer) in KINDS:  # a projection inside of torch's own attention is read, not called
            layer.to(dtype)
            layer.register_forward_pre_hook(lambda module, args: _cast(args, dtype))
            layer.register_forward_hook(lambda module, args, out: _cast(out, torch.float32))
    return inner


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    return type(value)(_cast(item, dtype) for item in value) if isinstance(value, tuple | list) else value


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """torch's intra-op thread count, borrowed and given back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


RUNTIME = Eager()
