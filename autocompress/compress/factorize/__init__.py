"""Layers as products of smaller ones."""

from autocompress.compress.factorize.layers import factorize, refusal, shared
from autocompress.compress.factorize.rank import cost, ranks_from_state, unfit

__all__ = ["cost", "factorize", "ranks_from_state", "refusal", "shared", "unfit"]
