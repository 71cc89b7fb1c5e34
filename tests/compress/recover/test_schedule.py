"""The learning rate over the steps, and which numbers it holds for."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autocompress.compress.quantize import quantize
from autocompress.compress.recover import cycle, rate_share
from autocompress.compress.recover.schedule import SCALE_RATE, optimizer_for, set_rates_
from autocompress.recipe import LayerPlan, Quantization, Recipe, Recovery
from tests.small_models import inputs


def test_one_cycle_rises_for_a_tenth_and_falls_to_zero() -> None:
    values = [cycle(step / 100) for step in range(101)]
    assert values[0] == 0
    assert values[10] == max(values) == 1
    assert values[:11] == sorted(values[:11])
    assert values[10:] == sorted(values[10:], reverse=True)
    assert values[55] == pytest.approx(0.5)
    assert values[-1] == pytest.approx(0, abs=1e-7)
    assert [rate_share("one_cycle", step / 100) for step in range(101)] == values


def test_cosine_is_that_of_torch_and_constant_is_constant() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for step in range(21):
        assert rate_share("cosine", step / 20) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        assert rate_share("constant", step / 20) == 1
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_steps_are_those_of_torch_with_the_documented_settings(name: str) -> None:
    models = [nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    own = optimizer_for(models[0], (), Recovery(optimizer=name, weight_decay=0.1))
    plain = {
        "adamw": lambda values: torch.optim.AdamW(values, lr=0.01, weight_decay=0.1),
        "sgd": lambda values: torch.optim.SGD(values, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.1),
    }[name](models[1].parameters())
    for step in range(4):
        for model, optimizer in zip(models, (own, plain), strict=True):
            set_rates_(own, 0.01)
            optimizer.zero_grad()
            F.mse_loss(model(inputs(5, 3, seed=step)), inputs(5, 2)).backward()
            optimizer.step()
    torch.testing.assert_close(models[0].weight, models[1].weight)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_learned_scales_are_groups_of_their_own_that_do_not_decay(name: str) -> None:
    plans = tuple(LayerPlan(name=layer, weight_bits=4, activation_bits=8) for layer in "02")
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    quantized = quantize(model, Recipe(layers=plans, quantization=Quantization(learned_step=True)), [inputs(32, 4)])
    adapter = nn.Parameter(torch.zeros(2))
    optimizer = optimizer_for(quantized, [adapter], Recovery(optimizer=name))
    set_rates_(optimizer, 1e-3)
    weights, *scales = optimizer.param_groups
    assert {id(one) for one in weights["params"]} == {id(one) for one in [*quantized.model.parameters(), adapter]}
    assert weights["lr"] == 1e-3
    assert weights["weight_decay"] == 1e-4
    assert len(scales) >= 2
    for group in scales:
        size = group["params"][0].abs().mean().item()
        assert group["lr"] == pytest.approx(1e-3 * (SCALE_RATE * size if name == "adamw" else 1))
        assert group["weight_decay"] == 0
