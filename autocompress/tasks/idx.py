"""IDX, the format of MNIST and its kin: two zero bytes, a type, the number of axes, their sizes in big-endian, then the values.

http://yann.lecun.com/exdb/mnist describes it; only its bytes (type 8) are read here.
"""

import math
import struct
from pathlib import Path

import torch
from torch import Tensor

from autocompress.errors import InvalidTask
from autocompress.tasks.files import read_up_to

BYTES_TYPE = 8
MOST_VALUES = 2**31


def read_idx(file: Path, axes: int) -> Tensor:
    """A tensor (N, ...) of ``axes`` axes, uint8; from .gz too. Raises InvalidTask for another format, type or size than it says.

    The size is checked before anything of it is read, so a header that claims terabytes costs nothing.
    """
    head = 4 + 4 * axes
    start = read_up_to(file, head)[:head]
    if len(start) < 4 or start[:2] != b"\0\0":
        raise InvalidTask(f"{file}: byte 0: not an IDX file: it must begin with two zero bytes, got {start[:4].hex(' ') or 'nothing'}")
    if start[2] != BYTES_TYPE or start[3] != axes:
        raise InvalidTask(f"{file}: byte 2: must be type 8 (bytes) with {axes} axes, got type {start[2]} with {start[3]}")
    if len(start) < head:
        raise InvalidTask(f"{file}: byte {len(start)}: ends within the header")
    sizes = struct.unpack(f">{axes}I", start[4:])
    total = math.prod(sizes)
    if not 0 < total <= MOST_VALUES:
        raise InvalidTask(f"{file}: byte 4: the header says {' x '.join(map(str, sizes))} values; between 1 and {MOST_VALUES} are possible")
    content = read_up_to(file, head + total)
    if len(content) != head + total:
        more = "or more" if len(content) > head + total else "only"
        raise InvalidTask(f"{file}: {len(content)} bytes {more}, where the header says {head + total}; the file is broken or incomplete")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=head).view(sizes)
