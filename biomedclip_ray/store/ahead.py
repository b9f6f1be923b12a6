"""Threads that fetch ahead of the work, never further than memory allows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def fetch_ahead(
    pool: ThreadPoolExecutor, fetch: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[tuple[Item, Result]]:
    """`(item, fetch(item))` in order, with at most `ahead` results in memory: a part of images can be gigabytes."""
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    for item in items:
        waiting.append((item, pool.submit(fetch, item)))
        if len(waiting) >= ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    while waiting:
        first, future = waiting.popleft()
        yield first, future.result()


def each(items: Iterable[Item], fetch: Callable[[Item], Result], threads: int = 16) -> Iterator[Result]:
    """What `fetch` gives of each item, in order, by threads of its own; as many results lie in memory."""
    with ThreadPoolExecutor(threads) as pool:
        for _, found in fetch_ahead(pool, fetch, items, threads):
            yield found
