"""An exported folder is what was exported, or it is told file by file what is not."""

import json
import subprocess
from pathlib import Path

import pytest

from autocompress.artifact import check_files, read_measured, write_checksums
from autocompress.errors import InvalidArtifact


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "out"
    (made / "deep").mkdir(parents=True)
    for name in ("measured.json", "recipe.yaml", "model.onnx", "deep/with space.bin"):
        (made / name).write_text(f"{{}} of {name}")
    write_checksums(made)
    return made


def complaints(folder: Path) -> list[str]:
    with pytest.raises(InvalidArtifact) as caught:
        check_files(folder)
    return str(caught.value).splitlines()


def test_a_whole_folder_is_let_through_with_files_of_others_beside(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    check_files(folder)


def test_sha256sum_reads_the_sums(folder: Path) -> None:
    done = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": OK\n") == 4


def test_every_file_that_is_missing_or_changed_is_a_line(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"other")
    (folder / "deep" / "with space.bin").unlink()
    first, second = complaints(folder)
    assert first.startswith(f"{folder}/deep/with space.bin: missing")
    assert second.startswith(f"{folder}/model.onnx: changed since it was exported (sha256 ")


def test_a_folder_without_sums_or_that_is_none_is_told_what_to_do(folder: Path, tmp_path: Path) -> None:
    assert "no such folder" in complaints(tmp_path / "absent")[0]
    (folder / "SHA256SUMS").unlink()
    assert complaints(folder) == [
        f"{folder}/SHA256SUMS: missing; without it nothing tells a changed file. Export again with `autocompress export`."
    ]
    (tmp_path / "empty").mkdir()
    assert "not an exported folder" in complaints(tmp_path / "empty")[0]


def test_sums_that_do_not_read_or_lack_a_file_that_is_needed_are_refused(folder: Path) -> None:
    sums = folder / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    sums.write_text("".join(line for line in lines if "measured.json" not in line))
    assert "does not list measured.json" in complaints(folder)[0]
    sums.write_text("garbage\n")
    assert "line 1 is not a sha256 sum and a file name: 'garbage'" in complaints(folder)[0]


@pytest.mark.parametrize(("text", "message"), [("{", "measured.json: "), ("{}", "target"), (json.dumps({"x": 1}), "x: unknown key")])
def test_numbers_that_do_not_read_are_named(folder: Path, text: str, message: str) -> None:
    (folder / "measured.json").write_text(text)
    with pytest.raises(InvalidArtifact, match=message):
        read_measured(folder)
    (folder / "measured.json").unlink()
    with pytest.raises(InvalidArtifact, match=r"measured\.json: missing"):
        read_measured(folder)
