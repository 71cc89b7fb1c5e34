"""Residual blocks: found by setting their branch to 0, and gone without a trace but for what stands behind the sum."""

import copy
import warnings

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.blocks.skipped import Skipped
from autocompress.compress.prune.depth import drop_blocks, residual_blocks
from autocompress.errors import InfeasibleRecipe
from tests.small_models import Net, conv, fingerprint, inputs, outputs, residual, shaken

DIGIT = inputs(1, 1, 8, 8)
WORDS = inputs(1, 5, 8)


class ViTBlock(nn.Module):
    """Pre-norm block as users write it: attention and MLP, each with a shortcut."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class ReLUBlock(nn.Module):
    """relu(x + f(x)), as in a ResNet."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv, self.norm = conv(width, width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.conv(x)))


def vit() -> nn.Module:
    """x (N, 5, 8) -> (N, 3)."""
    torch.manual_seed(0)
    layers = {"stem": nn.Linear(8, 8), "blocks": nn.Sequential(ViTBlock(), ViTBlock(), ViTBlock()), "head": nn.Linear(8, 3)}
    return Net(lambda m, x: m.head(m.blocks(m.stem(x)).mean(1)), **layers).eval()


def encoder(norm_first: bool, batch_first: bool = True) -> nn.Module:
    """nn.TransformerEncoder, whose forward reads attributes of its first layer. x (N, 5, 8) -> (N, 3)."""
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(8, 2, 16, norm_first=norm_first, batch_first=batch_first)
    layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=not norm_first and batch_first)
    for norm in (module for module in layers.modules() if isinstance(module, nn.LayerNorm)):
        nn.init.normal_(norm.weight, 1.0, 0.3)
        nn.init.normal_(norm.bias, 0.0, 0.3)
    return Net(lambda m, x: m.head(m.encoder(x).mean(1)), encoder=layers, head=nn.Linear(8, 3)).eval()


def offered(model: nn.Module, example: Tensor) -> list[str]:
    return [name for name, reason in residual_blocks(model, example).items() if not reason]


def zeroed(model: nn.Module, *branches: str) -> nn.Module:
    """A copy in which the last layer of every branch, and so the branch, gives 0."""
    work = copy.deepcopy(model)
    for name in branches:
        for parameter in work.get_submodule(name).parameters():
            parameter.data.zero_()
    return work


def test_a_resnet_offers_its_blocks_with_identity_shortcut_and_says_why_not_the_others() -> None:
    model = residual(8)
    found = residual_blocks(model, DIGIT)
    assert offered(model, DIGIT) == ["block1", "block2", "block4"]
    assert found["block3"] == "it turns the shape (1, 8, 8, 8) into (1, 16, 4, 4), so nothing can pass it unchanged"
    assert "into" in found["stem"]


@pytest.mark.parametrize("names", [("block1",), ("block4",), ("block1", "block2", "block4")])
def test_a_resnet_without_blocks_equals_its_copy_whose_branches_are_zero(names: tuple[str, ...]) -> None:
    model, x = residual(8), inputs(4, 1, 8, 8, seed=1)
    cut = drop_blocks(model, names, DIGIT)
    assert all(isinstance(cut.get_submodule(name), Skipped) for name in names)
    torch.testing.assert_close(outputs(cut, x), outputs(zeroed(model, *(f"{name}.norm2" for name in names)), x), atol=1e-6, rtol=1e-5)
    assert not list(cut.block4.parameters()) if "block4" in names else True


def test_blocks_of_a_user_vit_are_offered_but_neither_their_parts_nor_the_row_of_them() -> None:
    model, x = vit(), inputs(3, 5, 8, seed=1)
    found = residual_blocks(model, WORDS)
    assert offered(model, WORDS) == ["blocks.0", "blocks.1", "blocks.2"]
    assert found["blocks"] == "its parts blocks.0, blocks.1, blocks.2 are offered instead"
    assert "no identity shortcut" in found["blocks.0.mlp"]
    cut = drop_blocks(model, ["blocks.1"], WORDS)
    expected = zeroed(model, "blocks.1.attn.out_proj", "blocks.1.mlp.2")
    torch.testing.assert_close(outputs(cut, x), outputs(expected, x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("batch_first", [True, False])
def test_pre_norm_transformer_layers_leave_without_their_norms(batch_first: bool) -> None:
    model, x = encoder(True, batch_first), inputs(3, 5, 8, seed=1)
    assert offered(model, WORDS) == [f"encoder.layers.{index}" for index in range(3)]
    cut = drop_blocks(model, ["encoder.layers.0"], WORDS)
    expected = zeroed(model, "encoder.layers.0.self_attn.out_proj", "encoder.layers.0.linear2")
    torch.testing.assert_close(outputs(cut, x), outputs(expected, x), atol=1e-6, rtol=1e-5)
    assert not list(cut.encoder.layers[0].parameters())


def test_post_norm_transformer_layers_leave_their_norms_behind() -> None:
    model, x = encoder(False), inputs(3, 5, 8, seed=1)
    assert offered(model, WORDS) == [f"encoder.layers.{index}" for index in range(3)]
    cut = drop_blocks(model, ["encoder.layers.0", "encoder.layers.2"], WORDS)
    gone = [f"encoder.layers.{index}.{part}" for index in (0, 2) for part in ("self_attn.out_proj", "linear2")]
    torch.testing.assert_close(outputs(cut, x), outputs(zeroed(model, *gone), x), atol=1e-5, rtol=1e-5)
    kept = model.encoder.layers[2]
    assert [value.tolist() for value in cut.encoder.layers[2].parameters()] == [
        value.tolist() for norm in (kept.norm1, kept.norm2) for value in norm.parameters()
    ]


@pytest.mark.parametrize("make", [lambda: residual(8), vit, lambda: encoder(True), lambda: encoder(False)])
def test_without_all_its_blocks_a_model_still_runs_and_trains(make: object) -> None:
    model = make()  # type: ignore[operator]
    example = DIGIT if hasattr(model, "block1") else WORDS
    cut = drop_blocks(model.train(), offered(model, example), example)
    assert cut.training
    assert all(module.training for module in cut.modules())
    out = cut(torch.cat([example, -example]))
    assert out.shape[1:] == outputs(model, example).shape[1:]
    out.square().mean().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in cut.parameters())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_an_encoder_without_its_first_layer_still_takes_a_padding_mask() -> None:
    model, x = encoder(False), inputs(3, 5, 8, seed=1)
    masked = Net(lambda m, x: m.encoder(x, src_key_padding_mask=torch.arange(5).expand(len(x), 5) > 3)[:, :4], encoder=model.encoder).eval()
    cut = drop_blocks(masked, ["encoder.layers.0"], WORDS)
    expected = zeroed(masked, "encoder.layers.0.self_attn.out_proj", "encoder.layers.0.linear2")
    torch.testing.assert_close(outputs(cut, x), outputs(expected, x), atol=1e-5, rtol=1e-5)


def test_a_relu_behind_the_sum_stays_where_the_input_can_be_negative() -> None:
    torch.manual_seed(2)
    blocks = {"first": ReLUBlock(), "second": ReLUBlock(), "head": nn.Conv2d(4, 2, 1)}
    model = shaken(Net(lambda m, x: m.head(m.second(m.first(x))), **blocks))
    x = inputs(2, 4, 6, 6, seed=1)
    cut = drop_blocks(model, ["first", "second"], x[:1].abs())  # an example without negative numbers proves nothing about other inputs
    assert [type(part).__name__ for part in cut.first.after] == ["ReLU"]
    assert len(cut.second.after) == 0  # behind a ReLU
    torch.testing.assert_close(outputs(cut, x), outputs(zeroed(model, "first.norm", "second.norm"), x), atol=1e-6, rtol=1e-5)


def test_what_is_no_residual_block_is_refused_with_the_reason() -> None:
    torch.manual_seed(3)

    def run(m: Net, x: Tensor) -> Tensor:
        y, _ = m.pair(m.twice(m.twice(m.plain(m.free(x)))), None)
        return y

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor, _: None) -> tuple[Tensor, Tensor]:
            return x + self.layer(x), x

    parts = {
        "free": nn.Sequential(nn.ReLU()),
        "plain": nn.Sequential(nn.Linear(8, 8), nn.ReLU()),
        "twice": ViTBlock(),
        "pair": Pair(),
        "idle": nn.Sequential(nn.Linear(8, 8)),
    }
    found = residual_blocks(Net(run, **parts).eval(), WORDS)
    assert found["free"] == "it has no parameters"
    assert "no identity shortcut" in found["plain"]
    assert found["twice"] == "it is called 2 times in one pass"
    assert found["pair"] == "it gives back a tuple, not one tensor"
    assert found["idle"] == "it does not run"


def test_a_block_whose_inside_is_read_by_others_is_refused() -> None:
    torch.manual_seed(4)
    model = Net(lambda m, x: m.block(x) @ m.block.mlp[0].weight.T, block=ViTBlock()).eval()
    assert "does not run after the cut" in residual_blocks(model, WORDS)["block"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("block9", "has none of this name. Blocks: block1, block2, block4"), ("block3", "block3: drop is not possible: it turns")],
)
def test_names_that_are_no_blocks_are_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(InfeasibleRecipe, match=message):
        drop_blocks(residual(8), [name], DIGIT)


@pytest.mark.parametrize("make", [lambda: residual(8), vit, lambda: encoder(False)])
def test_the_given_model_stays_as_it_is(make: object) -> None:
    model = make()  # type: ignore[operator]
    example = DIGIT if hasattr(model, "block1") else WORDS
    model.train()
    before = fingerprint(model)
    drop_blocks(model, offered(model, example), example)
    assert fingerprint(model) == before
    assert str(drop_blocks(model, [], example)) == str(model)


@pytest.mark.parametrize("make", [lambda: residual(8), lambda: encoder(False)])
def test_a_model_without_blocks_exports_and_runs_the_same_in_onnx_runtime(make: object, tmp_path: object) -> None:
    model = make()  # type: ignore[operator]
    example = DIGIT if hasattr(model, "block1") else WORDS
    cut = drop_blocks(model, offered(model, example)[:2], example)
    file = f"{tmp_path}/model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        torch.onnx.export(cut, (example,), file, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}})
    x = torch.cat([example, -example, 2 * example])
    (out,) = onnxruntime.InferenceSession(file).run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), outputs(cut, x), atol=1e-4, rtol=1e-4)
