"""The small residual networks of the image tasks (He et al. 2015)."""

from torch import Tensor, nn

from autocompress.tasks.digits import Residual


class ResidualNet(nn.Module):
    """x (N, channels, H, W) -> logits (N, classes): a stem, stages of residual blocks that halve H and W each but the first, a mean."""

    def __init__(self, channels: int, classes: int, widths: tuple[int, ...], blocks: tuple[int, ...], stride: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, widths[0], 3, stride, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        stages, inner = [], widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            first = Residual(inner, width, 1 if stage == 0 else 2)
            stages.append(nn.Sequential(first, *(Residual(width, width, 1) for _ in range(count - 1))))
            inner = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inner, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.stages(self.stem(x)).mean((2, 3)))
        return out


def scaled(numbers: tuple[int, ...], by: float, multiple: int = 1) -> tuple[int, ...]:
    """Each times ``by``, in multiples, one multiple at least."""
    return tuple(max(multiple, multiple * round(by * number / multiple)) for number in numbers)
