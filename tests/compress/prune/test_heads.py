"""Heads leave whole: what is left equals the uncut model with the output columns of these heads at 0."""

import copy
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.blocks.attention import NarrowAttention, PlainSelfAttention
from autocompress.compress.distill import Sample
from autocompress.compress.prune.heads import attention_modules, prune_heads
from autocompress.compress.prune.importance import Scoring
from autocompress.errors import InfeasibleRecipe
from tests.small_models import Net, fingerprint, inputs, outputs

WORDS = inputs(1, 5, 8)


class Fused(nn.Module):
    """q, k, v in one layer, rows (q k v, head, dim) or ``interleaved`` (head, q k v, dim); inner width free of the outer one."""

    def __init__(self, width: int = 8, heads: int = 4, head_dim: int = 3, interleaved: bool = False) -> None:
        super().__init__()
        self.n_heads, self.head_dim, self.interleaved = heads, head_dim, interleaved
        self.qkv, self.proj = nn.Linear(width, 3 * heads * head_dim, bias=False), nn.Linear(heads * head_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        n, steps, _ = x.shape
        if self.interleaved:
            q, k, v = self.qkv(x).view(n, steps, self.n_heads, 3 * self.head_dim).chunk(3, -1)
        else:
            q, k, v = self.qkv(x).view(n, steps, 3, self.n_heads, self.head_dim).unbind(2)
        scores = torch.einsum("nlhd,nshd->nhls", q, k) / math.sqrt(self.head_dim)
        return self.proj(torch.einsum("nhls,nshd->nlhd", scores.softmax(-1), v).flatten(2))


class Separate(nn.Module):
    """q and a joined k, v, as cross attention often has; the output layer in a Sequential; ``inner_dim`` is used in the forward."""

    def __init__(self, width: int = 8, heads: int = 4, head_dim: int = 3) -> None:
        super().__init__()
        self.heads, self.dim, self.inner_dim, self.scale = heads, width, heads * head_dim, head_dim**-0.5
        self.to_q, self.to_kv = nn.Linear(width, self.inner_dim), nn.Linear(width, 2 * self.inner_dim)
        self.to_out = nn.Sequential(nn.Linear(self.inner_dim, width), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.to_kv(x).split(self.inner_dim, -1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (self.to_q(x), k, v))
        mixed = ((q @ k.transpose(-2, -1)) * self.scale).softmax(-1) @ v
        return self.to_out(mixed.transpose(1, 2).reshape(*x.shape[:2], self.inner_dim))


class GPT(nn.Module):
    """As in minGPT: causal, keys come first, and the code takes the width of the heads together from the input."""

    scale = 1.0

    def __init__(self, config: object = None) -> None:
        super().__init__()
        self.n_head, self.n_embd, self.config = 4, 8, config
        self.key, self.query, self.value, self.proj = (nn.Linear(8, 8) for _ in range(4))
        self.attn_drop, self.resid_drop = nn.Dropout(0.5), nn.Dropout(0.25)
        self.register_buffer("mask", torch.ones(5, 5).tril().bool())

    def forward(self, x: Tensor, layer_past: None = None) -> Tensor:
        n, steps, width = x.size()
        k, q, v = (y(x).view(n, steps, self.n_head, width // self.n_head).transpose(1, 2) for y in (self.key, self.query, self.value))
        scores = self.scale * (q @ k.transpose(-2, -1)) / math.sqrt(k.size(-1))
        weights = self.attn_drop(scores.masked_fill(~self.mask[:steps, :steps], -math.inf).softmax(-1))
        return self.resid_drop(self.proj((weights @ v).transpose(1, 2).contiguous().view(n, steps, width)))


class ViT(nn.Module):
    """As in older versions of timm: one layer for q, k, v, and the width taken from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.scale = 4, 2**-0.5
        self.qkv, self.attn_drop, self.proj, self.proj_drop = nn.Linear(8, 24), nn.Dropout(0.0), nn.Linear(8, 8), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        n, steps, width = x.shape
        q, k, v = self.qkv(x).reshape(n, steps, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        weights = self.attn_drop(((q @ k.transpose(-2, -1)) * self.scale).softmax(-1))
        return self.proj_drop(self.proj((weights @ v).transpose(1, 2).reshape(n, steps, width)))


class BertSelf(nn.Module):
    """As in BERT: three layers, ``all_head_size`` used to join the heads, no output layer in here."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = heads, width // heads, width
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        q, k, v = (
            layer(x).view(*x.shape[:2], self.num_attention_heads, self.attention_head_size).permute(0, 2, 1, 3)
            for layer in (self.query, self.key, self.value)
        )
        mixed = (q @ k.transpose(-1, -2) / math.sqrt(self.attention_head_size)).softmax(-1) @ v
        return (mixed.permute(0, 2, 1, 3).contiguous().view(*x.shape[:2], self.all_head_size),)


class BertOutput(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, hidden: Tensor, x: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(hidden) + x)


class Bert(nn.Module):
    def __init__(self, width: int = 8, heads: int = 4) -> None:
        super().__init__()
        self.self, self.output = BertSelf(width, heads), BertOutput(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.self(x)[0], x)


class Torch(nn.Module):
    """nn.MultiheadAttention with any of its options, self attention or with other keys and values."""

    def __init__(self, steps_first: bool = False, other: bool = False, masked: bool = False, bias: bool = True) -> None:
        super().__init__()
        widths = {"kdim": 6, "vdim": 7} if other else {}
        self.mha = nn.MultiheadAttention(8, 4, bias=bias, batch_first=not steps_first, **widths)
        if self.mha.in_proj_bias is not None:
            nn.init.normal_(self.mha.in_proj_bias)
        self.steps_first, self.other, self.masked = steps_first, other, masked

    def forward(self, x: Tensor) -> Tensor:
        masks = {}
        if self.masked:
            masks["attn_mask"] = torch.ones(5, 5, device=x.device).triu(1).bool()
            masks["key_padding_mask"] = torch.arange(5, device=x.device).expand(len(x), 5) == 4
        q, k, v = (x, x[..., :6], x[..., 1:]) if self.other else (x, x, x)
        if self.steps_first:
            q, k, v = (y.transpose(0, 1) for y in (q, k, v))
        out, weights = self.mha(q, k, v, **masks)
        out = out.transpose(0, 1) if self.steps_first else out
        return out + weights.sum((1, 2), keepdim=True)


def model_of(attention: Callable[[], nn.Module]) -> nn.Module:
    """x (N, 5, 8) -> (N, 3)."""
    torch.manual_seed(0)
    layers = {"a": attention(), "norm": nn.LayerNorm(8), "mlp": nn.Sequential(nn.Linear(8, 24), nn.GELU(), nn.Linear(24, 8))}
    return Net(lambda m, x: m.head(m.mlp(m.norm(x + m.a(x))).mean(1)), **layers, head=nn.Linear(8, 3)).eval()


def encoder(**options: bool) -> nn.Module:
    """x (N, 5, 8) -> (N, 3)."""
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True, **options)
    return Net(
        lambda m, x: m.head(m.encoder(x).mean(1)), encoder=nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), head=nn.Linear(8, 3)
    ).eval()


# how the model is made, name of the attention, its output layer, width of a head
CASES = {
    "torch": (lambda: model_of(Torch), "a.mha", "a.mha.out_proj", 2),
    "torch, steps first, masked": (lambda: model_of(lambda: Torch(steps_first=True, masked=True)), "a.mha", "a.mha.out_proj", 2),
    "torch, keys of other widths": (lambda: model_of(lambda: Torch(other=True)), "a.mha", "a.mha.out_proj", 2),
    "torch, no bias": (lambda: model_of(lambda: Torch(bias=False)), "a.mha", "a.mha.out_proj", 2),
    "encoder layer": (encoder, "encoder.layers.1.self_attn", "encoder.layers.1.self_attn.out_proj", 2),
    "fused": (lambda: model_of(Fused), "a", "a.proj", 3),
    "interleaved": (lambda: model_of(lambda: Fused(interleaved=True)), "a", "a.proj", 3),
    "separate": (lambda: model_of(Separate), "a", "a.to_out.0", 3),
    "gpt": (lambda: model_of(GPT), "a", "a.proj", 2),
    "vit": (lambda: model_of(ViT), "a", "a.proj", 2),
    "bert": (lambda: model_of(Bert), "a.self", "a.output.dense", 2),
}
CASE = pytest.mark.parametrize("case", CASES, ids=lambda name: name.replace(" ", "-"))


def without_heads(model: nn.Module, pruned: nn.Module, output: str, head_dim: int) -> nn.Module:
    """The uncut model with those columns of the output layer at 0 that ``pruned`` lacks; columns are unique."""
    work = copy.deepcopy(model)
    weight, left = work.get_submodule(output).weight.data, pruned.get_submodule(output).weight
    gone = [index for index, column in enumerate(weight.T) if not any(torch.equal(column, other) for other in left.T)]
    assert len(gone) + left.shape[1] == weight.shape[1]
    assert len({index // head_dim for index in gone}) * head_dim == len(gone), "whole heads leave"
    weight[:, gone] = 0
    return work


@CASE
@pytest.mark.parametrize("share", [0.75, 0.5, 0.01])
def test_a_cut_model_equals_its_uncut_copy_whose_heads_are_zero(case: str, share: float) -> None:
    make, name, output, head_dim = CASES[case]
    model, x = make(), inputs(3, 5, 8, seed=1)
    found = attention_modules(model, WORDS)[name]
    assert (found.heads, found.head_dim, found.reason) == (4, head_dim, "")
    pruned = prune_heads(model, {name: share}, WORDS)
    assert pruned.get_submodule(output).in_features == max(1, round(4 * share)) * head_dim
    if "torch" not in case:  # there the weights of the heads, which are averaged, come out too
        torch.testing.assert_close(outputs(pruned, x), outputs(without_heads(model, pruned, output, head_dim), x), atol=1e-5, rtol=1e-5)
        return
    whole, narrow = without_heads(model, pruned, output, head_dim), copy.deepcopy(pruned)
    y = [seen(work.eval(), "a.mha", x)[0] for work in (narrow, whole)]
    torch.testing.assert_close(*y, atol=1e-5, rtol=1e-5)


def seen(model: nn.Module, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the module of this name gives."""
    caught: list[tuple[Tensor, Tensor]] = []
    model.get_submodule(name).register_forward_hook(lambda module, args, out: caught.append(out))
    with torch.no_grad():
        model(x)
    return caught[0]


def test_the_layers_of_an_attention_are_named_as_in_the_given_model() -> None:
    layers = {case: attention_modules(make(), WORDS)[name].layers for case, (make, name, _, _) in CASES.items()}
    assert layers["torch"] == ("a.mha.out_proj",)
    assert layers["fused"] == ("a.qkv", "a.proj")
    assert set(layers["separate"]) == {"a.to_q", "a.to_kv", "a.to_out.0"}
    assert layers["bert"] == ("a.self.query", "a.self.key", "a.self.value", "a.output.dense")


def test_code_that_fixes_the_width_of_all_heads_is_replaced_by_a_block_with_the_same_layers_and_dropouts() -> None:
    model, x = model_of(GPT), inputs(3, 5, 8, seed=1)
    pruned = prune_heads(model, {"a": 0.5}, WORDS)
    assert isinstance(pruned.a, PlainSelfAttention)
    assert [name for name, _ in pruned.a.named_children()] == [name for name, _ in model.a.named_children()]
    assert (pruned.a.n_head, pruned.a.n_embd, pruned.a.key.out_features) == (2, 8, 4)
    torch.testing.assert_close(pruned.a(x, layer_past=None)[:, :3], pruned.a(x[:, :3]), atol=1e-6, rtol=1e-5)  # no step sees later ones
    with pytest.raises(ValueError, match="takes one sequence and nothing else, got layer_past"):
        pruned.a(x, layer_past=x)
    dropped = pruned.a.train()(x)
    assert 0.1 < float((dropped == 0).float().mean()) < 0.4  # resid_drop, behind the output layer


def test_the_heads_with_the_least_weight_leave_and_all_others_stay_as_they_are() -> None:
    model = model_of(Fused)
    norms = [
        model.a.qkv.weight.view(3, 4, 3, 8)[:, head].square().sum() + model.a.proj.weight[:, 3 * head : 3 * head + 3].square().sum()
        for head in range(4)
    ]
    stay = sorted(sorted(range(4), key=lambda head: float(norms[head].detach()))[2:])
    pruned = prune_heads(model, {"a": 0.5}, WORDS)
    torch.testing.assert_close(pruned.a.qkv.weight, model.a.qkv.weight.view(3, 4, 3, 8)[:, stay].reshape(18, 8), atol=0, rtol=0)
    assert (pruned.a.n_heads, pruned.a.head_dim) == (2, 3)
    assert torch.equal(pruned.a.proj.bias, model.a.proj.bias)


def test_derived_widths_follow_and_the_width_of_the_input_does_not() -> None:
    bert, separate = prune_heads(model_of(Bert), {"a.self": 0.5}, WORDS).a.self, prune_heads(model_of(Separate), {"a": 0.5}, WORDS).a
    assert (bert.num_attention_heads, bert.attention_head_size, bert.all_head_size) == (2, 2, 4)
    assert (separate.heads, separate.dim, separate.inner_dim) == (2, 8, 6)


@pytest.mark.parametrize("options", [{}, {"steps_first": True, "masked": True}, {"other": True}, {"bias": False}])
def test_with_all_heads_the_block_equals_multihead_attention_weights_included(options: dict[str, bool]) -> None:
    model, x = model_of(lambda: Torch(**options)), inputs(3, 5, 8, seed=1)
    opened = copy.deepcopy(model)
    opened.a.mha = NarrowAttention(model.a.mha)
    for ours, theirs in zip(seen(opened, "a.mha", x), seen(model, "a.mha", x), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_the_block_understands_every_kind_of_call() -> None:
    torch.manual_seed(2)
    mha = nn.MultiheadAttention(8, 4, batch_first=True).eval()
    ours, x, y = NarrowAttention(mha), inputs(3, 5, 8), inputs(3, 6, 8, seed=1)
    per_head, floats = torch.rand(12, 5, 6) < 0.3, torch.randn(5, 6)
    calls = [
        ((x, y, y), {"attn_mask": per_head, "average_attn_weights": False}),
        ((x, y, y), {"attn_mask": floats, "key_padding_mask": torch.rand(3, 6) * -2, "need_weights": False}),
        ((x[0], y[0], y[0]), {"attn_mask": floats, "key_padding_mask": torch.tensor([0.0] * 5 + [-math.inf])}),
        ((x, x, x), {"attn_mask": torch.ones(5, 5).triu(1).bool(), "is_causal": True, "need_weights": False}),
    ]
    for args, options in calls:
        for found, expected in zip(ours(*args, **options), mha(*args, **options), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    with pytest.raises(RuntimeError, match="is_causal"):
        ours(x, x, x, is_causal=True)


def test_a_mask_per_head_of_the_original_still_reaches_the_heads_that_stay() -> None:
    torch.manual_seed(3)
    x, mask = inputs(2, 5, 8, seed=1), torch.randn(4, 5, 5)
    model = Net(
        lambda m, x: m.a(x, x, x, attn_mask=mask.repeat(len(x), 1, 1), need_weights=False)[0],
        a=nn.MultiheadAttention(8, 4, batch_first=True),
    )
    pruned = prune_heads(model.eval(), {"a": 0.5}, WORDS)
    torch.testing.assert_close(outputs(pruned, x), outputs(without_heads(model, pruned, "a.out_proj", 2), x), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("options", [{}, {"norm_first": True}])
def test_a_cut_encoder_takes_masks_with_and_without_the_fused_path(options: dict[str, bool]) -> None:
    torch.manual_seed(4)
    layer = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True, dropout=0.0, **options)
    layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not options)
    model = Net(lambda m, x: m.encoder(x, src_key_padding_mask=torch.arange(5).expand(len(x), 5) > 3)[:, :4], encoder=layers).eval()
    pruned, x = prune_heads(model, {"encoder.layers.0.self_attn": 0.5}, WORDS), inputs(2, 5, 8, seed=1)
    expected = outputs(without_heads(model, pruned, "encoder.layers.0.self_attn.out_proj", 2), x)
    torch.testing.assert_close(outputs(pruned, x), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pruned.train()(x), expected, atol=1e-5, rtol=1e-5)  # no dropout: training takes the slow path anyway


def test_what_is_cut_once_can_be_cut_again() -> None:
    for case in ("torch", "separate", "gpt"):
        make, name, output, head_dim = CASES[case]
        twice = prune_heads(prune_heads(make(), {name: 0.75}, WORDS), {name: 0.34}, WORDS)
        assert twice.get_submodule(output).in_features == head_dim
        assert outputs(twice, WORDS).shape == (1, 3)


def samples() -> list[Sample]:
    return [Sample(inputs(4, 5, 8, seed=seed), torch.arange(4) % 3) for seed in (2, 3)]


def reference(criterion: str, model: nn.Module) -> list[float]:
    """Importance of the heads of ``Fused`` by the published formula, in float64."""
    work = copy.deepcopy(model).double()
    read: list[Tensor] = []
    work.a.proj.register_forward_pre_hook(lambda module, args: read.append(args[0].detach()))
    loss = sum(F.cross_entropy(work(sample.inputs.double()), sample.targets) for sample in samples()) / 2
    loss.backward()
    if criterion == "activation":
        mean = torch.cat(read).abs().mean((0, 1))
        return [float(mean[3 * head : 3 * head + 3].sum()) for head in range(4)]
    weight, gradient = work.a.qkv.weight, work.a.qkv.weight.grad
    scores = {"l1": weight.abs(), "gradient": gradient.abs(), "taylor": (weight * gradient).abs()}[criterion].view(3, 4, -1)
    weight, gradient = work.a.proj.weight, work.a.proj.weight.grad
    columns = {"l1": weight.abs(), "gradient": gradient.abs(), "taylor": (weight * gradient).abs()}[criterion]
    return [float((scores[:, head].sum() + columns[:, 3 * head : 3 * head + 3].sum()).detach()) for head in range(4)]


@pytest.mark.parametrize("criterion", ["l1", "gradient", "taylor", "activation"])
def test_heads_leave_by_the_criterion_that_is_asked_for(criterion: str) -> None:
    model = model_of(Fused)
    expected = reference(criterion, model)
    for heads in (1, 2, 3):
        scoring = Scoring({criterion: 1.0}, samples(), F.cross_entropy)
        pruned = prune_heads(model, {"a": heads / 4}, WORDS, scoring)
        best = sorted(sorted(range(4), key=expected.__getitem__)[4 - heads :])
        torch.testing.assert_close(pruned.a.qkv.weight, model.a.qkv.weight.view(3, 4, 3, 8)[:, best].flatten(0, 2), atol=0, rtol=0)


def test_random_importance_is_seeded_and_criteria_add_up() -> None:
    model = model_of(Fused)
    left = [prune_heads(model, {"a": 0.5}, WORDS, Scoring({"random": 1.0}, seed=seed)).a.qkv.weight.tolist() for seed in (0, 0, 1, 2, 3)]
    assert left[0] == left[1]
    assert any(other != left[0] for other in left[2:])
    alone = prune_heads(model, {"a": 0.5}, WORDS, Scoring({"l2": 1.0})).a.qkv.weight
    both = prune_heads(model, {"a": 0.5}, WORDS, Scoring({"l2": 1000.0, "random": 1e-6})).a.qkv.weight
    assert torch.equal(alone, both)


@pytest.mark.parametrize(
    ("criterion", "message"), [("bn_scale", "a: importance bn_scale scores channels"), ("taylor", "there are no samples")]
)
def test_criteria_that_heads_do_not_have_or_that_lack_data_are_refused(criterion: str, message: str) -> None:
    with pytest.raises(InfeasibleRecipe, match=message):
        prune_heads(model_of(Fused), {"a": 0.5}, WORDS, Scoring({criterion: 1.0}))


def test_shares_can_count_from_the_heads_before_an_earlier_cut() -> None:
    once = prune_heads(model_of(Fused), {"a": 0.75}, WORDS)
    assert prune_heads(once, {"a": 0.5}, WORDS, heads={"a": 4}).a.n_heads == 2
    assert prune_heads(once, {"a": 0.75}, WORDS, heads={"a": 4}).a.n_heads == 3


class Cooled(GPT):
    """The code fixes the width, and the softmax is not the plain one."""

    scale = 0.9


class BiasedHeads(Separate):
    """A position bias that its number of heads shapes anew, which hides a wrong cut from the shapes."""

    def forward(self, x: Tensor) -> Tensor:
        q = self.to_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.to_kv(x).chunk(2, -1))
        slopes = torch.arange(1, self.heads + 1).view(-1, 1, 1) / self.heads
        steps = torch.arange(5)
        scores = (q @ k.transpose(-2, -1)) * self.scale - slopes * (steps[:, None] - steps).abs()
        return self.to_out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Grouped(nn.Module):
    """Four heads of q share two of k and v."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.q, self.kv, self.out = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (-1, 3)).transpose(1, 2) for y in (self.q(x), *self.kv(x).chunk(2, -1)))
        k, v = (y.repeat_interleave(2, 1) for y in (k, v))
        return self.out(((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).flatten(2))


class Special(nn.MultiheadAttention):
    pass


def torch_attention(kind: type[nn.MultiheadAttention], **options: bool) -> Callable[[], nn.Module]:
    return lambda: Net(lambda m, x: m.mha(x, x, x)[0], mha=kind(8, 4, batch_first=True, **options))


REFUSED = {
    "a head_dim derived from the width": (Cooled, "a", "head_dim"),
    "a bias per head": (BiasedHeads, "a", "a bias per head"),
    "grouped queries": (Grouped, "a", "no Linear layers for q, k and v"),
    "a single head": (lambda: Fused(heads=1), "a", "single head"),
    "called twice": (lambda: Net(lambda m, x: m.in_(m.in_(x)), in_=Fused()), "a.in_", "called 2 times"),
    "idle": (lambda: Net(lambda m, x: x, in_=Fused()), "a.in_", "does not run"),
    "extra keys": (torch_attention(nn.MultiheadAttention, add_bias_kv=True), "a.mha", "add_bias_kv"),
    "an extra zero": (torch_attention(nn.MultiheadAttention, add_zero_attn=True), "a.mha", "add_zero_attn"),
    "a subclass": (torch_attention(Special), "a.mha", "it is a Special"),
    "packed weights read elsewhere": (
        lambda: Net(lambda m, x: m.mha(x, x, x)[0] + m.mha.in_proj_weight.sum(), mha=nn.MultiheadAttention(8, 4, batch_first=True)),
        "a.mha",
        "does not run after the cut",
    ),
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda name: name.replace(" ", "-"))
def test_attention_that_cannot_be_cut_soundly_is_refused_with_the_reason(case: str) -> None:
    make, name, reason = REFUSED[case]
    model = model_of(make)
    assert reason in attention_modules(model, WORDS)[name].reason
    with pytest.raises(InfeasibleRecipe, match=f"^{name}: keep 0.5 is not possible: "):
        prune_heads(model, {name: 0.5}, WORDS)
    assert torch.equal(outputs(prune_heads(model, {name: 1.0}, WORDS), WORDS), outputs(model, WORDS))


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"b": 0.5}, "b: the model has no attention module of this name. It has: a."),
        ({"a": 0.0}, "a: keep must be above 0 and at most 1, got 0"),
        ({"a": 1.5}, "a: keep must be above 0 and at most 1, got 1.5"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_in_one_line(keep: dict[str, float], message: str) -> None:
    with pytest.raises(InfeasibleRecipe, match=message):
        prune_heads(model_of(Fused), keep, WORDS)


@CASE
def test_the_given_model_stays_as_it_is_and_the_cut_one_has_its_modes_and_trains(case: str) -> None:
    make, name, _, _ = CASES[case]
    model = make().train()
    model.head.bias.requires_grad_(False)
    model.get_submodule(name).eval()
    before, random = fingerprint(model), torch.get_rng_state()
    pruned = prune_heads(model, {name: 0.5}, WORDS)
    assert fingerprint(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert pruned.training
    assert not pruned.get_submodule(name).training
    assert not pruned.head.bias.requires_grad
    pruned.train()(inputs(3, 5, 8)).square().mean().backward()
    assert all(value.grad is None or bool(value.grad.isfinite().all()) for value in pruned.parameters())
    assert all(value.grad is not None for value in pruned.get_submodule(name).parameters())


@pytest.mark.parametrize("case", ["torch, steps first, masked", "encoder layer", "fused", "gpt", "vit", "bert"])
def test_a_cut_model_exports_and_runs_the_same_in_onnx_runtime(case: str, tmp_path: Path) -> None:
    make, name, _, _ = CASES[case]
    pruned, x = prune_heads(make(), {name: 0.5}, WORDS), inputs(3, 5, 8, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        torch.onnx.export(pruned, (x[:1],), tmp_path / "model.onnx", dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}})
    (out,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), outputs(pruned, x), atol=1e-4, rtol=1e-4)
