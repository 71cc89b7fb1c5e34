"""What the survey says of a layer is true, and a recipe that does not fit is told so field by field."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from autocompress.compress.factorize import factorize
from autocompress.compress.prune import prune
from autocompress.errors import InfeasibleRecipe, InvalidRecipe
from autocompress.measure.machine import this_machine
from autocompress.recipe import LayerPlan, Recipe
from autocompress.records import LayerInfo
from autocompress.runtimes import find_runtime
from autocompress.survey import check_recipe, multiply_adds, survey
from tests.small_models import IMAGE, Net, conv, depthwise, fingerprint, inputs, recurrent, residual

MACHINE = this_machine().model_copy(update={"instruction_sets": ("avx2",)})
ONNX = find_runtime("onnxruntime")
DIGIT = inputs(1, 1, 8, 8)


def surveyed(model: nn.Module, example: Tensor) -> dict[str, LayerInfo]:
    return {layer.name: layer for layer in survey(model, example, ONNX, MACHINE)}


def test_layers_come_in_the_order_in_which_they_run_with_their_kinds_and_shapes() -> None:
    layers = {"last": nn.Linear(8, 2), "first": conv(3, 4), "middle": nn.Conv2d(4, 8, (1, 3), stride=2)}
    found = surveyed(Net(lambda m, x: m.last(m.middle(m.first(x)).mean((2, 3))), **layers), torch.zeros(IMAGE))
    assert list(found) == ["first", "middle", "last"]
    assert [layer.kind for layer in found.values()] == ["conv2d", "conv2d", "linear"]
    shapes = [(layer.in_channels, layer.out_channels, layer.kernel) for layer in found.values()]
    assert shapes == [(3, 4, (3, 3)), (4, 8, (1, 3)), (8, 2, (1, 1))]
    assert [layer.params for layer in found.values()] == [3 * 4 * 9 + 4, 4 * 8 * 3 + 8, 8 * 2 + 2]


def test_multiply_adds_are_those_of_one_sample_by_the_formula() -> None:
    found = surveyed(residual(4), DIGIT)
    assert found["stem.0"].macs == 8 * 8 * 4 * 1 * 9
    assert found["block1.conv1"].macs == 8 * 8 * 4 * 4 * 9
    assert found["block3.conv1"].macs == 4 * 4 * 8 * 4 * 9
    assert found["block3.shortcut.0"].macs == 4 * 4 * 8 * 4
    assert found["head"].macs == 8 * 10
    assert surveyed(depthwise(), torch.zeros(IMAGE))["deep"].macs == 6 * 6 * 4 * 9


def test_multiply_adds_are_those_that_torch_counts() -> None:
    low_rank = factorize(residual(8), {"block4.conv1": LayerPlan(name="block4.conv1", rank=4)})
    for model in (residual(8), low_rank):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(DIGIT)
        assert multiply_adds(model, DIGIT) == counter.get_total_flops() // 2


def test_a_layer_that_runs_on_every_step_or_twice_is_counted_as_often() -> None:
    steps = Net(lambda m, x: m.b(F.relu(m.a(x))), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    assert surveyed(steps, inputs(1, 5, 3))["a"].macs == 5 * 3 * 4
    twice = Net(lambda m, x: m.head(m.a(m.a(x))), a=nn.Linear(3, 3), head=nn.Linear(3, 2))
    assert surveyed(twice, inputs(1, 3))["a"].macs == 2 * 3 * 3


def test_a_layer_that_never_runs_is_not_listed() -> None:
    model = Net(lambda m, x: m.b(F.relu(m.a(x))), a=nn.Linear(3, 4), b=nn.Linear(4, 2), unused=nn.Linear(3, 3))
    assert list(surveyed(model, inputs(1, 3))) == ["a", "b"]


def test_groups_name_whose_width_a_layer_has_and_whose_it_reads() -> None:
    found = surveyed(residual(4), DIGIT)
    stem, wide = found["stem.0"].group, found["block3.shortcut.0"].group
    assert stem is not None
    assert {name for name, layer in found.items() if layer.group == stem} == {"stem.0", "block1.conv2", "block2.conv2"}
    assert {name for name, layer in found.items() if layer.group == wide} == {"block3.conv2", "block3.shortcut.0", "block4.conv2"}
    assert {name for name, layer in found.items() if layer.in_group == stem} == {
        "block1.conv1", "block2.conv1", "block3.conv1", "block3.shortcut.0"
    }  # fmt: skip
    assert (found["stem.0"].in_group, found["head"].group, found["head"].in_group) == (None, None, wide)
    assert found["block1.conv2"].in_group == found["block1.conv1"].group


def test_whatever_is_not_possible_has_a_reason_and_whatever_is_possible_has_none() -> None:
    for model, example in ((residual(4), DIGIT), (depthwise(), torch.zeros(IMAGE)), (recurrent(), inputs(1, 5, 3))):
        for layer in surveyed(model, example).values():
            assert bool(layer.keep_reason) == (layer.group is None), layer.name
            assert bool(layer.rank_reason) == (not layer.factorizable), layer.name
    found = surveyed(depthwise(), torch.zeros(IMAGE))
    assert "grouped" in found["deep"].rank_reason
    assert found["deep"].conv_groups == 4
    assert "output" in found["head"].keep_reason


@pytest.mark.parametrize(("sets", "bits"), [(("avx2",), {7, 32}), (("avx_vnni",), {7, 8, 32})])
def test_bits_are_those_of_the_target_with_the_reason_for_the_others(sets: tuple[str, ...], bits: set[int]) -> None:
    layers = survey(residual(4), DIGIT, ONNX, MACHINE.model_copy(update={"instruction_sets": sets}))
    layers = tuple(layer for layer in layers if layer.kind != "block")
    assert all(set(layer.weight_bits) == bits for layer in layers)
    assert all(("VNNI" in layer.bits_reason) == (8 not in bits) for layer in layers)
    assert all(layer.channel_multiple == ONNX.channel_multiple for layer in layers)


def test_channels_read_by_a_grouped_convolution_are_offered_in_multiples_of_its_groups() -> None:
    layers = {"a": conv(3, 48), "b": conv(48, 48, groups=3), "head": nn.Linear(48, 2)}
    found = surveyed(Net(lambda m, x: m.head(F.relu(m.b(F.relu(m.a(x)))).mean((2, 3))), **layers), torch.zeros(IMAGE))
    assert found["a"].group is not None
    assert found["a"].channel_multiple == 3 * ONNX.channel_multiple


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_not_changed_and_keeps_its_mode(training: bool) -> None:
    model = residual(4).train(training)
    before = fingerprint(model)
    surveyed(model, DIGIT)
    assert fingerprint(model) == before


def test_a_width_without_a_kernel_of_its_own_runs_in_a_wider_one_and_is_not_called_real() -> None:
    for layer in surveyed(residual(4), DIGIT).values():
        if layer.kind in ("conv2d", "linear"):
            assert layer.schemes["static"] == (2, 3, 4, 5, 6, 7)  # 8 would saturate without VNNI
            assert 4 not in layer.weight_bits
    assert set(surveyed(residual(4), DIGIT)["head"].schemes) == {"static", "dynamic", "weight_only", "half"}
    assert "dynamic" not in surveyed(residual(4), DIGIT)["stem.0"].schemes


def test_blocks_that_may_be_left_out_are_listed_and_those_that_may_not_say_why() -> None:
    blocks = {name: layer for name, layer in surveyed(residual(4), DIGIT).items() if layer.kind == "block"}
    assert {name for name, layer in blocks.items() if layer.droppable} == {"block1", "block2", "block4"}
    assert "block3" in blocks
    assert all(bool(layer.drop_reason) != layer.droppable for layer in blocks.values())
    assert sum(layer.macs for layer in blocks.values()) == 0  # counted with their layers


def test_a_recurrent_layer_has_hidden_units_and_the_multiply_adds_of_every_step() -> None:
    lstm = surveyed(recurrent(), inputs(1, 5, 3))["lstm"]
    assert (lstm.kind, lstm.in_channels, lstm.out_channels) == ("lstm", 3, 4)
    assert lstm.macs == 5 * (4 * 4 * 3 + 4 * 4 * 4)
    assert lstm.group == "lstm"


def test_attention_has_heads_and_its_projections_no_group_of_their_own() -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), nn.Linear(16, 2)).eval()
    found = surveyed(model, inputs(1, 5, 16))
    attention = found["0.self_attn"]
    assert (attention.kind, attention.out_channels, attention.group) == ("attention", 4, "0.self_attn")
    assert found["0.linear1"].group is not None


def test_modes_of_single_modules_are_kept_too() -> None:
    model = residual(4).train()
    model.block1.norm1.eval()  # as a model does that was fine-tuned with frozen batch norm
    before = fingerprint(model)
    surveyed(model, DIGIT)
    assert fingerprint(model) == before


RESIDUAL = tuple(surveyed(residual(8), DIGIT).values())
DEEP = tuple(surveyed(depthwise(), torch.zeros(IMAGE)).values())


def check(*plans: dict[str, Any], layers: tuple[LayerInfo, ...] = RESIDUAL) -> None:
    check_recipe(Recipe(layers=tuple(LayerPlan(**plan) for plan in plans)), layers, "my.yaml")


def whole_group(share: float) -> list[dict[str, Any]]:
    return [{"name": name, "keep": share} for name in ("stem.0", "block1.conv2", "block2.conv2")]


def test_recipes_that_fit_pass() -> None:
    check()
    check(*whole_group(0.5), {"name": "block1.conv1", "keep": 0.25, "rank": 1, "weight_bits": 7, "activation_bits": 8})
    check({"name": "head", "rank": 3, "weight_bits": 3, "activation_bits": 8})
    check({"name": "head", "weight_bits": 4}, {"name": "block1.conv1", "weight_bits": 16})
    check({"name": "block2", "drop": True}, {"name": "head", "pattern": "2:4"}, {"name": "stem.0", "sparsity": 0.5})


COMPLAINTS = {
    "unknown layer": (
        [{"name": "block1.conv1"}, {"name": "conv9", "keep": 0.5}],
        r"my\.yaml: layers\[1\]\.name: the model has no layer 'conv9'; its layers are stem\.0, block1\.conv1, ",
    ),
    "keep on the output": (
        [{"name": "head", "keep": 0.5}],
        r"my\.yaml: layers\[0\]\.keep: 0\.5 is not possible for head: .*output.*; set it to 1",
    ),
    "keep differs in a group": (
        [{"name": "stem.0", "keep": 0.5}, {"name": "block1.conv2", "keep": 0.75}],
        r"my\.yaml: layers\[0\]\.keep: must be equal inside one prune group, .*stem\.0 0\.5, block1\.conv2 0\.75, block2\.conv2 1; ",
    ),
    "rank too large for a matrix": (
        [{"name": "head", "rank": 10}],
        r"my\.yaml: layers\[0\]\.rank: 10 is too large for head of 10 x 16 channels: .*lower it",
    ),
    "rank too large for a kernel": (
        [{"name": "block1.conv1", "rank": 8}],
        r"my\.yaml: layers\[0\]\.rank: 8 is too large for block1\.conv1 of 8 x 8",
    ),
    "rank too large after pruning": (
        [*whole_group(0.5), {"name": "block1.conv1", "keep": 0.5, "rank": 4}],
        r"my\.yaml: layers\[3\]\.rank: 4 is too large for block1\.conv1 of 4 x 4 channels",
    ),
    "half floats without a kernel": (
        [{"name": "head", "weight_bits": 32, "activation_bits": 16}],
        r"my\.yaml: layers\[0\]\.activation_bits: 16 with weight_bits 32: no kernel takes it",
    ),
    "float weights with integer activations": (
        [{"name": "head", "activation_bits": 8}],
        r"my\.yaml: layers\[0\]\.activation_bits: 8 with weight_bits 32: no kernel takes it",
    ),
    "a layer is no block": (
        [{"name": "head", "drop": True}],
        r"my\.yaml: layers\[0\]\.drop: head cannot be left out: only residual blocks are left out; take `drop` away",
    ),
    "a block that changes its shape": (
        [{"name": "block3", "drop": True}],
        r"my\.yaml: layers\[0\]\.drop: block3 cannot be left out: .+; take `drop` away",
    ),
    "zeros in a block": (
        [{"name": "block2", "sparsity": 0.5}],
        r"my\.yaml: layers\[0\]\.sparsity: block2 is of kind block; weights are set to 0 in convolutions and linear layers only",
    ),
}


@pytest.mark.parametrize("name", COMPLAINTS)
def test_every_complaint_names_file_field_rule_and_value(name: str) -> None:
    plans, pattern = COMPLAINTS[name]
    with pytest.raises(InvalidRecipe) as caught:
        check(*plans)
    assert re.search(pattern, str(caught.value)), str(caught.value)


def test_a_grouped_convolution_has_no_rank_and_the_keep_of_the_layers_that_it_reads() -> None:
    with pytest.raises(InvalidRecipe) as caught:
        check({"name": "deep", "keep": 0.5, "rank": 2}, layers=DEEP)
    keep, rank = str(caught.value).splitlines()
    assert keep.startswith("my.yaml: layers[0].keep: must be equal inside one prune group, which shares one width: a 1, deep 0.5")
    assert rank.startswith("my.yaml: layers[0].rank: 2 is not possible for deep: a grouped convolution is not factorized")


def test_all_complaints_are_listed_at_once() -> None:
    with pytest.raises(InvalidRecipe) as caught:
        check({"name": "nowhere"}, {"name": "head", "keep": 0.5, "rank": 10, "activation_bits": 8})
    paths = [re.match(r"my\.yaml: layers\[\d\]\.(\w+)", line) for line in str(caught.value).splitlines()]
    assert [found and found[1] for found in paths] == ["name", "keep", "rank", "activation_bits"]


def passes(check: Callable[[], object]) -> bool:
    try:
        check()
    except (InvalidRecipe, InfeasibleRecipe):
        return False
    return True


@pytest.mark.parametrize("share", [1.0, 0.3, 0.5])
def test_a_rank_is_refused_here_exactly_when_factorizing_would_refuse_it(share: float) -> None:
    plans = {plan["name"]: plan for plan in [*whole_group(share), {"name": "block1.conv1", "keep": share}]}
    pruned = prune(residual(8), dict.fromkeys(plans, share), DIGIT)
    for name in ("head", "block1.conv1", "block3.conv1", "block3.shortcut.0", "stem.0"):
        ranks = range(1, 14)
        rest = [plan for other, plan in plans.items() if other != name]
        here = [rank for rank in ranks if passes(partial(check, *rest, plans.get(name, {"name": name}) | {"rank": rank}))]
        there = [rank for rank in ranks if passes(partial(factorize, pruned, {name: LayerPlan(name=name, rank=rank)}))]
        assert here == there, name
