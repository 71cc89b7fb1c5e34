"""Bit packing: codes of 2 to 8 bits without a gap between them (3 bits take 3/8 of a byte), and tensors that are mostly zero.

Layout: code ``i`` occupies the bits ``i * bits`` to ``(i + 1) * bits - 1`` of one stream, least significant bit first; bit ``j`` of the
stream is bit ``j % 8`` of byte ``j // 8``; the last byte is filled up with zeros. A sparse tensor is a bitmask, one bit an element in
the same layout, and the elements that are not zero in their order.
"""

import torch
from torch import Tensor

BYTE = 8
BLOCK = 2**20  # codes packed at a time, a multiple of 8: eight bytes of intermediate memory a bit of them


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of ``count`` codes of ``bits`` bits."""
    return -(-count * bits // BYTE)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Integer ``codes`` in 0 .. 2^bits - 1, of any shape -> uint8 (packed_bytes,), 1 <= bits <= 8, on their device."""
    flat = codes.reshape(-1)
    if flat.is_floating_point() or not 1 <= bits <= BYTE:
        raise ValueError(f"codes must be integers of 1 to 8 bits, got {flat.dtype} and {bits}")
    if flat.numel() and not (int(flat.min()) >= 0 and int(flat.max()) < 2**bits):
        raise ValueError(f"codes {int(flat.min())} to {int(flat.max())} do not fit into {bits} bits")
    if bits == BYTE:
        return flat.to(torch.uint8)
    places, weights = _places(bits, codes.device), _places(BYTE, codes.device)
    parts = []
    for block in torch.split(flat.to(torch.uint8), BLOCK):
        stream = ((block[:, None] >> places) & 1).reshape(-1)  # (block * bits,)
        stream = torch.nn.functional.pad(stream, (0, -len(stream) % BYTE))
        parts.append((stream.reshape(-1, BYTE) << weights).sum(1, dtype=torch.uint8))
    return torch.cat(parts) if parts else flat.to(torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """uint8 (packed_bytes,) -> uint8 (count,): the inverse of ``pack``."""
    if packed.dtype != torch.uint8 or packed.numel() != packed_bytes(count, bits):
        raise ValueError(f"{count} codes of {bits} bits are {packed_bytes(count, bits)} bytes, got {packed.numel()} of {packed.dtype}")
    if bits == BYTE:
        return packed.clone()
    places, weights = _places(BYTE, packed.device), _places(bits, packed.device)
    parts = []
    for block in torch.split(packed, BLOCK * bits // BYTE):  # whole codes: a block holds a multiple of 8 of them
        stream = ((block[:, None] >> places) & 1).reshape(-1)
        whole = stream[: len(stream) // bits * bits].reshape(-1, bits)
        parts.append((whole << weights).sum(1, dtype=torch.uint8))
    return torch.cat(parts)[:count] if parts else packed.clone()


def pack_mask(mask: Tensor) -> Tensor:
    """bool of any shape -> uint8, one bit an element."""
    return pack(mask.to(torch.uint8), 1)


def unpack_mask(packed: Tensor, count: int) -> Tensor:
    """uint8 -> bool (count,)"""
    return unpack(packed, 1, count).bool()


def compact(values: Tensor, keep: Tensor) -> Tensor:
    """The elements of ``values`` where the bool ``keep`` of the same shape is set, in order: (kept,)."""
    return values.reshape(-1)[keep.reshape(-1)]


def expand(values: Tensor, keep: Tensor) -> Tensor:
    """The inverse of ``compact`` with zeros elsewhere: values (kept,), keep of any shape -> the shape of ``keep``."""
    out = torch.zeros(keep.numel(), dtype=values.dtype, device=values.device)
    out[keep.reshape(-1)] = values
    return out.reshape(keep.shape)


def _places(bits: int, device: torch.device) -> Tensor:
    return torch.arange(bits, dtype=torch.uint8, device=device)
