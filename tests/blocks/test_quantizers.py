"""Grids are those of Jacob et al. 2018; weights go to integers and back without losing a bit; what is held stands still."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from autocompress.blocks import ActivationQuantizer, HalfQuantizer, WeightQuantizer
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import Quantization
from tests.small_models import inputs


def settled(bits: int, *batches: Tensor, **options: Any) -> ActivationQuantizer:
    quantizer = ActivationQuantizer(bits, Quantization(**options))
    for batch in batches:
        quantizer.observe_(batch)
    quantizer.settle_()
    return quantizer


def rounded_weight(weight: Tensor, bits: int = 7) -> Tensor:
    scale = weight.detach().abs().flatten(1).amax(1) / (2 ** (bits - 1) - 1)
    return torch.fake_quantize_per_channel_affine(weight, scale, torch.zeros(len(weight), dtype=torch.int32), 0, -128, 127)


# ---- activations


@pytest.mark.parametrize("bits", [8, 7, 4])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.0, 6.0), (-5.0, 0.0), (0.5, 2.0), (-2.0, -0.5), (-1e-3, 1e3)])
def test_the_grid_of_an_activation_is_that_of_jacob_2018(bits: int, low: float, high: float) -> None:
    quantizer = settled(bits, torch.tensor([low, high]))
    scale = (max(high, 0.0) - min(low, 0.0)) / (2**bits - 1)
    zero = round(-min(low, 0.0) / scale)
    assert quantizer.scale.item() == pytest.approx(scale, rel=1e-6)
    assert quantizer.zero_point.item() == zero
    x = torch.linspace(low - 1, high + 1, 1001)
    by_hand = ((x.double() / scale).round() + zero).clamp(0, 255).sub(zero).mul(scale)
    assert (quantizer(x) - by_hand).abs().max() <= scale * 1.001  # ties may fall either way in float32
    assert ((quantizer(x) - by_hand).abs() > scale * 0.01).float().mean() < 0.01


def test_a_symmetric_activation_has_its_zero_in_the_middle_of_uint8() -> None:
    quantizer = settled(8, torch.tensor([-1.0, 12.7]), symmetric_activations=True)
    assert quantizer.zero_point.item() == 128
    assert quantizer.scale.item() == pytest.approx(0.1, rel=1e-6)
    assert quantizer(torch.tensor([-99.0, 0.0, 99.0])).tolist() == pytest.approx([-12.8, 0.0, 12.7], rel=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
def test_zero_is_exactly_representable_and_a_range_of_nothing_but_zero_is_harmless(symmetric: bool) -> None:
    for seen in (torch.tensor([0.3, 2.0]), torch.tensor([-0.37, 1.91]), torch.zeros(3), torch.tensor([-7.0, -3.0])):
        quantizer = settled(8, seen, symmetric_activations=symmetric)
        assert quantizer(torch.zeros(4)).tolist() == [0.0] * 4
        assert quantizer(seen).isfinite().all()


def test_ranges_widen_over_batches_and_never_narrow() -> None:
    quantizer = settled(8, torch.tensor([-1.0, 2.0]), torch.tensor([0.0, 0.5]), torch.tensor([-3.0]))
    assert (quantizer.low.item(), quantizer.high.item()) == (-3.0, 2.0)


def test_gradients_pass_straight_through_inside_the_range_and_stop_outside() -> None:
    quantizer = settled(8, torch.tensor([-1.0, 1.0]))
    x = torch.tensor([-2.0, -0.5, 0.123, 0.9, 3.0], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("observer", ["minmax", "moving_average", "percentile"])
def test_only_a_moving_average_follows_in_training_and_only_until_it_is_held(observer: Any) -> None:
    quantizer = settled(8, torch.tensor([-1.0, 1.0]), observer=observer)
    before = quantizer.high.clone()
    wide = torch.tensor([-3.0, 3.0])
    quantizer.eval()(wide)
    assert torch.equal(quantizer.high, before)
    quantizer.train()(wide)
    follows = observer == "moving_average"
    assert (quantizer.high.item() == pytest.approx(2.0)) == follows  # the mean of 1 and 3
    quantizer.hold_()
    held = quantizer.high.clone()
    quantizer(5 * wide)
    assert torch.equal(quantizer.high, held)


def test_a_learned_activation_scale_is_trained_stays_positive_and_stops_when_held() -> None:
    quantizer = settled(8, torch.tensor([-1.0, 1.0]), learned_step=True).train()
    before = quantizer.scale.item()
    x = inputs(4, 10).requires_grad_()
    quantizer(x).sum().backward()
    assert quantizer.scale.grad.abs() > 0
    quantizer.scale.data.fill_(-1.0)  # a step that was too large
    assert quantizer(x).isfinite().all()
    assert quantizer.scale > 0
    quantizer.hold_()
    quantizer.scale.grad = None
    quantizer(x).sum().backward()
    assert quantizer.scale.grad is None
    assert before > 0
    assert [name for name, _ in quantizer.state_dict().items()] == ["scale", "low", "high", "zero_point"]


@pytest.mark.parametrize("observer", ["minmax", "moving_average", "percentile", "entropy", "mse"])
def test_nothing_of_an_observer_is_in_the_state(observer: Any) -> None:
    quantizer = settled(8, inputs(100), observer=observer)
    assert sorted(quantizer.state_dict()) == ["high", "low", "scale", "zero_point"]
    assert all(value.dim() == 0 for value in quantizer.state_dict().values())


# ---- weights


@pytest.mark.parametrize("bits", [2, 4, 7, 8])
def test_weights_lie_on_a_symmetric_grid_a_channel_with_as_many_levels_as_bits_say(bits: int) -> None:
    weight = inputs(5, 3, 3, 3) * torch.tensor([1e-3, 1.0, 7.0, 50.0, 0.0])[:, None, None, None]
    quantizer = WeightQuantizer(weight, bits).eval()
    levels = quantizer(weight) / quantizer.scale[:, None, None, None]
    most = 2 ** (bits - 1) - 1
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    assert levels.abs().flatten(1).amax(1).round().tolist() == [most] * 4 + [0]
    assert torch.equal(quantizer(weight)[:4], rounded_weight(weight[:4], bits))


def by_torch(quantizer: WeightQuantizer, weight: Tensor) -> Tensor:
    """The same grid through torch's operators."""
    levels = (quantizer.lowest, quantizer.highest)
    scale, zero = quantizer.scale.detach(), quantizer.zero_point
    if quantizer.granularity == "tensor":
        return torch.fake_quantize_per_tensor_affine(weight, scale, zero, *levels)
    rows = weight.reshape(scale.numel(), -1)
    return torch.fake_quantize_per_channel_affine(rows, scale.reshape(-1), zero.reshape(-1), 0, *levels).reshape(weight.shape)


grids = st.fixed_dictionaries(
    {
        "granularity": st.sampled_from(["tensor", "channel", "group"]),
        "group_size": st.sampled_from([2, 3, 6, 12]),
        "symmetric": st.booleans(),
        "weight_observer": st.sampled_from(["minmax", "mse"]),
        "learned_step": st.booleans(),
    }
)


schemes = st.sampled_from(["static", "dynamic", "weight_only"])


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.integers(2, 8), grids, schemes, st.sampled_from([1e-4, 1.0, 1e3]))
def test_a_weight_goes_to_codes_and_back_to_the_bit_and_stays_there(
    seed: int, bits: int, grid: dict[str, Any], scheme: Any, size: float
) -> None:
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 3, 2, 2, generator=random) * size
    weight[torch.rand(weight.shape, generator=random) < 0.3] = 0  # a mask
    quantizer = WeightQuantizer(weight, bits, Quantization(**grid), scheme).eval()
    rounded, codes = quantizer(weight).detach(), quantizer.codes(weight)
    assert torch.equal(rounded, by_torch(quantizer, weight))
    assert (rounded[weight == 0] == 0).all()
    assert not codes.is_floating_point()
    assert codes.shape == weight.shape
    assert quantizer.lowest <= codes.min()
    assert codes.max() <= quantizer.highest
    assert quantizer.highest - quantizer.lowest < 2**bits
    stored = quantizer.dequantize(codes)
    assert torch.equal(stored, rounded)
    assert torch.equal(quantizer.codes(stored), codes)
    assert torch.equal(quantizer(stored).view(torch.int32), stored.view(torch.int32))  # to the bit, signs of zeros included
    quantizer.freeze_(stored)
    assert torch.equal(quantizer.dequantize(quantizer.codes(stored)).view(torch.int32), stored.view(torch.int32))


@given(st.integers(0, 2**31), st.integers(2, 8), st.sampled_from(["tensor", "channel", "group"]), st.booleans())
def test_the_whole_range_of_a_weight_is_on_its_min_max_grid(seed: int, bits: int, granularity: Any, symmetric: bool) -> None:
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(seed))
    quantizer = WeightQuantizer(weight, bits, Quantization(granularity=granularity, group_size=4, symmetric=symmetric), "weight_only")
    scale = quantizer.scale
    assert scale.shape == {"tensor": (), "channel": (3,), "group": (3, 2)}[granularity] == quantizer.zero_point.shape
    missed = (quantizer.eval()(weight) - weight).reshape(scale.numel(), -1)
    assert (missed.abs() <= 0.501 * scale.reshape(-1, 1)).all()  # nothing is clipped by more than rounding
    assert quantizer.zero_point.eq(0).all() or not symmetric


def test_weights_alone_use_the_one_code_more_that_integer_kernels_leave_out() -> None:
    weight = torch.tensor([[-8.0, 3.0, 7.0, 1.0]])
    alone, kernel = (WeightQuantizer(weight, 4, scheme=scheme).eval() for scheme in ("weight_only", "static"))
    assert alone.codes(weight).tolist() == [[-8, 3, 7, 1]]
    assert torch.equal(alone(weight), weight)
    assert kernel.codes(weight).min() == -7


def test_a_group_shares_a_scale_among_neighbouring_inputs_of_an_output() -> None:
    weight = torch.tensor([[0.1, -0.7, 70.0, 7.0], [7e-3, 0.0, 0.0, 0.0]])
    quantizer = WeightQuantizer(weight, 4, Quantization(granularity="group", group_size=2), "static").eval()
    torch.testing.assert_close(quantizer.scale, torch.tensor([[0.1, 10.0], [1e-3, 1e-8]]))
    torch.testing.assert_close(quantizer(weight), torch.tensor([[0.1, -0.7, 70.0, 10.0], [7e-3, 0.0, 0.0, 0.0]]))


def test_a_group_size_that_does_not_divide_is_refused_with_the_layers_name_and_the_sizes() -> None:
    with pytest.raises(InfeasibleRecipe, match=r"^block\.conv: group_size 8 does not divide the 27 inputs of an output"):
        WeightQuantizer(inputs(4, 3, 3, 3), 4, Quantization(granularity="group", group_size=8), name="block.conv")


def test_layout_of_a_weight_changes_nothing() -> None:
    weight = inputs(4, 3, 2, 2)
    for granularity in ("tensor", "channel", "group"):
        quantizer = WeightQuantizer(weight, 4, Quantization(granularity=granularity, group_size=6)).eval()
        assert torch.equal(quantizer(weight.to(memory_format=torch.channels_last)), quantizer(weight))
        assert torch.equal(quantizer.codes(weight.to(memory_format=torch.channels_last)), quantizer.codes(weight))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_grid_of_least_squared_error_is_that_of_a_search_in_float64(bits: int, symmetric: bool) -> None:
    weight = inputs(4, 200)
    quantizer = WeightQuantizer(weight, bits, Quantization(weight_observer="mse", symmetric=symmetric)).eval()
    plain = WeightQuantizer(weight, bits, Quantization(symmetric=symmetric)).eval()
    for row in range(4):
        w = weight[row].double()
        ends = (w.min(), w.max())
        errors = []
        for share in torch.linspace(0.2, 1, 81, dtype=torch.float64):
            low, high = (share * end for end in ends)
            scale = torch.maximum(-low, high) / quantizer.highest if symmetric else (high - low) / quantizer.highest
            zero = 0 if symmetric else (-low / scale).round()
            codes = ((w / scale).round() + zero).clamp(quantizer.lowest, quantizer.highest)
            errors.append(((codes - zero) * scale - w).square().sum())
        found = (quantizer(weight)[row] - weight[row]).square().sum()
        assert found <= min(errors) * 1.001
        assert found <= (plain(weight)[row] - weight[row]).square().sum()
    assert bits > 4 or (quantizer.scale < 0.95 * plain.scale).any()


def test_a_weight_scale_follows_the_weights_in_training_and_is_fixed_in_evaluation() -> None:
    weight = inputs(2, 4)
    for observer in ("minmax", "mse"):
        quantizer = WeightQuantizer(weight, 8, Quantization(weight_observer=observer))
        before = quantizer.scale.clone()
        quantizer.eval()(2 * weight)
        assert torch.equal(quantizer.scale, before)
        quantizer.train()(2 * weight)
        torch.testing.assert_close(quantizer.scale, 2 * before)
        quantizer.hold_()
        quantizer(5 * weight)
        torch.testing.assert_close(quantizer.scale, 2 * before)


def test_freezing_takes_the_grid_of_the_weights_unless_it_was_held_or_is_theirs_already() -> None:
    weight = inputs(3, 5)
    quantizer = WeightQuantizer(weight, 4)
    held, learned, adapted = copy.deepcopy(quantizer), WeightQuantizer(weight, 4, Quantization(learned_step=True)), copy.deepcopy(quantizer)
    before = quantizer.scale.clone()
    quantizer.freeze_(3 * weight)
    torch.testing.assert_close(quantizer.scale, 3 * before)
    held.hold_()
    held.freeze_(3 * weight)
    assert torch.equal(held.scale, before)
    learned.freeze_(3 * weight)
    assert torch.equal(learned.scale, before)
    rounded_down = adapted.dequantize((adapted.codes(weight) - 1).clamp(-7, 7))  # by AdaRound, say: the largest code may be gone
    adapted.freeze_(rounded_down)
    assert torch.equal(adapted.scale, before)
    assert not any(q.following for q in (quantizer, held, learned, adapted))


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
def test_a_learned_weight_scale_has_the_gradient_of_the_paper_summed_over_what_shares_it(granularity: Any) -> None:
    weight = inputs(3, 8).requires_grad_()
    quantizer = WeightQuantizer(weight, 4, Quantization(granularity=granularity, group_size=4, learned_step=True)).train()
    quantizer.scale.data *= 0.6  # so that some are clipped
    flow = inputs(3, 8, seed=1)
    (quantizer(weight) * flow).sum().backward()
    scale = quantizer.scale.detach().double()
    v = weight.detach().double().reshape(scale.numel(), -1) / scale.reshape(-1, 1)
    slope = torch.where(v <= -7, -7.0, torch.where(v >= 7, 7.0, v.round() - v))
    expected = (slope * flow.reshape(scale.numel(), -1)).sum(1) / (v.shape[1] * 7) ** 0.5
    torch.testing.assert_close(quantizer.scale.grad.reshape(-1).double(), expected, rtol=1e-5, atol=1e-6)
    assert "scale" in dict(quantizer.named_parameters())


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_bits_may_change_and_the_grid_then_covers_the_same_range(learned: bool, symmetric: bool) -> None:
    weight = inputs(3, 50)
    quantizer = WeightQuantizer(weight, 4, Quantization(learned_step=learned, symmetric=symmetric))
    aimed = WeightQuantizer(weight, 4, Quantization(symmetric=symmetric))
    for bits in (8, 6, 5):
        quantizer.anneal_(bits, weight)
        assert (quantizer.bits, quantizer.target_bits) == (bits, 4)
        fresh = WeightQuantizer(weight, bits, Quantization(symmetric=symmetric))
        torch.testing.assert_close(quantizer.scale.detach(), fresh.scale)
        assert (quantizer.zero_point - fresh.zero_point).abs().max() <= 2 ** (bits - 4)  # of a learned grid: rounded when it was coarser
    quantizer.freeze_(weight)
    assert quantizer.bits == 4
    torch.testing.assert_close(quantizer.scale.detach(), aimed.scale)


def test_a_channel_of_zeros_and_one_of_one_value_are_harmless() -> None:
    weight = torch.tensor([[0.0, 0.0], [3.0, 3.0], [-2.0, -2.0]])
    for symmetric in (True, False):
        for observer in ("minmax", "mse"):
            quantizer = WeightQuantizer(weight, 4, Quantization(symmetric=symmetric, weight_observer=observer)).eval()
            torch.testing.assert_close(quantizer(weight), weight)


def test_a_half_quantizer_says_its_bits_and_has_no_state() -> None:
    quantizer = HalfQuantizer("bf16")
    assert quantizer.bits == 16
    assert torch.equal(quantizer(inputs(9)), inputs(9).bfloat16().float())
    assert not quantizer.state_dict()
