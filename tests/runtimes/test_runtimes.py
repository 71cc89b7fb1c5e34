"""Every runtime passes one contract; and a runtime is found by its name."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

import autocompress.runtimes as rooms
from autocompress.blocks import FakeQuantized
from autocompress.compress.factorize import factorize
from autocompress.errors import InfeasibleRecipe, MissingDependency, UserError
from autocompress.measure.machine import this_machine
from autocompress.recipe import LayerPlan
from autocompress.runtimes import RUNTIMES, find_runtime
from autocompress.runtimes.runtime import Deployed, Runtime, deploy
from tests.runtimes.quantized import KINDS, distance, quantized
from tests.small_models import concat, flat, inputs, outputs, recurrent, residual

LOW_RANK = ("block1.conv1", "block3.shortcut.0", "head")
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (residual, (1, 8, 8)),
    "concat": (concat, (3, 6, 6)),
    "flat": (flat, (3, 6, 6)),
    "recurrent": (recurrent, (5, 3)),
    "low rank": (lambda: factorize(residual(8), {name: LayerPlan(name=name, rank=2) for name in LOW_RANK}), (1, 8, 8)),
}


# scheme -> activation bits, settings, how far from the fake-quantized model outputs may be as a share of their range
SCHEMES: dict[str, tuple[int, dict[str, str], float]] = {
    "static": (8, {}, 0.02),
    "dynamic": (8, {"activations": "dynamic"}, 0.02),
    "weight_only": (32, {}, 0.01),
    "half": (32, {}, 1e-5),
}
WIDTHS = (3, 4, 8, 16)


def with_bits(bits: int) -> FakeQuantized:
    return quantized(residual(4), {"stem.0": (bits, 8)}, inputs(8, 1, 8, 8))


@pytest.mark.parametrize("runtime", [find_runtime(name) for name in RUNTIMES], ids=list(RUNTIMES))
class TestRuntime:
    """The contract."""

    @pytest.fixture
    def deployed(self, runtime: Runtime, tmp_path: Path) -> Deployed:
        return deploy(runtime, residual(4), inputs(1, 1, 8, 8), tmp_path / "artifact", threads=1)

    @pytest.mark.parametrize("name", MODELS)
    def test_outputs_are_those_of_the_pytorch_model_at_any_batch_size(self, runtime: Runtime, tmp_path: Path, name: str) -> None:
        make, shape = MODELS[name]
        model = make()
        artifact = deploy(runtime, model, inputs(1, *shape), tmp_path, threads=1)
        for batch in (1, 2, 7, 64):
            x = inputs(batch, *shape, seed=batch)
            np.testing.assert_allclose(artifact.run(x.numpy()), outputs(model, x).numpy(), atol=1e-5, rtol=1e-5)

    def test_inputs_of_any_memory_layout_are_read_right(self, runtime: Runtime, deployed: Deployed) -> None:
        x = inputs(4, 1, 8, 8)
        reference = deployed.run(x.numpy())
        wide = np.zeros((4, 2, 8, 16), np.float32)
        wide[:, :1, :, ::2] = x.numpy()
        backwards = np.ascontiguousarray(x.numpy()[:, :, ::-1])[:, :, ::-1]
        layouts = {
            "channels last": x.to(memory_format=torch.channels_last).numpy(),
            "channels last, several": np.asfortranarray(x.numpy()),
            "strided": wide[:, :1, :, ::2],
            "backwards": backwards,
        }
        for name, array in layouts.items():
            np.testing.assert_array_equal(array, x.numpy())
            np.testing.assert_allclose(deployed.run(array), reference, atol=1e-5, err_msg=name)

    def test_a_channels_last_model_gives_the_same_outputs(self, runtime: Runtime, tmp_path: Path) -> None:
        model, x = concat().to(memory_format=torch.channels_last), inputs(4, 3, 6, 6)
        artifact = deploy(runtime, model, x[:1].to(memory_format=torch.channels_last), tmp_path, threads=1)
        np.testing.assert_allclose(artifact.run(x.numpy()), outputs(concat(), x).numpy(), atol=1e-5, rtol=1e-5)

    def test_the_size_is_that_of_the_one_file_that_is_left(self, runtime: Runtime, deployed: Deployed) -> None:
        files = list(deployed.folder.iterdir())
        assert len(files) == 1
        assert deployed.size_bytes == files[0].stat().st_size > 4 * sum(value.numel() for value in residual(4).parameters()) * 0.9

    def test_what_was_written_opens_again_in_another_session(self, runtime: Runtime, deployed: Deployed) -> None:
        x = inputs(3, 1, 8, 8).numpy()
        other = nn.Module.requires_grad_(residual(4))
        for value in other.parameters():
            value.data.zero_()  # the weights have to come from the files
        again = runtime.open(deployed.folder, 1, other)
        np.testing.assert_array_equal(again.run(x), deployed.run(x))

    def test_a_series_has_one_positive_time_a_call(self, runtime: Runtime, deployed: Deployed) -> None:
        times = deployed.seconds(inputs(1, 1, 8, 8).numpy(), 5)
        assert len(times) == 5
        assert all(0 < value < 10 for value in times)

    def test_an_answer_is_given_for_every_number_of_bits_and_float_is_always_possible(self, runtime: Runtime) -> None:
        answers = runtime.weight_bits(this_machine())
        assert set(answers) == {*range(2, 17), 32}
        assert answers[32] == ""
        assert runtime.name in RUNTIMES
        assert runtime.channel_multiple >= 1

    @pytest.mark.parametrize("scheme", SCHEMES)
    @pytest.mark.parametrize("kind", KINDS)
    def test_what_it_says_it_runs_it_runs_right_and_the_rest_is_refused(
        self, runtime: Runtime, tmp_path: Path, kind: str, scheme: str
    ) -> None:
        make, shape, names = KINDS[kind]
        activation_bits, settings, tolerance = SCHEMES[scheme]
        for bits in WIDTHS:
            support = runtime.support(kind, scheme, bits, this_machine())  # type: ignore[arg-type]
            assert support.real <= support.runs
            assert bool(support.reason) != support.real
            if (bits == 16) != (scheme == "half"):
                continue  # of float weights and integer inputs, and of a scheme that needs integers, see test_encode
            if not support.runs:
                with pytest.raises(InfeasibleRecipe):
                    deploy(runtime, quantized(make(), dict.fromkeys(names, (bits, activation_bits)), inputs(32, *shape), **settings),
                           inputs(1, *shape), tmp_path / str(bits), threads=1)  # fmt: skip
                continue
            model = quantized(make(), dict.fromkeys(names, (bits, activation_bits)), inputs(32, *shape), **settings)
            artifact = deploy(runtime, model, inputs(1, *shape), tmp_path / str(bits), threads=1)
            assert distance(artifact, model, shape) < tolerance, bits

    def test_a_float_layer_is_always_supported(self, runtime: Runtime) -> None:
        for kind in KINDS:
            assert runtime.support(kind, "none", 32, this_machine()) == (True, True, "")  # type: ignore[arg-type]

    def test_deploying_does_not_change_the_model(self, runtime: Runtime, tmp_path: Path) -> None:
        model = residual(4)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        deploy(runtime, model, inputs(1, 1, 8, 8), tmp_path, threads=1)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert not model.training


@pytest.mark.parametrize("bits", [8, 7, 4])
def test_bits_without_a_kernel_are_refused_with_the_name_of_the_layer(bits: int, tmp_path: Path) -> None:
    runtime = find_runtime("eager")
    assert runtime.weight_bits(this_machine())[bits]
    with pytest.raises(InfeasibleRecipe, match=r"stem\.0"):
        deploy(runtime, with_bits(bits), inputs(1, 1, 8, 8), tmp_path, threads=1)


@pytest.mark.parametrize("name", ["onnxruntime", "fake"])
def test_bits_with_a_kernel_are_deployed(name: str, tmp_path: Path) -> None:
    runtime, model, x = find_runtime(name), with_bits(7), inputs(16, 1, 8, 8)
    assert runtime.weight_bits(this_machine())[7] == ""
    artifact = deploy(runtime, model, x[:1], tmp_path, threads=1)
    reference = outputs(model, x)
    assert np.abs(artifact.run(x.numpy()) - reference.numpy()).max() < 0.02 * (reference.max() - reference.min())


def test_fake_times_follow_the_number_of_weights_and_integer_layers_count_a_third(tmp_path: Path) -> None:
    runtime, x = find_runtime("fake"), inputs(1, 1, 8, 8)
    model = residual(4)
    counts = {name: m.weight.numel() for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    plain = deploy(runtime, model, x, tmp_path / "float", threads=1).seconds(x.numpy(), 3)
    integer = deploy(runtime, with_bits(7), x, tmp_path / "integer", threads=1).seconds(x.numpy(), 3)
    assert plain == pytest.approx([1e-9 * sum(counts.values())] * 3)
    assert integer == pytest.approx([1e-9 * (sum(counts.values()) - counts["stem.0"] * 2 / 3)] * 3)


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_is_found_by_its_name(name: str) -> None:
    assert find_runtime(name).name == name


def test_auto_is_onnx_runtime() -> None:
    assert find_runtime("auto") is find_runtime("onnxruntime")


def test_an_unknown_runtime_is_an_error_that_lists_the_known_ones_without_the_made_up_one() -> None:
    with pytest.raises(UserError, match=r"--runtime: 'tensorrt' is unknown; the runtimes are auto, eager, onnxruntime") as caught:
        find_runtime("tensorrt")
    assert "fake" not in str(caught.value)


def missing(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real = importlib.import_module

    def import_module(name: str) -> ModuleType:
        if name == "autocompress.runtimes.onnx_runtime":
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real(name)

    monkeypatch.setattr(rooms.importlib, "import_module", import_module)


@pytest.mark.parametrize("package", ["onnxruntime", "onnxruntime.capi"])
def test_a_missing_package_is_an_error_that_names_the_pip_command(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    missing(monkeypatch, package)
    with pytest.raises(MissingDependency, match=r"the package 'onnxruntime' is not installed.*`pip install onnxruntime`"):
        find_runtime("onnxruntime")


def test_a_package_that_a_runtime_does_not_own_is_a_bug_and_not_a_missing_dependency(monkeypatch: pytest.MonkeyPatch) -> None:
    missing(monkeypatch, "autocompress.oops")
    with pytest.raises(ModuleNotFoundError, match="oops"):
        find_runtime("onnxruntime")
