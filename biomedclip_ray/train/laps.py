"""Where the time of a step goes, without making the host wait for the device."""

from __future__ import annotations

import time
from typing import Any

import torch


class Laps:
    """Seconds between marks, summed by name: `begin()`, then `lap(name)` at the end of each stretch, `read()` now and
    then.

    CUDA events, or the clock on CPUs.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.marks: list[tuple[str | None, Any]] = []

    def begin(self) -> None:
        self._mark(None)

    def lap(self, name: str) -> None:
        """Ends the stretch `name`, which began at the mark before."""
        self._mark(name)

    def read(self) -> dict[str, float]:
        """Seconds by name since the last reading; ask when the device has been waited for anyway."""
        seconds: dict[str, float] = {}
        for (_, before), (name, after) in zip(self.marks, self.marks[1:], strict=False):
            if name is not None:
                spent = before.elapsed_time(after) / 1000 if self.cuda else after - before
                seconds[name] = seconds.get(name, 0.0) + spent
        self.marks = []
        return seconds

    def _mark(self, name: str | None) -> None:
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append((name, event))
        else:
            self.marks.append((name, time.perf_counter()))
