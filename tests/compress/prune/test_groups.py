"""Every way in which widths depend on each other: cut right, which is to say as in an unpruned copy with the channels at 0, or refused."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.compress.prune import channels, groups, prune, structure
from autocompress.errors import InfeasibleRecipe
from tests.small_models import IMAGE, Net, conv, depthwise, fingerprint, inputs, outputs, recurrent


def pooled(model: Net, x: Tensor) -> Tensor:
    return model.head(x.mean((2, 3)))


def net(run: Callable[[Net, Tensor], Tensor], **layers: nn.Module) -> nn.Module:
    """The layers with random parameters, so that no two channels are alike; eval mode."""
    model = Net(run, **layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        for parameter in model.parameters():
            parameter.data = torch.randn_like(parameter) / max(parameter[0].numel(), 1) ** 0.5
    return model.eval()


class Squeeze(nn.Module):
    """Squeeze and excitation (Hu et al. 2018): channels scaled by what all of them say."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, 4), nn.Linear(4, width)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))[:, :, None, None]


def grouped() -> nn.Module:
    def run(m: Net, x: Tensor) -> Tensor:
        return pooled(m, F.relu(m.b(F.relu(m.g(F.relu(m.a(x)))))))

    return net(run, a=conv(3, 8), g=conv(8, 12, groups=2), b=conv(12, 4), head=nn.Linear(4, 2))


def grouped_residual() -> nn.Module:
    def run(m: Net, x: Tensor) -> Tensor:
        x = F.relu(m.a(x))
        return pooled(m, F.relu(m.b(x + m.g(x))))

    return net(run, a=conv(3, 12), g=conv(12, 12, groups=3), b=conv(12, 4), head=nn.Linear(4, 2))


def multiplied() -> nn.Module:
    def run(m: Net, x: Tensor) -> Tensor:
        return pooled(m, F.relu(m.b(F.relu(m.deep(F.relu(m.a(x)))))))

    return net(run, a=conv(3, 4), deep=conv(4, 8, groups=4), b=conv(8, 4), head=nn.Linear(4, 2))


def joined_depthwise() -> nn.Module:
    def run(m: Net, x: Tensor) -> Tensor:
        return pooled(m, F.relu(m.b(F.relu(m.deep(torch.cat([m.a(x), m.c(x)], 1))))))

    layers = {"deep": conv(10, 10, groups=10), "a": conv(3, 4), "c": conv(3, 6), "b": conv(10, 4), "head": nn.Linear(4, 2)}
    return net(run, **layers)


def squeezed() -> nn.Module:
    return net(lambda m, x: pooled(m, m.b(m.se(F.relu(m.a(x))))), a=conv(3, 8), se=Squeeze(8), b=conv(8, 4), head=nn.Linear(4, 2))


def normed(norm: nn.Module) -> nn.Module:
    def run(m: Net, x: Tensor) -> Tensor:
        return pooled(m, m.b(F.relu(m.norm(m.a(x)))))

    return net(run, a=conv(3, 8), norm=norm, b=conv(8, 4), head=nn.Linear(4, 2))


def layer_normed() -> nn.Module:
    def run(m: Net, x: Tensor) -> Tensor:
        x = m.a(x)
        return m.head(F.relu(m.norm(x + m.c(F.relu(m.b(x))))))

    layers = {"a": nn.Linear(5, 8), "b": nn.Linear(8, 6), "c": nn.Linear(6, 8), "norm": nn.LayerNorm(8), "head": nn.Linear(8, 2)}
    return net(run, **layers)


def transposed() -> nn.Module:
    layers = {"a": conv(3, 8), "up": nn.ConvTranspose2d(8, 6, 2, 2), "b": conv(6, 4), "head": nn.Linear(4, 2)}
    return net(lambda m, x: pooled(m, m.b(F.relu(m.up(F.relu(m.a(x)))))), **layers)


def before_lstm() -> nn.Module:
    layers = {"a": nn.Linear(3, 6), "lstm": nn.LSTM(6, 4, num_layers=2, bidirectional=True, batch_first=True), "head": nn.Linear(8, 2)}
    return net(lambda m, x: m.head(m.lstm(F.relu(m.a(x)))[0][:, -1]), **layers)


IMAGES, STEPS = torch.zeros(IMAGE), torch.zeros(1, 5, 3)
# name -> model, example, layers cut together, modules whose outputs hold the channels last before somebody reads them
CASES: dict[str, tuple[nn.Module, Tensor, tuple[str, ...], tuple[str, ...]]] = {
    "depthwise": (depthwise(), IMAGES, ("a", "deep"), ("deep",)),
    "depthwise with two outputs a channel": (multiplied(), IMAGES, ("deep",), ("deep",)),
    "inputs of a grouped convolution": (grouped(), IMAGES, ("a",), ("a",)),
    "outputs of a grouped convolution": (grouped(), IMAGES, ("g",), ("g",)),
    "residual sum with a grouped convolution": (grouped_residual(), IMAGES, ("a", "g"), ("a", "g")),
    "concatenation read by a depthwise convolution": (joined_depthwise(), IMAGES, ("c",), ()),
    "squeeze and excitation": (squeezed(), IMAGES, ("a", "se.up"), ("a",)),
    "instance norm": (normed(nn.InstanceNorm2d(8, affine=True)), IMAGES, ("a",), ("norm",)),
    "batch norm without a scale": (normed(nn.BatchNorm2d(8, affine=False)), IMAGES, ("a",), ("norm",)),
    "slopes by channel": (net(lambda m, x: pooled(m, m.b(m.p(m.a(x)))), a=conv(3, 8), p=nn.PReLU(8), b=conv(8, 4), head=nn.Linear(4, 2)),
                          IMAGES, ("a",), ("a",)),
    "transposed convolution": (transposed(), IMAGES, ("a",), ("a",)),
    "inputs of an LSTM": (before_lstm(), STEPS, ("a",), ("a",)),
}  # fmt: skip


def kept(before: nn.Module, after: nn.Module) -> list[int]:
    """Indices of the channels of a layer that stayed, known by their biases."""
    found = [(before.bias == value).nonzero().flatten().tolist() for value in after.bias]
    assert all(len(hits) == 1 for hits in found)
    return [hits[0] for hits in found]


def silenced(model: nn.Module, pruned: nn.Module, cut: str, gates: tuple[str, ...]) -> nn.Module:
    """An unpruned copy in which the channels of ``cut`` that ``pruned`` lacks are 0 in the outputs of ``gates``."""
    layer = model.get_submodule(cut)
    stay = kept(layer, pruned.get_submodule(cut))
    mask = torch.zeros(len(layer.bias)).index_fill(0, torch.tensor(stay), 1.0)
    copied = copy.deepcopy(model)
    for gate in gates:
        module = copied.get_submodule(gate)
        module.register_forward_hook(lambda m, args, out: out * (mask if isinstance(m, nn.Linear) else mask.view(-1, 1, 1)))
    return copied


def check_trains(pruned: nn.Module, x: Tensor) -> None:
    pruned.train()(x).square().sum().backward()
    assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in pruned.parameters())


@pytest.mark.parametrize("case", CASES, ids=lambda name: name.replace(" ", "-"))
def test_a_cut_model_equals_its_unpruned_copy_with_the_removed_channels_at_0_and_trains(case: str) -> None:
    model, example, cut, gates = CASES[case]
    x = inputs(4, *example.shape[1:], seed=1)
    before = fingerprint(model)
    pruned = prune(model, dict.fromkeys(cut, 0.5), example)
    assert fingerprint(model) == before
    for name in cut:
        assert len(pruned.get_submodule(name).bias) == len(model.get_submodule(name).bias) // 2
    if gates:
        torch.testing.assert_close(outputs(pruned, x), outputs(silenced(model, pruned, cut[0], gates), x), atol=1e-5, rtol=1e-5)
    assert outputs(pruned, x).shape == outputs(model, x).shape
    check_trains(pruned, x)


def test_channels_behind_a_concatenation_are_cut_from_the_depthwise_convolution_that_reads_it() -> None:
    model, x = joined_depthwise(), inputs(4, *IMAGE[1:], seed=1)
    found = structure(model, x[:1])
    assert [group.members for group in found.groups] == [("a",), ("c",), ("b",)]
    assert found.reasons["deep"] == "its width follows that of others, which it reads side by side"
    pruned = prune(model, {"a": 0.5, "c": 0.5}, x[:1])
    stay = [*kept(model.a, pruned.a), *(4 + index for index in kept(model.c, pruned.c))]
    assert (pruned.deep.groups, kept(model.deep, pruned.deep)) == (5, stay)
    mask = torch.zeros(10).index_fill(0, torch.tensor(stay), 1.0).view(-1, 1, 1)
    copied = copy.deepcopy(model)
    copied.deep.register_forward_hook(lambda m, args, out: out * mask)
    torch.testing.assert_close(outputs(pruned, x), outputs(copied, x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("share", "kept_of_each"), [(0.3, 1), (0.5, 2), (0.7, 3), (0.01, 1)])
def test_every_group_of_a_grouped_convolution_keeps_equally_many_of_its_own_best_channels(share: float, kept_of_each: int) -> None:
    model = grouped()
    group = next(group for group in structure(model, IMAGES).groups if group.name == "a")
    assert (group.width, group.blocks, group.readers) == (8, 2, ("g",))
    pruned = prune(model, {"a": share}, IMAGES)
    stay = kept(model.a, pruned.a)
    assert [len([i for i in stay if i // 4 == block]) for block in (0, 1)] == [kept_of_each, kept_of_each]
    assert (pruned.g.in_channels, pruned.g.groups, pruned.g.weight.shape[1]) == (2 * kept_of_each, 2, kept_of_each)
    columns = model.g.weight.detach().view(2, 6, 4, 9).square().sum((1, 3)).flatten()  # (out, in of a group, ...) -> (in,)
    scores = model.a.weight.detach().square().sum((1, 2, 3)) + columns
    best = [block * 4 + i for block in (0, 1) for i in scores.view(2, 4)[block].topk(kept_of_each).indices.tolist()]
    assert stay == sorted(best)


def test_a_group_norm_keeps_equally_many_channels_of_each_of_its_groups_with_their_scales() -> None:
    model, x = normed(nn.GroupNorm(2, 8)), inputs(4, *IMAGE[1:], seed=1)
    pruned = prune(model, {"a": 0.5}, x[:1])
    stay = kept(model.a, pruned.a)
    assert [i // 4 for i in stay] == [0, 0, 1, 1]
    assert (pruned.norm.num_groups, pruned.norm.num_channels, pruned.norm.weight.tolist()) == (2, 4, model.norm.weight[stay].tolist())
    torch.testing.assert_close(outputs(pruned.a, x), outputs(model.a, x)[:, stay])  # the norm looks across channels: equal up to it
    assert torch.equal(pruned.b.weight, model.b.weight[:, stay])
    check_trains(pruned, x)


def test_a_layer_norm_over_a_residual_sum_is_cut_with_the_sum() -> None:
    model, x = layer_normed(), inputs(4, 5, seed=1)
    found = structure(model, x[:1])
    assert [set(group.members) for group in found.groups] == [{"a", "c"}, {"b"}]
    pruned = prune(model, {"a": 0.5, "c": 0.5}, x[:1])
    stay = kept(model.a, pruned.a)
    assert (pruned.norm.normalized_shape, pruned.norm.weight.tolist()) == ((4,), model.norm.weight[stay].tolist())
    assert stay == kept(model.c, pruned.c)
    assert torch.equal(pruned.head.weight, model.head.weight[:, stay])
    torch.testing.assert_close(outputs(pruned.a, x), outputs(model.a, x)[:, stay])
    check_trains(pruned, x)


class OwnNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x / x.square().mean(1, keepdim=True).add(1e-5).sqrt() * self.weight[:, None, None]


def test_a_norm_that_the_user_wrote_is_cut_with_its_parameters() -> None:
    model = normed(OwnNorm(8))
    pruned = prune(model, {"a": 0.5}, IMAGES)
    assert pruned.norm.weight.tolist() == model.norm.weight[kept(model.a, pruned.a)].tolist()
    check_trains(pruned, inputs(2, *IMAGE[1:]))


def shuffled(x: Tensor) -> Tensor:
    return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def mixed(m: Net, x: Tensor) -> Tensor:
    x = F.relu(m.a(x))
    return pooled(m, m.b(x / x.mean(1, keepdim=True).add(1)))


def halves(m: Net, x: Tensor) -> Tensor:
    first, second = m.a(x).chunk(2, 1)
    return pooled(m, m.b(first * second.sigmoid()))


def attended(m: Net, x: Tensor) -> Tensor:
    x = m.a(x)
    return m.head(x + m.attend(x, x, x, need_weights=False)[0])


def tied() -> nn.Module:
    model = net(lambda m, x: m.head(F.relu(m.b(F.relu(m.a(x))))), a=nn.Linear(6, 6), b=nn.Linear(6, 6), head=nn.Linear(6, 2))
    model.b.weight = model.a.weight
    return model


THREE = {"a": conv(3, 8), "b": conv(8, 4), "head": nn.Linear(4, 2)}
REFUSED: dict[str, tuple[nn.Module, Tensor, str]] = {
    "depthwise inputs with two outputs": (multiplied(), IMAGES, "each group of deep has 1 of these inputs, and groups are not cut"),
    "grouped to one each": (
        net(lambda m, x: pooled(m, m.b(m.g(m.a(x)))), a=conv(3, 8), g=conv(8, 4, groups=4), b=conv(4, 4), head=nn.Linear(4, 2)),
        IMAGES, "layers of different widths",
    ),
    "groups across a concatenation": (
        net(lambda m, x: pooled(m, m.g(torch.cat([m.a(x), m.b(x)], 1))), a=conv(3, 4), b=conv(3, 4), g=conv(8, 8, groups=2),
            head=nn.Linear(8, 2)),
        IMAGES, "the groups of g hold channels of several layers",
    ),
    "groups that do not go into each other": (
        net(lambda m, x: pooled(m, m.b(m.norm(m.g(m.a(x))))), a=conv(3, 4), g=conv(4, 12, groups=4), norm=nn.GroupNorm(6, 12),
            b=conv(12, 4), head=nn.Linear(4, 2)),
        IMAGES, "12 channels cannot be cut evenly in the 12 groups that convolutions and norms make of them",
    ),
    "channel shuffle": (net(lambda m, x: pooled(m, m.b(shuffled(m.a(x)))), **THREE), IMAGES, "the model does not run after a cut of it"),
    "channels turned round": (net(lambda m, x: pooled(m, m.b(m.a(x).flip(1))), **THREE), IMAGES, "the other channels do not give the same"),
    "mean over channels": (net(mixed, **THREE), IMAGES, "the other channels do not give the same"),
    "halves that gate each other": (net(halves, a=conv(3, 8), b=conv(4, 4), head=nn.Linear(4, 2)), IMAGES,
                                    "takes others of it along"),
    "attention": (
        net(attended, a=nn.Linear(3, 8), attend=nn.MultiheadAttention(8, 2, batch_first=True), head=nn.Linear(8, 2)),
        STEPS, "it shares its width with the attention attend, of which only heads are cut",
    ),
    "sum with an LSTM": (
        net(lambda m, x: (lambda a: m.head(a + m.lstm(a)[0]))(m.a(x)), a=nn.Linear(3, 6), lstm=nn.LSTM(6, 6, batch_first=True),
            head=nn.Linear(6, 2)),
        STEPS, "it shares its width with the recurrent lstm, of which only hidden units are cut",
    ),
    "tied": (tied(), torch.zeros(1, 6), "the weight of a is tied to another module's"),
    "parametrized": (
        net(lambda m, x: m.head(F.relu(m.a(x))), a=nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), head=nn.Linear(6, 2)),
        torch.zeros(1, 6), "the weight of a is parametrized",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=lambda name: name.replace(" ", "-"))
def test_what_cannot_be_cut_right_is_refused_with_the_name_and_the_reason(case: str) -> None:
    model, example, reason = REFUSED[case]
    layer = "g" if case.startswith("groups that") else "a"
    assert reason in structure(model, example).reasons[layer]
    before = fingerprint(model)
    with pytest.raises(InfeasibleRecipe, match=rf"^{layer}: keep 0\.5 is not possible: .+\. Set keep to 1 or leave it out\.$"):
        prune(model, {layer: 0.5}, example)
    assert fingerprint(model) == before


def test_the_outputs_of_an_lstm_do_not_hinder_the_layers_behind_it() -> None:
    model = recurrent()
    assert [group.members for group in structure(model, STEPS).groups] == [("a",)]


def test_heads_of_attention_are_not_cut_as_channels() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_heads = 2
            self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (layer(x).view(*x.shape[:2], 2, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
            return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    model = net(lambda m, x: m.head(m.attend(m.a(x))), a=nn.Linear(3, 8), attend=Attention(), head=nn.Linear(8, 2))
    found = structure(model, STEPS)
    assert "of which heads are pruned" in found.reasons["attend.q"]
    assert [group.members for group in found.groups] == [("a",)]


def test_a_search_that_goes_in_circles_is_given_up_and_leaves_the_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = grouped()
    before = fingerprint(model)
    monkeypatch.setattr(groups, "STEPS_A_DEPENDENCY", 0.001)
    found = channels._find_structure(model, IMAGES)
    assert found.groups == ()
    assert found.reasons["a"] == "what depends on it cannot be found (the search for what depends on it goes in circles)"
    assert fingerprint(model) == before


def test_a_model_that_cannot_be_traced_gets_the_reason_and_keeps_its_hooks() -> None:
    model = net(lambda m, x: m.head(m.a(x.detach().numpy().sum())), a=nn.Linear(3, 4), head=nn.Linear(4, 2))
    before = fingerprint(model)
    with pytest.raises(InfeasibleRecipe, match=r"^a: keep 0\.5 is not possible: the model cannot be traced"):
        prune(model, {"a": 0.5}, torch.zeros(1, 3))
    assert fingerprint(model) == before


def test_a_dead_model_does_not_hide_a_wrong_cut() -> None:
    """Its last layer is 0, so a cut would seem right whatever it did, were it not tried with random weights."""
    model = net(mixed, **{name: copy.deepcopy(layer) for name, layer in THREE.items()})
    model.b.weight.data.zero_()
    assert "the other channels do not give the same" in structure(model, IMAGES).reasons["a"]


def test_several_outputs_are_each_kept_in_their_shape() -> None:
    model = net(lambda m, x: {"a": [m.one(F.relu(m.a(x)))], "b": m.two(x)}, a=nn.Linear(3, 8), one=nn.Linear(8, 2), two=nn.Linear(3, 4))
    found = structure(model, torch.zeros(1, 3))
    assert [group.members for group in found.groups] == [("a",)]
    assert {"one", "two"} == set(found.reasons)
