"""Eager PyTorch on the CPU: the reference. fp32 only, for it has no integer kernels for our blocks and simulates none.

What ships is weights.safetensors; the module is rebuilt from the recipe (see ``export.load``).
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from autocompress.blocks import FakeQuantized
from autocompress.errors import InfeasibleRecipe, UserError
from autocompress.records import Machine
from autocompress.runtimes.runtime import Array, Deployed

WEIGHTS = "weights.safetensors"


class EagerDeployed(Deployed):
    """The module itself, with torch's thread count borrowed for every series of calls."""

    def __init__(self, folder: Path, threads: int, model: nn.Module) -> None:
        super().__init__(folder)
        self.threads, self.model = threads, model.cpu().eval()

    @property
    def size_bytes(self) -> int:
        return (self.folder / WEIGHTS).stat().st_size

    def run(self, inputs: Array) -> Array:
        with torch.no_grad():
            outputs: Array = self.model(torch.from_numpy(np.ascontiguousarray(inputs))).numpy()
        return outputs

    def seconds(self, inputs: Array, calls: int) -> list[float]:
        with threads(self.threads):
            return super().seconds(inputs, calls)


class Eager:
    """See Runtime."""

    name = "eager"
    channel_multiple = 8
    deployed: type[EagerDeployed] = EagerDeployed
    simulates_bits = False

    def weight_bits(self, machine: Machine) -> dict[int, str]:
        return {bits: "" if bits == 32 else "eager PyTorch has no integer kernels here" for bits in (*range(2, 17), 32)}

    def write(self, model: nn.Module, example: Tensor, folder: Path) -> None:
        if isinstance(model, FakeQuantized) and not self.simulates_bits:
            raise InfeasibleRecipe(f"{', '.join(model.bits)}: eager PyTorch has no integer kernels here; set weight_bits to 32")
        write_weights(model, folder)

    def open(self, folder: Path, threads: int, model: nn.Module) -> EagerDeployed:
        model.load_state_dict(read_weights(folder))
        return self.deployed(folder, threads, model)


def write_weights(model: nn.Module, folder: Path) -> None:
    """The state of a model as safetensors: contiguous, on the CPU, tied tensors under each of their names."""
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    (folder / WEIGHTS).write_bytes(save(state))  # not save_file: it reports a full disk as something else than an OSError


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Raises UserError where the file is missing or not safetensors."""
    try:
        return load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS}: the weights cannot be read ({error}); export the artifact again") from None


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
