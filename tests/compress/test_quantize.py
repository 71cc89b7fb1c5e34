"""Batch norm is folded only where that changes nothing; ranges and bits are refused where no integer kernel could use them."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.blocks import FakeQuantized
from autocompress.compress.factorize import factorize
from autocompress.compress.quantize import fold_batch_norm, layer_bits, quantize
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import LayerPlan
from tests.small_models import Net, concat, conv, fingerprint, flat, inputs, outputs, residual, shaken


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def plans(*names: str, weight: int = 7, activation: int = 8) -> dict[str, LayerPlan]:
    return {name: LayerPlan(name=name, weight_bits=weight, activation_bits=activation) for name in names}


def norms(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]


def linear_then_norm() -> nn.Module:
    return shaken(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2, bias=False), nn.BatchNorm1d(2)))


@pytest.mark.parametrize(
    ("model", "shape"),
    [(residual(4), (1, 8, 8)), (concat(), (3, 6, 6)), (flat(), (3, 6, 6)), (linear_then_norm(), (4,))],
    ids=["residual", "concat", "flat", "linear"],
)
def test_folding_every_batch_norm_leaves_the_outputs_as_they_are(model: nn.Module, shape: tuple[int, ...]) -> None:
    x = inputs(8, *shape)
    folded = fold_batch_norm(model, x[:1])
    assert norms(model)
    assert norms(folded) == []
    torch.testing.assert_close(outputs(folded, x), outputs(model, x), atol=2e-5, rtol=1e-4)


def test_folding_changes_neither_the_model_nor_its_mode() -> None:
    model = residual(4).train()
    before = fingerprint(model)
    assert not fold_batch_norm(model, inputs(1, 1, 8, 8)).training
    assert fingerprint(model) == before


def read_twice(m: Net, x: Tensor) -> Tensor:
    hidden = m.a(x)
    return m.norm(hidden) + hidden


def called_twice(m: Net, x: Tensor) -> Tensor:
    return m.norm(m.a(m.a(x)))


def norm_called_twice(m: Net, x: Tensor) -> Tensor:
    return m.norm(m.a(x)) + m.norm(x)


def before_the_layer(m: Net, x: Tensor) -> Tensor:
    return m.a(m.norm(x))


def behind_a_relu(m: Net, x: Tensor) -> Tensor:
    return m.norm(F.relu(m.a(x)))


@pytest.mark.parametrize("run", [read_twice, called_twice, norm_called_twice, before_the_layer, behind_a_relu])
def test_a_batch_norm_that_cannot_be_folded_is_left_alone(run: object) -> None:
    model, x = shaken(Net(run, a=conv(2, 2), norm=nn.BatchNorm2d(2))), inputs(4, 2, 5, 5)
    folded = fold_batch_norm(model, x[:1])
    assert norms(folded) == ["norm"]
    assert torch.equal(outputs(folded, x), outputs(model, x))


def test_a_batch_norm_over_another_axis_than_the_features_of_a_linear_layer_is_left_alone() -> None:
    for steps in (5, 6):  # 6: as many steps as features, so that a wrong fold would run
        model = shaken(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(steps)))
        x = inputs(3, steps, 4)
        folded = fold_batch_norm(model, x[:1])
        torch.testing.assert_close(outputs(folded, x), outputs(model, x), atol=1e-5, rtol=1e-5)


def test_reading_the_shape_between_layer_and_batch_norm_does_not_prevent_folding() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        hidden = m.a(x)
        assert hidden.shape[1] == hidden.size(1) == 2
        return m.norm(hidden)

    model = shaken(Net(run, a=conv(2, 2), norm=nn.BatchNorm2d(2)))
    assert norms(fold_batch_norm(model, inputs(1, 2, 5, 5))) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_calibration_data_that_are_not_finite_are_refused(value: float) -> None:
    x = inputs(4, 3, 6, 6)
    x[2, 0, 0, 0] = value
    with pytest.raises(InfeasibleRecipe, match=r"calibration: the data hold NaN or infinite"):
        quantize(flat(), plans("a"), [inputs(4, 3, 6, 6), x])


@pytest.mark.parametrize(("weight", "activation"), [(8, 32), (32, 8)])
def test_a_layer_with_one_of_its_two_widths_in_integers_is_refused(weight: int, activation: int) -> None:
    with pytest.raises(InfeasibleRecipe, match=rf"a: weight_bits {weight} with activation_bits {activation}: .*Set both or neither"):
        quantize(flat(), plans("a", weight=weight, activation=activation), [inputs(4, 3, 6, 6)])


def test_only_the_planned_layers_become_integer_and_the_factors_of_a_low_rank_layer_all_do() -> None:
    model = factorize(residual(8), {"block1.conv1": 3})
    bits = layer_bits(model, plans("block1.conv1", "head") | {"stem.0": LayerPlan(name="stem.0", keep=0.5)})
    assert bits == dict.fromkeys(("block1.conv1.reduce", "block1.conv1.core", "block1.conv1.expand", "head"), (7, 8))


def test_quantizing_changes_neither_the_model_nor_its_mode() -> None:
    model = residual(4).train()
    before = fingerprint(model)
    wrapped = quantize(model, plans("stem.0", "head"), [inputs(8, 1, 8, 8)])
    assert isinstance(wrapped, FakeQuantized)
    assert not wrapped.training
    assert fingerprint(model) == before


def test_ranges_come_from_all_of_the_calibration_data() -> None:
    batches = [inputs(4, 3, 6, 6), 5 * inputs(4, 3, 6, 6, seed=1), inputs(4, 3, 6, 6, seed=2)]
    wrapped = quantize(flat(), plans("a"), iter(batches))
    point = wrapped.points[wrapped.inputs["a"]]
    whole = torch.cat(batches)
    assert (point.low, point.high) == (whole.min(), whole.max())


@pytest.mark.parametrize("bits", [8, 7])
def test_a_fake_quantized_model_is_close_to_the_float_one(bits: int) -> None:
    model, x = residual(8), inputs(64, 1, 8, 8)
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    wrapped, reference = quantize(model, plans(*names, weight=bits), [x]), outputs(model, x)
    wrapped.freeze_()
    noise = (outputs(wrapped, x) - reference).pow(2).mean() / reference.var()
    assert 0 < noise < {8: 2e-3, 7: 6e-3}[bits]
