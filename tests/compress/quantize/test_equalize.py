"""Equalization changes the weights and not the function; pairs are found only where nobody else could notice the scales."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.compress.quantize.equalize import Pair, equalize, pairs
from autocompress.compress.quantize.fold import fold_batch_norm
from tests.small_models import Net, conv, depthwise, fingerprint, flat, inputs, outputs, padded_shortcut, residual


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def mixed(**layers: nn.Module) -> dict[str, nn.Module]:
    """Layers whose output channels differ in range by up to a hundred, and their biases with them."""
    for layer in layers.values():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            for value in layer.parameters():
                value.data *= torch.logspace(-1, 1, len(value)).reshape(-1, *[1] * (value.dim() - 1))
    return layers


def chain(m: Net, x: Tensor) -> Tensor:
    return m.c(F.relu(m.b(F.relu(m.a(x)))))


def pair(m: Net, x: Tensor) -> Tensor:
    return m.b(F.relu(m.a(x)))


def grouped() -> nn.Module:
    def run(m: Net, x: Tensor) -> Tensor:
        return m.c(F.avg_pool2d(F.leaky_relu(m.b(F.relu(m.a(x)))), 2))

    return Net(run, **mixed(a=conv(3, 6), b=conv(6, 8, groups=2), c=conv(8, 4, groups=4)))


def pooled(m: Net, x: Tensor) -> Tensor:
    return m.b(F.relu(m.a(x)).mean((2, 3)))


def flattened(m: Net, x: Tensor) -> Tensor:
    return m.b(F.max_pool2d(F.relu(m.a(x)), 2).view(len(x), -1))


def in_place(m: Net, x: Tensor) -> Tensor:
    return m.b(F.dropout(m.a(x).relu_(), training=False))


SOUND: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[tuple[str, str, int]]]] = {
    "chain": (lambda: Net(chain, **mixed(a=conv(3, 6), b=conv(6, 5), c=conv(5, 2))), (3, 6, 6), [("a", "b", 1), ("b", "c", 1)]),
    "linear": (
        lambda: Net(chain, **mixed(a=nn.Linear(3, 6), b=nn.Linear(6, 5, bias=False), c=nn.Linear(5, 2))),
        (3,),
        [("a", "b", 1), ("b", "c", 1)],
    ),
    "linear, three axes": (lambda: Net(pair, **mixed(a=nn.Linear(3, 6), b=nn.Linear(6, 2))), (5, 3), [("a", "b", 1)]),
    "grouped": (grouped, (3, 6, 6), [("a", "b", 1), ("b", "c", 1)]),
    "depthwise": (depthwise, (3, 6, 6), [("a", "deep", 1), ("deep", "b", 1), ("b", "c", 1), ("c", "head", 1)]),
    "mean": (lambda: Net(pooled, **mixed(a=conv(3, 6), b=nn.Linear(6, 2))), (3, 6, 6), [("a", "b", 1)]),
    "flatten": (lambda: Net(flattened, **mixed(a=conv(3, 4), b=nn.Linear(36, 2))), (3, 6, 6), [("a", "b", 9)]),
    "in place": (lambda: Net(in_place, **mixed(a=conv(3, 4), b=conv(4, 2))), (3, 6, 6), [("a", "b", 1)]),
    "flat model": (lambda: fold_batch_norm(flat(), inputs(1, 3, 6, 6)), (3, 6, 6), [("a", "middle", 9), ("middle", "head", 1)]),
    "option A": (padded_shortcut, (3, 6, 6), [("inner", "outer", 1)]),
    "residual": (
        lambda: fold_batch_norm(residual(4), inputs(1, 1, 8, 8)),
        (1, 8, 8),
        [(f"block{number}.conv1", f"block{number}.conv2", 1) for number in (1, 2, 3, 4)],
    ),
}


@pytest.mark.parametrize("case", SOUND)
def test_the_function_stays_the_same_in_float64_and_the_pairs_are_these(case: str) -> None:
    make, shape, expected = SOUND[case]
    model = make().double().eval()
    x = inputs(4, *shape).double()
    assert pairs(model, x[:1]) == [Pair(*pair) for pair in expected]
    equal = equalize(model, x[:1])
    torch.testing.assert_close(outputs(equal, x), outputs(model, x), atol=1e-10, rtol=1e-10)
    first = expected[0][0]
    assert not torch.allclose(equal.get_submodule(first).weight, model.get_submodule(first).weight)


def test_ranges_of_both_weights_are_equal_afterwards_and_are_their_geometric_mean() -> None:
    model = Net(pair, **mixed(a=conv(3, 6), b=conv(6, 4))).double()
    a, b = model.a.weight.abs().amax((1, 2, 3)), model.b.weight.abs().amax((0, 2, 3))
    equal = equalize(model, inputs(1, 3, 6, 6).double())
    for found in (equal.a.weight.abs().amax((1, 2, 3)), equal.b.weight.abs().amax((0, 2, 3))):
        torch.testing.assert_close(found, (a * b).sqrt())  # r1 / s = r2 s = sqrt(r1 r2), eq. 10 and 11


def test_a_chain_settles_where_every_pair_is_equal_at_once() -> None:
    make, shape, _ = SOUND["chain"]
    equal = equalize(make().double(), inputs(1, *shape).double())
    for first, second in ((equal.a, equal.b), (equal.b, equal.c)):
        torch.testing.assert_close(first.weight.abs().amax((1, 2, 3)), second.weight.abs().amax((0, 2, 3)), rtol=1e-2, atol=0)


def test_one_scale_for_a_whole_tensor_loses_less_afterwards() -> None:
    model, x = Net(pair, a=conv(3, 16), b=conv(16, 4)).eval(), inputs(8, 3, 6, 6)
    unequal = torch.logspace(-2, 2, 16)
    model.a.weight.data *= unequal[:, None, None, None]
    model.a.bias.data *= unequal
    model.b.weight.data /= unequal[:, None, None]

    def error(net: nn.Module) -> float:
        rounded = {
            name: torch.fake_quantize_per_tensor_affine(value, float(value.abs().max()) / 127, 0, -128, 127) if value.dim() > 1 else value
            for name, value in net.state_dict().items()
        }
        with torch.no_grad():
            return float((torch.func.functional_call(net, rounded, x) - model(x)).square().mean())

    assert error(equalize(model, x[:1])) < error(model) / 100


def test_channels_without_range_on_either_side_stay_as_they_are_biases_included() -> None:
    model = Net(pair, **mixed(a=conv(3, 4), b=conv(4, 2))).double()
    model.a.weight.data[1] = 0
    model.b.weight.data[:, 2] = 0
    model.a.weight.data[3] = 1e-30  # would have its bias blown up by 1e15
    x = inputs(2, 3, 6, 6).double()
    equal = equalize(model, x[:1])
    for channel in (1, 2, 3):
        assert torch.equal(equal.a.weight[channel], model.a.weight[channel])
        assert torch.equal(equal.a.bias[channel], model.a.bias[channel])
        assert torch.equal(equal.b.weight[:, channel], model.b.weight[:, channel])
    assert not torch.equal(equal.a.bias[0], model.a.bias[0])
    torch.testing.assert_close(outputs(equal, x), outputs(model, x), atol=1e-12, rtol=1e-12)


def clipped(m: Net, x: Tensor) -> Tensor:
    return m.b(F.relu6(m.a(x)))


def curved(m: Net, x: Tensor) -> Tensor:
    return m.b(F.gelu(m.a(x)))


def shifted(m: Net, x: Tensor) -> Tensor:
    return m.b(m.a(x) + 1)


def read_twice(m: Net, x: Tensor) -> Tensor:
    hidden = F.relu(m.a(x))
    return m.b(hidden) + hidden


def read_before_the_activation(m: Net, x: Tensor) -> Tensor:
    hidden = m.a(x)
    return m.b(F.relu(hidden)) + hidden


def read_after_a_change_in_place(m: Net, x: Tensor) -> Tensor:
    hidden = m.a(x)
    hidden.flatten(1).relu_()
    return m.b(hidden)


def read_through_a_view(m: Net, x: Tensor) -> Tensor:
    hidden = m.a(x)
    return m.b(hidden) + hidden.view(hidden.shape)


def returned_too(m: Net, x: Tensor) -> Tensor:
    hidden = m.a(x)
    return {"out": m.b(hidden), "hidden": [hidden]}  # type: ignore[return-value]


def called_twice(m: Net, x: Tensor) -> Tensor:
    return m.b(m.a(m.a(x)))


def weight_read_elsewhere(m: Net, x: Tensor) -> Tensor:
    return m.b(m.a(x)) * m.a.weight.abs().max()


def mixed_axes(m: Net, x: Tensor) -> Tensor:
    return m.b(m.a(x).transpose(1, 3))


def joined(m: Net, x: Tensor) -> Tensor:
    hidden = m.a(x)
    return m.b(torch.cat([hidden[:, :1], hidden[:, 1:]], 1))


@pytest.mark.parametrize(
    "run",
    [
        clipped, curved, shifted, read_twice, read_before_the_activation, read_after_a_change_in_place, read_through_a_view, returned_too,
        called_twice, weight_read_elsewhere, mixed_axes, joined,
    ],
)  # fmt: skip
def test_where_scales_could_be_noticed_there_is_no_pair(run: Callable[[Net, Tensor], Tensor]) -> None:
    model = Net(run, **mixed(a=conv(3, 3), b=conv(3, 3))).eval()
    x = inputs(2, 3, 3, 3)
    assert pairs(model, x[:1]) == []
    assert outputs(equalize(model, x[:1]), x[:1]).__class__ is outputs(model, x[:1]).__class__


def test_a_mean_over_other_axes_is_no_pooling_even_where_the_widths_agree() -> None:
    model = Net(lambda m, x: m.b(m.a(x).mean((1, 3))), a=conv(3, 6), b=nn.Linear(6, 2))
    assert pairs(model, inputs(1, 3, 6, 6)) == []


def test_tied_weights_are_no_pair() -> None:
    a, tied = conv(3, 3), conv(3, 3)
    tied.weight = a.weight
    model = Net(lambda m, x: m.b(m.a(x)), a=a, b=conv(3, 3), tied=tied)
    assert pairs(model, inputs(1, 3, 4, 4)) == []


def test_equalizing_changes_neither_the_model_nor_its_mode() -> None:
    model = Net(chain, **mixed(a=conv(3, 6), b=conv(6, 5), c=conv(5, 2))).train()
    before = fingerprint(model)
    assert not equalize(model, inputs(1, 3, 6, 6)).training
    assert fingerprint(model) == before


def test_a_weight_in_channels_last_order_is_scaled_alike() -> None:
    make, shape, _ = SOUND["grouped"]
    x = inputs(2, *shape)
    plain = make()
    turned = equalize(plain.to(memory_format=torch.channels_last), x[:1])
    torch.testing.assert_close(outputs(turned, x), outputs(equalize(plain.to(memory_format=torch.contiguous_format), x[:1]), x))
