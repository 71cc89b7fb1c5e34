"""Task `image-folder`: a folder for each class, in parts that are there or made by seed."""

import importlib
import struct
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from autocompress.errors import InvalidTask, MissingDependency
from autocompress.progress import Progress
from autocompress.tasks.find import find_task
from autocompress.tasks.task import Task, check, gather


def tiny(classes: int, size: int) -> nn.Module:
    return nn.Sequential(nn.AvgPool2d(size // 4), nn.Flatten(), nn.Linear(48, classes))


def write(folder: Path, count: int = 20, classes: tuple[str, ...] = ("cat", "dog"), side: int = 20) -> Path:
    """Images of one colour each, darker or lighter by class; names of capital and small letters, one of them grey."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            colour = (40 + 90 * number + index, 40 + index, 200)
            image = Image.new("RGB", (side + index, side), colour) if index else Image.new("L", (side, side), 9)
            image.save(folder / name / (f"{index}.PNG" if index % 2 else f"{index}.png"))
    return folder


def found(data: Path, cache: Path, **options: str) -> Task:
    given = {"data": str(data), "size": "16", "epochs": "1", "model": f"{__name__}:tiny", **options}
    return find_task("image-folder", cache, Progress(quiet=True), given)


def sizes(task: Task) -> list[int]:
    return [len(gather(split, "split")[1]) for split in (task.train, task.search, task.holdout or ())]


def test_class_folders_are_split_by_seed_with_every_class_in_each_part(tmp_path: Path) -> None:
    task = found(write(tmp_path / "data"), tmp_path)
    check(task)
    assert sum(sizes(task)) == 40
    assert sizes(task) == pytest.approx([28, 6, 6], abs=2)
    for split in (task.train, task.search, task.holdout or ()):
        x, y = gather(split, "split")
        assert x.shape[1:] == (3, 16, 16)
        assert sorted(set(y.tolist())) == [0, 1]


@pytest.mark.parametrize(("parts", "options", "expected"), [
    (("train", "test"), {}, [34, 6, 40]),
    (("train", "val"), {"split_test": "yes"}, [40, 20, 20]),
    (("train", "val", "test"), {}, [40, 40, 40]),
])  # fmt: skip
def test_parts_that_are_there_are_kept(tmp_path: Path, parts: tuple[str, ...], options: dict[str, str], expected: list[int]) -> None:
    for part in parts:
        write(tmp_path / part)
    assert sizes(found(tmp_path, tmp_path / "cache", **options)) == expected


def test_an_image_keeps_its_colours_and_its_middle(tmp_path: Path) -> None:
    write(tmp_path / "data")
    wide = Image.new("RGB", (60, 20), (0, 0, 0))
    wide.paste((250, 100, 10), (20, 0, 40, 20))
    for index in range(20):
        wide.save(tmp_path / "data" / "cat" / f"{index}.{'PNG' if index % 2 else 'png'}")
    task = found(tmp_path / "data", tmp_path, mean="0,0,0", std="1,1,1")
    x, y = gather(task.search, "search")
    torch.testing.assert_close(x[y == 0][0].mean((1, 2)) * 255, torch.tensor([250.0, 100.0, 10.0]), atol=8, rtol=0)


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + struct.pack(">I", 0) + b"IDAT"


BROKEN = {
    "no image": (b"text", "not readable as an image"),
    "cut off": (png_header(20, 20), "not readable as an image"),
    "a bomb": (png_header(12_000, 7_000), "12000x7000 pixels; at most 80000000 are unpacked"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_image_that_does_not_read_is_named(tmp_path: Path, case: str) -> None:
    content, said = BROKEN[case]
    write(tmp_path / "data")
    (tmp_path / "data" / "dog" / "99.png").write_bytes(content)
    with pytest.raises(InvalidTask) as caught:
        found(tmp_path / "data", tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'data' / 'dog' / '99.png'}: ")
    assert said in str(caught.value)


def test_an_empty_class_a_single_class_and_a_class_that_train_lacks_are_told(tmp_path: Path) -> None:
    write(tmp_path / "train")
    write(tmp_path / "test")
    (tmp_path / "test" / "fox").mkdir()
    with pytest.raises(InvalidTask, match=r"test/fox: a class that train does not have; it has cat, dog"):
        found(tmp_path, tmp_path / "cache")
    (tmp_path / "train" / "fox").mkdir()
    with pytest.raises(InvalidTask, match=r"train/fox: there is no image of this class in it"):
        found(tmp_path, tmp_path / "cache")
    (tmp_path / "only" / "train").mkdir(parents=True)
    with pytest.raises(InvalidTask, match=r"there is train/ in it and no test/ or val/"):
        found(tmp_path / "only", tmp_path / "cache")
    with pytest.raises(InvalidTask, match=r"1 class folders; there must be two at least"):
        found(write(tmp_path / "single", classes=("cat",)), tmp_path / "cache")


def test_without_pillow_the_pip_command_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "data")
    real = importlib.import_module

    def absent(name: str, package: str | None = None) -> object:
        if name.partition(".")[0] == "PIL":
            raise ModuleNotFoundError(name=name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(MissingDependency, match=r'pip install "autocompress\[images\]"'):
        found(tmp_path / "data", tmp_path)
