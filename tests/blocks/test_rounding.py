"""Rounding is torch's to the bit, its gradients are the published ones, and it keeps next to nothing for them."""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.blocks.rounding import (
    dynamic_parameters,
    dynamic_rounding,
    fake_quantize,
    grid_of,
    half_rounding,
    learned_fake_quantize,
    rectified,
)
from tests.small_models import inputs

finite = st.floats(-1e6, 1e6, width=32)
scales = st.floats(1e-6, 1e4)


def kept_bytes(run: Callable[[], Tensor]) -> int:
    """Bytes of the tensors that ``run`` keeps for its gradient."""
    kept: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        run()
    return sum(kept.values())


@given(st.lists(finite, min_size=1, max_size=40), scales, st.integers(0, 255), st.sampled_from([(0, 255), (-128, 127), (-63, 63), (0, 3)]))
def test_rounding_and_its_gradient_are_those_of_torch_per_tensor_to_the_bit(
    values: list[float], step: float, zero: int, levels: tuple[int, int]
) -> None:
    zero = min(max(zero, levels[0]), levels[1])
    scale, zero_point = torch.tensor(step), torch.tensor(zero, dtype=torch.int32)
    ours, theirs = (torch.tensor(values, requires_grad=True) for _ in range(2))
    out = fake_quantize(ours, scale, zero_point, *levels)
    expected = torch.fake_quantize_per_tensor_affine(theirs, scale, zero_point, *levels)
    assert torch.equal(out, expected)
    assert torch.equal(fake_quantize(ours.detach(), scale, zero_point, *levels), expected)
    weights = torch.arange(1.0, len(values) + 1)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


@given(st.integers(0, 2**31), st.sampled_from([(0, 15), (-128, 127), (-7, 7)]))
def test_rounding_and_its_gradient_are_those_of_torch_per_channel_to_the_bit(seed: int, levels: tuple[int, int]) -> None:
    random = torch.Generator().manual_seed(seed)
    ours = (torch.randn(5, 3, 2, 2, generator=random) * 10).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    scale = torch.rand(5, generator=random) + 1e-3
    zero = torch.randint(levels[0], levels[1] + 1, (5,), generator=random, dtype=torch.int32)
    wide = (5, 1, 1, 1)
    out = fake_quantize(ours, scale.view(wide), zero.view(wide), *levels)
    expected = torch.fake_quantize_per_channel_affine(theirs, scale, zero, 0, *levels)
    assert torch.equal(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


def test_layout_and_type_of_a_tensor_stay_what_they_are() -> None:
    scale, zero = torch.tensor(0.05), torch.tensor(7, dtype=torch.int32)
    for x in (inputs(2, 4, 3, 3).to(memory_format=torch.channels_last), inputs(4, 6).T, inputs(3, 4)[:, ::2]):
        out = fake_quantize(x.requires_grad_(), scale, zero, 0, 255)
        assert torch.equal(out, torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255))
    assert fake_quantize(inputs(2, 4, 3, 3).to(memory_format=torch.channels_last), scale, zero, 0, 255).is_contiguous(
        memory_format=torch.channels_last
    )
    for dtype in (torch.bfloat16, torch.float16):  # of mixed precision: codes are found in float32
        x = inputs(50).to(dtype)
        out = fake_quantize(x, scale, zero, 0, 255)
        assert out.dtype == dtype
        assert torch.equal(out, fake_quantize(x.float(), scale, zero, 0, 255).to(dtype))


def test_rounding_keeps_one_byte_an_element_for_its_gradient() -> None:
    x, scale, zero = inputs(1000).requires_grad_(), torch.tensor(0.1), torch.tensor(3, dtype=torch.int32)
    assert kept_bytes(lambda: fake_quantize(x, scale, zero, 0, 255)) == 1000
    assert kept_bytes(lambda: rectified(F.relu, (x * 1,), {})) == 1000
    assert kept_bytes(lambda: F.relu(x * 1)) == 4000
    assert kept_bytes(lambda: half_rounding(x, "fp16")) == kept_bytes(lambda: dynamic_rounding(x)) == 0


CLIPS: dict[str, Callable[[Tensor], tuple[object, tuple[object, ...], dict[str, object]]]] = {
    "relu": lambda x: (F.relu, (x,), {}),
    "relu, in place": lambda x: (F.relu, (x,), {"inplace": True}),
    "relu, in place by position": lambda x: (F.relu, (x, True), {}),
    "torch.relu": lambda x: (torch.relu, (x,), {}),
    "torch.relu_": lambda x: (torch.relu_, (x,), {}),
    "method in place": lambda x: (torch.Tensor.relu_, (x,), {}),
    "relu6": lambda x: (F.relu6, (x,), {"inplace": True}),
    "hardtanh": lambda x: (F.hardtanh, (x, 0.0, 6.0, True), {}),
    "hardtanh by name": lambda x: (F.hardtanh, (x,), {"min_val": -2.0, "max_val": 2.0}),
    "hardtanh alone": lambda x: (F.hardtanh, (x,), {}),
}


@pytest.mark.parametrize("name", CLIPS)
def test_a_lean_activation_has_the_values_and_gradients_of_torchs(name: str) -> None:
    ours, theirs = (torch.tensor([-3.0, -2.0, -0.0, 0.0, 0.5, 1.0, 2.0, 6.0, 7.0], requires_grad=True) for _ in range(2))
    func, args, kwargs = CLIPS[name](theirs * 1)
    expected = func(*args, **kwargs)
    middle = ours * 1
    func, args, kwargs = CLIPS[name](middle)
    out = rectified(func, args, kwargs)
    assert torch.equal(out, expected)
    assert (out is middle) == ("in place" in name or name in ("torch.relu_", "relu6", "hardtanh"))
    for result in (out, expected):
        (result * torch.arange(1.0, 10.0)).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


@given(st.floats(-1e5, 0, width=32), st.floats(0, 1e5, width=32), st.sampled_from([2, 4, 8]), st.booleans())
def test_zero_is_on_every_grid_and_both_ends_are_within_half_a_step(low: float, high: float, bits: int, symmetric: bool) -> None:
    scale, zero = grid_of(torch.tensor(low), torch.tensor(high), 0, 2**bits - 1, symmetric)
    assert scale > 0
    assert 0 <= zero <= 2**bits - 1
    if symmetric:
        assert zero == 2 ** (bits - 1)
    ends = torch.tensor([0.0, low, high])
    rounded = fake_quantize(ends, scale, zero, 0, 2**bits - 1)
    assert rounded[0] == 0
    assert (rounded - ends).abs().max() <= scale * 0.501


@pytest.mark.parametrize("lean", [False, True])
def test_the_gradient_of_a_learned_step_is_the_formula_of_the_paper(lean: bool) -> None:
    x = torch.tensor([-9.0, -2.0, -0.31, 0.0, 0.24, 0.26, 1.49, 8.0, 9.5], requires_grad=True)
    scale, zero = torch.tensor(0.5, requires_grad=True), torch.tensor(0, dtype=torch.int32)
    flow = torch.arange(1.0, 10.0)
    out = learned_fake_quantize(x, scale, zero, (-8, 7), sharing=9, lean=lean)
    assert torch.equal(out, torch.fake_quantize_per_tensor_affine(x, 0.5, 0, -8, 7))
    (out * flow).sum().backward()
    expected = 0.0
    for value, weight in zip(x.tolist(), flow.tolist(), strict=True):  # Esser et al. 2020, eq. 3, and g = 1 / sqrt(N * Qp)
        v = value / 0.5
        expected += weight * (-8 if v <= -8 else 7 if v >= 7 else round(v) - v)
    assert scale.grad.item() == pytest.approx(expected / (9 * 8) ** 0.5, rel=1e-3 if lean else 1e-6)
    assert x.grad.tolist() == [w if -8 < v / 0.5 < 7 else 0.0 for v, w in zip(x.tolist(), flow.tolist(), strict=True)]


def test_a_learned_step_of_an_activation_keeps_two_bytes_an_element_and_knows_both_ends_of_the_range() -> None:
    ours, theirs = ((2 * inputs(6, 50)).requires_grad_() for _ in range(2))
    zero, grads = torch.tensor(0, dtype=torch.int32), []
    for x, lean in ((ours, True), (theirs, False)):
        scale = torch.tensor(0.4, requires_grad=True)
        (learned_fake_quantize(x, scale, zero, (0, 7), 50, lean) * inputs(6, 50, seed=1)).sum().backward()
        grads.append(scale.grad)
    assert torch.equal(ours.grad, theirs.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-3)
    scale = torch.tensor(0.4, requires_grad=True)
    assert kept_bytes(lambda: learned_fake_quantize(ours, scale, zero, (0, 7), 50, lean=True)) <= 2 * 300 + 8


def test_a_learned_step_has_the_gradient_of_torchs_fused_operator() -> None:
    flow = inputs(4, 5, 3, seed=2)
    # torch counts what rounds to the last level as inside, the paper what is nearer to zero than it: no step lies between
    steps = inputs(4, 5, 3) * 8
    steps[(steps.abs() - 7.25).abs() <= 0.3] = 7.9
    step_sizes = torch.tensor([0.1, 0.2, 0.4, 1.0]).view(4, 1, 1)
    ours, theirs = ((steps * step_sizes).requires_grad_() for _ in range(2))
    scale, fused = (torch.tensor([0.1, 0.2, 0.4, 1.0], requires_grad=True) for _ in range(2))
    zero = torch.zeros(4, dtype=torch.int32)
    out = learned_fake_quantize(ours, scale.view(4, 1, 1), zero.view(4, 1, 1), (-7, 7), sharing=15, lean=False)
    factor = (15 * 7) ** -0.5
    expected = torch._fake_quantize_learnable_per_channel_affine(theirs, fused, zero.float(), 0, -7, 7, factor)
    assert torch.equal(out, expected)
    (out * flow).sum().backward()
    (expected * flow).sum().backward()
    torch.testing.assert_close(scale.grad, fused.grad, rtol=1e-5, atol=1e-6)
    assert torch.equal(ours.grad, theirs.grad)


@pytest.fixture(scope="module")
def dynamic_quantize_linear() -> onnxruntime.InferenceSession:
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["codes", "scale", "zero"])
    outs = [("codes", TensorProto.UINT8, ["n"]), ("scale", TensorProto.FLOAT, []), ("zero", TensorProto.UINT8, [])]
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])], [helper.make_tensor_value_info(*out) for out in outs]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@settings(max_examples=60)
@given(values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40))
def test_dynamic_rounding_is_onnx_dynamic_quantize_linear(
    dynamic_quantize_linear: onnxruntime.InferenceSession, values: list[float]
) -> None:
    x = torch.tensor(values)
    codes, scale, zero = dynamic_quantize_linear.run(None, {"x": x.numpy()})
    ours = dynamic_parameters(x)
    assert ours[0].item() == pytest.approx(float(scale), rel=1e-6)
    assert ours[1].item() == int(zero)
    expected = (codes.astype(np.float32) - np.float32(zero)) * scale
    difference = np.abs(dynamic_rounding(x).numpy() - expected) / scale
    assert difference.max() < 1.001  # a tie may fall either way where the two scales differ in their last bit
    assert (difference > 0.001).mean() <= 0.1 or len(values) < 10


def test_dynamic_rounding_passes_gradients_and_bears_zeros_and_nothing() -> None:
    x = inputs(3, 4).requires_grad_()
    (dynamic_rounding(x) * 3).sum().backward()
    assert x.grad.eq(3).all()
    assert dynamic_rounding(torch.zeros(3)).tolist() == [0.0] * 3
    assert dynamic_rounding(torch.zeros(0, 3)).shape == (0, 3)
    assert dynamic_rounding(torch.full((3,), 2.5)).tolist() == [2.5] * 3


@pytest.mark.parametrize(("half", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_half_rounding_is_the_type_and_back_and_small_gradients_survive_it(half: str, dtype: torch.dtype) -> None:
    x = inputs(100).requires_grad_()
    out = half_rounding(x, half)
    assert torch.equal(out, x.to(dtype).float())
    (out * 1e-9).sum().backward()  # below the least fp16
    assert x.grad.eq(1e-9).all()
    assert half_rounding(torch.tensor([1e6]), "fp16").isinf().all()


def test_a_rounded_activation_and_its_relu_keep_less_than_half_of_torchs() -> None:
    layer, x = nn.Linear(10, 1000, bias=False), inputs(50, 10)
    scale, zero = torch.tensor(0.1), torch.tensor(0, dtype=torch.int32)
    ours = kept_bytes(lambda: fake_quantize(rectified(F.relu, (layer(x),), {}), scale, zero, 0, 255))
    torchs = kept_bytes(lambda: torch.fake_quantize_per_tensor_affine(F.relu(layer(x)), scale, zero, 0, 255))
    extra = 50 * 10 * 4
    assert (ours - extra) / (torchs - extra) <= 0.5
