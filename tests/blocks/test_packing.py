"""What is packed comes back bit for bit, in exactly as many bits as were asked for."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from autocompress.blocks import packing
from autocompress.blocks.packing import compact, expand, pack, pack_mask, packed_bytes, unpack, unpack_mask


@st.composite
def codes_and_bits(draw: st.DrawFn) -> tuple[Tensor, int]:
    bits = draw(st.integers(1, 8))
    values = draw(st.lists(st.integers(0, 2**bits - 1), max_size=70))
    return torch.tensor(values, dtype=draw(st.sampled_from([torch.uint8, torch.int32, torch.int64]))), bits


@given(codes_and_bits())
def test_codes_of_any_width_and_number_come_back_and_take_no_bit_more_than_they_need(drawn: tuple[Tensor, int]) -> None:
    codes, bits = drawn
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.numel() == packed_bytes(len(codes), bits) == -(-len(codes) * bits // 8)
    assert torch.equal(unpack(packed, bits, len(codes)), codes.to(torch.uint8))


@given(codes_and_bits())
def test_the_layout_is_one_stream_with_the_lowest_bit_first(drawn: tuple[Tensor, int]) -> None:
    codes, bits = drawn
    stream = sum(int(code) << (index * bits) for index, code in enumerate(codes))  # the definition, in one large integer
    assert pack(codes, bits).numpy().tobytes() == stream.to_bytes(packed_bytes(len(codes), bits), "little")


@given(codes_and_bits())
def test_a_tensor_longer_than_one_block_is_packed_like_a_short_one(drawn: tuple[Tensor, int]) -> None:
    codes, bits = drawn
    whole = pack(codes, bits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BLOCK", 8)
        assert torch.equal(pack(codes, bits), whole)
        assert torch.equal(unpack(whole, bits, len(codes)), codes.to(torch.uint8))


@given(st.lists(st.booleans(), max_size=70))
def test_a_mask_is_numpys_little_endian_bit_packing(values: list[bool]) -> None:
    mask = torch.tensor(values, dtype=torch.bool)
    packed = pack_mask(mask)
    assert packed.numpy().tobytes() == np.packbits(mask.numpy(), bitorder="little").tobytes()
    assert torch.equal(unpack_mask(packed, len(values)), mask)


@given(st.lists(st.floats(width=32) | st.just(0.0), min_size=6, max_size=6), st.permutations(range(6)))
def test_a_sparse_tensor_comes_back_with_zeros_where_the_mask_has_none(values: list[float], order: list[int]) -> None:
    dense = torch.tensor(values)[torch.tensor(order)].reshape(2, 3).T  # not contiguous
    keep = dense != 0
    kept = compact(dense, keep)
    assert len(kept) == int(keep.sum())
    assert torch.equal(expand(kept, keep).nan_to_num(7.0), dense.nan_to_num(7.0))


def test_strided_codes_are_packed_in_the_order_of_their_elements() -> None:
    codes = torch.arange(12, dtype=torch.uint8).reshape(3, 4).T
    assert torch.equal(unpack(pack(codes, 4), 4, 12).reshape(4, 3), codes)


@pytest.mark.parametrize(("codes", "bits"), [([4], 2), ([-1], 8), ([256], 8), ([0], 9), ([0], 0), ([0.0], 4)], ids=str)
def test_what_does_not_fit_is_refused_and_not_cut_off(codes: list[int], bits: int) -> None:
    with pytest.raises(ValueError, match=r"bits|codes"):
        pack(torch.tensor(codes), bits)


def test_bytes_that_cannot_be_that_many_codes_are_refused() -> None:
    with pytest.raises(ValueError, match="5 codes of 3 bits are 2 bytes, got 3"):
        unpack(torch.zeros(3, dtype=torch.uint8), 3, 5)
