"""Task `digits`: scikit-learn's handwritten digits (1,797 real scans of 8x8 pixels, UCI 1998) and a residual CNN of 28 million
multiply-adds, trained here once and cached by content.
"""

import hashlib
import inspect
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.progress import Progress
from autocompress.runs import write_atomically
from autocompress.tasks.task import Batches, Task, seeded

WIDTH, EPOCHS, BATCH, SEED = 80, 16, 64, 0
TRAIN, SEARCH, HOLDOUT = 997, 400, 400


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2015). x (N, inner, H, W) -> (N, outer, H / stride, W / stride)."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outer)
        self.shortcut: nn.Module = nn.Identity()
        if inner != outer or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class DigitsNet(nn.Module):
    """x (N, 1, 8, 8) -> logits (N, 10); ``blocks`` residual blocks, one or two, at each of its two resolutions."""

    def __init__(self, width: int = WIDTH, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.block1 = Residual(width, width, 1)
        self.block2 = Residual(width, width, 1) if blocks > 1 else nn.Identity()
        self.block3 = Residual(width, 2 * width, 2)
        self.block4 = Residual(2 * width, 2 * width, 1) if blocks > 1 else nn.Identity()
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block4(self.block3(self.block2(self.block1(self.stem(x)))))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def build_student(width: float, depth: float) -> DigitsNet:
    """The same family, untrained: channels times ``width`` in multiples of 8, residual blocks times ``depth``, one or two of each."""
    return DigitsNet(max(8, 8 * round(width * WIDTH / 8)), min(2, max(1, round(2 * depth))))


def jitter(x: Tensor) -> Tensor:
    """Small random rotations, shears, scalings, shifts and noise, as hands and scanners have them. x (N, 1, 8, 8) -> (N, 1, 8, 8)."""
    count = len(x)

    def around(centre: float, reach: float) -> Tensor:
        return centre + reach * (2 * torch.rand(count) - 1)

    angle, wide, high = around(0, 0.2), around(1, 0.15), around(1, 0.15)
    x_row = [wide * angle.cos(), around(0, 0.2) - wide * angle.sin(), around(0, 0.12)]
    y_row = [high * angle.sin(), high * angle.cos(), around(0, 0.12)]
    grid = F.affine_grid(torch.stack(x_row + y_row, 1).view(count, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False) + 0.15 * torch.randn_like(x)


def digits(cache: Path, progress: Progress) -> Task:
    """The task with its trained model; trains on the first call and keeps the weights in ``cache``."""
    train, search, holdout = splits()
    model = DigitsNet()
    content = inspect.getsource(sys.modules[__name__]) + torch.__version__
    file = cache / f"digits-{hashlib.sha256(content.encode()).hexdigest()[:12]}.safetensors"
    if file.exists():
        model.load_state_dict(load_file(file))
    else:
        train_baseline_(model, Batches(*train, BATCH, jitter), progress)
        write_atomically(file, lambda draft: draft.write_bytes(save(model.state_dict())))
    return Task(
        name="digits",
        model=model.eval(),
        train=Batches(*train, BATCH, jitter),
        search=Batches(*search, SEARCH, shuffle=False),
        holdout=Batches(*holdout, HOLDOUT, shuffle=False),
        calibration=Batches(*train, BATCH, shuffle=False),
        build_student=build_student,
    )


def splits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Disjoint train, search, holdout, fixed by seed. x (N, 1, 8, 8), standardised with the mean and deviation of train; y (N,)."""
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16.0
    y = torch.tensor(data.target, dtype=torch.int64)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(SEED))
    parts = torch.split(order, [TRAIN, SEARCH, HOLDOUT])
    mean, deviation = x[parts[0]].mean(), x[parts[0]].std()
    train, search, holdout = (((x[part] - mean) / deviation, y[part]) for part in parts)
    return train, search, holdout


def train_baseline_(model: nn.Module, batches: Batches, progress: Progress) -> None:
    """SGD with momentum and a one-cycle learning rate, label smoothing 0.05; seeded. Weights are initialised here."""
    steps = EPOCHS * -(-len(batches.x) // batches.batch_size)
    with seeded(SEED), progress.stage("training the baseline", steps) as advance:
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
                module.reset_parameters()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
        model.train()
        for _ in range(EPOCHS):
            for x, y in batches:
                loss = F.cross_entropy(model(x), y, label_smoothing=0.05)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                advance(1)
