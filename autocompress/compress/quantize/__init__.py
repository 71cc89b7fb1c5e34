"""Numbers on a grid: which layers, which ranges, and what keeps the accuracy."""

from autocompress.compress.quantize.calibrate import layer_bits, quantize
from autocompress.compress.quantize.fold import fold_batch_norm
from autocompress.compress.quantize.progressive import bits_at, progress_

__all__ = ["bits_at", "fold_batch_norm", "layer_bits", "progress_", "quantize"]
