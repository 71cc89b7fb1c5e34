"""A forward pass that begins in the middle: layers that run before the one that was changed give what they gave before.

Works on any model, for nothing is traced: the layers themselves answer from memory, and all code around them runs as ever.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

LAYERS = (nn.Conv2d, nn.Linear, nn.ConvTranspose2d, nn.Conv1d, nn.Conv3d)
MOST_BYTES = 256 * 2**20  # of outputs held; what comes later in the model is then computed each time


class Replay:
    """The outputs of the layers of ``model`` (eval mode) on ``batches`` of inputs, from one pass over them."""

    def __init__(self, model: nn.Module, batches: Collection[Tensor]) -> None:
        self.model = model
        self.begun: dict[str, int] = {}  # module -> when it was called first
        self.outputs: list[dict[str, Tensor]] = []
        self.whole: list[Tensor] = []
        self.times: dict[str, int] = {}
        self.held = 0  # bytes
        hooks = [hook for name, module in model.named_modules() for hook in self._watch(name, module)]
        try:
            with torch.no_grad():
                for batch in batches:
                    self.outputs.append({})
                    self.whole.append(model(batch))
        finally:
            for hook in hooks:
                hook.remove()
        self.once = {name for name, times in self.times.items() if times == len(self.outputs)}

    def _watch(self, name: str, module: nn.Module) -> list[Any]:
        def enter(module: nn.Module, args: Any) -> None:
            self.begun.setdefault(name, len(self.begun))

        def leave(module: nn.Module, args: Any, out: Any) -> None:
            self.times[name] = self.times.get(name, 0) + 1
            self.held += out.numel() * out.element_size()
            if self.held <= MOST_BYTES:
                self.outputs[-1][name] = out.detach().clone()

        hooks = [module.register_forward_pre_hook(enter)]
        return [*hooks, module.register_forward_hook(leave)] if type(module) in LAYERS else hooks

    @contextmanager
    def before(self, changed: Collection[str]) -> Iterator[Callable[[int], None]]:
        """While it lasts, layers that run before all of ``changed`` (modules or parameters) answer from memory; call it with the number
        of the batch that runs next.
        """
        current: dict[str, Tensor] = {}
        first = min((self._position(name) for name in changed), default=0)
        early = [name for name in self.once if self.begun[name] < first and all(name in found for found in self.outputs)]
        for name in early:
            vars(self.model.get_submodule(name))["forward"] = lambda *args, name=name, **kwargs: current[name].clone()

        def turn_to(batch: int) -> None:
            current.update(self.outputs[batch])

        try:
            yield turn_to
        finally:
            for name in early:
                del vars(self.model.get_submodule(name))["forward"]

    def _position(self, name: str) -> int:
        """When a module, or the one that a parameter is of, begins; 0 where it was never called, as inside of a fused kernel."""
        return self.begun.get(name, self.begun.get(name.rpartition(".")[0], 0) if name not in dict(self.model.named_modules()) else 0)
