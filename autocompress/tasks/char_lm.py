"""Task `char-lm`: a text file, and a model of the next character; its metric is perplexity, and a lower one is better.

The text is cut into windows that do not overlap, and windows go to train, search and holdout by seed: no character is read in two splits.
"""

import math
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.errors import InvalidTask
from autocompress.progress import Progress
from autocompress.tasks.baseline import Given, Training, baseline
from autocompress.tasks.batches import Batches
from autocompress.tasks.files import count, given_path, read_text
from autocompress.tasks.splits import shuffled
from autocompress.tasks.task import Task
from autocompress.tasks.transformer import CharModel

WANTED = "a UTF-8 text file, for example https://github.com/karpathy/char-rnn/blob/master/data/tinyshakespeare/input.txt"
UNKNOWN = 0  # the number of every character that train does not have
WIDTH, LAYERS = 128, 4
EPOCHS, BATCH, RATE, DECAY = 10, 64, 2e-3, 0.05
HELD_OUT = 0.05  # of the windows, for search and again for holdout
MOST_CHARACTERS = 4096  # kinds of them


def perplexity(outputs: Tensor, targets: Tensor) -> float:
    """exp of the mean cross entropy of all characters; outputs (N, characters, length), targets (N, length)."""
    pairs = zip(torch.split(outputs, 64), torch.split(targets, 64), strict=True)
    losses = [F.cross_entropy(part, wanted, reduction="sum").item() for part, wanted in pairs]
    mean = sum(losses) / targets.numel()
    return math.exp(mean) if mean < 700 else math.inf


def char_lm(
    cache: Path,
    progress: Progress,
    *,
    data: str = "",
    weights: str = "",
    model: str = "",
    length: str = "64",
    epochs: str = str(EPOCHS),
) -> Task:
    """The task with its trained model, a causal transformer of four layers; trains on the first call, some minutes on one core."""
    file = given_path(data, "char-lm", WANTED)
    if not file.is_file():
        raise InvalidTask(f"--data: {file}: must be a file; {WANTED}")
    steps = count("length", length, 2, 4096)
    train, search, holdout, kinds = windows(file, read_text(file), steps)

    def student(width: float, depth: float) -> nn.Module:
        """Untrained: width in multiples of 32, a head each."""
        return CharModel(kinds, steps, max(32, 32 * round(width * WIDTH / 32)), max(1, round(depth * LAYERS)))

    given = Given(weights, model, {"characters": kinds, "length": steps})
    batches = Batches(*train, BATCH)
    training = Training(batches, count("epochs", epochs), RATE, adaptive=True, decay=DECAY)
    trained = baseline("char-lm", lambda: student(1.0, 1.0), given, training, cache, progress)
    return Task(
        name="char-lm",
        model=trained,
        train=batches,
        search=Batches(*search, 256, shuffle=False),
        holdout=Batches(*holdout, 256, shuffle=False),
        calibration=Batches(*train, BATCH, shuffle=False),
        metric=perplexity,
        metric_name="perplexity",
        metric_unit="ppl",
        higher_is_better=False,
        build_student=student,
    )


def windows(file: Path, text: str, steps: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor], int]:
    """Inputs and next characters of train, search and holdout, each (N, steps), and how many numbers there are.

    Characters are numbered by how often they are in train, from 1. Raises InvalidTask for a text too short for ten windows.
    """
    fitting = (len(text) - 1) // steps
    if fitting < 10:
        raise InvalidTask(
            f"{file}: {len(text)} characters are {max(0, fitting)} windows of {steps} and the character after them; ten are needed: "
            "give a longer text or a smaller --option length"
        )
    parts = shuffled(fitting, (1 - 2 * HELD_OUT, HELD_OUT, HELD_OUT)) if fitting * HELD_OUT >= 1 else shuffled(fitting, (0.8, 0.1, 0.1))
    counts = Counter(char for window in parts[0].tolist() for char in text[window * steps : (window + 1) * steps])
    best = sorted(counts, key=lambda char: (-counts[char], char))[: MOST_CHARACTERS - 1]
    numbers = {char: number for number, char in enumerate(best, UNKNOWN + 1)}
    tokens = torch.tensor([numbers.get(char, UNKNOWN) for char in text])
    read, wanted = (tokens[start : start + fitting * steps].view(fitting, steps) for start in (0, 1))
    train, search, holdout = ((read[part], wanted[part]) for part in parts)
    return train, search, holdout, len(best) + 1
