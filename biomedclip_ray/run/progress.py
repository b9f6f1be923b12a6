"""Progress of a long stage: a bar on a terminal, a plain line now and then in a log; both with rate and time left.

Parts are counted where they lie, in storage: what is shown is what a killed run would keep.
"""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from biomedclip_ray.run.telemetry import tell
from biomedclip_ray.store.attempt import Attempt
from biomedclip_ray.store.background import Background

log = logging.getLogger(__name__)

POLL_S = 2.0
LINE_S = 30.0
_PAUSE_PER_LISTING = 20.0


def rate_and_eta(done: int, total: int, seconds: float, unit: str) -> str:
    """`"3.2 parts/s, 0:12 left"` for `done` of `total` in `seconds`."""
    if done <= 0 or seconds <= 0:
        return f"no {unit} yet"
    rate = done / seconds
    left = int((total - done) / rate)
    shown = f"{rate:.1f} {unit}s/s" if rate >= 1 else f"{60 * rate:.1f} {unit}s/min"
    return f"{shown}, {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"


class Progress(Background):
    """Watches the parts of an attempt from a thread: `with Progress(attempt, missing): ...`."""

    def __init__(self, attempt: Attempt, missing: int) -> None:
        super().__init__(f"progress {attempt.product.stage}")
        self.product = attempt.product
        self.parts = attempt.parts or 0
        self.missing = missing
        self.before = self.parts - missing
        self._bar: RichProgress | None = None

    def __enter__(self) -> Self:
        self.started = time.monotonic()
        self._tell(self.before)
        if self.before:
            log.info("%s: goes on with %d of %d parts done", self.product.stage, self.before, self.parts)
        if sys.stderr.isatty():
            self._bar = RichProgress(
                TextColumn("{task.description:<10}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("parts {task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.product.stage, total=self.parts, completed=self.before, rate="")
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._bar is not None:
            self._bar.update(self._task, completed=len(self.product.done_parts()))
            self._bar.stop()

    def _tell(self, done: int) -> None:
        tell("parts_done", done, stage=self.product.stage)
        tell("parts_left", self.parts - done, stage=self.product.stage)

    def watch(self) -> None:
        next_line = self.started + LINE_S
        pause = POLL_S
        while not self.stopped.wait(pause):
            asked = time.monotonic()
            done = len(self.product.done_parts()) - self.before
            self._tell(self.before + done)
            # a listing of eighteen thousand parts takes a second of an object store: one in twenty is spent on looking
            pause = max(POLL_S, _PAUSE_PER_LISTING * (time.monotonic() - asked))
            text = rate_and_eta(done, self.missing, time.monotonic() - self.started, "part")
            if self._bar is not None:
                self._bar.update(self._task, completed=self.before + done, rate=text.split(",")[0])
            elif time.monotonic() >= next_line:
                next_line += LINE_S
                log.info("%s: %d of %d parts, %s", self.product.stage, self.before + done, self.parts, text)
