"""Task `cifar10` (Krizhevsky 2009): 32x32 colour images of 10 classes, in the official binary version.

A file is records of one label byte and 3,072 bytes of pixels: 1,024 red, 1,024 green, 1,024 blue, row by row.
"""

from pathlib import Path

import torch
from torch import nn

from autocompress.errors import InvalidTask
from autocompress.progress import Progress
from autocompress.tasks.baseline import Given, Training, baseline
from autocompress.tasks.files import count, first_of, given_path, read_up_to
from autocompress.tasks.images import Images, Look, image_task, split_images, training_batches
from autocompress.tasks.residual_net import ResidualNet, scaled
from autocompress.tasks.task import Task

WANTED = (
    "the folder with data_batch_1.bin to data_batch_5.bin and test_batch.bin, the binary version from "
    "https://www.cs.toronto.edu/~kriz/cifar.html"
)
TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
RECORD, CLASSES, SHAPE = 3073, 10, (3, 32, 32)
MOST_RECORDS = 10**6  # a file; the official ones have 10,000
WIDTHS, BLOCKS = (16, 32, 64), (3, 3, 3)  # as ResNet-20
EPOCHS, BATCH, RATE, REACH = 20, 128, 0.2, 4
SEARCH = 0.1


def cifar10(
    cache: Path,
    progress: Progress,
    *,
    data: str = "",
    weights: str = "",
    model: str = "",
    epochs: str = str(EPOCHS),
    split_test: str = "",
    mean: str = "",
    std: str = "",
) -> Task:
    """The task with its trained model, a ResNet-20 with 1x1 shortcuts; trains on the first call, an hour on two cores.

    ``mean``, ``std``: what inputs in 0..1 are standardised with, where given weights want others than those of the training images.
    """
    folder = given_path(data, "cifar10", WANTED)
    folder = folder / "cifar-10-batches-bin" if (folder / "cifar-10-batches-bin").is_dir() else folder
    parts = [read(first_of(folder, (name,), WANTED)) for name in TRAIN]
    train = Images(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts]))
    splits = split_images(train, read(first_of(folder, ("test_batch.bin",), WANTED)), split_test, weights, SEARCH)
    look = Look.of(splits.train.x, mean, std)
    batches = training_batches(splits.train, look, BATCH, REACH, mirror=True)
    given, training = Given(weights, model, {"classes": CLASSES}), Training(batches, count("epochs", epochs), RATE)
    trained = baseline("cifar10", lambda: student(1.0, 1.0), given, training, cache, progress)
    return image_task("cifar10", trained, splits, batches, look, student)


def student(width: float, depth: float) -> nn.Module:
    """Untrained: channels times ``width`` in multiples of 8, residual blocks a stage times ``depth``, one at least."""
    return ResidualNet(SHAPE[0], CLASSES, scaled(WIDTHS, width, 8), scaled(BLOCKS, depth))


def read(file: Path) -> Images:
    """One file. Raises InvalidTask for a size that is no whole number of records, and for labels that are none."""
    size = file.stat().st_size
    if size == 0 or size % RECORD or size > RECORD * MOST_RECORDS:
        whole = f"{size} bytes are {size // RECORD} records of {RECORD} bytes and {size % RECORD} more"
        raise InvalidTask(f"{file}: {whole}; it must be a whole number of records, 1 to {MOST_RECORDS}: broken or incomplete")
    records = torch.frombuffer(bytearray(read_up_to(file, size)), dtype=torch.uint8).view(-1, RECORD)
    y = records[:, 0].long()
    if int(y.max()) >= CLASSES:
        place = int((y >= CLASSES).nonzero()[0])
        raise InvalidTask(f"{file}: record {place}, byte {place * RECORD}: label {int(y[place])}; labels are 0 to {CLASSES - 1}")
    return Images(records[:, 1:].reshape(-1, *SHAPE).contiguous(), y)
