"""A profile: time by layer of the given model, whatever the runtime made of it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from autocompress.compress.factorize import factorize
from autocompress.recipe import LayerPlan
from autocompress.runtimes import RUNTIMES, find_runtime
from autocompress.runtimes.runtime import REST, Deployed, deploy
from tests.runtimes.quantized import quantized
from tests.small_models import Net, concat, conv, inputs, recurrent, residual

RESIDUAL = ("stem.0", "block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2", "block3.conv1", "block3.conv2", "block3.shortcut.0",
            "block4.conv1", "block4.conv2", "head")  # fmt: skip


def deployed(runtime: str, model: nn.Module, folder: Path, *shape: int) -> Deployed:
    return deploy(find_runtime(runtime), model, inputs(1, *shape), folder, threads=1)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_layer_has_a_time_and_they_sum_to_the_whole(runtime: str, tmp_path: Path) -> None:
    x = inputs(1, 1, 8, 8).numpy()
    one = deployed(runtime, residual(32), tmp_path, 1, 8, 8)
    found = one.profile(x, RESIDUAL)
    assert set(found) == {*RESIDUAL, REST}
    assert all(spent > 0 for name, spent in found.items() if name != REST)
    whole = 1000 * min(one.seconds(x, 30))
    assert 0.5 * whole < sum(found.values()) < 5 * whole  # the machine is shared: the profile was taken at another moment


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_layer_of_16_times_the_multiply_adds_takes_longer(runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Net(lambda m, x: m.wide(m.middle(m.narrow(x))), narrow=conv(16, 16), middle=conv(16, 64, 1), wide=conv(64, 64)).eval()
    found = deployed(runtime, model, tmp_path, 16, 12, 12).profile(inputs(1, 16, 12, 12).numpy(), ("narrow", "middle", "wide"))
    assert found["wide"] > 2 * found["narrow"]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_factors_of_a_low_rank_layer_count_to_it(runtime: str, tmp_path: Path) -> None:
    model = factorize(residual(16), {name: LayerPlan(name=name, rank=4) for name in ("block1.conv1", "block3.shortcut.0", "head")})
    found = deployed(runtime, model, tmp_path, 1, 8, 8).profile(inputs(1, 1, 8, 8).numpy(), RESIDUAL)
    assert set(found) == {*RESIDUAL, REST}


@pytest.mark.parametrize(("bits", "settings"), [((7, 8), {}), ((7, 8), {"activations": "dynamic"}), ((8, 32), {})])
def test_integer_layers_keep_their_names_in_onnx_runtime(bits: tuple[int, int], settings: dict[str, str], tmp_path: Path) -> None:
    names = ("lstm", "a", "b") if bits != (7, 8) or settings else ("a", "b")
    model = quantized(recurrent(), dict.fromkeys(names, bits), inputs(32, 5, 3), **settings)
    found = deployed("onnxruntime", model, tmp_path, 5, 3).profile(inputs(1, 5, 3).numpy(), ("lstm", "a", "b"))
    assert {"lstm", "a", "b"} <= set(found)
    sequential = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()  # its layers have numbers for names
    model = quantized(sequential, dict.fromkeys(("0", "2"), bits), inputs(32, 8), **settings)
    found = deployed("onnxruntime", model, tmp_path / "numbers", 8).profile(inputs(1, 8).numpy(), ("0", "2"))
    assert {"0", "2"} <= set(found)


def test_static_layers_keep_their_names_when_fused_between_roundings(tmp_path: Path) -> None:
    names = ("a", "b", "c", "head")
    model = quantized(concat(), dict.fromkeys(names, (7, 8)), inputs(32, 3, 6, 6))
    found = deployed("onnxruntime", model, tmp_path, 3, 6, 6).profile(inputs(1, 3, 6, 6).numpy(), names)
    assert set(found) == {*names, REST}


def test_a_user_s_child_called_model_is_found_too(tmp_path: Path) -> None:
    model = Net(lambda m, x: m.model(x), model=nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))).eval()
    found = deployed("onnxruntime", model, tmp_path, 8).profile(inputs(1, 8).numpy(), ("model.0", "model.2"))
    assert {"model.0", "model.2"} <= set(found)


def test_a_float_layer_between_integer_ones_is_its_own_kernel_and_not_what_rounds_for_it(tmp_path: Path) -> None:
    """The kernel is called by the ReLU that it was fused with, and what turns its input into floats by the layer."""
    model, x = residual(64), inputs(1, 1, 8, 8).numpy()
    whole = deployed("onnxruntime", model, tmp_path / "float", 1, 8, 8).profile(x, RESIDUAL)
    bits = {name: (7, 8) for name in RESIDUAL if name != "block4.conv1"}
    mixed = deployed("onnxruntime", quantized(model, bits, inputs(32, 1, 8, 8)), tmp_path / "mixed", 1, 8, 8).profile(x, RESIDUAL)
    assert mixed["block4.conv1"] > 0.3 * whole["block4.conv1"]
    assert mixed[REST] < sum(mixed.values()) / 2
