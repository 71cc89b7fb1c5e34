"""A runtime for tests of the search only: outputs are real, *times are made up* from the number of weights. Never offered to users."""

from torch import nn

from autocompress.blocks import FakeQuantized
from autocompress.records import Machine
from autocompress.runtimes.eager import Eager, EagerDeployed
from autocompress.runtimes.runtime import Array


class FakeDeployed(EagerDeployed):
    """Runs the module; says 1 microsecond a thousand weights, a third of that for integer layers."""

    def seconds(self, inputs: Array, calls: int) -> list[float]:
        integer = set(self.model.bits) if isinstance(self.model, FakeQuantized) else set()
        inner = self.model.model if isinstance(self.model, FakeQuantized) else self.model
        layers = ((name, module.weight.numel()) for name, module in inner.named_modules() if isinstance(module, nn.Conv2d | nn.Linear))
        return [1e-9 * sum(count / 3 if name in integer else count for name, count in layers)] * calls


class Fake(Eager):
    """See Runtime."""

    name = "fake"
    deployed = FakeDeployed
    simulates_bits = True

    def weight_bits(self, machine: Machine) -> dict[int, str]:
        return {bits: "" if bits in (7, 8, 32) else "the fake runtime pretends for 7 and 8 bits only" for bits in (*range(2, 17), 32)}


RUNTIME = Fake()
