"""Singular value decomposition weighted by what a layer really sees: of all W_r of rank r the one with the least E||(W - W_r) x||^2.

With S S^T = E[x x^T] that error is ||(W - W_r) S||_F^2, so the best W_r S is the truncated SVD U_r S_r V_r^T of W S (Eckart and Young
1936). Multiplied back by S^-1 it is W_r = U_r U_r^T W, and no inverse is needed. Exact whitening as in DRONE (Chen et al. 2021) and SVD-LLM
(Wang et al. 2024); ASVD (Yuan et al. 2023) weights channel by channel. All of it in float64.
"""

from collections.abc import Callable, Collection
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.compress.factorize.rank import least_rank
from autocompress.compress.factorize.stand_in import Block, Layer, stand_in
from autocompress.errors import InfeasibleRecipe
from autocompress.tasks.task import evaluating

BATCH = 128  # samples in one forward pass
ROWS = 8192  # inputs that are turned into float64 at a time
RIDGE = 1e-6  # of the mean variance: directions that the calibration inputs lack still count a little


class ActivationSvd:
    """The ``Factorization`` by singular values of W S, ``moment`` being E[x x^T] (in, in)."""

    def __init__(self, layer: Layer, moment: Tensor) -> None:
        self.layer, self.moment = layer, moment

    @cached_property
    def weight(self) -> Tensor:
        """(out, in), float64."""
        return self.layer.weight.detach().double().flatten(1)

    @cached_property
    def decomposed(self) -> tuple[Tensor, Tensor]:
        """Left singular vectors (out, k) and singular values (k,) of W S."""
        u, s, _ = torch.linalg.svd(self.weight @ root(self.moment), full_matrices=False)
        return u, s

    def rank_for(self, energy: float) -> int:
        return least_rank(self.decomposed[1].square(), energy)

    def block(self, rank: int) -> Block:
        u = self.decomposed[0][:, :rank]
        reduce = u.T @ self.weight
        scale = reduce.norm(dim=1).sqrt()
        scale = torch.where(scale > 0, scale, 1.0)  # u has columns of length 1: this splits the scale evenly
        return stand_in(self.layer, "svd", {"reduce": reduce / scale[:, None], "expand": u * scale})


def root(moment: Tensor) -> Tensor:
    """S with S S^T = ``moment`` (n, n) and a small ridge, which is all there is where the inputs were always 0."""
    mean = moment.diagonal().mean()
    ridge = torch.where(mean > 0, RIDGE * mean, 1.0)
    values, vectors = torch.linalg.eigh(moment)
    found: Tensor = vectors * (values.clamp_min(0) + ridge).sqrt()
    return found


@torch.no_grad()
def second_moments(model: nn.Module, names: Collection[str], inputs: Tensor) -> dict[str, Tensor]:
    """Name -> E[x x^T] (in, in) in float64 over all that the named Linear and 1x1 Conv2d read while ``model`` runs on inputs (N, ...).

    In eval mode; modes are given back. Raises InfeasibleRecipe for a layer that does not run or reads what is not finite.
    """
    sums: dict[str, Tensor] = {}
    rows = dict.fromkeys(names, 0)

    def look(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = _read(layer, args[0] if args else kwargs["input"])
            rows[name] += len(x)
            for part in torch.split(x, ROWS):
                part = part.double()
                sums[name] = sums[name] + part.T @ part if name in sums else part.T @ part

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(look(name), with_kwargs=True) for name in names]
    device = next(model.parameters()).device
    try:
        with evaluating(model):
            for batch in torch.split(inputs, BATCH):
                model(batch.to(device))
    finally:
        for handle in hooks:
            handle.remove()
    for name in names:
        if rows[name] == 0:
            raise InfeasibleRecipe(f"{name}: activation_svd, but the layer never runs on the calibration inputs. Choose svd.")
        if not torch.isfinite(sums[name]).all():
            raise InfeasibleRecipe(f"{name}: activation_svd, but it reads NaN or infinite values on the calibration inputs. Choose svd.")
    return {name: sums[name] / rows[name] for name in names}


def _read(layer: nn.Module, x: Tensor) -> Tensor:
    """What each output is made from, (rows, in): of a strided 1x1 convolution not every position."""
    if isinstance(layer, nn.Conv2d):
        if not isinstance(layer.padding, str):
            (height, width), mode = layer.padding, layer.padding_mode
            x = F.pad(x, (width, width, height, height), "constant" if mode == "zeros" else mode)
        x = x[..., :: layer.stride[0], :: layer.stride[1]].movedim(-3, -1)
    return x.detach().reshape(-1, x.shape[-1])
