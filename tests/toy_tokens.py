"""Tiny files of texts, and tiny models of tokens by name: ``--model toy_tokens:classifier``."""

import random
from pathlib import Path

from autocompress.tasks.transformer import CharModel, TextClassifier

TOPICS = {"money": "bank cash coin loan", "sea": "ship wave salt fish", "wood": "tree leaf bark moss"}
FILLING = "the a of to my is , ?"


def classifier(tokens: int, length: int, classes: int) -> TextClassifier:
    return TextClassifier(tokens, length, 32, 1, classes)


def characters(characters: int, length: int) -> CharModel:
    return CharModel(characters, length, 32, 1)


def texts(file: Path, count: int = 240, columns: tuple[str, str] = ("text", "label"), seed: int = 0) -> Path:
    """A csv: three words of a topic among two that say nothing."""
    draw = random.Random(seed)
    lines = [",".join(columns)]
    for _ in range(count):
        topic = draw.choice(list(TOPICS))
        words = [*draw.sample(TOPICS[topic].split(), 3), *draw.sample(FILLING.split(), 2)]
        draw.shuffle(words)
        lines.append(f'"{" ".join(words)}",{topic}')
    file.write_text("\n".join(lines) + "\n")
    return file


def prose(file: Path, count: int = 1500, seed: int = 0) -> Path:
    """Words with spaces between them."""
    draw = random.Random(seed)
    file.write_text(" ".join(draw.choice(" ".join(TOPICS.values()).split()) for _ in range(count)))
    return file
