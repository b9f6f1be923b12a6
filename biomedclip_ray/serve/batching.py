"""Items of all requests in common batches: what has come while one batch computes is the next one.

An item that finds the model idle does not wait for company that may never come (5 ms are a third of a short text's time
on two cores); it waits only for items that are known to be on their way, such as the other images of its request, which
are still being decoded.

A batch costs its longest item: where more wait than it takes, it is the oldest with those nearest to it in size.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Generic, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


class Batcher(Generic[In, Out]):
    """Calls `work` in `pool` with lists of items; awaiting the batcher with one item gives that item's result."""

    def __init__(
        self,
        work: Callable[[list[In]], list[Out]],
        pool: Executor,
        most: int,
        wait_s: float = 0.0,
        coming: Callable[[], int] = lambda: 0,
        size: Callable[[In], int] = lambda item: 0,
    ) -> None:
        """`most`: items of one batch. `wait_s`: how long a batch that is not full waits for those that
        `coming` counts. `size` of an item: what the batch is padded to.
        """
        self._size = size
        self._work, self._pool, self._most, self._wait_s, self._coming = work, pool, most, wait_s, coming
        self._waiting: deque[tuple[In, asyncio.Future[Out]]] = deque()
        self._runner: asyncio.Task[None] | None = None
        self._came = asyncio.Event()

    async def __call__(self, item: In) -> Out:
        """Raises what `work` raised for the batch."""
        future: asyncio.Future[Out] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._came.set()
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self._waiting:
            await self._company()
            batch = self._take()
            if batch:
                await self._compute(batch)
        self._runner = None  # no await since the check: an item that comes now starts the next one

    async def _company(self) -> None:
        if self._wait_s <= 0 or not self._coming():
            return
        end = asyncio.get_running_loop().time() + self._wait_s
        while len(self._waiting) < self._most and self._coming():
            self._came.clear()
            try:
                async with asyncio.timeout_at(end):
                    await self._came.wait()
            except TimeoutError:
                return

    def _take(self) -> list[tuple[In, asyncio.Future[Out]]]:
        """The oldest item whose request still waits for it, and those nearest to it in size, the older first."""
        live = [entry for entry in self._waiting if not entry[1].done()]
        if len(live) <= self._most:
            self._waiting.clear()
            return live
        sizes = [self._size(item) for item, _ in live]
        chosen = sorted(range(len(live)), key=lambda n: abs(sizes[n] - sizes[0]))[: self._most]
        left = sorted(set(range(len(live))).difference(chosen))
        self._waiting = deque(live[n] for n in left)
        return [live[n] for n in chosen]

    async def _compute(self, batch: list[tuple[In, asyncio.Future[Out]]]) -> None:
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self._pool, self._work, [item for item, _ in batch])
        except Exception as error:  # whatever it is, it is the answer of those that wait, and the next batch goes on
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
