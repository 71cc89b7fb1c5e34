"""When training is lost: a loss or gradient that is not finite, or a loss that climbs and stays up."""

import math

from autocompress.errors import Diverged

DECAY = 0.9  # of the running mean of the loss
RISE = 10.0  # a running mean of this many times the start, which is the loss before any step ...
LEAST = 1.0  # ... or of this many times 1.0, if the start is smaller: a network close to its teacher begins near 0
PATIENCE = 10  # steps in a row that it has to last: a warm-up may kick


class Watch:
    """Sees the loss of every step; ``what`` and ``steps`` and ``rate`` are for its message."""

    def __init__(self, steps: int, rate: float) -> None:
        self.steps, self.rate = steps, rate
        self.start: float | None = None
        self.mean, self.count, self.high = 0.0, 0, 0

    def see(self, step: int, loss: float, gradient: float, settled: bool) -> None:
        """Raises Diverged, with the step (from 1), and before it is made. Until ``settled`` the weights in the loss still change."""
        for name, value in (("loss", loss), ("gradient", gradient)):
            if not math.isfinite(value):
                raise Diverged(f"recovery: the {name} is {value} at step {step} of {self.steps}; lower the learning rate ({self.rate:g})")
        if not settled:
            return
        if self.start is None:
            self.start = loss
        self.count += 1
        self.mean = DECAY * self.mean + (1 - DECAY) * loss
        mean = self.mean / (1 - DECAY**self.count)
        self.high = self.high + 1 if mean > RISE * max(self.start, LEAST) else 0
        if self.high >= PATIENCE:
            raise Diverged(
                f"recovery: the loss climbed to {mean:.3g} by step {step} of {self.steps}, from {self.start:.3g} at the start; "
                f"lower the learning rate ({self.rate:g})"
            )
