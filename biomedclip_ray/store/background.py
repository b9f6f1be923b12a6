"""What goes on beside the work: a thread that lives as long as a `with` block."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self


class Background:
    """`with` it, `watch` runs in a thread of its own, until `stopped` is set at the block's end."""

    def __init__(self, name: str, patience_s: float | None = None) -> None:
        """`patience_s`: how long the block's end waits for the thread; None: as long as it takes."""
        self._patience_s = patience_s
        self.stopped = threading.Event()
        self._thread = threading.Thread(target=self.watch, name=name, daemon=True)

    def watch(self) -> None:
        """What the thread does; returns soon after `stopped` is set."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped.set()
        self._thread.join(self._patience_s)
