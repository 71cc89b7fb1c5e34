"""One model for every kind of layer, and the way from bits and settings to a frozen model on its grids. Imported as a module."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.blocks import FakeQuantized
from autocompress.compress.quantize import quantize
from autocompress.recipe import LayerPlan, Quantization, Recipe
from autocompress.runtimes.runtime import Deployed
from tests.small_models import Net, conv, inputs, outputs


def quantized(model: nn.Module, bits: Mapping[str, tuple[int, int]], x: Tensor, **settings: Any) -> FakeQuantized:
    """``model`` with the (weight, activation) bits of each layer in ``bits``, ranges from x (N, ...), frozen."""
    plans = tuple(LayerPlan(name=name, weight_bits=pair[0], activation_bits=pair[1]) for name, pair in bits.items())
    wrapped = quantize(model, Recipe(layers=plans, quantization=Quantization(**settings)), [x])
    wrapped.freeze_()
    return wrapped


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


def linear(width: int = 64) -> nn.Module:
    """Two and three axes, with and without a bias, one layer called twice. x (N, width) -> (N, 10)."""

    def run(m: Net, x: Tensor) -> Tensor:
        x = F.relu(m.b(F.relu(m.a(x)).unsqueeze(1)))
        return m.head(F.relu(m.c(F.relu(m.c(x)))).squeeze(1))

    layers = {"a": (width, 32), "b": (32, 64), "c": (64, 64), "head": (64, 10)}
    return seeded(lambda: Net(run, **{name: nn.Linear(*size, bias=name != "c") for name, size in layers.items()}))


def convolution() -> nn.Module:
    """x (N, 4, 6, 6) -> (N, 10)"""

    def run(m: Net, x: Tensor) -> Tensor:
        return m.head(F.relu(m.b(F.relu(m.a(x)))).mean((2, 3)))

    return seeded(lambda: Net(run, a=conv(4, 8), b=conv(8, 8), head=nn.Linear(8, 10)))


def recurrent(cell: type[nn.Module], **options: Any) -> nn.Module:
    """x (N, 5, 16) -> (N, 10)"""
    options = {"input_size": 16, "hidden_size": 32, "batch_first": True} | options
    width = options["hidden_size"] * (2 if options.get("bidirectional") else 1)
    return seeded(lambda: Net(lambda m, x: m.head(m.cell(x)[0][:, -1]), cell=cell(**options), head=nn.Linear(width, 10)))


# kind -> model, shape of one input, names of the layers of that kind
KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[str, ...]]] = {
    "linear": (linear, (64,), ("a", "b", "c", "head")),
    "conv2d": (convolution, (4, 6, 6), ("a", "b")),
    "lstm": (lambda: recurrent(nn.LSTM), (5, 16), ("cell",)),
    "gru": (lambda: recurrent(nn.GRU), (5, 16), ("cell",)),
}


def distance(deployed: Deployed, model: nn.Module, shape: tuple[int, ...], batches: tuple[int, ...] = (1, 3, 64)) -> float:
    """The largest difference of any output from ``model``, as a share of the range of outputs, over several batch sizes."""
    found = []
    for batch in batches:
        x = inputs(batch, *shape, seed=batch)
        reference = outputs(model, x).numpy()
        found.append(float(np.abs(deployed.run(x.numpy()) - reference).max() / np.ptp(reference)))
    return max(found)
