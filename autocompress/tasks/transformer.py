"""A small transformer of plain layers (Vaswani et al. 2017, normalised before each part): the models of the tasks with tokens."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PAD = 0  # the token that fills a text up; nothing attends to it


class Attention(nn.Module):
    """Self-attention. x (N, T, width), hidden (N or 1, 1, T or 1, T) is True where nothing may look -> (N, T, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scores = q @ k.transpose(2, 3) / math.sqrt(self.head_dim)  # (N, heads, T, T)
        weights = scores.masked_fill(hidden, -1e4).softmax(3)
        mixed: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return mixed


class Layer(nn.Module):
    """Attention and two linear layers, each beside a shortcut. x (N, T, width) -> (N, T, width)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.wide, self.narrow = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), hidden))
        x = x + self.dropout(self.narrow(F.gelu(self.wide(self.norm2(x)))))
        return x


class Transformer(nn.Module):
    """Tokens (N, length) int64 -> (N, length, width): embeddings of tokens and places, then the layers."""

    def __init__(self, tokens: int, length: int, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        heads = max(1, width // 32)
        self.tokens, self.places = nn.Embedding(tokens, width), nn.Embedding(length, width)
        self.register_buffer("order", torch.arange(length), persistent=False)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Layer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for embedding in (self.tokens, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        x = self.dropout(self.tokens(x) + self.places(self.order))
        for layer in self.layers:
            x = layer(x, hidden)
        out: Tensor = self.norm(x)
        return out


class TextClassifier(nn.Module):
    """Tokens (N, length) int64 -> logits (N, classes): an encoder and the mean over all tokens that are no filling."""

    def __init__(self, tokens: int, length: int, width: int, layers: int, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = Transformer(tokens, length, width, layers, dropout=0.2), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        filling = x == PAD
        y = self.encoder(x, filling[:, None, None, :])
        there = (~filling).unsqueeze(2).to(y.dtype)  # (N, length, 1)
        logits: Tensor = self.head((y * there).sum(1) / there.sum(1).clamp(min=1.0))
        return logits


class CharModel(nn.Module):
    """Characters (N, length) int64 -> logits of the next one (N, characters, length): no place looks at what comes after it."""

    def __init__(self, characters: int, length: int, width: int, layers: int) -> None:
        super().__init__()
        self.decoder, self.head = Transformer(characters, length, width, layers, dropout=0.1), nn.Linear(width, characters)
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        self.register_buffer("later", later[None, None], persistent=False)  # (1, 1, length, length)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.decoder(x, self.later)).transpose(1, 2)
        return logits
