"""Task `tabular`: a csv with a target column, one file or train.csv and test.csv of a folder; classification, or regression by rmse.

A column is numeric where every cell of train is a number or empty: it is standardised, and an empty cell is its mean. The others are
categories: one input for each of the most frequent, all 0 for any other.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.errors import InvalidTask
from autocompress.progress import Progress
from autocompress.tasks.baseline import Given, Training, baseline
from autocompress.tasks.batches import Batches
from autocompress.tasks.files import Table, count, first_of, given_path, read_csv
from autocompress.tasks.splits import shuffled, stratified
from autocompress.tasks.task import Task, accuracy

WANTED = "a csv with a header, or a folder with train.csv and test.csv; --option target=COLUMN names what is to be predicted"
WIDTHS, EPOCHS, BATCH, RATE, DECAY = (256, 256), 30, 64, 2e-3, 0.01
HELD_OUT = 0.15
MOST_CATEGORIES = 64  # of a column
MOST_CLASSES = 1000
FEW_VALUES = 20  # a numeric target of so many whole numbers at most is one of classes


class Net(nn.Module):
    """x (N, inputs) -> (N, outputs)"""

    def __init__(self, inputs: int, outputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        sizes = (inputs, *widths)
        self.hidden = nn.ModuleList(nn.Linear(inner, outer) for inner, outer in zip(sizes[:-1], widths, strict=True))
        self.head = nn.Linear(sizes[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = F.relu(layer(x))
        out: Tensor = self.head(x)
        return out


@dataclass(frozen=True)
class Numeric:
    name: str
    mean: float
    deviation: float


@dataclass(frozen=True)
class Categories:
    name: str
    values: tuple[str, ...]


def tabular(
    cache: Path,
    progress: Progress,
    *,
    data: str = "",
    weights: str = "",
    model: str = "",
    target: str = "target",
    kind: str = "auto",
    categorical: str = "",
    leave_out: str = "",
    epochs: str = str(EPOCHS),
) -> Task:
    """The task with its trained model, a perceptron of two hidden layers; trains on the first call, seconds to minutes.

    ``kind``: classification, regression, or auto by the target's values. ``categorical``: columns of numbers that are categories,
    ``leave_out``: columns that are no inputs; names with commas.
    """
    if kind not in ("auto", "classification", "regression"):
        raise InvalidTask(f"--option kind: must be auto, classification or regression, got {kind!r}")
    path = given_path(data, "tabular", WANTED)
    table = read_csv(path if path.is_file() else first_of(path, ("train.csv",), WANTED))
    tables = [table] if path.is_file() else [table, read_csv(first_of(path, ("test.csv",), WANTED))]
    forced, left = (_named(table, option, text) for option, text in (("categorical", categorical), ("leave_out", leave_out)))
    y, classes = _targets(tables, target, kind)
    shares = (1 - 2 * HELD_OUT, HELD_OUT, HELD_OUT) if len(tables) == 1 else (1 - HELD_OUT, HELD_OUT)
    parts = stratified(y[0], shares) if classes else shuffled(len(y[0]), shares)
    columns = [_column(table, name, parts[0], name in forced) for name in table.columns if name not in (target, *left)]
    if not columns:
        raise InvalidTask(f"{table.file}: there is no column beside the target {target!r}; nothing to predict from")
    x = [torch.cat([_encoded(one, column) for column in columns], 1) for one in tables]
    train, search = ((x[0][part], y[0][part]) for part in parts[:2])
    holdout = (x[0][parts[2]], y[0][parts[2]]) if len(tables) == 1 else (x[1], y[1])
    scale = _Scale(train[1]) if not classes else None
    train, search, holdout = ((inputs, scale(wanted) if scale else wanted) for inputs, wanted in (train, search, holdout))

    def student(width: float, depth: float) -> nn.Module:
        """Untrained: widths in multiples of 8, hidden layers from the first."""
        widths = tuple(max(8, 8 * round(width * one / 8)) for one in WIDTHS)
        return Net(train[0].shape[1], len(classes) or 1, widths[: max(1, round(depth * len(widths)))])

    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy if classes else squared
    given = Given(weights, model, {"inputs": train[0].shape[1], "outputs": len(classes) or 1})
    batches = Batches(*train, BATCH)
    training = Training(batches, count("epochs", epochs), RATE, adaptive=True, decay=DECAY, loss=loss)
    trained = baseline("tabular", lambda: student(1.0, 1.0), given, training, cache, progress)
    return Task(
        name="tabular", model=trained, train=batches, search=Batches(*search, 1000, shuffle=False),
        holdout=Batches(*holdout, 1000, shuffle=False), calibration=Batches(*train, BATCH, shuffle=False), loss=loss,
        metric=scale.rmse if scale else accuracy, metric_name="rmse" if scale else "accuracy", metric_unit="" if scale else "%",
        higher_is_better=scale is None, build_student=student, distillation_loss=_alike if scale else None,
    )  # fmt: skip


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error; outputs (N, 1), targets (N,)."""
    return F.mse_loss(outputs[:, 0], targets)


def _alike(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return F.mse_loss(student, teacher)


class _Scale:
    """Targets of a regression, standardised by those of train, and the error in their own unit again."""

    def __init__(self, train: Tensor) -> None:
        self.mean, self.deviation = float(train.mean()), float(train.std(correction=0)) or 1.0

    def __call__(self, targets: Tensor) -> Tensor:
        return ((targets - self.mean) / self.deviation).float()

    def rmse(self, outputs: Tensor, targets: Tensor) -> float:
        return self.deviation * math.sqrt(squared(outputs.double(), targets.double()).item())


def _named(table: Table, option: str, text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in table.columns:
            raise InvalidTask(f"{table.file}: line 1: --option {option}: there is no column {name!r}; it has {', '.join(table.columns)}")
    return names


def _targets(tables: list[Table], name: str, kind: str) -> tuple[list[Tensor], list[str]]:
    """The targets of each table, (N,): numbers of classes with the classes, or float64 values and no classes."""
    cells = [[cell.strip() for cell in table.column(name, "target")] for table in tables]
    for table, column in zip(tables, cells, strict=True):
        if "" in column:
            raise InvalidTask(f"{table.file}: line {table.lines[column.index('')]}: the target (column {name!r}) is empty")
    values = [_number(cell) for cell in cells[0]]
    numeric = all(value is not None for value in values)
    few = len(set(values)) <= FEW_VALUES and all(value is not None and value == int(value) for value in values)
    if kind == "regression" or (kind == "auto" and numeric and not few):
        return [torch.tensor(_all_numbers(table, name), dtype=torch.float64) for table in tables], []
    classes = sorted(set(cells[0]))
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise InvalidTask(f"{tables[0].file}: column {name!r} holds {len(classes)} classes; it must be 2 to {MOST_CLASSES}")
    numbers = {label: number for number, label in enumerate(classes)}
    for table, column in zip(tables, cells, strict=True):
        for cell, line in zip(column, table.lines, strict=True):
            if cell not in numbers:
                raise InvalidTask(f"{table.file}: line {line}: class {cell!r} is not among the {len(classes)} of train.csv")
    return [torch.tensor([numbers[cell] for cell in column]) for column in cells], classes


def _column(table: Table, name: str, train: Tensor, is_category: bool) -> Numeric | Categories:
    """What is known of a column from the rows of train."""
    cells = [table.columns[name][row].strip() for row in train.tolist()]
    values = [_number(cell) for cell in cells if cell]
    if not is_category and values and None not in values:
        found = torch.tensor([value for value in values if value is not None], dtype=torch.float64)
        return Numeric(name, float(found.mean()), float(found.std(correction=0)) or 1.0)
    counts = Counter(cells)
    return Categories(name, tuple(sorted(counts, key=lambda value: (-counts[value], value))[:MOST_CATEGORIES]))


def _encoded(table: Table, column: Numeric | Categories) -> Tensor:
    """(N, 1) of a numeric column, (N, categories) of another."""
    if column.name not in table.columns:
        raise InvalidTask(f"{table.file}: line 1: there is no column {column.name!r}, which train.csv has")
    if isinstance(column, Numeric):
        values = torch.tensor(_all_numbers(table, column.name, column.mean), dtype=torch.float64)
        return ((values - column.mean) / column.deviation).float()[:, None]
    places = {value: place for place, value in enumerate(column.values)}
    out = torch.zeros(len(table.lines), len(places))
    for row, cell in enumerate(table.columns[column.name]):
        if cell.strip() in places:
            out[row, places[cell.strip()]] = 1.0
    return out


def _all_numbers(table: Table, name: str, empty: float | None = None) -> list[float]:
    found = []
    for cell, line in zip(table.columns[name], table.lines, strict=True):
        value = empty if not cell.strip() else _number(cell)
        if value is None:
            raise InvalidTask(f"{table.file}: line {line}: column {name!r} must be a finite number, got {cell.strip()[:40]!r}")
        found.append(value)
    return found


def _number(cell: str) -> float | None:
    """None where it is no finite number."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
