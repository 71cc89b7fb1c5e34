"""The modules that a compressed model may contain: the one vocabulary that compress writes and runtimes read."""

from autocompress.blocks.flow import FakeQuantized
from autocompress.blocks.low_rank import LowRankConv2d, LowRankLinear
from autocompress.blocks.operators import SILENT, scopes
from autocompress.blocks.quantizers import ActivationQuantizer, HalfQuantizer, WeightQuantizer

__all__ = [
    "SILENT", "ActivationQuantizer", "FakeQuantized", "HalfQuantizer", "LowRankConv2d", "LowRankLinear", "WeightQuantizer", "scopes",
]  # fmt: skip
