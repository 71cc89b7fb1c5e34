"""Exponential moving average of the weights (Polyak and Juditsky 1992; bias corrected as the moments of Adam, Kingma and Ba 2015)."""

import torch
from torch import Tensor, nn

from autocompress.blocks import FakeQuantized


class Average:
    """avg_t = sum_i decay^(t - i) * w_i / sum_i decay^(t - i) over the weights w_1..w_t that ``update`` saw.

    The statistics of batch norms are averaged along with the weights that they belong to; scales of quantizers are not, for they jump with
    the bits. Costs a copy of the weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.count = decay, 0
        inner = model.model if isinstance(model, FakeQuantized) else model
        norms = [module for module in inner.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        statistics = [value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None]
        self.tensors: list[Tensor] = [*(parameter for parameter in inner.parameters() if parameter.requires_grad), *statistics]
        self.means = [value.detach().clone() for value in self.tensors]

    @torch.no_grad()
    def update(self) -> None:
        self.count += 1
        share = (1 - self.decay) / (1 - self.decay**self.count)  # 1 at first: the start does not count
        for mean, value in zip(self.means, self.tensors, strict=True):
            mean.lerp_(value, share)

    @torch.no_grad()
    def settle_(self) -> None:
        """Put the average in the place of the model's weights."""
        for value, mean in zip(self.tensors, self.means, strict=True):
            value.copy_(mean)
