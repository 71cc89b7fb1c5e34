"""Task `text-classification`: a csv with a column of texts and one of labels, one file or train.csv and test.csv of a folder.

Words are lower-cased, split from punctuation, and numbered by how often they are in train; texts are cut or filled up to one length.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.errors import InvalidTask
from autocompress.progress import Progress
from autocompress.tasks.baseline import Given, Training, baseline
from autocompress.tasks.batches import Batches
from autocompress.tasks.files import Table, count, first_of, flag, given_path, read_csv
from autocompress.tasks.images import halves
from autocompress.tasks.splits import stratified
from autocompress.tasks.task import Task
from autocompress.tasks.transformer import PAD, TextClassifier

WANTED = "a csv with a header, or a folder with train.csv and test.csv; columns text and label, or as --option text=... label=... name them"
UNKNOWN, FIRST_WORD = 1, 2
WORDS = re.compile(r"\w+|[^\w\s]")
WIDTH, LAYERS = 128, 2
EPOCHS, BATCH, RATE, DECAY = 25, 64, 1e-3, 0.05
HELD_OUT = 0.15  # of the texts, for search and again for holdout where one file holds all; of train where test.csv is the holdout
MOST_RAW = 256


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts, and the numbers of their labels (N,)."""

    texts: list[str]
    y: Tensor

    def pick(self, indices: Tensor) -> "Texts":
        return Texts([self.texts[index] for index in indices.tolist()], self.y[indices])


@dataclass(frozen=True)
class Tokenizer:
    """Numbers of words; 0 fills up, 1 is any other word."""

    words: dict[str, int]
    length: int

    @property
    def size(self) -> int:
        return FIRST_WORD + len(self.words)

    @classmethod
    def of(cls, texts: Sequence[str], size: int, length: int) -> "Tokenizer":
        """Of the ``size`` most frequent words; of equally frequent ones the first in the alphabet."""
        counts = Counter(word for text in texts for word in split_words(text))
        best = sorted(counts, key=lambda word: (-counts[word], word))[:size]
        return cls({word: FIRST_WORD + index for index, word in enumerate(best)}, length)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(N, length) int64; a text without a word is one unknown word."""
        out = torch.full((len(texts), self.length), PAD)
        for row, text in enumerate(texts):
            numbers = [self.words.get(word, UNKNOWN) for word in split_words(text)[: self.length]] or [UNKNOWN]
            out[row, : len(numbers)] = torch.tensor(numbers)
        return out


def split_words(text: str) -> list[str]:
    return WORDS.findall(text.lower())


def text_classification(
    cache: Path,
    progress: Progress,
    *,
    data: str = "",
    weights: str = "",
    model: str = "",
    text: str = "text",
    label: str = "label",
    length: str = "32",
    words: str = "8000",
    epochs: str = str(EPOCHS),
    split_test: str = "",
) -> Task:
    """The task with its trained model, a transformer encoder of two layers; trains on the first call, minutes on one core.

    With ``split_test`` (by itself with ``weights``) search and holdout are halves of test.csv, and all of train.csv is for training.
    """
    path = given_path(data, "text-classification", WANTED)
    train, search, holdout, classes, notes = _splits(path, (text, label), split_test, weights)
    tokenizer = Tokenizer.of(train.texts, count("words", words), count("length", length, 1, 4096))

    def student(width: float, depth: float) -> nn.Module:
        """Untrained: width in multiples of 32, a head each."""
        wide, deep = max(32, 32 * round(width * WIDTH / 32)), max(1, round(depth * LAYERS))
        return TextClassifier(tokenizer.size, tokenizer.length, wide, deep, len(classes))

    given = Given(weights, model, {"tokens": tokenizer.size, "length": tokenizer.length, "classes": len(classes)})
    batches = Batches(tokenizer(train.texts), train.y, BATCH)
    training = Training(batches, count("epochs", epochs), RATE, adaptive=True, decay=DECAY)
    trained = baseline("text-classification", lambda: student(1.0, 1.0), given, training, cache, progress)
    return Task(
        name="text-classification",
        model=trained,
        train=batches,
        search=Batches(tokenizer(search.texts), search.y, 256, shuffle=False),
        holdout=Batches(tokenizer(holdout.texts), holdout.y, 256, shuffle=False),
        calibration=Batches(batches.x, batches.y, BATCH, shuffle=False),
        loss=F.cross_entropy,
        build_student=student,
        raw=train.texts[:MOST_RAW],
        preprocess=tokenizer,
        notes=notes,
    )


def _splits(
    path: Path, names: tuple[str, str], split_test: str, weights: str
) -> tuple[Texts, Texts, Texts, list[str], tuple[str, ...]]:
    """Train, search, holdout, the classes in the order of their numbers, notes."""
    if path.is_file():
        texts, classes = _numbered(read_csv(path), names, None)
        first, second, third = stratified(texts.y, (1 - 2 * HELD_OUT, HELD_OUT, HELD_OUT))
        return texts.pick(first), texts.pick(second), texts.pick(third), classes, ()
    texts, classes = _numbered(read_csv(first_of(path, ("train.csv",), WANTED)), names, None)
    test, _ = _numbered(read_csv(first_of(path, ("test.csv",), WANTED)), names, classes)
    if flag("split_test", split_test) if split_test else bool(weights):
        first, second = halves(test.y, 0)
        why = "asked for" if split_test else "the given weights are taken to have seen all of train.csv; --option split_test=no if not"
        return texts, test.pick(first), test.pick(second), classes, (f"search and holdout are halves of test.csv: {why}",)
    first, second = stratified(texts.y, (1 - HELD_OUT, HELD_OUT))
    return texts.pick(first), texts.pick(second), test, classes, ()


def _numbered(table: Table, names: tuple[str, str], classes: list[str] | None) -> tuple[Texts, list[str]]:
    """Raises InvalidTask for an empty label, one that train does not have, a single class, or a class of fewer samples than splits."""
    texts, labels = table.column(names[0], "text"), [label.strip() for label in table.column(names[1], "label")]
    known = sorted(set(labels)) if classes is None else classes
    numbers = {label: number for number, label in enumerate(known)}
    for label, line in zip(labels, table.lines, strict=True):
        if not label:
            raise InvalidTask(f"{table.file}: line {line}: the label (column {names[1]!r}) is empty")
        if label not in numbers:
            raise InvalidTask(f"{table.file}: line {line}: label {label!r} is not among the {len(known)} of train.csv")
    if len(known) < 2:
        raise InvalidTask(f"{table.file}: column {names[1]!r} holds a single label, {known[0]!r}; there is nothing to tell apart")
    return Texts(texts, torch.tensor([numbers[label] for label in labels])), known
