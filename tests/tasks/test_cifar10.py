"""Task `cifar10`: the official binary version, and a pretrained network of the user's with its own inputs."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autocompress.errors import InvalidTask
from autocompress.progress import Progress
from autocompress.tasks.cifar10 import RECORD, TRAIN, read, student
from autocompress.tasks.find import find_task
from autocompress.tasks.task import Task, check, gather, outputs_of, score, with_holdout
from tests.tasks.real_data import real

RIGHT = 1859  # of the first 2,000 test images, by benchmarks/resnet56.py's own reading of the sheets


def tiny() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))


def records(count: int, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).integers(0, 256, (count, RECORD), dtype=np.uint8)
    found[:, 0] = np.arange(count) % 10
    return found


def write(folder: Path, train: int = 20, test: int = 40) -> Path:
    folder.mkdir(exist_ok=True)
    for seed, name in enumerate(TRAIN):
        records(train, seed).tofile(folder / name)
    records(test, 9).tofile(folder / "test_batch.bin")
    return folder


def found(folder: Path, cache: Path, **options: str) -> Task:
    return find_task("cifar10", cache, Progress(quiet=True), {"data": str(folder), "model": f"{__name__}:tiny", **options})


def test_the_folder_or_the_one_above_it_becomes_three_splits(tmp_path: Path) -> None:
    write(tmp_path / "cifar-10-batches-bin")
    task = found(tmp_path, tmp_path / "cache")
    check(task)
    x, y = next(iter(task.train))
    assert (x.shape[1:], x.dtype, y.dtype) == ((3, 32, 32), torch.float32, torch.int64)
    sizes = [len(gather(split, "split")[1]) for split in (task.train, task.search, task.holdout or ())]
    assert sizes == [90, 10, 40]


def test_records_are_a_label_and_three_planes(tmp_path: Path) -> None:
    content = records(3)
    content.tofile(tmp_path / "x.bin")
    images = read(tmp_path / "x.bin")
    assert images.y.tolist() == [0, 1, 2]
    assert images.x[1, 2, 5, 7].item() == content[1, 1 + 2 * 1024 + 5 * 32 + 7]


WRONG = {
    "truncated": (records(3).tobytes()[:-1], "9218 bytes are 2 records of 3073 bytes and 3072 more; it must be a whole number of records"),
    "empty": (b"", "0 bytes are 0 records"),
    "a label too large": (bytes(RECORD) + bytes([10]) + bytes(RECORD - 1), "record 1, byte 3073: label 10; labels are 0 to 9"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_is_wrong_is_told_with_the_place(tmp_path: Path, case: str) -> None:
    content, said = WRONG[case]
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(InvalidTask) as caught:
        read(tmp_path / "x.bin")
    assert str(caught.value).startswith(f"{tmp_path / 'x.bin'}: ")
    assert said in str(caught.value)


def test_a_missing_file_is_named_with_where_to_get_it(tmp_path: Path) -> None:
    write(tmp_path / "data")
    (tmp_path / "data" / "data_batch_3.bin").unlink()
    with pytest.raises(InvalidTask, match=r"there is no data_batch_3\.bin in it; .*https://www\.cs\.toronto\.edu/~kriz/cifar\.html"):
        found(tmp_path / "data", tmp_path)


def test_a_student_is_of_another_width_and_depth() -> None:
    model = student(0.5, 0.4)
    assert model.head.in_features == 32
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_real_pretrained_network_is_as_right_as_it_is_known_to_be(tmp_path: Path) -> None:
    """The user's architecture and weights, with the mean and deviation that these were trained with, on the first 2,000 test images: all
    10,000 (93.39 %, as published) take a minute and a half more.
    """
    weights, sheets = real("cifar10_resnet56/resnet56-4bfd9763.th"), real("cifar10")
    spec = importlib.util.spec_from_file_location("load", sheets / "load.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    x, y = (part[:2000] for part in module.load_cifar10("test"))
    write(tmp_path, train=10)
    np.concatenate([y[:, None], x.transpose(0, 3, 1, 2).reshape(len(x), -1)], 1).astype(np.uint8).tofile(tmp_path / "test_batch.bin")
    look = {"mean": "0.485,0.456,0.406", "std": "0.229,0.224,0.225"}
    task = with_holdout(found(tmp_path, tmp_path, weights=str(weights), model="benchmarks.resnet56:ResNet56", **look), seed=0)
    assert "halves of the test images" in task.notes[0]
    right = 0.0
    for split in (task.search, task.holdout or ()):
        inputs, classes = gather(split, "split")
        assert abs(len(classes) - 1000) <= 5  # an odd class has one more in the first
        right += score(task, outputs_of(task.model, inputs), classes) / 100 * len(classes)
    assert round(right) == RIGHT
