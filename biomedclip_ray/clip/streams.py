"""A batch on a CPU in pieces beside each other, one a core, instead of one whose threads wait for each other.

The threads of one operation meet at its end: a core that something else keeps busy for a while (decoding the next
images, a proxy) holds up all others, a few hundred times in a forward pass. Pieces of a batch meet once. OpenVINO calls
these streams, the Intel Extension for PyTorch `MultiStreamModule`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

LEAST_BUSY = 0.9
"""Share of the threads' time that the pieces must fill: three images on two threads are better one batch."""


def streams(items: int, threads: int) -> int:
    """Pieces that `items` are cut into: as many as fill the threads, each with an equal share of them."""
    for count in range(min(items, threads), 1, -1):
        longest = -(-items // count)
        if threads % count == 0 and items >= LEAST_BUSY * longest * count:
            return count
    return 1


class Streams:
    """Runs pieces in threads of its own, which are made when first needed."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def __call__(self, work: Callable[[slice], np.ndarray], items: int, width: int) -> np.ndarray:
        """`work` of some rows is float32 (their number, width); so is the answer for all, (items, width).

        It runs in inference mode. `torch.get_num_threads()` of the calling thread says how many cores there are.
        """
        threads = torch.get_num_threads()
        count = streams(items, threads)
        if count == 1:
            return _inferred(work, slice(None))
        if self._pool is None:
            self._pool = ThreadPoolExecutor(threads, "stream")

        def one(rows: slice) -> np.ndarray:
            torch.set_num_threads(threads // count)  # before each piece: MKL keeps one number for all threads
            return _inferred(work, rows)

        # Every count-th row and not the next ones: texts come ordered by their length.
        pieces = [slice(first, None, count) for first in range(count)]
        answer = np.empty((items, width), dtype=np.float32)
        try:
            for rows, vectors in zip(pieces, self._pool.map(one, pieces), strict=True):
                answer[rows] = vectors
        finally:
            torch.set_num_threads(threads)
        return answer


@torch.inference_mode()
def _inferred(work: Callable[[slice], np.ndarray], rows: slice) -> np.ndarray:
    return work(rows)
