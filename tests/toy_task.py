"""A task that costs nothing: sklearn's digits, and a small residual CNN with fixed filters whose head is a ridge regression.

Nothing is trained by steps, and the weights are rounded, so every process makes the same model whatever its number of threads.
As a task by name: ``--task toy_task:make`` from this folder. ``TOY_SEED`` in the environment makes another model of the same shape.
"""

import os
from dataclasses import replace

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress import Task
from autocompress.tasks.task import Batches

TRAIN, SEARCH, HOLDOUT = 512, 150, 157  # no multiple of a batch size: an average over batches is not the metric

SPACE = """\
description: For tests, a space for the toy model; two steps of recovery.
keep: {choices: [1.0, 0.5, 0.25]}
weight_bits: {choices: [32, 7]}
recovery: {steps: 2, quantized_steps: 1, learning_rate: [0.001, 0.0012, 0.0014, 0.0017, 0.002, 0.003]}
"""


class Toy(nn.Module):
    """x (N, 1, 8, 8) -> logits (N, 10); 0.2 million multiply-adds."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(width * 16, 10)

    def features(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(x + self.norm2(self.conv2(x)))
        return self.pool(x).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def data() -> list[tuple[Tensor, Tensor]]:
    """Train, search, holdout; x (N, 1, 8, 8) around 0, y (N,)."""
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    y = torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    parts = order[: TRAIN + SEARCH + HOLDOUT].split([TRAIN, SEARCH, HOLDOUT])
    return [(x[part], y[part]) for part in parts]


@torch.no_grad()
def fitted(x: Tensor, y: Tensor, seed: int) -> Toy:
    """Filters by seed, the statistics of batch norm and the head by least squares (x, y); in eval mode."""
    model, generator = Toy(), torch.Generator().manual_seed(seed)
    for conv in (model.conv1, model.conv2):
        conv.weight.copy_(rounded(torch.randn(conv.weight.shape, generator=generator) / conv.weight[0].numel() ** 0.5))
    for norm in (model.norm1, model.norm2):
        norm.momentum = None
    model.train()(x)
    for norm in (model.norm1, model.norm2):
        norm.running_mean.copy_(rounded(norm.running_mean))
        norm.running_var.copy_(rounded(norm.running_var))
    features = torch.cat([model.eval().features(x), torch.ones(len(x), 1)], 1).double()  # (N, f + 1)
    wanted = 10 * F.one_hot(y, 10).double() - 5
    solved = torch.linalg.solve(features.T @ features + 3 * torch.eye(features.shape[1]), features.T @ wanted)  # (f + 1, 10)
    model.head.weight.copy_(rounded(solved[:-1].T))
    model.head.bias.copy_(rounded(solved[-1]))
    return model


def rounded(values: Tensor) -> Tensor:
    return torch.round(values * 1024) / 1024


def make() -> Task:
    """The toy with its three splits."""
    train, search, holdout = data()
    return Task(
        name="toy",
        model=fitted(*train, seed=int(os.environ.get("TOY_SEED", "0"))),
        train=Batches(*train, 64),
        search=Batches(*search, 64, shuffle=False),
        holdout=Batches(*holdout, 64, shuffle=False),
    )


def two_splits() -> Task:
    return replace(make(), holdout=None)


# ---- factories that are wrong, each in one way ----------------------------------------------------------------------

not_a_function = 3


def raises() -> Task:
    raise RuntimeError("no weights here,\nsadly")


def returns_a_model() -> nn.Module:
    return Toy()


def wrong_input() -> Task:
    return replace(make(), model=nn.Sequential(nn.Flatten(), nn.Linear(63, 10)))


def nan_metric() -> Task:
    return replace(make(), metric=lambda outputs, targets: float("nan"))


def raising_metric() -> Task:
    def metric(outputs: Tensor, targets: Tensor) -> float:
        raise KeyError("labels")

    return replace(make(), metric=metric)


def empty_search() -> Task:
    return replace(make(), search=[])


def empty_train() -> Task:
    return replace(make(), train=[])


def empty_holdout() -> Task:
    return replace(make(), holdout=[])


def no_pairs_in_search() -> Task:
    return replace(make(), search=[data()[1][0]])


def no_pairs_in_train() -> Task:
    return replace(make(), train=[data()[0][0]])


def loader_that_raises() -> Task:
    def batches() -> object:
        yield data()[1][0][:8], data()[1][1][:8]
        raise OSError("image 8 is broken")

    return replace(make(), search=batches())


def unequal_pairs() -> Task:
    x, y = data()[1]
    return replace(make(), search=[(x, y[:-1])])


def infinite_outputs() -> Task:
    task = make()
    with torch.no_grad():
        task.model.head.bias.fill_(float("inf"))
    return task


def raising_loss() -> Task:
    return replace(make(), loss=lambda outputs, targets: F.cross_entropy(outputs, targets[:1]))


def loss_of_many_numbers() -> Task:
    return replace(make(), loss=nn.CrossEntropyLoss(reduction="none"))


def one_sample_to_cut() -> Task:
    x, y = data()[1]
    return replace(make(), search=[(x[:1], y[:1])], holdout=None)
