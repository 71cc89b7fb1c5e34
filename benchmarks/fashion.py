"""Fashion-MNIST (Xiao et al. 2017) as a task of the benchmarks: 10,000 test images are enough for tenths of a point, digits has 400.

The images are read from ../shared/data/fashion_mnist (another folder: AUTOCOMPRESS_DATA); the residual CNN of 14 million multiply-adds is
trained here once, some minutes on one core, and cached by content. `python benchmarks/fashion.py` does that and prints its accuracy.
"""

import gzip
import hashlib
import inspect
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.progress import Progress
from autocompress.runs import write_atomically
from autocompress.tasks.digits import Residual
from autocompress.tasks.task import Batches, Task, accuracy, outputs_of, seeded

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "runs" / ".cache"
WIDTHS, BLOCKS = (32, 64, 128), (1, 2, 1)  # channels and residual blocks at 14x14, 7x7 and 4x4
DEEP, DEEP_EPOCHS = ((16, 32, 64), (9, 9, 9)), 2
EPOCHS, BATCH, RATE, SEED = 8, 128, 0.1, 0
TRAIN, SEARCH = 50_000, 10_000


class FashionNet(nn.Module):
    """x (N, 1, 28, 28) -> logits (N, 10)."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS, blocks: tuple[int, ...] = BLOCKS) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        stages, inner = [], widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            first = Residual(inner, width, 1 if stage == 0 else 2)
            stages.append(nn.Sequential(first, *(Residual(width, width, 1) for _ in range(count - 1))))
            inner = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inner, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.stages(self.stem(x)).mean((2, 3)))
        return out


def build_student(width: float, depth: float) -> nn.Module:
    """The same family, untrained: channels times ``width`` in multiples of 8, residual blocks a stage times ``depth``, one at least."""
    widths = tuple(max(8, 8 * round(width * channels / 8)) for channels in WIDTHS)
    return FashionNet(widths, tuple(max(1, round(depth * count)) for count in BLOCKS))


def folder() -> Path:
    """Where the idx files should lie."""
    return Path(os.environ.get("AUTOCOMPRESS_DATA", ROOT.parent / "shared" / "data")) / "fashion_mnist"


def is_present() -> bool:
    return all((folder() / f"{part}-images-idx3-ubyte.gz").is_file() for part in ("train", "t10k"))


def read(part: str) -> tuple[Tensor, Tensor]:
    """One of the two official sets, ``train`` or ``t10k``: images (N, 1, 28, 28) in 0..1, labels (N,)."""
    images = gzip.decompress((folder() / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder() / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    x = torch.from_numpy(np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28).astype(np.float32) / 255)
    return x, torch.from_numpy(np.frombuffer(labels, np.uint8, offset=8).astype(np.int64))


def splits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """train (50,000) and search (10,000) of the official training set, by seed; the official test set as holdout. Standardised."""
    x, y = read("train")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(SEED))
    first, second = torch.split(order, [TRAIN, SEARCH])
    mean, deviation = x[first].mean(), x[first].std()
    test, labels = read("t10k")
    return ((x[first] - mean) / deviation, y[first]), ((x[second] - mean) / deviation, y[second]), ((test - mean) / deviation, labels)


def shifted(x: Tensor) -> Tensor:
    """Moved by up to one pixel in each direction, every second one mirrored. x (N, 1, 28, 28) -> (N, 1, 28, 28)."""
    count, size = len(x), x.shape[-1]
    padded = F.pad(x, (1, 1, 1, 1), value=float(x.min()))  # the background
    span = torch.arange(size)
    rows = torch.randint(0, 3, (count, 1)) + span
    columns = torch.randint(0, 3, (count, 1)) + span
    columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
    return padded[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def fashion(cache: Path, progress: Progress) -> Task:
    """The task with its trained model; trains on the first call and keeps the weights in ``cache``."""
    return replace(_task(FashionNet(), (WIDTHS, BLOCKS, EPOCHS), cache, progress), build_student=build_student)


def deep() -> Task:
    """`--task benchmarks.fashion:deep`: 55 convolutions, narrow (22 million multiply-adds); trained for two epochs only."""
    return replace(_task(FashionNet(*DEEP), (*DEEP, DEEP_EPOCHS), CACHE, Progress(), DEEP_EPOCHS), name="fashion-deep")


def _task(model: nn.Module, numbers: tuple[Any, ...], cache: Path, progress: Progress, epochs: int = EPOCHS) -> Task:
    train, search, holdout = splits()
    parts: tuple[Any, ...] = (Residual, FashionNet, shifted, splits, train_baseline_)
    content = "".join(inspect.getsource(part) for part in parts) + repr((*numbers, BATCH, RATE, SEED, TRAIN, torch.__version__))
    file = cache / f"fashion-{hashlib.sha256(content.encode()).hexdigest()[:12]}.safetensors"
    if file.exists():
        model.load_state_dict(load_file(file))
    else:
        train_baseline_(model, Batches(*train, BATCH, shifted), progress, epochs)
        write_atomically(file, lambda draft: draft.write_bytes(save(model.state_dict())))
    return Task(
        name="fashion",
        model=model.eval(),
        train=Batches(*train, BATCH, shifted),
        search=Batches(*search, SEARCH, shuffle=False),
        holdout=Batches(*holdout, len(holdout[1]), shuffle=False),
        calibration=Batches(*train, BATCH, shuffle=False),
    )


def train_baseline_(model: nn.Module, batches: Batches, progress: Progress, epochs: int) -> None:
    """SGD with momentum and a one-cycle learning rate; seeded. Weights are initialised here, and end contiguous."""
    steps = epochs * -(-len(batches.x) // batches.batch_size)
    with seeded(SEED), progress.stage("training the Fashion-MNIST baseline", steps) as advance:
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
                module.reset_parameters()
        lay_out_(model, torch.channels_last)  # 1.4 times faster
        optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
        model.train()
        for _ in range(epochs):
            for x, y in batches:
                loss = F.cross_entropy(model(x), y)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                advance(1)
        lay_out_(model, torch.contiguous_format)


def lay_out_(model: nn.Module, form: torch.memory_format) -> None:
    """Weights of convolutions in another order in memory; what they compute follows them."""
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.to(memory_format=form)


def main() -> None:
    task = fashion(CACHE, Progress())
    figures: dict[str, float] = {"params": sum(parameter.numel() for parameter in task.model.parameters())}
    for name, split in (("search", task.search), ("holdout", task.holdout)):
        figures[name] = round(sum(accuracy(outputs_of(task.model, x), y) for x, y in split or ()), 2)
    print(figures, file=sys.stderr)


if __name__ == "__main__":
    main()
