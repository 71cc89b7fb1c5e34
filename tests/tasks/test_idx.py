"""IDX files: what they hold, and what is refused before it is read."""

import gzip
import struct
from pathlib import Path

import pytest
import torch

from autocompress.errors import InvalidTask
from autocompress.tasks.idx import read_idx


def idx(*sizes: int, content: bytes = b"", kind: int = 8, zeros: bytes = b"\0\0") -> bytes:
    return zeros + bytes([kind, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes) + content


@pytest.mark.parametrize("name", ["x", "x.gz"])
def test_values_come_in_order_packed_or_not(tmp_path: Path, name: str) -> None:
    content = idx(2, 2, 3, content=bytes(range(12)))
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert torch.equal(read_idx(tmp_path / name, 3), torch.arange(12, dtype=torch.uint8).view(2, 2, 3))


WRONG = {
    "nothing": (b"", "byte 0: not an IDX file: it must begin with two zero bytes, got nothing"),
    "a PNG": (b"\x89PNG\r\n\x1a\n", "byte 0: not an IDX file"),
    "floats": (idx(1, 1, 1, kind=13), "byte 2: must be type 8 (bytes) with 3 axes, got type 13 with 3"),
    "labels for images": (idx(2, content=b"ab"), "byte 2: must be type 8 (bytes) with 3 axes, got type 8 with 1"),
    "a cut header": (idx(2, 2, 3)[:10], "byte 10: ends within the header"),
    "truncated": (idx(2, 2, 3, content=bytes(11)), "27 bytes only, where the header says 28"),
    "too long": (idx(2, 2, 3, content=bytes(99)), "29 bytes or more, where the header says 28"),
    "no image": (idx(0, 28, 28), "byte 4: the header says 0 x 28 x 28 values"),
    "terabytes": (idx(2**32 - 1, 2**16, 2**16), "byte 4: the header says 4294967295 x 65536 x 65536 values"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_is_wrong_is_told_with_the_place(tmp_path: Path, case: str, packed: bool) -> None:
    content, said = WRONG[case]
    file = tmp_path / ("x.gz" if packed else "x")
    file.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(InvalidTask) as caught:
        read_idx(file, 3)
    assert str(caught.value).startswith(f"{file}: ")
    assert said in str(caught.value)
