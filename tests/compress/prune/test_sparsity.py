"""Masks are those of ``torch.nn.utils.prune``, and they stay."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune as reference

from autocompress.blocks import LowRankConv2d, LowRankLinear
from autocompress.compress.distill import Sample
from autocompress.compress.prune import Scoring, drop_blocks, mask_, masks_of, prune, reapply_masks_, sparsify
from autocompress.errors import InfeasibleRecipe
from autocompress.recipe import LayerPlan, Pruning, Recipe
from tests.small_models import IMAGE, concat, fingerprint, flat, inputs, outputs, recurrent, residual

NAMES = ("a", "b", "c", "head")


def recipe(everywhere: float = 0.0, **plans: float | str) -> Recipe:
    layers = tuple(
        LayerPlan(name=name, **({"pattern": value} if isinstance(value, str) else {"sparsity": value})) for name, value in plans.items()
    )
    return Recipe(layers=layers, pruning=Pruning(global_sparsity=everywhere))


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.77, 0.999])
def test_masks_by_layer_are_those_of_l1_unstructured(sparsity: float) -> None:
    model = concat()
    found = masks_of(sparsify(model, recipe(a=sparsity, head=sparsity), Scoring({"l1": 1.0})))
    assert set(found) == {"a", "head"}
    for name in found:
        layer = reference.l1_unstructured(copy.deepcopy(model.get_submodule(name)), "weight", sparsity)
        assert torch.equal(found[name], layer.weight_mask.bool())


def test_masks_by_layer_choose_by_magnitude_when_nothing_is_said() -> None:
    model = concat()
    found = masks_of(sparsify(model, recipe(c=0.6)))
    assert torch.equal(found["c"], reference.l1_unstructured(copy.deepcopy(model.c), "weight", 0.6).weight_mask.bool())


def test_random_masks_are_those_of_random_unstructured_for_the_same_seed() -> None:
    model = concat()
    found = masks_of(sparsify(model, recipe(**dict.fromkeys(NAMES, 0.4)), Scoring({"random": 1.0}, seed=5)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        expected = {
            name: reference.random_unstructured(copy.deepcopy(model.get_submodule(name)), "weight", 0.4).weight_mask for name in NAMES
        }
    assert all(torch.equal(found[name], expected[name].bool()) for name in NAMES)


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.9])
def test_one_threshold_for_all_is_that_of_global_unstructured(sparsity: float) -> None:
    model = concat()
    model.c.weight.data *= 10  # so that layers end up with different shares
    found = masks_of(sparsify(model, recipe(sparsity), Scoring({"l1": 1.0})))
    work = copy.deepcopy(model)
    reference.global_unstructured(
        [(work.get_submodule(name), "weight") for name in NAMES], pruning_method=reference.L1Unstructured, amount=sparsity
    )
    assert all(torch.equal(found[name], work.get_submodule(name).weight_mask.bool()) for name in NAMES)
    assert len({round(float(mask.float().mean()), 1) for mask in found.values()}) > 1


@pytest.mark.parametrize(("criterion", "norm"), [("l1", 1), ("l2", 2)])
def test_the_channels_that_are_cut_by_norm_are_those_of_ln_structured(criterion: str, norm: int) -> None:
    """A layer whose readers all weigh the same and that has no norm behind it: its own rows alone decide."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3))
    model[2].weight.data.fill_(1.0)
    gone = reference.ln_structured(copy.deepcopy(model[0]), "weight", 0.5, n=norm, dim=0).weight_mask.flatten(1).amax(1) == 0
    pruned = prune(model, {"0": 0.5}, torch.zeros(IMAGE), Scoring({criterion: 1.0}))
    assert torch.equal(pruned[0].weight, model[0].weight[~gone])


def test_layers_with_a_plan_of_their_own_are_left_out_of_the_global_threshold() -> None:
    model = concat()
    found = masks_of(sparsify(model, recipe(0.5, b=0.25, c="1:2"), Scoring({"l1": 1.0})))
    assert [round(float(found[name].float().mean()), 2) for name in "bc"] == [0.75, 0.5]
    work = copy.deepcopy(model)
    pairs = [(work.a, "weight"), (work.head, "weight")]
    reference.global_unstructured(pairs, pruning_method=reference.L1Unstructured, amount=0.5)
    assert all(torch.equal(found[name], work.get_submodule(name).weight_mask.bool()) for name in ("a", "head"))


@pytest.mark.parametrize("sparsity", [0.001, 0.3, 0.5, 0.9])
def test_exactly_the_rounded_share_of_weights_is_0(sparsity: float) -> None:
    model = sparsify(concat(), recipe(c=sparsity))
    assert int((~masks_of(model)["c"]).sum()) == round(sparsity * model.c.weight.numel()) == int((model.c.weight == 0).sum())


def test_equal_weights_are_masked_to_the_exact_share_too() -> None:
    model = concat()
    model.c.weight.data.fill_(0.5)
    assert int((~masks_of(sparsify(model, recipe(c=0.25)))["c"]).sum()) == round(0.25 * model.c.weight.numel())


def test_the_given_model_is_not_changed_and_masks_are_not_saved() -> None:
    model = residual(4).train()
    before = fingerprint(model)
    sparse = sparsify(model, recipe(0.5))
    assert fingerprint(model) == before
    assert list(sparse.state_dict()) == list(model.state_dict())
    assert masks_of(copy.deepcopy(sparse)).keys() == masks_of(sparse).keys()
    assert sparse.training


def test_masks_survive_training_exactly() -> None:
    model, x = sparsify(flat(), recipe(0.6, a="1:3")), inputs(16, *IMAGE[1:])
    masks = {name: mask.clone() for name, mask in masks_of(model).items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    before = {name: model.get_submodule(name).weight.detach().clone() for name in masks}
    for _ in range(5):
        optimizer.zero_grad()
        model.train()(x).square().sum().backward()
        optimizer.step()
        reapply_masks_(model)
    for name, mask in masks.items():
        weight = model.get_submodule(name).weight
        assert torch.equal(masks_of(model)[name], mask)
        assert torch.equal(weight == 0, ~mask)
        assert (weight != before[name])[mask].all()


def test_masked_weights_that_became_nan_are_0_again() -> None:
    layer = nn.Linear(4, 2)
    mask_(layer, torch.tensor([[True, False, True, False]]).expand(2, 4))
    layer.weight.data[0, 1] = float("nan")
    reapply_masks_(layer)
    assert layer.weight[0, 1] == 0


@pytest.mark.parametrize("mask", [torch.ones(2, 4), torch.ones(4, 2, dtype=torch.bool)])
def test_a_mask_of_another_kind_or_shape_is_refused(mask: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^a mask is bool and of the shape \(2, 4\)"):
        mask_(nn.Linear(4, 2), mask)


@pytest.mark.parametrize("plan", [{"c": 0.8}, {"c": "1:5"}])
def test_a_growing_share_only_adds_zeros_and_ends_at_the_whole(plan: dict[str, float | str]) -> None:
    model, asked, zeros = concat(), recipe(0.9, **plan), []
    work = model
    for share in (0.4, 0.7, 0.9, 1.0):
        work = sparsify(work, asked, None, share)
        zeros.append({name: ~mask for name, mask in masks_of(work).items()})
        for layer in zeros[-1]:
            weight = work.get_submodule(layer).weight
            weight.data.add_(torch.where(zeros[-1][layer], 0.0, 1e-3))  # what recovery moves
    for earlier, later in itertools.pairwise(zeros):
        assert all((later[name] | ~earlier[name]).all() for name in later)
    assert int(zeros[-1]["c"].sum()) == round(0.8 * model.c.weight.numel())
    rest = [name for name in zeros[-1] if name != "c"]
    assert sum(int(zeros[-1][name].sum()) for name in rest) == round(0.9 * sum(zeros[-1][name].numel() for name in rest))


def test_a_growing_share_leaves_masked_weights_masked_whatever_scores_them() -> None:
    model, sample = flat(), Sample(inputs(8, *IMAGE[1:]), torch.zeros(8, dtype=torch.long))
    scoring = Scoring({"gradient": 1.0}, [sample], F.cross_entropy)
    first = sparsify(model, recipe(a=0.5), scoring, 0.5)
    second = sparsify(first, recipe(a=0.5), scoring)
    assert not (masks_of(second)["a"] & ~masks_of(first)["a"]).any()
    assert int((~masks_of(second)["a"]).sum()) == round(0.5 * model.a.weight.numel())


def test_a_plan_on_a_low_rank_layer_masks_its_factors() -> None:
    model = flat()
    model.middle = LowRankLinear(36, 8, 4, bias=True)
    model.a = LowRankConv2d(nn.Conv2d(3, 4, 3, padding=1), 2, 2)
    found = masks_of(sparsify(model, recipe(middle=0.5, a=0.25)))
    assert set(found) == {"middle.reduce", "middle.expand", "a.reduce", "a.core", "a.expand"}
    assert {name: round(float(mask.float().mean()), 2) for name, mask in found.items() if "middle" in name} == {
        "middle.reduce": 0.5, "middle.expand": 0.5,
    }  # fmt: skip
    assert outputs(model, torch.zeros(IMAGE)).shape == (1, 4)


def test_the_innermost_plan_holds() -> None:
    found = masks_of(sparsify(residual(4), recipe(block1=0.5, **{"block1.conv2": 0.25})))
    assert {name: round(float(mask.float().mean()), 2) for name, mask in found.items()} == {"block1.conv1": 0.5, "block1.conv2": 0.75}


def test_what_holds_no_layer_or_is_not_there_is_refused() -> None:
    with pytest.raises(InfeasibleRecipe, match=r"^lstm: sparsity is for Conv2d and Linear, and this is a LSTM\."):
        sparsify(recurrent(), recipe(lstm=0.5))
    with pytest.raises(InfeasibleRecipe, match=r"^nothing: the model has no module of this name to make sparse\."):
        sparsify(recurrent(), recipe(nothing=0.5))


def test_a_plan_inside_a_dropped_block_went_with_it() -> None:
    model, digit = residual(4), torch.zeros(1, 1, 8, 8)
    work = drop_blocks(model, ["block2"], digit)
    assert set(masks_of(sparsify(work, recipe(**{"block2.conv1": 0.5, "block1.conv1": 0.5})))) == {"block1.conv1"}


def test_tied_weights_are_counted_and_masked_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    sparse = sparsify(model, recipe(0.5))
    assert sparse[2].weight is sparse[0].weight
    assert int((sparse[0].weight == 0).sum()) == 8


def test_masks_lie_on_the_device_and_in_the_shape_of_channels_last_weights() -> None:
    model = concat().to(memory_format=torch.channels_last)
    sparse = sparsify(model, recipe(c=0.5))
    assert torch.equal(masks_of(sparse)["c"], masks_of(sparsify(concat(), recipe(c=0.5)))["c"])
    assert sparse.c.weight.is_contiguous(memory_format=torch.channels_last)
