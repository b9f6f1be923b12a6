"""How fast training goes and where its time goes, without making the host wait for the device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from biomedclip_ray.run.memory import peak_rss
from biomedclip_ray.train import flops

if TYPE_CHECKING:
    from biomedclip_ray.train.step import Learner


class Throughput:
    """Seconds of training over all attempts, and what a worker did in those since the last reading."""

    def __init__(self, learner: Learner, before: float) -> None:
        """`before`: seconds of the attempts before this one."""
        self.learner, self.before = learner, before
        self.peak = flops.peak(learner.device, learner.recipe.precision)
        self.started = self.line = time.monotonic()
        self.waited, self.work = 0.0, 0.0
        self.steps_read: int | None = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around whatever waits for the feed."""
        since = time.monotonic()
        yield
        self.waited += time.monotonic() - since

    def read(self, done: int) -> dict[str, float]:
        """The throughput since the last call, in the words of metrics.jsonl; the device must have been waited for."""
        now = time.monotonic()
        spent = max(now - self.line, 1e-9)
        steps = 1 if self.steps_read is None else done - self.steps_read
        flop_per_s = (self.learner.work - self.work) / spent
        throughput = {
            "pairs_per_s": steps * self.learner.recipe.batch / spent,
            "step_seconds": spent / steps,
            "data_wait_share": min(1.0, self.waited / spent),
            **{f"{name}_share": seconds / spent for name, seconds in self.learner.laps.read().items()},
            "tflop_per_s": flop_per_s / 1e12,
            **({"mfu": flop_per_s / self.peak} if self.peak else {}),
            "memory_bytes": memory(self.learner.device),
            "seconds": self.before + now - self.started,
        }
        self.line, self.waited, self.work, self.steps_read = now, 0.0, self.learner.work, done
        return throughput


def memory(device: torch.device) -> float:
    """Most bytes held so far: on the device where there is one, else of this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return float(peak_rss())
