"""Cuts are right: checked against an unpruned copy whose removed channels are zeroed."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.compress.prune import channels, mask_, prune, structure, widths
from autocompress.errors import InfeasibleRecipe
from tests.small_models import IMAGE, Net, concat, conv, fingerprint, flat, inputs, outputs, padded_shortcut, recurrent, residual

DIGIT = inputs(1, 1, 8, 8)
# convolution -> the batch norm that follows it
RESIDUAL_NORMS = {"stem.0": "stem.1", "block3.shortcut.0": "block3.shortcut.1"} | {
    f"block{block}.conv{part}": f"block{block}.norm{part}" for block in (1, 2, 3, 4) for part in (1, 2)
}
CONCAT_NORMS = {"a": "norm_a", "b": "norm_b", "c": "norm_c"}


def everything(model: nn.Module, example: Tensor, share: float) -> dict[str, float]:
    return {member: share for group in structure(model, example).groups for member in group.members}


def kept(before: Tensor, after: Tensor) -> list[int]:
    """Indices of the rows of ``before`` that are the rows of ``after``; rows are unique."""
    found = [[index for index, row in enumerate(before) if torch.equal(row, wanted)] for wanted in after]
    assert all(len(hits) == 1 for hits in found)
    return [hits[0] for hits in found]


def zeroed(model: nn.Module, pruned: nn.Module, norms: dict[str, str]) -> nn.Module:
    """An unpruned copy in which the channels that ``pruned`` lacks are 0 after the batch norm."""
    copied = copy.deepcopy(model)
    for name, norm_name in norms.items():
        layer, norm = copied.get_submodule(name), copied.get_submodule(norm_name)
        stay = kept(norm.weight, pruned.get_submodule(norm_name).weight)
        gone = [index for index in range(len(norm.weight)) if index not in stay]
        for value in (layer.weight, norm.weight, norm.bias):
            value.data[gone] = 0
    return copied


@pytest.mark.parametrize("share", [0.75, 0.5, 0.25])
def test_a_pruned_residual_model_equals_its_unpruned_copy_with_the_removed_channels_zeroed(share: float) -> None:
    model, x = residual(8), inputs(4, 1, 8, 8, seed=1)
    pruned = prune(model, everything(model, DIGIT, share), DIGIT)
    assert pruned.stem[0].out_channels == round(share * 8)
    torch.testing.assert_close(outputs(pruned, x), outputs(zeroed(model, pruned, RESIDUAL_NORMS), x), atol=1e-5, rtol=1e-5)


def test_pruning_a_residual_block_keeps_both_branches_equal_in_width() -> None:
    model = residual(8)
    members = next(group.members for group in structure(model, DIGIT).groups if "stem.0" in group.members)
    assert set(members) == {"stem.0", "block1.conv2", "block2.conv2"}
    pruned = prune(model, dict.fromkeys(members, 0.5), DIGIT)
    widths = {name: pruned.get_submodule(name).out_channels for name in RESIDUAL_NORMS}
    assert {name for name, width in widths.items() if width == 4} == set(members)
    assert pruned.block1.conv1.in_channels == pruned.block3.conv1.in_channels == pruned.block3.shortcut[0].in_channels == 4


@pytest.mark.parametrize("cut", [("a",), ("b",), ("c",), ("a", "b", "c")])
def test_a_concatenation_is_cut_at_the_channels_of_the_branch_that_was_pruned(cut: tuple[str, ...]) -> None:
    model, x = concat(), inputs(4, *IMAGE[1:], seed=1)
    pruned = prune(model, dict.fromkeys(cut, 0.5), x[:1])
    assert [pruned.get_submodule(name).out_channels for name in "abc"] == [
        w // 2 if n in cut else w for n, w in zip("abc", (4, 6, 8), strict=True)
    ]
    torch.testing.assert_close(outputs(pruned, x), outputs(zeroed(model, pruned, CONCAT_NORMS), x), atol=1e-5, rtol=1e-5)


def test_linear_inputs_behind_a_flatten_follow_the_channels_they_came_from() -> None:
    model, x = flat(), inputs(4, *IMAGE[1:], seed=1)
    pruned = prune(model, {"a": 0.5}, x[:1])
    assert (pruned.a.out_channels, pruned.middle.in_features) == (2, 18)
    torch.testing.assert_close(outputs(pruned, x), outputs(zeroed(model, pruned, {"a": "norm"}), x), atol=1e-5, rtol=1e-5)


def test_batch_norm_statistics_follow_the_channels_that_stay() -> None:
    model = flat()
    pruned = prune(model, {"a": 0.5}, torch.zeros(IMAGE))
    stay = kept(model.norm.weight, pruned.norm.weight)
    assert pruned.norm.num_features == 2
    for name in ("bias", "running_mean", "running_var"):
        assert torch.equal(getattr(pruned.norm, name), getattr(model.norm, name)[stay])


HEADS = {
    "linear": flat(),
    "convolution": Net(lambda m, x: m.head(F.relu(m.a(x))), a=conv(3, 4), head=conv(4, 5, 1)),
    "flattened convolution": Net(lambda m, x: m.head(F.relu(m.a(x))).flatten(1), a=conv(3, 4), head=conv(4, 5, 1)),
    "pooled convolution": Net(lambda m, x: m.head(F.relu(m.a(x))).mean((2, 3)), a=conv(3, 4), head=conv(4, 5, 1)),
    "residual": Net(lambda m, x: m.head(F.relu(m.a(x))) + x, a=conv(3, 4), head=conv(4, 3)),
}


@pytest.mark.parametrize("head", HEADS)
def test_the_width_of_the_output_is_never_cut(head: str) -> None:
    model, example = HEADS[head], torch.zeros(IMAGE)
    found = structure(model, example)
    assert found.reasons["head"]
    assert "a" in {member for group in found.groups for member in group.members}
    assert outputs(prune(model, {"a": 0.5}, example), example).shape == outputs(model, example).shape
    with pytest.raises(InfeasibleRecipe, match=r"^head: keep 0\.5 is not possible: "):
        prune(model, {"head": 0.5}, example)


def test_keep_that_differs_inside_one_group_is_refused_with_the_names() -> None:
    model = residual(4)
    with pytest.raises(InfeasibleRecipe, match="keep must be equal inside one prune group") as caught:
        prune(model, {"stem.0": 0.5, "block1.conv2": 0.75}, DIGIT)
    assert all(share in str(caught.value) for share in ("stem.0: 0.5", "block1.conv2: 0.75", "block2.conv2: 1"))


def test_a_zero_padded_shortcut_fixes_the_widths_it_joins_but_not_the_inner_one() -> None:
    model, example = padded_shortcut(), torch.zeros(IMAGE)
    found = structure(model, example)
    assert [group.members for group in found.groups] == [("inner",)]
    assert {"stem", "outer", "head"} == set(found.reasons)
    assert all(found.reasons.values())
    assert prune(model, {"inner": 0.5}, example).inner.out_channels == 3
    with pytest.raises(InfeasibleRecipe, match=r"outer: keep 0\.5 is not possible: .+"):
        prune(model, {"outer": 0.5}, example)


def test_a_convolution_with_one_output_channel_is_not_cut_and_is_not_taken_for_a_depthwise_one() -> None:
    model = Net(lambda m, x: m.head(m.b(m.gate(m.a(x)))), a=conv(3, 4), gate=conv(4, 1), b=conv(1, 4), head=conv(4, 2))
    found = structure(model, torch.zeros(IMAGE))
    assert found.reasons["gate"] == "it has a single output channel"
    assert [group.members for group in found.groups] == [("a",), ("b",)]
    pruned = prune(model, {"a": 0.5, "b": 0.5}, torch.zeros(IMAGE))
    assert (pruned.gate.in_channels, pruned.gate.out_channels, pruned.b.in_channels, pruned.b.out_channels) == (2, 1, 1, 2)


def test_a_sum_with_a_concatenation_joins_layers_of_different_widths_and_is_refused() -> None:
    layers = {"a": conv(3, 4), "b": conv(3, 6), "wide": conv(3, 10), "last": conv(10, 6), "head": nn.Linear(6, 2)}
    model = Net(lambda m, x: m.head(m.last(torch.cat([m.a(x), m.b(x)], 1) + m.wide(x)).mean((2, 3))), **layers)
    found = structure(model, torch.zeros(IMAGE))
    assert [group.members for group in found.groups] == [("last",)]
    assert {"a", "b", "wide"} <= set(found.reasons)


@pytest.mark.parametrize("training", [True, False])
def test_the_given_model_is_not_changed_and_the_pruned_one_has_its_mode(training: bool) -> None:
    model = residual(4).train(training)
    model.head.weight.requires_grad_(False)
    before = fingerprint(model)
    pruned = prune(model, everything(model, DIGIT, 0.5), DIGIT)
    assert fingerprint(model) == before
    assert all(module.training == training for module in pruned.modules())
    assert [name for name, value in pruned.named_parameters() if not value.requires_grad] == ["head.weight"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pruned.modules())


def test_the_channels_that_stay_have_the_largest_l2_norm_over_their_whole_group() -> None:
    model = flat()
    pruned = prune(model, {"a": 0.5}, torch.zeros(IMAGE))
    read = model.middle.weight.view(8, 4, 9)  # (out, channel, position)
    squares = model.a.weight.pow(2).sum((1, 2, 3)) + model.norm.weight.pow(2) + read.pow(2).sum((0, 2))
    assert kept(model.a.weight, pruned.a.weight) == sorted(squares.topk(2).indices.tolist())


def test_the_norm_of_a_group_counts_every_layer_in_it() -> None:
    layers = {"a": conv(3, 4), "b": conv(3, 4), "head": nn.Linear(4, 2)}
    model = Net(lambda m, x: m.head(F.relu(m.a(x) + m.b(x)).mean((2, 3))), **layers)
    for value in (model.a.weight, model.b.weight, model.head.weight):
        value.data.fill_(0.01)
    model.a.weight.data += torch.tensor([0.1, 0.2, 0.3, 0.4])[:, None, None, None]
    model.b.weight.data += torch.tensor([0.8, 0.0, 0.0, 0.1])[:, None, None, None]  # alone, a would drop channel 0
    pruned = prune(model, {"a": 0.5, "b": 0.5}, torch.zeros(IMAGE))
    assert kept(model.a.weight, pruned.a.weight) == kept(model.b.weight, pruned.b.weight) == [0, 3]


def test_a_frozen_model_has_the_same_groups() -> None:
    model = residual(4)
    before = structure(model, DIGIT)
    assert structure(model.requires_grad_(False), DIGIT) == before
    assert len(before.groups) == 6
    pruned = prune(model, everything(model, DIGIT, 0.5), DIGIT)
    assert pruned.stem[0].out_channels == 2
    assert not any(value.requires_grad for value in pruned.parameters())


@pytest.mark.parametrize(("share", "width"), [(0.01, 1), (0.3, 3), (0.44, 4), (0.46, 5), (0.99, 10), (1.0, 10)])
def test_the_new_width_is_the_rounded_share_and_never_zero(share: float, width: int) -> None:
    model = Net(lambda m, x: m.head(F.relu(m.a(x))), a=nn.Linear(3, 10), head=nn.Linear(10, 2))
    pruned = prune(model, {"a": share}, torch.zeros(1, 3))
    assert (pruned.a.out_features, pruned.head.in_features) == (width, width)


def test_nothing_to_cut_gives_an_equal_copy() -> None:
    model = residual(4)
    pruned = prune(model, dict.fromkeys(everything(model, DIGIT, 1.0), 1.0), DIGIT)
    assert pruned is not model
    assert torch.equal(outputs(pruned, DIGIT), outputs(model, DIGIT))


def test_linear_layers_beside_an_lstm_are_still_found_and_cut() -> None:
    model, example = recurrent(), inputs(1, 5, 3)
    found = structure(model, example)
    assert [group.members for group in found.groups] == [("a",)]
    pruned = prune(model, {"a": 0.5}, example)
    assert (pruned.a.out_features, pruned.b.in_features) == (3, 3)
    assert outputs(pruned, inputs(3, 5, 3)).shape == (3, 2)


def test_groups_are_found_once_a_model_and_anew_when_its_shapes_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    example = torch.zeros(1, 1, 8, 8)
    searched: list[nn.Module] = []
    find = channels._find_structure
    monkeypatch.setattr(channels, "_find_structure", lambda one, inputs: searched.append(one) or find(one, inputs))
    assert structure(model, example) is structure(model, example)
    model[0] = nn.Conv2d(1, 6, 3)
    model[2] = nn.Conv2d(6, 2, 3)
    assert structure(model, example).groups[0].width == 6
    assert len(searched) == 2


def test_the_groups_of_a_pruned_model_are_known_without_a_new_search(monkeypatch: pytest.MonkeyPatch) -> None:
    model = residual(8)
    pruned = prune(model, everything(model, DIGIT, 0.5), DIGIT)
    remembered = structure(pruned, DIGIT)
    assert remembered == channels._find_structure(pruned, DIGIT)
    monkeypatch.setattr(channels, "_find_structure", lambda one, inputs: pytest.fail("searched again"))
    assert structure(pruned, DIGIT) is remembered


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_a_share_outside_0_to_1_is_refused_with_the_name_and_the_value(share: float) -> None:
    with pytest.raises(InfeasibleRecipe, match=rf"^stem\.0: keep must be above 0 and at most 1, got {share:g}"):
        prune(residual(4), {"stem.0": share}, DIGIT)


def test_a_name_that_is_no_layer_is_refused() -> None:
    with pytest.raises(InfeasibleRecipe, match=r"^stem\.9: the model has no Conv2d or Linear of this name\. It has: stem\.0, "):
        prune(residual(4), {"stem.9": 0.5}, DIGIT)


def test_keep_counts_from_the_widths_that_are_given_and_no_layer_grows() -> None:
    model = Net(lambda m, x: m.head(F.relu(m.a(x))), a=nn.Linear(3, 10), head=nn.Linear(10, 2))
    full, example = widths(model), torch.zeros(1, 3)
    assert full == {"a": 10, "head": 2}
    first = prune(model, {"a": 0.7}, example, widths=full)
    second = prune(first, {"a": 0.5}, example, widths=full)
    assert (first.a.out_features, second.a.out_features) == (7, 5)
    assert prune(second, {"a": 0.9}, example, widths=full).a.out_features == 5
    assert set(kept(model.a.weight, second.a.weight)) < set(kept(model.a.weight, first.a.weight))


def test_a_masked_layer_is_not_cut() -> None:
    model = Net(lambda m, x: m.head(F.relu(m.a(x))), a=nn.Linear(3, 10), head=nn.Linear(10, 2))
    mask_(model.head, model.head.weight > 0)
    with pytest.raises(InfeasibleRecipe, match=r"^head: it has a mask, and masked layers are not cut"):
        prune(model, {"a": 0.5}, torch.zeros(1, 3))
