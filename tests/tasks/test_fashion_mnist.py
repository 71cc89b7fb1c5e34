"""Task `fashion-mnist`: four IDX files, packed or not, become three disjoint splits."""

import gzip
from pathlib import Path

import pytest
import torch

from autocompress.errors import InvalidTask
from autocompress.progress import Progress
from autocompress.tasks.fashion_mnist import read, student
from autocompress.tasks.find import find_task
from autocompress.tasks.task import Task, check, gather
from tests.tasks.real_data import real
from tests.tasks.test_idx import idx


def tiny() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))


def write(folder: Path, part: str, images: int, labels: bytes | None = None, packed: bool = False) -> None:
    pixels = torch.randint(0, 256, (images * 784,), dtype=torch.uint8, generator=torch.Generator().manual_seed(images)).numpy().tobytes()
    labels = bytes(number % 10 for number in range(images)) if labels is None else labels
    for name, content in (("images-idx3", idx(images, 28, 28, content=pixels)), ("labels-idx1", idx(len(labels), content=labels))):
        suffix = ".gz" if packed else ""
        (folder / f"{part}-{name}-ubyte{suffix}").write_bytes(gzip.compress(content) if packed else content)


def found(folder: Path, cache: Path, **options: str) -> Task:
    return find_task("fashion-mnist", cache, Progress(quiet=True), {"data": str(folder), "model": f"{__name__}:tiny", **options})


@pytest.mark.parametrize("packed", [False, True])
def test_the_official_files_become_disjoint_splits_of_standardised_images(tmp_path: Path, packed: bool) -> None:
    write(tmp_path, "train", 60, packed=packed)
    write(tmp_path, "t10k", 20, packed=packed)
    task = found(tmp_path, tmp_path / "cache")
    check(task)
    sizes = [len(gather(split, "split")[1]) for split in (task.train, task.search, task.holdout or ())]
    assert sizes == [50, 10, 20]
    x, _ = gather(task.calibration or (), "calibration")
    assert x.mean().item() == pytest.approx(0, abs=1e-4)
    assert x.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert len(gather(found(tmp_path, tmp_path / "cache", split_test="yes").train, "train")[1]) == 60


WRONG = {
    "labels out of range": (bytes([0, 1, 10]), 3, r"train-labels-idx1-ubyte: label 2 is 10; labels are 0 to 9"),
    "fewer labels": (bytes([0, 1]), 3, r"train-labels-idx1-ubyte: 2 labels for the 3 images of train-images-idx3-ubyte"),
}


@pytest.mark.parametrize("case", WRONG)
def test_labels_that_are_wrong_are_told_with_file_and_place(tmp_path: Path, case: str) -> None:
    labels, images, said = WRONG[case]
    write(tmp_path, "train", images, labels)
    with pytest.raises(InvalidTask, match=said):
        read(tmp_path, "train")


def test_other_sizes_of_images_and_missing_files_are_told(tmp_path: Path) -> None:
    write(tmp_path, "train", 3)
    with pytest.raises(InvalidTask, match=r"there is no t10k-images-idx3-ubyte or .*\.gz in it; the folder with .*https://github.com/zalando"):
        found(tmp_path, tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(3, 2, 2, content=bytes(12)))
    with pytest.raises(InvalidTask, match="images must be 28x28, these are 2x2"):
        read(tmp_path, "train")


def test_a_student_is_of_another_width_and_depth() -> None:
    model = student(0.5, 0.5)
    assert model.head.in_features == 64
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_the_real_files_hold_60000_and_10000_images_of_ten_equal_classes() -> None:
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        images = read(real("fashion_mnist"), part)
        assert images.x.shape == (count, 1, 28, 28)
        assert torch.bincount(images.y).tolist() == [count // 10] * 10
