"""Multi-head attention whose heads need not fill the embedding (Vaswani et al. 2017, section 3.2.2)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.blocks.skipped import settings


class NarrowAttention(nn.Module):
    """Takes the place of an ``nn.MultiheadAttention`` and is called like it; inner width ``num_heads * head_dim``, any number of heads.

    ``heads_left``: which of the first ``heads_given`` heads are still there, so that a mask per head of the original is still understood.
    What ``nn.TransformerEncoderLayer`` reads to choose its fused path (``in_proj_bias``, ``_qkv_same_embed_dim``) sends it past that path.
    """

    heads_left: Tensor

    def __init__(self, like: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.kdim, self.vdim = like.embed_dim, like.kdim, like.vdim
        self.num_heads = self.heads_given = like.num_heads
        self.head_dim, self.dropout, self.batch_first = like.head_dim, like.dropout, like.batch_first
        self._qkv_same_embed_dim = False
        for name in ("in_proj_weight", "in_proj_bias", "bias_k", "bias_v"):
            self.register_parameter(name, None)
        self.add_zero_attn = False
        packed = like.in_proj_weight
        sources = (like.q_proj_weight, like.k_proj_weight, like.v_proj_weight) if packed is None else (packed, packed, packed)
        weights: Sequence[Tensor] = sources if packed is None else packed.chunk(3)
        biases = (None, None, None) if like.in_proj_bias is None else like.in_proj_bias.chunk(3)
        self.q_proj, self.k_proj, self.v_proj = (
            _linear(weight, bias).requires_grad_(source.requires_grad)
            for weight, bias, source in zip(weights, biases, sources, strict=True)
        )
        self.out_proj = _linear(like.out_proj.weight, like.out_proj.bias).requires_grad_(like.out_proj.weight.requires_grad)
        self.register_buffer("heads_left", torch.arange(like.num_heads, device=like.out_proj.weight.device))
        self.train(like.training)

    def forward(  # noqa: PLR0913 - the signature of nn.MultiheadAttention
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """query (N, L, embed_dim), key (N, S, kdim), value (N, S, vdim); (L, N, ...) without ``batch_first``, (L, ...) for one sequence.

        Masks as in ``nn.MultiheadAttention``: True hides, floats are added. Returns the output in the shape of the query, and the weights
        (N, L, S), averaged over the heads that are left or (N, num_heads, L, S), or None without ``need_weights``.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint about attn_mask: give that too")
        is_single = query.dim() == 2
        if is_single:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._split(self.q_proj(query)), self._split(self.k_proj(key)), self._split(self.v_proj(value))  # (N, heads, L or S, dim)
        mask = self._mask(attn_mask, key_padding_mask, q)
        weights: Tensor | None = None
        if need_weights:
            scores = (q @ k.transpose(-2, -1)) / math.sqrt(self.head_dim)  # (N, heads, L, S)
            weights = F.dropout(torch.softmax(scores if mask is None else scores + mask, -1), self.dropout, self.training)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))  # (N, L, embed_dim)
        if is_single:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.num_heads, self.head_dim).transpose(1, 2)

    def _mask(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor) -> Tensor | None:
        """The sum of both masks, to be added to scores (N, heads, L, S)."""
        total: Tensor | None = None
        if attn_mask is not None:
            total = _added(attn_mask, q)
            if total.dim() == 3:  # (N * heads, L, S)
                total = total.view(q.shape[0], -1, *total.shape[1:])
                if total.shape[1] != self.num_heads:
                    total = total[:, self.heads_left]
        if key_padding_mask is not None:
            padding = _added(key_padding_mask, q)[:, None, None]  # (N, S) -> (N, 1, 1, S)
            total = padding if total is None else total + padding
        return total

    def narrow_(self, kept: Sequence[int]) -> None:
        """Note that only the heads ``kept`` of the present ones are left; their weights are cut by the caller."""
        self.num_heads = len(kept)
        self.heads_left = self.heads_left[list(kept)]


@dataclass(frozen=True)
class SelfAttentionPlan:
    """How a module computes plain self-attention: its Linear layers, each with the letters of what it holds ("q", "kv", "qkv", ...), rows
    ordered (letter, head, dim) or ``interleaved`` (head, letter, dim), its output layer, and whether a step sees later ones.
    """

    projections: tuple[tuple[str, str], ...]
    output: str
    heads: int
    head_dim: int
    interleaved: bool
    causal: bool


class PlainSelfAttention(nn.Module):
    """Takes the place of a module that computes softmax(q k^T / sqrt(head_dim)) v for one sequence, in code that fixes the width of all
    heads (``x.view(n, steps, dim)``), which this does not. Its layers keep their names; its plain settings stay readable.

    Dropouts of the module that have "att" in their name act on the weights, its others behind the output layer.
    """

    def __init__(self, module: nn.Module, plan: SelfAttentionPlan) -> None:
        super().__init__()
        for name, value in settings(module).items():
            if not hasattr(self, name) and not isinstance(value, SimpleNamespace):
                setattr(self, name, value)
        for name, child in module.named_children():
            self.add_module(name, child)
        self.plan = replace(plan, heads=0)  # num_heads is the one place where their number stands
        self.num_heads, self.head_dim = plan.heads, plan.head_dim
        self.train(module.training)

    def forward(self, x: Tensor, **nothing: object) -> Tensor:
        """x (N, L, width) -> (N, L, width); other arguments must be None or False."""
        if any(value is not None and value is not False for value in nothing.values()):
            raise ValueError(f"this attention takes one sequence and nothing else, got {', '.join(nothing)}")
        parts: dict[str, Tensor] = {}
        for name, letters in self.plan.projections:
            shape = (
                (self.num_heads, len(letters), self.head_dim) if self.plan.interleaved else (len(letters), self.num_heads, self.head_dim)
            )
            y = self.get_submodule(name)(x).view(*x.shape[:2], *shape)
            parts |= dict(zip(letters, y.unbind(3 if self.plan.interleaved else 2), strict=True))  # (N, L, heads, dim) each
        q, k, v = (parts[letter].transpose(1, 2) for letter in "qkv")
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(self.head_dim)  # (N, heads, L, L)
        if self.plan.causal:
            scores = scores + torch.full_like(scores[0, 0], -math.inf).triu(1)
        weights = self._dropped(torch.softmax(scores, -1), on_weights=True)
        out = self.get_submodule(self.plan.output)((weights @ v).transpose(1, 2).flatten(2))
        return self._dropped(out, on_weights=False)

    def _dropped(self, x: Tensor, on_weights: bool) -> Tensor:
        for name, module in self.named_modules():
            if isinstance(module, nn.Dropout) and ("att" in name) == on_weights:
                x = module(x)
        return x


def _added(mask: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf) if mask.dtype == torch.bool else mask.to(like.dtype)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")  # meta: draws no random numbers
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer
