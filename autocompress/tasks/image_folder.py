"""Task `image-folder`: images in a folder for each class; in train/ and val/ or test/ where they are, else split by seed.

Every image becomes RGB, its shorter side ``size`` pixels, its middle cut out square.
"""

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import InvalidTask, MissingDependency
from autocompress.progress import Progress
from autocompress.tasks.baseline import Given, Training, baseline
from autocompress.tasks.files import count, given_path
from autocompress.tasks.images import Images, Look, Splits, image_task, split_images, training_batches
from autocompress.tasks.residual_net import ResidualNet, scaled
from autocompress.tasks.splits import stratified
from autocompress.tasks.task import Task

WANTED = "a folder with a folder of images for each class, or with train/ and test/ (or val/) that hold such folders"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MOST_PIXELS = 80_000_000  # of one image, before it is unpacked
MOST_BYTES = 8 * 2**30  # of all images in memory
WIDTHS, BLOCKS = (32, 64, 128, 256), (1, 1, 1, 1)
EPOCHS, BATCH, RATE = 20, 64, 0.05
HELD_OUT = 0.15


def image_folder(
    cache: Path,
    progress: Progress,
    *,
    data: str = "",
    weights: str = "",
    model: str = "",
    size: str = "64",
    epochs: str = str(EPOCHS),
    split_test: str = "",
    mean: str = "",
    std: str = "",
) -> Task:
    """The task with its trained model, a residual CNN; trains on the first call."""
    side = count("size", size, 8, 1024)
    splits, classes = _splits(given_path(data, "image-folder", WANTED), side, split_test, weights, progress)

    def student(width: float, depth: float) -> nn.Module:
        """Untrained: channels times ``width`` in multiples of 8, residual blocks a stage times ``depth``, one at least."""
        return ResidualNet(3, len(classes), scaled(WIDTHS, width, 8), scaled(BLOCKS, depth), stride=2 if side > 32 else 1)

    look = Look.of(splits.train.x, mean, std)
    train = training_batches(splits.train, look, BATCH, reach=max(1, side // 16), mirror=True)
    training = Training(train, count("epochs", epochs), RATE)
    given = Given(weights, model, {"classes": len(classes), "size": side})
    trained = baseline("image-folder", lambda: student(1.0, 1.0), given, training, cache, progress)
    return image_task("image-folder", trained, splits, train, look, student)


def _splits(folder: Path, side: int, split_test: str, weights: str, progress: Progress) -> tuple[Splits, list[str]]:
    """The parts, and the classes in the order of their numbers."""
    if not folder.is_dir():
        raise InvalidTask(f"--data: {folder}: must be a folder; {WANTED}")
    if not (folder / "train").is_dir():
        classes = _classes(folder)
        images = _read(folder, classes, side, progress)
        parts = [images.pick(part) for part in stratified(images.y, (1 - 2 * HELD_OUT, HELD_OUT, HELD_OUT))]
        return Splits(parts[0], parts[1], parts[2]), classes
    others = [folder / name for name in ("val", "valid", "test") if (folder / name).is_dir()]
    if not others:
        raise InvalidTask(f"--data: {folder}: there is train/ in it and no test/ or val/; {WANTED}")
    classes = _classes(folder / "train")
    train, *rest = (_read(one, classes, side, progress) for one in (folder / "train", *others))
    if len(rest) > 1:
        return Splits(train, rest[0], rest[-1]), classes
    return split_images(train, rest[0], split_test, weights, HELD_OUT), classes


def _classes(folder: Path) -> list[str]:
    """Names of the folders, sorted. Raises InvalidTask for fewer than two, and for one without an image."""
    classes = sorted(one.name for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))
    if len(classes) < 2:
        raise InvalidTask(f"--data: {folder}: {len(classes)} class folders; there must be two at least: {WANTED}")
    for name in classes:
        if not _files(folder / name):
            raise InvalidTask(f"{folder / name}: there is no image of this class in it ({', '.join(SUFFIXES)})")
    return classes


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())


def _read(folder: Path, classes: list[str], side: int, progress: Progress) -> Images:
    """All images of a split; x (N, 3, side, side). Raises InvalidTask for a class that train does not have."""
    strangers = sorted(one.name for one in folder.iterdir() if one.is_dir() and one.name not in classes and not one.name.startswith("."))
    if strangers:
        raise InvalidTask(f"{folder / strangers[0]}: a class that train does not have; it has {', '.join(classes[:8])}")
    files = [(file, number) for number, name in enumerate(classes) for file in _files(folder / name)]
    if not files:
        raise InvalidTask(f"{folder}: there is no image in it; {WANTED}")
    if 3 * side**2 * len(files) > MOST_BYTES:
        raise InvalidTask(f"{folder}: {len(files)} images of {side}x{side} are more than {MOST_BYTES} bytes; give a smaller --option size")
    pillow = _pillow()
    x = torch.empty(len(files), 3, side, side, dtype=torch.uint8)
    with progress.stage(f"reading images of {folder.name}", len(files)) as advance:
        for place, (file, _) in enumerate(files):
            x[place] = _image(pillow, file, side)
            advance(1)
    return Images(x, torch.tensor([number for _, number in files]))


def _image(pillow: Any, file: Path, side: int) -> Tensor:
    """(3, side, side) uint8. Raises InvalidTask for a file that does not read, or claims too many pixels before it is unpacked."""
    try:
        with pillow.open(file) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise InvalidTask(f"{file}: {width}x{height} pixels; at most {MOST_PIXELS} are unpacked")
            scale = side / min(width, height)
            sizes = (max(side, round(width * scale)), max(side, round(height * scale)))
            left, top = (sizes[0] - side) // 2, (sizes[1] - side) // 2
            small = image.convert("RGB").resize(sizes, pillow.Resampling.BILINEAR).crop((left, top, left + side, top + side))
    except InvalidTask:
        raise
    except Exception as error:  # its decoders raise whatever they like on a broken file
        raise InvalidTask(f"{file}: not readable as an image: {' '.join(str(error).split())[:160]}") from None
    return torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(side, side, 3).permute(2, 0, 1)


def _pillow() -> Any:
    try:
        return importlib.import_module("PIL.Image")
    except ModuleNotFoundError:
        command = 'pip install "autocompress[images]"'
        raise MissingDependency(f"task image-folder: the package Pillow is not installed; get it with `{command}`") from None
