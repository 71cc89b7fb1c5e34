"""Layers as products of smaller ones."""

from autocompress.compress.factorize.layers import factorization, factorize, refusal, shared
from autocompress.compress.factorize.rank import cost, ranks_from_state, unfit
from autocompress.compress.factorize.stand_in import Factorization

__all__ = ["Factorization", "cost", "factorization", "factorize", "ranks_from_state", "refusal", "shared", "unfit"]
