"""Rounding lies where integer kernels need it, and is the same whoever calls."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.blocks import scopes
from tests.blocks.grids import all_layers, calibrated, rounded_like, rounded_weight
from tests.small_models import Net, conv, inputs, outputs, residual


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_every_parameter_of_a_fake_quantized_model_has_a_gradient() -> None:
    model = residual(8)
    wrapped = calibrated(model, all_layers(model), inputs(8, 1, 8, 8)).train()
    wrapped(inputs(8, 1, 8, 8)).square().sum().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in wrapped.parameters())
    assert all(wrapped.get_parameter(f"model.{name}.weight").grad.abs().sum() > 0 for name in all_layers(model))


def chain() -> Net:
    return Net(lambda m, x: m.b(F.relu(m.a(x))), a=conv(2, 4), b=conv(4, 3))


def test_convolution_and_relu_are_one_kernel_with_nothing_rounded_between_them() -> None:
    model, x = chain(), inputs(8, 2, 5, 5)
    wrapped = calibrated(model, all_layers(model), x)
    with torch.no_grad():
        hidden = F.relu(model.a(x))
        a = F.relu(F.conv2d(rounded_like(x, x), rounded_weight(model.a.weight), model.a.bias, padding=1))
        b = F.conv2d(rounded_like(a, hidden), rounded_weight(model.b.weight), model.b.bias, padding=1)
        assert torch.equal(wrapped(x), rounded_like(b, model.b(hidden)))
    assert len(wrapped.points) == 3
    assert not any("relu" in key for key in wrapped.points)


RELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "functional": F.relu,
    "in place": lambda x: F.relu(x, inplace=True),
    "torch": torch.relu,
    "method": lambda x: x.relu(),
    "method in place": lambda x: x.relu_(),
    "module": nn.ReLU(),
    "relu6": F.relu6,
    "relu6 module": nn.ReLU6(),
    "relu6 in place": nn.ReLU6(inplace=True),
}


@pytest.mark.parametrize("name", RELUS)
def test_every_way_to_write_relu_is_absorbed(name: str) -> None:
    relu = RELUS[name]
    model = Net(lambda m, x: m.b(relu(m.a(x))), a=conv(2, 4), b=conv(4, 3))
    x = inputs(8, 2, 5, 5)
    wrapped = calibrated(model, all_layers(model), x)
    assert len(wrapped.points) == 3
    assert wrapped.points[wrapped.inputs["b"]].low == 0


ADDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "operator": lambda a, b: a + b,
    "in place": lambda a, b: a.__iadd__(b),
    "torch": torch.add,
    "method": lambda a, b: a.add(b),
    "method in place": lambda a, b: a.add_(b),
}


@pytest.mark.parametrize("name", ADDS)
def test_both_inputs_of_a_residual_sum_and_its_relu_are_rounded_once(name: str) -> None:
    add = ADDS[name]

    def run(m: Net, x: Tensor) -> Tensor:
        return m.last(F.relu(add(m.b(F.relu(m.a(x))), x)))

    model, x = Net(run, a=conv(2, 4), b=conv(4, 2), last=conv(2, 3)), inputs(8, 2, 5, 5)
    wrapped = calibrated(model, all_layers(model), x)
    with torch.no_grad():
        float_a = F.relu(model.a(x))
        float_b = model.b(float_a)
        float_sum = F.relu(float_b + x)
        x_on_grid = rounded_like(x, x)
        a = rounded_like(F.relu(F.conv2d(x_on_grid, rounded_weight(model.a.weight), model.a.bias, padding=1)), float_a)
        b = rounded_like(F.conv2d(a, rounded_weight(model.b.weight), model.b.bias, padding=1), float_b)
        joined = rounded_like(F.relu(b + x_on_grid), float_sum)
        last = F.conv2d(joined, rounded_weight(model.last.weight), model.last.bias, padding=1)
        assert torch.equal(wrapped(x), rounded_like(last, model.last(float_sum)))
    assert len(wrapped.points) == 5


def test_a_float_layer_between_integer_ones_keeps_its_weights_and_its_result() -> None:
    model = Net(lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))), a=conv(2, 4), b=conv(4, 4), c=conv(4, 3))
    x = inputs(8, 2, 5, 5)
    wrapped = calibrated(model, {"a": (7, 8), "c": (7, 8)}, x)
    seen: list[Tensor] = []
    model.b.register_forward_hook(lambda layer, args, out: seen.append(out.clone()))
    with torch.no_grad():
        hidden = F.relu(model.a(x))
        a = rounded_like(F.relu(F.conv2d(rounded_like(x, x), rounded_weight(model.a.weight), model.a.bias, padding=1)), hidden)
        wrapped(x)
        assert torch.equal(seen[-1], F.conv2d(a, model.b.weight, model.b.bias, padding=1))


def test_a_model_with_no_integer_layer_is_itself() -> None:
    model, x = residual(4), inputs(4, 1, 8, 8)
    wrapped = calibrated(model, {}, x)
    assert torch.equal(outputs(wrapped, x), outputs(model, x))
    assert len(wrapped.points) == 0


def test_a_stray_call_shifts_no_quantizer() -> None:
    class Strayed(nn.Module):
        stray = False

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = conv(2, 4), conv(4, 4), conv(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = F.relu(self.a(x))
            if self.stray:
                F.relu(torch.cat([torch.ones_like(x), torch.ones_like(x)]))
                F.max_pool2d(F.relu(x * 2), 2)
                hidden.detach()
            return self.c(F.relu(self.b(hidden)))

    model, x = Strayed(), inputs(8, 2, 5, 5)
    wrapped = calibrated(model, all_layers(model), x)
    before, keys = outputs(wrapped, x), list(wrapped.points)
    wrapped.model.stray = True
    assert torch.equal(outputs(wrapped, x), before)
    assert list(wrapped.points) == keys


def test_a_branch_that_only_training_takes_was_never_calibrated_and_stays_float() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        hidden = F.relu(m.a(x))
        return m.b(hidden) + (m.b(torch.cat([hidden, x], 1)[:, :4]) if m.training else 0)

    model, x = Net(run, a=conv(2, 4), b=conv(4, 3)), inputs(8, 2, 5, 5)
    wrapped = calibrated(model, all_layers(model), x).train()
    assert wrapped(x).isfinite().all()


def test_a_layer_that_is_called_twice_has_its_own_range_for_each_call() -> None:
    model, x = Net(lambda m, x: m.a(10 * F.relu(m.a(x))), a=conv(2, 2)), inputs(8, 2, 5, 5)
    wrapped = calibrated(model, all_layers(model, (8, 8)), x)
    reference = outputs(model, x)
    difference = (outputs(wrapped, x) - reference).abs().max()
    assert difference < 0.03 * (reference.max() - reference.min())
    highs = sorted(point.high.item() for point in wrapped.points.values())
    assert highs[-1] > 3 * highs[0]


def test_freezing_moves_biases_onto_the_grid_of_input_scale_times_weight_scale() -> None:
    model, x = chain(), inputs(8, 2, 5, 5)
    wrapped = calibrated(model, all_layers(model), x)
    before = model.b.bias.clone()
    wrapped.freeze_()
    grid = wrapped.weights["b"].scale * wrapped.points[wrapped.inputs["b"]].scale
    torch.testing.assert_close(model.b.bias / grid, (before / grid).round(), atol=1e-3, rtol=0)
    assert (model.b.bias - before).abs().max() > 0


def test_freezing_fixes_the_scales_of_the_weights_as_they_are_then() -> None:
    model, x = chain(), inputs(8, 2, 5, 5)
    wrapped = calibrated(model, all_layers(model), x)
    model.a.weight.data *= 3
    expected = model.a.weight.detach().abs().flatten(1).amax(1) / 63
    wrapped.freeze_()
    torch.testing.assert_close(wrapped.weights["a"].scale, expected)
    assert not any(module.training for module in wrapped.modules())


def test_the_state_of_a_fake_quantized_model_makes_another_one_equal() -> None:
    x = inputs(8, 1, 8, 8)
    wrapped, other = (calibrated(model, all_layers(model), batch) for model, batch in ((residual(4), x), (residual(4), x[:1])))
    wrapped.model.head.weight.data *= 2
    wrapped.freeze_()
    assert not torch.equal(outputs(other, x), outputs(wrapped, x))
    other.load_state_dict(wrapped.state_dict())
    assert torch.equal(outputs(other, x), outputs(wrapped, x))


def test_scopes_name_the_running_module_and_leave_no_hook_behind_even_after_an_error() -> None:
    stack: list[str] = []
    seen: list[list[str]] = []

    def note(m: Net, x: Tensor) -> Tensor:
        seen.append([*stack])
        return x

    def run(m: Net, x: Tensor) -> Tensor:
        note(m, x)
        return note(m, m.a(x)) if x.sum() > 0 else m.missing(x)

    model = Net(run, a=nn.Sequential(Net(note)))
    with scopes(model, stack):
        model(torch.ones(1))
    assert seen == [[""], ["", "a", "a.0"], [""]]
    with pytest.raises(AttributeError), scopes(model, []):
        model(-torch.ones(1))
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks
