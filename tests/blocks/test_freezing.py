"""What is frozen is on its grid to the bit; a training step keeps little; an exported graph names static layers only."""

import copy
import io
import warnings
import weakref
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning
from torch.nn import functional as F

from autocompress.blocks import FakeQuantized, WeightQuantizer
from tests.blocks.grids import all_layers, calibrated
from tests.small_models import Net, conv, inputs, outputs


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def chain() -> Net:
    return Net(lambda m, x: m.b(F.relu(m.a(x))), a=conv(2, 4), b=conv(4, 3))


def mixed() -> Net:
    """Convolution, then three linear layers. x (N, 2, 5, 5) -> (N, 3)"""
    def run(m: Net, x: Tensor) -> Tensor:
        return m.c(F.relu(m.b(F.relu(m.a(F.relu(m.conv(x)).flatten(1))))))

    return Net(run, conv=conv(2, 4), a=nn.Linear(100, 8), b=nn.Linear(8, 6), c=nn.Linear(6, 3))


def schemes_of_all_kinds() -> tuple[nn.Module, dict[str, tuple[int, int]], Tensor]:
    linear = {"a": nn.Linear(100, 8), "b": nn.Linear(8, 6), "c": nn.Linear(5, 3)}

    def run(m: Net, x: Tensor) -> Tensor:
        return m.c(m.cell(F.relu(m.b(F.relu(m.a(F.relu(m.conv(x)).flatten(1)))))[:, None])[0][:, -1])

    model = Net(run, conv=conv(2, 4), cell=nn.LSTM(6, 5, batch_first=True), **linear)
    return model, {"conv": (7, 8), "a": (3, 32), "b": (7, 8), "cell": (4, 32), "c": (16, 32)}, inputs(8, 2, 5, 5)


OPTIONS: list[dict[str, Any]] = [
    {}, {"symmetric": False}, {"weight_observer": "mse"}, {"granularity": "tensor"}, {"learned_step": True},
    {"symmetric": False, "symmetric_activations": True, "observer": "mse"}, {"half": "bf16", "observer": "entropy"},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_after_freezing_stored_weights_are_grid_values_and_rounding_them_again_changes_no_bit(options: dict[str, Any]) -> None:
    model, bits, x = schemes_of_all_kinds()
    wrapped = calibrated(model, bits, x, **options)
    before = outputs(wrapped, x)
    wrapped.freeze_()
    for name, parameter, quantizer in wrapped.quantizers():
        weight = model.get_submodule(name).get_parameter(parameter).detach()
        assert torch.equal(quantizer(weight).view(torch.int32), weight.view(torch.int32))
        if isinstance(quantizer, WeightQuantizer):
            assert torch.equal(quantizer.dequantize(quantizer.codes(weight)).view(torch.int32), weight.view(torch.int32))
    state = {name: value.clone() for name, value in wrapped.state_dict().items()}
    frozen = outputs(wrapped, x)
    torch.testing.assert_close(frozen, before, atol=0.05, rtol=0.05)  # biases moved onto their grids
    wrapped.freeze_()
    assert all(torch.equal(value, state[name]) for name, value in wrapped.state_dict().items())
    again, _, _ = schemes_of_all_kinds()
    other = calibrated(again, bits, x[:2], **options)
    other.freeze_()
    other.load_state_dict(state)
    assert torch.equal(outputs(other, x), frozen)


def test_biases_of_half_layers_are_halves_and_those_of_weight_only_layers_stay_float() -> None:
    model, bits, x = schemes_of_all_kinds()
    wrapped = calibrated(model, bits, x)
    bias = model.a.bias.detach().clone()
    wrapped.freeze_()
    assert torch.equal(model.c.bias, model.c.bias.half().float())
    assert torch.equal(model.a.bias, bias)


def test_zeros_of_a_mask_stay_zero_through_training_steps_rounding_and_freezing() -> None:
    for symmetric in (True, False):
        model, x = mixed(), inputs(8, 2, 5, 5)
        mask = torch.rand(model.a.weight.shape) < 0.5
        model.a.weight.data *= mask
        wrapped = calibrated(model, {"conv": (4, 8), "a": (4, 8), "b": (2, 32)}, x, symmetric=symmetric)
        assert (wrapped.weights["a"].eval()(model.a.weight)[~mask] == 0).all()
        wrapped.freeze_()
        assert (model.a.weight[~mask] == 0).all()


def test_a_weight_shared_with_a_float_layer_is_not_moved_there() -> None:
    """A tied head: the embedding reads the same numbers as before."""
    embedding, head = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
    head.weight = embedding.weight
    model = Net(lambda m, x: m.head(m.embedding(x).mean(1)), embedding=embedding, head=head)
    before, x = embedding.weight.detach().clone(), torch.randint(9, (4, 5))
    wrapped = calibrated(model, {"head": (4, 32)}, x)
    expected = outputs(wrapped, x)
    wrapped.freeze_()
    assert torch.equal(embedding.weight, before)
    assert torch.equal(outputs(wrapped, x), expected)


def test_a_learned_step_trains_the_scales_of_weights_and_activations_and_calibrated_ones_are_no_parameters() -> None:
    x = inputs(8, 2, 5, 5)
    model = chain()
    learned = calibrated(model, all_layers(model, (4, 8)), x, learned_step=True).train()
    learned(x).square().sum().backward()
    scales = {name: value for name, value in learned.named_parameters() if name.endswith("scale")}
    assert len(scales) == 2 + 3
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in scales.values())
    optimizer = torch.optim.SGD(learned.parameters(), 1e-3)
    before = learned(x).square().mean()
    for _ in range(20):
        optimizer.zero_grad()
        learned(x).square().mean().backward()
        optimizer.step()
    assert learned(x).square().mean() < before
    learned.hold_()
    assert not any(value.requires_grad for value in scales.values())
    assert not [name for name, _ in calibrated(chain(), all_layers(model), x).named_parameters() if name.endswith("scale")]


@pytest.mark.parametrize("observer", ["minmax", "moving_average"])
def test_activation_ranges_follow_training_only_with_a_moving_average_and_not_once_held(observer: Any) -> None:
    model, x = chain(), inputs(8, 2, 5, 5)
    wrapped = calibrated(model, all_layers(model), x, observer=observer).train()
    key = wrapped.inputs["a"]
    before = wrapped.points[key].high.clone()
    wrapped(5 * x)
    assert (wrapped.points[key].high > before) == (observer == "moving_average")
    wrapped.hold_()
    held, scale = wrapped.points[key].high.clone(), wrapped.weights["a"].scale.clone()
    model.a.weight.data *= 2
    wrapped(50 * x)
    assert torch.equal(wrapped.points[key].high, held)
    assert torch.equal(wrapped.weights["a"].scale, scale)


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    kept: dict[int, int] = {}
    own = {value.untyped_storage().data_ptr() for value in model.parameters()}

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        out = model(x)
    del out
    return sum(kept.values())


def test_a_training_step_keeps_no_more_than_that_of_the_model_with_its_batch_norms() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        for index in range(3):
            x = F.relu(m.get_submodule(f"norm{index}")(m.get_submodule(f"conv{index}")(x)))
        return x

    layers = {f"conv{index}": conv(4, 4) for index in range(3)}
    x = inputs(16, 4, 8, 8)
    plain = Net(run, **layers, **{f"norm{index}": nn.BatchNorm2d(4) for index in range(3)}).train()
    folded = Net(run, **copy.deepcopy(layers), **{f"norm{index}": nn.Identity() for index in range(3)})
    wrapped = calibrated(folded, all_layers(folded), x).train()
    assert kept_bytes(wrapped, x) < kept_bytes(plain, x)


def test_what_a_pass_has_done_with_is_released_while_it_goes_on() -> None:
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def run(m: Net, x: Tensor) -> Tensor:
        for _ in range(4):
            hidden = m.a(x)
            made.append(weakref.ref(hidden))
            x = F.relu(hidden)
            del hidden
            alive.append(sum(ref() is not None for ref in made))
        return x

    model, x = Net(run, a=conv(2, 2)), inputs(2, 2, 5, 5)
    wrapped = calibrated(model, all_layers(model), x).train()
    made.clear(), alive.clear()
    wrapped(x)
    assert max(alive) <= 1


def exported(wrapped: FakeQuantized, x: Tensor) -> onnx.ModelProto:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", TracerWarning)
        warnings.filterwarnings("ignore", "Exporting a model to ONNX with a batch_size", UserWarning)
        torch.onnx.export(wrapped.eval(), (x[:1],), file, dynamo=False, opset_version=17, do_constant_folding=False)
    return onnx.load_from_string(file.getvalue())


def test_only_static_layers_leave_a_mark_in_an_exported_graph() -> None:
    model, bits, x = schemes_of_all_kinds()
    wrapped = calibrated(model, {name: pair for name, pair in bits.items() if name not in ("conv", "b")}, x)
    wrapped.freeze_()
    kinds = [node.op_type for node in exported(wrapped, x).graph.node]
    plain = [node.op_type for node in exported(FakeQuantized(model, {}), x).graph.node]
    assert sorted(kinds) == sorted(plain)
    dynamic = calibrated(mixed(), {"a": (8, 8), "b": (4, 8)}, x, activations="dynamic")
    dynamic.freeze_()
    assert not {"QuantizeLinear", "DequantizeLinear", "ReduceMax", "Round", "Cast"} & {
        node.op_type for node in exported(dynamic, x).graph.node
    }
    static = calibrated(mixed(), {"a": (7, 8), "c": (4, 32)}, x)
    static.freeze_()
    graph = exported(static, x).graph
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) == 2 + 1  # input and weight of a, and what it makes
    assert "c.weight" in " ".join(item.name for item in graph.initializer)


def test_a_model_that_is_not_frozen_is_not_exported_with_float_weights() -> None:
    wrapped = calibrated(mixed(), {"a": (4, 32)}, inputs(8, 2, 5, 5))
    with pytest.raises(RuntimeError, match="freeze_ a fake-quantized model before it is exported"):
        exported(wrapped, inputs(8, 2, 5, 5))


def test_a_copy_of_a_fake_quantized_model_is_its_equal_and_its_own() -> None:
    model, bits, x = schemes_of_all_kinds()
    wrapped = calibrated(model, bits, x, observer="percentile")
    twin = copy.deepcopy(wrapped)
    assert torch.equal(outputs(twin, x), outputs(wrapped, x))
    twin.freeze_()
    assert not torch.equal(twin.model.conv.weight, model.conv.weight)
    assert wrapped.weights["a"].following
