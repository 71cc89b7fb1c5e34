"""Gradual pruning: several small cuts with recovery between them instead of one (Zhu and Gupta 2017, "To prune, or not to prune").

Their equation 1 with an initial sparsity of 0: s_t = s_f * (1 - (1 - t)^3). Most goes early, while the network has much to spare.
"""

from collections.abc import Mapping


def cubic(iterations: int) -> tuple[float, ...]:
    """The share of the whole removal that is reached after every cut, t = 1 / iterations to 1: rising, the last is 1."""
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    return tuple(1.0 - (1.0 - step / iterations) ** 3 for step in range(1, iterations + 1))


def keeps_at(keep: Mapping[str, float], share: float) -> dict[str, float]:
    """What stays of every layer, counted from the uncut model, when ``share`` of the removal is done: 1 - share * (1 - keep)."""
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share must be in 0 to 1, got {share:g}")
    return {name: kept if share == 1.0 else 1.0 - share * (1.0 - kept) for name, kept in keep.items()}
