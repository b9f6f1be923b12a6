"""A loss that is still a number and yet lost: it went up and does not come back.

The rule looks at losses that are read anyway. A run that has learned something (a loss below nine tenths of the chance
loss) is lost where its loss stands above the middle between the best it had and the chance loss, for so many steps on
end; one that has learned nothing, where it stands a tenth above the chance loss when the warm-up is over. Spikes come
back within tens of steps and a batch alone decides nothing. A collapse, where every vector is the same, stands at the
chance loss and is found by the same line.

As long as the loss stands above that line no checkpoint is made, so the newest one is from before.
"""

from __future__ import annotations

import math

_LEARNED = 0.9
_WORSE = 1.1


class Divergence:
    """One run's losses, fed in order. The same on every worker, since the loss is.

    Attributes:
        best: the lowest loss so far; goes into the checkpoint and comes back with it.
        since: the step at which the loss rose above the line; None: it stands below.
    """

    def __init__(self, chance: float, warmup_steps: int, patience: int | None, best: float = math.inf) -> None:
        """`chance`: the chance loss; `patience`: steps above the line that end a run, None: any number."""
        self.chance, self.warmup_steps, self.patience = chance, warmup_steps, patience
        self.best = best
        self.since: int | None = None

    @property
    def line(self) -> float:
        if self.best < _LEARNED * self.chance:
            return (self.best + self.chance) / 2
        return _WORSE * self.chance

    def read(self, step: int, loss: float) -> None:
        """The loss of a step, counted from 1; one that is not finite says nothing here."""
        if self.patience is None or not math.isfinite(loss):
            return
        self.best = min(self.best, loss)
        above = loss > self.line and (self.best < _LEARNED * self.chance or step > self.warmup_steps)
        if not above:
            self.since = None
        elif self.since is None:
            self.since = step

    def lost(self, step: int) -> bool:
        return self.since is not None and self.patience is not None and step - self.since >= self.patience
