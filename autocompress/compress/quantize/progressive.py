"""Progressive quantization: training begins with 8-bit weights, and their bits fall to the target while it goes on.

Zhuang et al. 2018, "Towards effective low-bitwidth convolutional neural networks", section 3.2: a network of more bits is a better
start for one of fewer than a float one is. Here the bits fall linearly, one at a time, over the first ``freeze_after`` of the steps.
From then on scales, ranges and batch norm stand still (Jacob et al. 2018, section 3.1; Krishnamoorthi 2018, section 3.2.4).
"""

from torch import nn

from autocompress.blocks import FakeQuantized, WeightQuantizer

FIRST_BITS = 8


def bits_at(share: float, target: int, freeze_after: float) -> int:
    """Weight bits when ``share`` (0..1) of the steps is done: 8 at first, ``target`` from ``freeze_after`` on."""
    if share >= freeze_after or target >= FIRST_BITS:
        return target
    return round(FIRST_BITS - (FIRST_BITS - target) * share / freeze_after)


def progress_(wrapped: FakeQuantized, share: float) -> None:
    """Before the step at ``share`` (0..1) of the quantized steps: bits as the schedule says, and everything held once it is late."""
    settings = wrapped.settings
    is_late = share >= settings.freeze_after
    for name, parameter, quantizer in wrapped.quantizers():
        if isinstance(quantizer, WeightQuantizer):
            weight = wrapped.model.get_submodule(name).get_parameter(parameter)
            if settings.progressive:
                quantizer.anneal_(bits_at(share, quantizer.target_bits, settings.freeze_after), weight)
            if is_late and quantizer.following and not quantizer.learned:
                quantizer.fit_(weight)  # the last step, or an average of all, moved it since its grid was found
    if is_late:
        wrapped.hold_()
        for module in wrapped.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
