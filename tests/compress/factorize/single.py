"""One layer as a model, factorized. Imported as a module."""

from typing import Any

import torch
from torch import Tensor, nn

from autocompress.compress.factorize import factorize
from autocompress.recipe import LayerPlan
from tests.small_models import Net

MATRICES = ("svd", "activation_svd")
KERNELS = ("tucker2", "cp", "spatial_svd")


def alone(layer: nn.Module) -> Net:
    return Net(lambda m, x: m.layer(x), layer=layer)


def plan(rank: int | None = None, energy: float | None = None, method: str = "auto", name: str = "layer") -> LayerPlan:
    return LayerPlan.model_validate({"name": name, "rank": rank, "energy": energy, "factorization": method})


def block_of(layer: nn.Module, rank: int | None = None, energy: float | None = None, method: str = "auto", x: Tensor | None = None) -> Any:
    """The block that takes the layer's place; x (N, ...) are calibration inputs."""
    return factorize(alone(layer), {"layer": plan(rank, energy, method)}, x).layer


def seeded_conv(inner: int, outer: int, kernel: int | tuple[int, int] = 3, seed: int = 0, **options: Any) -> nn.Conv2d:
    """A convolution in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Conv2d(inner, outer, kernel, **options).double()


def seeded_linear(inner: int, outer: int, bias: bool = True) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(inner, outer, bias=bias).double()


def kept(layer: nn.Module, block: Any) -> float:
    """Share of the squared norm of the weight that the block keeps."""
    return 1 - float((((layer.weight - block.weight).norm() / layer.weight.norm()) ** 2).detach())
