"""Harms of choices, each alone, are those of really compressing; and trying them ends in bounded time."""

import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autocompress.compress.build import settle, shrink
from autocompress.recipe import LayerPlan, Recipe
from autocompress.records import Tried
from autocompress.survey.harm import Asked, Judge, harms
from autocompress.tasks.digits import splits
from tests.small_models import fingerprint, inputs, outputs, trained_digits

CHOICES = {
    "keep:stem.0": [("keep", "stem.0", share, {name: {"keep": share} for name in ("stem.0", "block1.conv2", "block2.conv2")})
                    for share in (1 / 3, 2 / 3)],
    "keep:block3.conv1": [("keep", "block3.conv1", 0.5, {"block3.conv1": {"keep": 0.5}})],
    "rank:block3.conv2": [("rank", "block3.conv2", share, {"block3.conv2": {"rank": rank}}) for share, rank in ((0.1, 2), (0.25, 6))],
    "weight_bits:head": [("weight_bits", "head", 2, {"head": {"weight_bits": 2, "activation_bits": 8}})],
    "drop:block2": [("drop", "block2", 1, {"block2": {"drop": True}})],
}  # fmt: skip


def asked() -> list[Asked]:
    return [
        (Tried.model_validate({"kind": kind, "name": name, "value": value}),
         Recipe.model_validate({"layers": [{"name": layer, **fields} for layer, fields in plans.items()]}))
        for choices in CHOICES.values() for kind, name, value, plans in choices
    ]  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Judge]:
    model, *_ = trained_digits()
    (x, y), *_ = splits()
    return model, Judge(x[:256], y[:256], F.cross_entropy, of_classes=True)


def test_the_harm_of_a_choice_is_the_rise_of_the_loss_by_really_making_it(digits: tuple[nn.Module, Judge]) -> None:
    model, judge = digits
    before = fingerprint(model)
    found = harms(model, asked(), judge, seconds=120)
    assert fingerprint(model) == before
    x, y = judge.inputs[: found.samples], judge.targets[: found.samples]
    given = outputs(model, x)
    for (tried, recipe), got in zip(asked(), found.tried, strict=True):
        assert (got.kind, got.name, got.value) == (tried.kind, tried.name, tried.value)
        real = outputs(settle(shrink(model, recipe, x), recipe, x), x)
        assert got.harm == pytest.approx(float(F.cross_entropy(real, y) - F.cross_entropy(given, y)), abs=1e-3, rel=0.01)
        kl = (given.softmax(1) * (given.log_softmax(1) - real.log_softmax(1))).sum(1).mean()
        assert got.divergence == pytest.approx(float(kl), abs=1e-3, rel=0.01)


def test_less_of_a_group_harms_more(digits: tuple[nn.Module, Judge]) -> None:
    mild, hard = (one.harm or 0.0 for one in reversed(harms(digits[0], asked()[:2], digits[1]).tried))
    assert hard > mild


def test_outputs_that_are_no_classes_diverge_by_their_mean_square() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), inputs(64, 4)
    recipe = Recipe(layers=(LayerPlan(name="0", keep=0.5),))
    got = harms(model, [(Tried(kind="keep", name="0", value=0.5), recipe)], Judge(x, inputs(64, 3), F.mse_loss, of_classes=False)).tried[0]
    real = outputs(shrink(model, recipe, x), x)
    assert got.divergence == pytest.approx(float((real - outputs(model, x)).square().mean()), rel=1e-4)


def test_a_choice_that_cannot_be_made_has_no_harm_and_says_why(digits: tuple[nn.Module, Judge]) -> None:
    impossible = (Tried(kind="drop", name="block3", value=1), Recipe(layers=(LayerPlan(name="block3", drop=True),)))
    broken = Judge(digits[1].inputs, digits[1].targets, lambda out, y: F.cross_entropy(out, y) * float("nan"), of_classes=True)
    [refused] = harms(digits[0], [impossible], digits[1]).tried
    [undefined] = harms(digits[0], asked()[:1], broken).tried
    assert refused.harm is None
    assert "drop is not possible" in refused.reason
    assert undefined.harm is None
    assert "nan" in undefined.reason


def test_a_thousand_layers_end_in_time_and_what_was_not_tried_says_so() -> None:
    torch.manual_seed(0)
    layers = [layer for _ in range(1000) for layer in (nn.Linear(16, 16), nn.ReLU())]
    model, x = nn.Sequential(*layers, nn.Linear(16, 4)).eval(), inputs(64, 16)
    judge = Judge(x, torch.arange(64) % 4, F.cross_entropy, of_classes=True)
    wide = [
        (Tried(kind="rank", name=f"{2 * index}", value=rank / 16), Recipe(layers=(LayerPlan(name=f"{2 * index}", rank=rank),)))
        for index in range(1000) for rank in (2, 4, 6)
    ]  # fmt: skip
    started = time.monotonic()
    found = harms(model, wide, judge, seconds=6.0).tried
    assert time.monotonic() - started < 60  # the machine is shared: 6 s, the look at the model, and one choice at the most
    tried = [int(one.name) // 2 for one in found if one.harm is not None]
    assert tried
    assert len(tried) < len(found)
    assert all("not tried" in one.reason for one in found if one.harm is None)
    assert len(tried) < 20 or max(tried) - min(tried) > 500  # spread over the whole model
