"""Fashion-MNIST as a task of the benchmarks: 10,000 test images are enough for tenths of a point, digits has 400.

The built-in task `fashion-mnist` on ../shared/data/fashion_mnist (another folder: AUTOCOMPRESS_DATA); its residual CNN of 14 million
multiply-adds is trained once, some minutes on one core, and cached by content. `python benchmarks/fashion.py` does that and prints its
accuracy.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's own path is this folder

from autocompress.progress import Progress
from autocompress.tasks.find import find_task
from autocompress.tasks.residual_net import ResidualNet
from autocompress.tasks.task import Task, accuracy, outputs_of

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "runs" / ".cache"


def folder() -> Path:
    """Where the idx files should lie."""
    return Path(os.environ.get("AUTOCOMPRESS_DATA", ROOT.parent / "shared" / "data")) / "fashion_mnist"


def is_present() -> bool:
    return all((folder() / f"{part}-images-idx3-ubyte.gz").is_file() for part in ("train", "t10k"))


def fashion(cache: Path, progress: Progress) -> Task:
    """The task with its trained model; trains on the first call and keeps the weights in ``cache``."""
    return find_task("fashion-mnist", cache, progress, {"data": str(folder())})


def deep_net() -> ResidualNet:
    return ResidualNet(1, 10, (16, 32, 64), (9, 9, 9), stride=2)


def deep() -> Task:
    """`--task benchmarks.fashion:deep`: 55 convolutions, narrow (22 million multiply-adds); trained for two epochs only."""
    options = {"data": str(folder()), "model": "benchmarks.fashion:deep_net", "epochs": "2"}
    return replace(find_task("fashion-mnist", CACHE, Progress(), options), name="fashion-deep", build_student=None)


def main() -> None:
    task = fashion(CACHE, Progress())
    figures: dict[str, float] = {"params": sum(parameter.numel() for parameter in task.model.parameters())}
    for name, split in (("search", task.search), ("holdout", task.holdout)):
        right = [(accuracy(outputs_of(task.model, batch[0]), batch[1]), len(batch[1])) for batch in split or ()]
        figures[name] = round(sum(part * size for part, size in right) / sum(size for _, size in right), 2)
    print(figures, file=sys.stderr)


if __name__ == "__main__":
    main()
