"""A runtime for tests of the search only: outputs are real, *times are made up* from the number of weights. Never offered to users."""

from collections.abc import Collection
from pathlib import Path

from torch import Tensor, nn

from autocompress.blocks import FakeQuantized
from autocompress.recipe import Scheme
from autocompress.records import Machine
from autocompress.runtimes.eager import Eager, EagerDeployed
from autocompress.runtimes.runtime import REST, Array, Call, Kind, Support, impossible
from autocompress.runtimes.weights import read_weights, write_weights


class FakeDeployed(EagerDeployed):
    """Runs the module; says 1 microsecond a thousand weights, a third of that for integer layers."""

    def timed(self, inputs: Array, calls: int) -> list[Call]:
        return [Call(sum(self._costs().values()))] * calls

    def profile(self, inputs: Array, layers: Collection[str], calls: int = 30) -> dict[str, float]:
        """See Deployed; by the same arithmetic."""
        found = dict.fromkeys((REST,), 0.0)
        for name, seconds in self._costs().items():
            owner = next((layer for layer in layers if name == layer or name.startswith(f"{layer}.")), REST)
            found[owner] = found.get(owner, 0.0) + 1000 * seconds
        return found

    def _costs(self) -> dict[str, float]:
        """Made-up seconds of every convolution and linear layer."""
        integer = {name for name, bits in self.model.bits.items() if min(bits) <= 8} if isinstance(self.model, FakeQuantized) else set()
        inner = self.model.model if isinstance(self.model, FakeQuantized) else self.model
        layers = ((name, module.weight.numel()) for name, module in inner.named_modules() if isinstance(module, nn.Conv2d | nn.Linear))
        return {name: 1e-9 * (count / 3 if name in integer else count) for name, count in layers}


class Fake(Eager):
    """See Runtime."""

    name = "fake"

    def weight_bits(self, machine: Machine) -> dict[int, str]:
        return {bits: "" if bits in (7, 8, 32) else "the fake runtime pretends for 7 and 8 bits only" for bits in (*range(2, 17), 32)}

    def support(self, kind: Kind, scheme: Scheme, weight_bits: int, machine: Machine) -> Support:
        if impossible(kind, scheme, weight_bits):
            return Support(False, False, impossible(kind, scheme, weight_bits))
        reason = "" if scheme == "none" else self.weight_bits(machine)[weight_bits]
        return Support(True, not reason, reason)

    def write(self, model: nn.Module, example: Tensor, folder: Path) -> None:
        write_weights(model, folder)

    def open(self, folder: Path, threads: int, model: nn.Module) -> FakeDeployed:
        model.load_state_dict(read_weights(folder))
        return FakeDeployed(folder, threads, model)


RUNTIME = Fake()
