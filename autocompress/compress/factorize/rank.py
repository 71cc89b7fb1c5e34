"""How much of a factorization stays: what a rank costs, the largest that saves work, the least that keeps an energy.

Multiply-adds are counted per output position, borders left out. A factor in front of the stride runs at every input position, which are
sh * sw as many.
"""

import math
from collections.abc import Mapping
from typing import Literal, get_args

from torch import Tensor, nn

from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import LayerPlan

Method = Literal["svd", "activation_svd", "tucker2", "cp", "spatial_svd"]
Asked = Method | Literal["auto"]
OF_MATRICES: tuple[Method, ...] = ("svd", "activation_svd")
Pair = tuple[int, int]


def method_for(kernel: int | Pair, method: str = "auto") -> Method:
    """``auto`` is svd for a 1x1 kernel, which stands for Linear too, and tucker2 for the others."""
    for known in get_args(Method):
        if method == known:
            return known  # type: ignore[no-any-return]
    if method != "auto":
        raise ValueError(f"factorization {method!r} is not known; known are auto, {', '.join(get_args(Method))}")
    return "svd" if _area(kernel) == 1 else "tucker2"


def unfit(kernel: int | Pair, method: str) -> str:
    """Why ``method`` does not suit a layer with this kernel (1x1 stands for Linear too), or an empty string."""
    of_matrix = _area(kernel) == 1
    if of_matrix and method_for(kernel, method) not in OF_MATRICES:
        return f"{method} is for convolutions with a kernel larger than 1x1; this layer takes svd or activation_svd"
    if not of_matrix and method in OF_MATRICES:
        return f"{method} is for Linear and 1x1 convolutions; this layer takes tucker2, cp or spatial_svd"
    return ""


def cost(kept_out: int, kept_in: int, kernel: int | Pair, rank: int, method: str = "auto", stride: int | Pair = 1) -> int:
    """Multiply-adds per output position of the factorized form; ``kernel`` is kh * kw, or (kh, kw), which spatial_svd needs."""
    found, area = method_for(kernel, method), _area(kernel)
    down, across = (stride, stride) if isinstance(stride, int) else stride
    if found in OF_MATRICES:
        return rank * (kept_in + kept_out)
    if found == "cp":
        return rank * (kept_in * down * across + area + kept_out)
    if found == "tucker2":
        r_in, r_out = min(rank, kept_in), min(rank, kept_out)
        return kept_in * r_in * down * across + r_in * r_out * area + r_out * kept_out
    height, width = _sides(kernel)
    return rank * (kept_in * height * across + kept_out * width)


def most(kept_out: int, kept_in: int, kernel: Pair, method: Method) -> int:
    """A bound on the rank that a weight of this shape can have."""
    (height, width), area = kernel, _area(kernel)
    bounds = {
        "tucker2": max(kept_out, kept_in),  # each side has its own, and is left whole above it
        "cp": min(kept_out * kept_in, kept_out * area, kept_in * area),
        "spatial_svd": min(kept_in * height, kept_out * width),
    }
    return bounds.get(method, min(kept_out, kept_in))


def least_rank(squares: Tensor, energy: float) -> int:
    """The least rank that keeps this share of the sum of squared singular values (k,), largest first."""
    kept = squares.double().cumsum(0)
    return min(int((kept < energy * kept[-1]).sum()) + 1, len(squares))


def check_rank(name: str, layer: nn.Linear | nn.Conv2d, method: Method, rank: int, plan: LayerPlan) -> None:
    """Raises InfeasibleRecipe where ``rank``, given or found for the plan's energy, is no rank or saves nothing."""
    (out, inner), kernel, stride = layer.weight.shape[:2], kernel_of(layer), stride_of(layer)
    given, field = (f"rank {rank}", "rank") if plan.energy is None else (f"energy {plan.energy:g} needs rank {rank}, which", "energy")
    limit, dense = most(out, inner, kernel, method), out * inner * math.prod(kernel)
    advice = f"Lower the {field} or leave it out."
    if rank < 1:
        raise InfeasibleRecipe(f"{name}: rank {rank} is below 1; nothing would be left of the layer. Raise the rank or leave it out.")
    if method in OF_MATRICES and rank >= limit:
        raise InfeasibleRecipe(
            f"{name}: {given} is not smaller than min(weight shape) = {limit}; factorizing would make it larger. {advice}"
        )
    if rank > limit:
        raise InfeasibleRecipe(f"{name}: {given} is larger than {limit}, the largest that {method} can use of this weight. {advice}")
    spent = cost(out, inner, kernel, rank, method, stride)
    if spent >= dense:
        raise InfeasibleRecipe(
            f"{name}: {given} needs {spent} multiply-adds a position, the dense layer {dense}; factorizing would make it slower. {advice}"
        )


def ranks_from_state(plans: Mapping[str, LayerPlan], state: Mapping[str, Tensor]) -> dict[str, LayerPlan]:
    """The plans with every ``energy`` replaced by the rank that the factors in a state dict have.

    A stored model is rebuilt from weights that may have been trained before they were factorized: the given ones would lead to another
    rank. Plans of layers that the state does not hold stay as they are.
    """
    found = dict(plans)
    for name, plan in plans.items():
        reduce, expand = state.get(f"{name}.reduce.weight"), state.get(f"{name}.expand.weight")
        if plan.energy is not None and reduce is not None and expand is not None:
            rank = max(reduce.shape[0], expand.shape[1])  # tucker2 leaves a side whole that is narrower than the rank
            found[name] = plan.model_copy(update={"rank": rank, "energy": None})
    return found


def kernel_of(layer: nn.Linear | nn.Conv2d) -> Pair:
    return (1, 1) if isinstance(layer, nn.Linear) else (layer.kernel_size[0], layer.kernel_size[1])


def stride_of(layer: nn.Linear | nn.Conv2d) -> Pair:
    return (1, 1) if isinstance(layer, nn.Linear) else (layer.stride[0], layer.stride[1])


def _area(kernel: int | Pair) -> int:
    return kernel if isinstance(kernel, int) else math.prod(kernel)


def _sides(kernel: int | Pair) -> Pair:
    if isinstance(kernel, int):
        raise ValueError(f"spatial_svd splits the kernel, so its cost needs (kh, kw), not their product {kernel}")
    return kernel
