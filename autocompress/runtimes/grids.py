"""The grids that the weights of a frozen model lie on, as runtimes read them: integer codes, and what they count in."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.blocks import FakeQuantized, WeightQuantizer
from autocompress.blocks.rounding import HALF
from autocompress.recipe import HALF_BITS, Scheme
from autocompress.runtimes.runtime import Kind

KINDS: dict[type[nn.Module], Kind] = {nn.Conv2d: "conv2d", nn.Linear: "linear", nn.LSTM: "lstm", nn.GRU: "gru"}


class Grid(NamedTuple):
    """weight = (codes - zero_point) * scale, each scale (n,) for the next numel / n elements in memory: a tensor, a channel or a group."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    bits: int
    scale_name: str = ""
    zero_point_name: str = ""

    def steps(self) -> NDArray[np.int64]:
        """codes - zero_point, (n, numel / n)."""
        rows = self.codes.reshape(self.scale.numel(), -1).long() - self.zero_point.reshape(-1, 1).long()
        found: NDArray[np.int64] = rows.cpu().numpy()
        return found

    @property
    def low(self) -> int:
        """The least code of this width: grids count from 0 or around it."""
        return 0 if int(self.codes.min()) >= 0 else -(2 ** (self.bits - 1))

    def zeros(self) -> NDArray[np.int64]:
        """Zero points (n,) of codes that count from 0."""
        found: NDArray[np.int64] = self.zero_point.long().cpu().numpy() - self.low
        return found

    def is_symmetric(self) -> bool:
        return not bool(self.zero_point.any())


class Layer(NamedTuple):
    """One layer of a fake-quantized model: its bits, by which scheme, and the names of its quantized parameters in the model's state."""

    name: str
    kind: Kind
    scheme: Scheme
    weight_bits: int
    activation_bits: int
    parameters: tuple[str, ...]


def layers(model: FakeQuantized) -> list[Layer]:
    found = []
    for name, (weight_bits, activation_bits) in model.bits.items():
        module = model.model.get_submodule(name)
        kind = next(kind for of, kind in KINDS.items() if isinstance(module, of))
        parameters = tuple(f"model.{name}.{key}" for key, _ in module.named_parameters(recurse=False) if key.startswith("weight"))
        found.append(Layer(name, kind, model.schemes[name], weight_bits, activation_bits, parameters))
    return found


def halves(model: FakeQuantized) -> dict[str, torch.dtype]:
    """Names of all parameters of layers with half weights -> the type that holds them."""
    found = {}
    for name, (weight_bits, _) in model.bits.items():
        if weight_bits == HALF_BITS:
            for key, _ in model.model.get_submodule(name).named_parameters(recurse=False):
                found[f"model.{name}.{key}"] = HALF[model.settings.half]
    return found


def grids(model: FakeQuantized) -> dict[str, Grid]:
    """Name of every integer weight in the state of ``model`` -> its grid."""
    names = {id(module): name for name, module in model.named_modules()}
    found = {}
    for layer, parameter, quantizer in model.quantizers():
        if isinstance(quantizer, WeightQuantizer):
            weight = model.model.get_submodule(layer).get_parameter(parameter).detach()
            scale, zero = quantizer.scale.detach().reshape(-1), quantizer.zero_point.reshape(-1)
            held = names[id(quantizer)]
            grid = Grid(quantizer.codes(weight), scale, zero, quantizer.bits, f"{held}.scale", f"{held}.zero_point")
            found[f"model.{layer}.{parameter}"] = grid
    return found


def from_codes(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """(codes - zero_point) * scale in float32, of the shape of ``codes``."""
    rows = codes.reshape(scale.numel(), -1) - zero_point.reshape(-1, 1)
    return (rows.to(torch.float32) * scale.reshape(-1, 1)).reshape(codes.shape)
