"""Ctrl-C and TERM end a run, also where the first one gets lost.

Of twenty runs interrupted in the middle of a stage, one went on as if nothing had happened (Ray 2.60): the exception
was raised where it is swallowed, or the clean-up behind it waited for ever. A run that nobody can stop holds its lease,
so what a person would do is done here: the process asks itself again.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType
from typing import TypeVar

Result = TypeVar("Result")

AGAIN_S = 20.0
"""Far above the three seconds that stopping takes."""


def in_thread(run: Callable[[], Result], within_s: float | None = None) -> Result:
    """What `run` returns or raises, run in a thread that ends with the process; the caller can be interrupted
    meanwhile.

    Raises:
        TimeoutError: it took longer than `within_s`; it goes on in its thread.
    """
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(run())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future.result(within_s)


def listen(again_s: float = AGAIN_S) -> None:
    """From now on INT and TERM raise KeyboardInterrupt in the main thread, again and again until the
    process has ended.
    """
    asked = threading.Event()

    def ask_again() -> None:
        while True:
            time.sleep(again_s)
            os.kill(os.getpid(), signal.SIGINT)

    def stop(number: int, frame: FrameType | None) -> None:
        if not asked.is_set():
            asked.set()
            threading.Thread(target=ask_again, name="asks again to stop", daemon=True).start()
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
