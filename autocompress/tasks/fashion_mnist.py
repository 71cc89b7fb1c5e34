"""Task `fashion-mnist` (Xiao et al. 2017): 28x28 grey images of 10 kinds of clothes in four IDX files; MNIST and its other kin as well."""

from pathlib import Path

from torch import nn

from autocompress.errors import InvalidTask
from autocompress.progress import Progress
from autocompress.tasks.baseline import Given, Training, baseline
from autocompress.tasks.files import count, first_of, given_path
from autocompress.tasks.idx import read_idx
from autocompress.tasks.images import Images, Look, image_task, split_images, training_batches
from autocompress.tasks.residual_net import ResidualNet, scaled
from autocompress.tasks.task import Task

WANTED = (
    "the folder with train-images-idx3-ubyte, train-labels-idx1-ubyte and the same of t10k, .gz or not, from "
    "https://github.com/zalandoresearch/fashion-mnist"
)
WIDTHS, BLOCKS = (32, 64, 128), (1, 2, 1)  # channels and residual blocks at 14x14, 7x7 and 4x4
EPOCHS, BATCH, RATE, REACH = 8, 128, 0.1, 1
CLASSES, SIDE, SEARCH = 10, 28, 1 / 6


def fashion_mnist(
    cache: Path, progress: Progress, *, data: str = "", weights: str = "", model: str = "", epochs: str = str(EPOCHS), split_test: str = ""
) -> Task:
    """The task with its trained model, a residual CNN of 14 million multiply-adds; trains on the first call, some minutes on one core."""
    folder = given_path(data, "fashion-mnist", WANTED)
    splits = split_images(read(folder, "train"), read(folder, "t10k"), split_test, weights, SEARCH)
    look = Look.of(splits.train.x)
    train = training_batches(splits.train, look, BATCH, REACH, mirror=True)
    given, training = Given(weights, model, {"classes": CLASSES}), Training(train, count("epochs", epochs), RATE)
    trained = baseline("fashion-mnist", lambda: student(1.0, 1.0), given, training, cache, progress)
    return image_task("fashion-mnist", trained, splits, train, look, student)


def student(width: float, depth: float) -> nn.Module:
    """Untrained: channels times ``width`` in multiples of 8, residual blocks a stage times ``depth``, one at least."""
    return ResidualNet(1, CLASSES, scaled(WIDTHS, width, 8), scaled(BLOCKS, depth), stride=2)


def read(folder: Path, part: str) -> Images:
    """One of the two official sets, ``train`` or ``t10k``. Raises InvalidTask with the file and the place that is wrong."""
    names = {kind: f"{part}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")}
    files = {kind: first_of(folder, (name, f"{name}.gz"), WANTED) for kind, name in names.items()}
    x, y = read_idx(files["images-idx3"], 3), read_idx(files["labels-idx1"], 1)
    if x.shape[1:] != (SIDE, SIDE):
        raise InvalidTask(f"{files['images-idx3']}: images must be {SIDE}x{SIDE}, these are {x.shape[1]}x{x.shape[2]}")
    if len(x) != len(y):
        raise InvalidTask(f"{files['labels-idx1']}: {len(y)} labels for the {len(x)} images of {files['images-idx3'].name}")
    if int(y.max()) >= CLASSES:
        place = int((y >= CLASSES).nonzero()[0])
        raise InvalidTask(f"{files['labels-idx1']}: label {place} is {int(y[place])}; labels are 0 to {CLASSES - 1}")
    return Images(x[:, None], y.long())
