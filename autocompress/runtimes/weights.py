"""weights.safetensors: what a compressed model weighs. Quantized weights as bit-packed codes, half weights in 16 bits, mostly zero
ones as a bitmask and the rest; whatever these would not restore bit for bit stays as it is.

The header's metadata hold an index (JSON, deflated, base64) that says how each tensor comes back; a file without one is plain.
"""

import base64
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from autocompress.blocks import FakeQuantized
from autocompress.blocks.packing import compact, expand, pack, pack_mask, unpack, unpack_mask
from autocompress.errors import UserError
from autocompress.runtimes.grids import Grid, from_codes, grids, halves

WEIGHTS = "weights.safetensors"
QUANTIZERS = "quantizers"  # the tensor that holds all buffers of quantizers: one by one their names would weigh more than they do
ENTRY_BYTES = 100  # of the header, for every tensor more
Parts = dict[str, Tensor]  # what is stored of one tensor, by the ending of its name
Index = dict[str, Any]


def weights_bytes(folder: Path) -> int:
    """Bytes of the weights file in ``folder``."""
    return (folder / WEIGHTS).stat().st_size


def write_weights(model: nn.Module, folder: Path) -> None:
    """The state of ``model`` (frozen where fake-quantized) in the fewest bytes that restore it bit for bit."""
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    on_grid = grids(model) if isinstance(model, FakeQuantized) else {}
    in_half = halves(model) if isinstance(model, FakeQuantized) else {}
    buffers = {name: value for name, value in state.items() if isinstance(model, FakeQuantized) and not name.startswith("model.")}
    first = _first_names(model)
    index: Index = {}
    tensors: Parts = {}
    for name, value in state.items():
        if name in buffers:
            continue
        if first.get(name, name) != name:
            index[name] = {"same": first[name]}
            continue
        parts, how = min(_forms(value, on_grid.get(name), in_half.get(name), state), key=lambda form: _bytes(form[0]))
        tensors |= {name + ending: part for ending, part in parts.items()}
        if how:
            index[name] = how
    if buffers:
        tensors[QUANTIZERS], index[QUANTIZERS] = _gather(buffers)
    metadata = {"index": base64.b64encode(zlib.compress(json.dumps(index).encode(), 9)).decode()} if index else None
    (folder / WEIGHTS).write_bytes(save(tensors, metadata))  # not save_file: it reports a full disk as something else than an OSError


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The state dict that ``write_weights`` was given, on the CPU. Raises UserError where the file is missing or not such a file."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            metadata = file.metadata() or {}
        index: Index = json.loads(zlib.decompress(base64.b64decode(metadata["index"]))) if "index" in metadata else {}
        return _restored(tensors, index)
    except (OSError, SafetensorError, KeyError, ValueError, zlib.error) as error:
        raise UserError(f"{folder / WEIGHTS}: the weights cannot be read ({error}); export the artifact again") from None


def _restored(tensors: Parts, index: Index) -> dict[str, Tensor]:
    state = _scatter(tensors.pop(QUANTIZERS), index.pop(QUANTIZERS)) if QUANTIZERS in index else {}
    for name, how in index.items():
        if "same" not in how:
            state[name] = _decode({ending: tensors.pop(name + ending) for ending in how["parts"]}, how, state)
    state |= tensors
    return state | {name: state[how["same"]] for name, how in index.items() if "same" in how}


def _first_names(model: nn.Module) -> dict[str, str]:
    """Parameter name -> the first name under which the same parameter (tied weights) is known."""
    known: dict[int, str] = {}
    return {name: known.setdefault(id(value), name) for name, value in model.named_parameters(remove_duplicate=False)}


def _forms(value: Tensor, grid: Grid | None, half: torch.dtype | None, state: Parts) -> Iterator[tuple[Parts, Index]]:
    """Every way to store ``value`` that gives the same bits back; the plain one is the first."""
    yield {"": value}, {}
    if not value.is_floating_point():
        return
    contents: list[tuple[Tensor, Index]] = [(value, {})]
    if half is not None:
        contents.append((value.to(half), {"half": True}))
    if grid is not None:
        how = {"bits": grid.bits, "low": grid.low, "scale": grid.scale_name, "zero_point": grid.zero_point_name}
        contents.append((grid.codes.cpu() - grid.low, how))
    is_sparse = int((value == 0).sum()) * 32 > value.numel()  # fewer zeros than that cost more in the mask than they save
    for content, how in contents:
        for sparse in (False, True)[: 1 + is_sparse]:
            parts, more = _encode(value, content, how, sparse)
            how_back = how | more | {"parts": list(parts), "shape": list(value.shape), "dtype": _name(value.dtype)}
            if same_bits(_decode(parts, how_back, state), value):
                yield parts, how_back


def _encode(value: Tensor, content: Tensor, how: Index, sparse: bool) -> tuple[Parts, Index]:
    """``content`` stands for ``value``, of the same shape: dense, or only where ``value`` is not zero, and there the signs of zeros."""
    parts: Parts = {}
    if sparse:
        keep = value != 0
        parts[":mask"] = pack_mask(keep)
        signs = torch.signbit(compact(value, ~keep))
        parts |= {":signs": pack_mask(signs)} if signs.any() else {}
        content = compact(content, keep)
    if "bits" in how:
        return parts | {":codes": pack(content, how["bits"])}, {"count": content.numel()}
    return parts | {"": content}, {}


def _decode(parts: Parts, how: Index, state: Parts) -> Tensor:
    """The tensor that ``parts`` stand for; scales and zero points are read from ``state``."""
    shape, dtype = how["shape"], getattr(torch, how["dtype"])
    content = unpack(parts[":codes"], how["bits"], how["count"]).to(torch.int32) + how["low"] if "bits" in how else parts[""]
    keep = unpack_mask(parts[":mask"], torch.Size(shape).numel()) if ":mask" in parts else None
    if keep is not None:
        content = expand(content, keep)
    if "bits" in how:
        content = from_codes(content, state[how["scale"]], state[how["zero_point"]])
    out = content.to(dtype)
    if keep is not None:
        out = torch.where(keep, out, 0.0)
    if keep is not None and ":signs" in parts:
        signs = unpack_mask(parts[":signs"], int((~keep).sum()))
        out[~keep] = torch.where(signs, -out[~keep], out[~keep])
    return out.reshape(shape)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in type, shape and every bit: NaN is itself, and 0 is not -0."""
    flat = [x.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for x in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*flat)


def _gather(buffers: Parts) -> tuple[Tensor, list[list[Any]]]:
    """All ``buffers`` in one uint8 tensor, and its table of (name, dtype, shape, stored dtype or the one value that all elements have)."""
    table: list[list[Any]] = []
    pieces = [torch.zeros(0, dtype=torch.uint8)]
    for name, value in buffers.items():
        stored: str | int = _name(value.dtype)
        if value.dtype in (torch.int32, torch.int64) and value.numel():
            low, high = int(value.min()), int(value.max())
            ranges = ((kind, torch.iinfo(kind)) for kind in (torch.uint8, torch.int8, torch.int16, torch.int32, value.dtype))
            stored = low if low == high else next(_name(kind) for kind, span in ranges if span.min <= low and high <= span.max)
        table.append([name, _name(value.dtype), list(value.shape), stored])
        if isinstance(stored, str):
            pieces.append(value.to(getattr(torch, stored)).reshape(-1).view(torch.uint8))
    return torch.cat(pieces), table


def _scatter(blob: Tensor, table: list[list[Any]]) -> dict[str, Tensor]:
    """The inverse of ``_gather``."""
    state, start = {}, 0
    for name, dtype, shape, stored in table:
        if not isinstance(stored, str):
            state[name] = torch.full(shape, stored, dtype=getattr(torch, dtype))
            continue
        kind: torch.dtype = getattr(torch, stored)
        size = torch.Size(shape).numel() * kind.itemsize
        state[name] = blob[start : start + size].clone().view(kind).to(getattr(torch, dtype)).reshape(shape)
        start += size
    return state


def _bytes(parts: Parts) -> int:
    return sum(part.numel() * part.element_size() + ENTRY_BYTES for part in parts.values())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
