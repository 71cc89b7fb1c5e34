"""Low-rank stand-ins for one layer: a chain of smaller layers that keeps the layer's public attributes, because code around reads them.

The children are ``reduce``, ``core`` where the form has one, and ``expand``. Only ``expand`` has a bias, so what a child pads with
zeros is what the layer padded with zeros.
"""

from typing import Literal, TypedDict

import torch
from torch import Tensor, nn

Form = Literal["svd", "tucker2", "cp", "spatial_svd"]


class LowRankLinear(nn.Module):
    """y = expand(reduce(x)): a Linear of rank ``rank``. x (..., in_features) -> (..., rank) -> (..., out_features)."""

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.reduce = nn.Linear(in_features, rank, bias=False)
        self.expand = nn.Linear(rank, out_features, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.expand(self.reduce(x))
        return out

    @property
    def weight(self) -> Tensor:
        """The dense weight that the two factors amount to, (out_features, in_features)."""
        return self.expand.weight @ self.reduce.weight

    @property
    def bias(self) -> Tensor | None:
        return self.expand.bias


class LowRankConv2d(nn.Module):
    """A Conv2d as a chain of smaller ones; ``form`` says of which, and None takes the first for a 1x1 kernel, the second for others.

    ============= ================================== ========================= ======================== ===========================
    form          ``reduce``                         ``core``                  ``expand``               from
    ============= ================================== ========================= ======================== ===========================
    svd           1x1, stride and padding of `like`  none                      1x1                      Eckart and Young 1936
    tucker2       1x1 to ``rank_in`` channels        kh x kw to ``rank_out``   1x1                      Kim et al. 2016
    cp            1x1                                kh x kw, depthwise        1x1                      Lebedev et al. 2015
    spatial_svd   kh x 1, geometry of the rows       none                      1 x kw, of the columns   Jaderberg et al. 2014
    ============= ================================== ========================= ======================== ===========================

    Every padding mode splits over the axes, so the chain is the convolution with ``weight`` exactly. x (N, in, H, W) -> (N, out, H', W').
    """

    def __init__(self, like: nn.Conv2d, rank_in: int, rank_out: int, form: Form | None = None) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = like.in_channels, like.out_channels, 1
        self.kernel_size, self.stride, self.padding, self.dilation = like.kernel_size, like.stride, like.padding, like.dilation
        self.padding_mode, self.transposed, self.output_padding = like.padding_mode, like.transposed, like.output_padding
        self.form: Form = form or ("svd" if self.kernel_size == (1, 1) else "tucker2")
        if self.form in ("svd", "cp", "spatial_svd") and rank_in != rank_out:
            raise ValueError(f"{self.form} has one rank, got {rank_in} and {rank_out}")
        if self.form == "svd" and self.kernel_size != (1, 1):
            raise ValueError(f"svd is the form of a 1x1 convolution, got the kernel {self.kernel_size}")
        has_bias = like.bias is not None
        self.core: nn.Conv2d | None = None
        if self.form == "svd":
            self.reduce = nn.Conv2d(self.in_channels, rank_in, bias=False, **_geometry(like))
        elif self.form == "spatial_svd":
            self.reduce = nn.Conv2d(self.in_channels, rank_in, bias=False, **_geometry(like, axis=0))
        else:
            self.reduce = nn.Conv2d(self.in_channels, rank_in, 1, bias=False)
            self.core = nn.Conv2d(rank_in, rank_out, groups=rank_in if self.form == "cp" else 1, bias=False, **_geometry(like))
        if self.form == "spatial_svd":
            self.expand = nn.Conv2d(rank_out, self.out_channels, bias=has_bias, **_geometry(like, axis=1))
        else:
            self.expand = nn.Conv2d(rank_out, self.out_channels, 1, bias=has_bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        if self.core is not None:
            x = self.core(x)
        out: Tensor = self.expand(x)
        return out

    @property
    def weight(self) -> Tensor:
        """The dense weight that the factors amount to, (out_channels, in_channels, kh, kw)."""
        expand, reduce = self.expand.weight, self.reduce.weight
        if self.form == "spatial_svd":
            return torch.einsum("oaw,aih->oihw", expand[:, :, 0], reduce[..., 0])
        expand, reduce = expand[:, :, 0, 0], reduce[:, :, 0, 0]
        if self.core is None:
            return (expand @ reduce)[:, :, None, None]
        if self.form == "cp":
            return torch.einsum("oa,ahw,ai->oihw", expand, self.core.weight[:, 0], reduce)
        return torch.einsum("oa,abhw,bi->oihw", expand, self.core.weight, reduce)

    @property
    def bias(self) -> Tensor | None:
        return self.expand.bias

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, form={self.form}"


class _Geometry(TypedDict):
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: str | tuple[int, int]
    dilation: tuple[int, int]
    padding_mode: Literal["zeros", "reflect", "replicate", "circular"]


def _geometry(like: nn.Conv2d, axis: int | None = None) -> _Geometry:
    """How a convolution moves over the image; of one ``axis`` (0: rows, 1: columns) only where given, the other standing still."""

    def part(pair: tuple[int, ...], still: int) -> tuple[int, int]:
        return (pair[0] if axis in (None, 0) else still, pair[1] if axis in (None, 1) else still)

    return {
        "kernel_size": part(like.kernel_size, 1),
        "stride": part(like.stride, 1),
        "padding": like.padding if isinstance(like.padding, str) else part(like.padding, 0),  # "same" counts each axis by its kernel
        "dilation": part(like.dilation, 1),
        "padding_mode": like.padding_mode,
    }
