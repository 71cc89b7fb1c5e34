"""Every criterion against torch-pruning where that has it, else against its formula."""

import copy
import math

import numpy as np
import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.compress.distill import Mixed, Sample
from autocompress.compress.prune import Scoring, prune, structure, weight_scores
from autocompress.compress.prune.groups import Dependencies
from autocompress.compress.prune.importance import BINS, ChannelScorer, combine, entropy
from autocompress.errors import InfeasibleRecipe
from tests.small_models import IMAGE, Net, conv, fingerprint, flat, inputs, outputs, recurrent, residual

IMAGES = torch.zeros(IMAGE)


def plain() -> nn.Module:
    """No norms. x (N, 3, 6, 6) -> (N, 4)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        layers = {"a": conv(3, 6), "b": conv(6, 8), "head": nn.Linear(8, 4)}
        return Net(lambda m, x: m.head(F.relu(m.b(F.relu(m.a(x)))).mean((2, 3))), **layers).eval()


def batch(count: int, seed: int = 0) -> Sample:
    targets = torch.randint(0, 4, (count,), generator=torch.Generator().manual_seed(seed))
    return Sample(inputs(count, *IMAGE[1:], seed=seed), targets)


def scores(model: nn.Module, name: str, scoring: Scoring | None, example: Tensor = IMAGES) -> Tensor:
    work = copy.deepcopy(model)
    dependencies = Dependencies(work, example)
    layer = work.get_submodule(name)
    width = len(layer.weight)
    return ChannelScorer(model, scoring)(name, dependencies.touched(dependencies.group(layer, range(width))), width)


def torch_prunings(
    model: nn.Module, name: str, importance: tp.importance.Importance, loss: bool = False, example: Tensor = IMAGES
) -> Tensor:
    work = copy.deepcopy(model).eval().requires_grad_(True)
    graph = tp.DependencyGraph().build_dependency(work, example, verbose=False)
    if loss:
        sample = batch(12)
        F.cross_entropy(work(sample.inputs), sample.targets).backward()
    layer = work.get_submodule(name)
    cut = tp.prune_conv_out_channels if isinstance(layer, nn.Conv2d) else tp.prune_linear_out_channels
    return importance(graph.get_pruning_group(layer, cut, idxs=list(range(len(layer.weight)))))


@pytest.mark.parametrize(("criterion", "power"), [("l1", 1), ("l2", 2)])
def test_norms_of_channels_are_those_of_torch_pruning(criterion: str, power: int) -> None:
    digit = torch.zeros(1, 1, 8, 8)
    for model, example in ((residual(8), digit), (flat(), IMAGES), (plain(), IMAGES)):
        for group in structure(model, example).groups:
            ours = scores(model, group.name, Scoring({criterion: 1.0}), example)
            theirs = torch_prunings(model, group.name, tp.importance.GroupMagnitudeImportance(p=power), example=example)
            torch.testing.assert_close(ours / ours.mean(), theirs)


def test_without_a_scoring_the_channels_with_the_largest_norms_of_torch_pruning_stay() -> None:
    model, digit = residual(8), torch.zeros(1, 1, 8, 8)
    members = next(group.members for group in structure(model, digit).groups if "stem.0" in group.members)
    best = torch_prunings(model, "stem.0", tp.importance.GroupMagnitudeImportance(p=2), example=digit).topk(4).indices.sort().values
    assert torch.equal(prune(model, dict.fromkeys(members, 0.5), digit).stem[0].weight, model.stem[0].weight[best])
    same = prune(model, dict.fromkeys(members, 0.5), digit, Scoring({"l2": 0.3}))
    assert torch.equal(same.stem[0].weight, model.stem[0].weight[best])


def test_taylor_scores_of_channels_are_those_of_torch_pruning() -> None:
    scoring = Scoring({"taylor": 1.0}, [batch(12)], F.cross_entropy)
    for name in ("a", "b"):
        ours = scores(plain(), name, scoring)
        torch.testing.assert_close(ours / ours.mean(), torch_prunings(plain(), name, tp.importance.GroupTaylorImportance(), loss=True))


def test_batch_norm_scales_are_those_of_torch_pruning() -> None:
    digit = torch.zeros(1, 1, 8, 8)
    for group in structure(residual(8), digit).groups:
        ours = scores(residual(8), group.name, Scoring({"bn_scale": 1.0}), digit)
        theirs = torch_prunings(residual(8), group.name, tp.importance.BNScaleImportance(), example=digit)
        torch.testing.assert_close(ours / ours.mean(), theirs)


def by_hand(model: nn.Module, sample: Sample) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """In float64, one input at a time: mean gradients and mean squared gradients."""
    work = copy.deepcopy(model).double().eval()
    rows = []
    for x, y in zip(sample.inputs.double(), sample.targets, strict=True):
        loss = F.cross_entropy(work(x[None]), y[None])
        rows.append(torch.autograd.grad(loss, list(work.parameters())))
    names = [name for name, _ in work.named_parameters()]
    stacked = {name: torch.stack([row[index] for row in rows]) for index, name in enumerate(names)}
    return {name: value.mean(0) for name, value in stacked.items()}, {name: value.square().mean(0) for name, value in stacked.items()}


@pytest.mark.parametrize("criterion", ["gradient", "taylor", "hessian"])
def test_scores_of_weights_follow_their_formulas_in_float64_whatever_the_batches(criterion: str) -> None:
    model, sample = flat(), batch(9)
    gradients, squares = by_hand(model, sample)
    parts = [Sample(x, y) for x, y in zip(sample.inputs.split(4), sample.targets.split(4), strict=True)]  # 4, 4 and a last one of 1
    found = weight_scores(model, Scoring({criterion: 1.0}, parts, F.cross_entropy))
    for name in ("a", "middle", "head"):
        w, g, s = model.get_submodule(name).weight.double(), gradients[f"{name}.weight"], squares[f"{name}.weight"]
        expected = {"gradient": g.abs(), "taylor": (w * g).abs(), "hessian": w.square() * s / 2}[criterion]
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-4, atol=1e-9)


def test_hessian_scores_of_channels_sum_rows_and_columns_of_the_fisher_diagonal() -> None:
    model, sample = plain(), batch(6)
    _, squares = by_hand(model, sample)
    a, b = (model.get_submodule(name).weight.double().square() * squares[f"{name}.weight"] / 2 for name in "ab")
    found = scores(model, "a", Scoring({"hessian": 1.0}, [sample], F.cross_entropy))
    torch.testing.assert_close(found.double(), (a.sum((1, 2, 3)) + b.sum((0, 2, 3))) / 2, rtol=1e-4, atol=1e-9)


def test_mixed_targets_share_the_loss() -> None:
    model, one, other = plain(), batch(6), batch(6, seed=1)

    def loss(out: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(out, targets)

    mixed = Sample(one.inputs, one.targets, None, Mixed(other.targets, 0.25))
    soft = 0.25 * F.one_hot(one.targets, 4) + 0.75 * F.one_hot(other.targets, 4)
    for criterion in ("gradient", "hessian"):
        found = weight_scores(model, Scoring({criterion: 1.0}, [mixed], loss))
        expected = weight_scores(model, Scoring({criterion: 1.0}, [Sample(one.inputs, soft)], loss))
        torch.testing.assert_close(found, expected)


def test_activation_is_the_mean_magnitude_that_the_readers_see() -> None:
    model, parts = flat(), [batch(5), batch(3, seed=1)]
    x = torch.cat([part.inputs for part in parts])
    read = F.max_pool2d(F.relu(model.norm(model.a(x))), 2)  # (N, 4, 3, 3), flattened for `middle`
    torch.testing.assert_close(scores(model, "a", Scoring({"activation": 1.0}, parts)), read.abs().mean((0, 2, 3)))


def test_entropy_is_that_of_the_histogram_of_the_pooled_channel() -> None:
    model, parts = plain(), [batch(40), batch(30, seed=1)]
    x = torch.cat([part.inputs for part in parts])
    means = F.relu(model.a(x)).mean((2, 3)).detach().numpy()
    expected = []
    for column in means.T:
        shares = np.histogram(column, BINS, (column.min(), column.max()))[0] / len(column)
        expected.append(-sum(share * math.log(share) for share in shares if share))
    found = scores(model, "a", Scoring({"entropy": 1.0}, parts))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), atol=0.05, rtol=0)  # a mean on the edge of a bin
    assert found.std() > 0.05


def test_a_constant_channel_has_no_entropy_and_an_even_one_the_logarithm_of_the_bins() -> None:
    values = torch.stack([torch.full((64,), 3.0), torch.arange(64.0), torch.arange(64.0) % 2], 1)
    torch.testing.assert_close(entropy(values, 32), torch.tensor([0.0, math.log(32), math.log(2)]))


def test_random_scores_depend_on_the_seed_and_the_layer_alone() -> None:
    one, again, other = (scores(plain(), "b", Scoring({"random": 1.0}, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one[:6], scores(plain(), "a", Scoring({"random": 1.0}, seed=1)))
    state = torch.random.get_rng_state()
    weight_scores(plain(), Scoring({"random": 1.0}))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_criteria_are_scaled_to_a_mean_of_1_before_they_are_added() -> None:
    model, sample = flat(), batch(8)
    both = Scoring({"l1": 2.0, "bn_scale": 1.0, "taylor": 0.0}, [sample])
    l1, scale = (scores(model, "a", Scoring({name: 1.0})) for name in ("l1", "bn_scale"))
    torch.testing.assert_close(scores(model, "a", both), 2 * l1 / l1.mean() + scale / scale.mean())
    torch.testing.assert_close(combine([(1.0, torch.zeros(3)), (2.0, torch.arange(3.0))]), torch.tensor([0.0, 2.0, 4.0]))


def test_criteria_of_weights_are_scaled_in_their_layer_or_over_all_of_them() -> None:
    model = plain()
    l1, l2 = weight_scores(model, Scoring({"l1": 1.0})), weight_scores(model)
    apart, together = (weight_scores(model, Scoring({"l1": 1.0, "l2": 3.0}), together=whole) for whole in (False, True))
    torch.testing.assert_close(apart["b"], l1["b"] / l1["b"].mean() + 3 * l2["b"] / l2["b"].mean())
    mean1, mean2 = (torch.cat([value.flatten() for value in found.values()]).mean() for found in (l1, l2))
    torch.testing.assert_close(together["b"], l1["b"] / mean1 + 3 * l2["b"] / mean2)


def test_weights_of_recurrent_layers_are_scored_by_the_names_of_the_parameters() -> None:
    sample = Sample(inputs(4, 5, 3), torch.tensor([0, 1, 0, 1]))
    found = weight_scores(recurrent(), Scoring({"taylor": 1.0}, [sample], F.cross_entropy))
    assert set(found) == {"lstm.weight_ih_l0", "lstm.weight_hh_l0", "a", "b"}
    assert found["lstm.weight_hh_l0"].shape == (16, 4)
    assert (found["lstm.weight_hh_l0"] > 0).any()


ALL = ["l1", "l2", "random", "bn_scale", "gradient", "taylor", "activation", "hessian", "entropy"]


@pytest.mark.parametrize("criterion", ALL)
def test_every_criterion_cuts_a_model_and_leaves_it_and_its_modes_gradients_and_hooks_as_they_were(criterion: str) -> None:
    model = flat().train()
    model.norm.eval()
    model.head.weight.requires_grad_(False)
    model.a.weight.grad = torch.ones_like(model.a.weight)
    before = fingerprint(model)
    keep = {"a": 0.5} if criterion == "bn_scale" else {"a": 0.5, "middle": 0.25}  # only one of them has a batch norm
    pruned = prune(model, keep, IMAGES, Scoring({criterion: 1.0}, [batch(4)], F.cross_entropy))
    assert fingerprint(model) == before
    assert torch.equal(model.a.weight.grad, torch.ones_like(model.a.weight))
    assert (pruned.a.out_channels, pruned.middle.in_features, pruned.head.in_features) == (2, 18, 8 if criterion == "bn_scale" else 2)
    assert [module.training for module in pruned.modules()] == [module.training for module in model.modules()]
    assert outputs(pruned, IMAGES).shape == (1, 4)


def test_the_most_important_channels_by_data_stay() -> None:
    """A channel with large weights that is never active goes by activation and stays by its norm."""
    model = plain()
    model.a.weight.data[2] *= 10
    model.a.bias.data[2] = -1e4
    by_norm = prune(model, {"a": 0.5}, IMAGES)
    for criterion in ("activation", "entropy", "taylor", "gradient", "hessian"):
        by_data = prune(model, {"a": 0.5}, IMAGES, Scoring({criterion: 1.0}, [batch(16)], F.cross_entropy))
        assert -1e4 in by_norm.a.bias
        assert -1e4 not in by_data.a.bias


@pytest.mark.parametrize("criterion", ["gradient", "taylor", "hessian", "activation", "entropy"])
def test_a_criterion_that_looks_at_data_is_refused_without_samples(criterion: str) -> None:
    with pytest.raises(InfeasibleRecipe, match=rf"^pruning: importance {criterion} looks at data, and there are no samples\."):
        prune(plain(), {"a": 0.5}, IMAGES, Scoring({criterion: 1.0}, loss=F.cross_entropy))


def test_a_criterion_that_looks_at_the_gradient_is_refused_without_a_loss() -> None:
    with pytest.raises(InfeasibleRecipe, match=r"^pruning: importance taylor looks at the gradient, and there is no loss\."):
        prune(plain(), {"a": 0.5}, IMAGES, Scoring({"taylor": 1.0}, [batch(2)]))


def test_batch_norm_scales_are_refused_where_there_is_none() -> None:
    with pytest.raises(
        InfeasibleRecipe, match=r"^a: importance bn_scale needs a batch norm with a scale behind it; there is none\. Use l2\."
    ):
        prune(plain(), {"a": 0.5}, IMAGES, Scoring({"bn_scale": 1.0}))


@pytest.mark.parametrize("criterion", ["bn_scale", "activation", "entropy"])
def test_a_criterion_of_channels_is_refused_for_single_weights(criterion: str) -> None:
    with pytest.raises(InfeasibleRecipe, match=rf"^pruning: importance {criterion} scores channels, not single weights"):
        weight_scores(plain(), Scoring({criterion: 1.0}, [batch(2)]))


@pytest.mark.parametrize("criterion", ["gradient", "hessian", "activation"])
def test_samples_that_are_not_finite_are_refused_with_the_place(criterion: str) -> None:
    sample = batch(3)
    sample.inputs[1, 0, 0, 0] = math.nan
    with pytest.raises(InfeasibleRecipe, match=r"^a(\.weight)?: its (gradient|input) is not finite on the scoring samples\."):
        prune(plain(), {"a": 0.5}, IMAGES, Scoring({criterion: 1.0}, [sample], F.cross_entropy))


def test_channels_last_weights_are_scored_and_cut_like_others() -> None:
    model = flat()
    turned = copy.deepcopy(model).to(memory_format=torch.channels_last)
    scoring = Scoring({"l1": 1.0, "taylor": 1.0}, [batch(4)], F.cross_entropy)
    one, other = (prune(each, {"a": 0.5}, IMAGES, scoring) for each in (model, turned))
    assert torch.equal(one.a.weight, other.a.weight)
