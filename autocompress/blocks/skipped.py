"""What stands in the place of a residual block that was dropped."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn


class Skipped(nn.Module):
    """A dropped residual block: its first argument, through what stood behind the sum (``after``: norms, a ReLU), comes out.

    Other arguments (masks, memory) are taken and ignored. Plain settings of the block stay readable under their names, those of its parts
    too (``nn.TransformerEncoder`` asks its first layer for ``self_attn.batch_first``).
    """

    def __init__(self, block: nn.Module, after: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.after = nn.Sequential(*after)
        for name, value in settings(block).items():
            if not hasattr(self, name):
                setattr(self, name, value)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = self.after(x)
        return out


def settings(module: nn.Module) -> dict[str, Any]:
    """Public attributes of ``module`` that are plain values, and those of its parts as namespaces; no tensors."""
    plain = {name: value for name, value in vars(module).items() if not name.startswith("_") and _is_plain(value)}
    parts = {name: SimpleNamespace(**settings(child)) for name, child in module.named_children()}
    return {name: value for name, value in (plain | parts).items() if name != "training"}


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
