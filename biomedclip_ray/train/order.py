"""Position in the training sequence -> row: pure arithmetic, so that the whole data state of a run is one integer.

One sequence runs through all epochs. An epoch is a seeded order of chunks (row groups, what storage reads at once); the
sequence is cut into windows of equal length, and rows are shuffled inside a window, never across an epoch's boundary.
A window reads each of its row groups once, which a full shuffle of terabytes could not; articles lie in their parts by
hash, so neighbours are strangers before anything is shuffled. `shuffle_quality` measures what is left to be desired.

Global batch k is positions [kB, (k+1)B), cut into M micro-batchs; block j goes to rank j mod W. Nothing here depends on
the number of workers: any W gives the same global batch, and a resumed run goes on at steps_done * B.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Order:
    """The order of `sum(chunk_rows)` rows, chunk after chunk numbered from 0, through endlessly many epochs.

    Attributes:
        chunk_rows: int64 (chunks,), rows in each chunk, all > 0.
        window: rows shuffled together; cut `span`s at its multiples and no row group is read twice within a span.
        seed: another seed is another order.
    """

    chunk_rows: Rows
    window: int
    seed: int

    def __post_init__(self) -> None:
        if self.window < 1 or len(self.chunk_rows) == 0 or self.chunk_rows.min() < 1:
            raise ValueError("an order needs a window of at least one row and chunks of at least one row each")

    @cached_property
    def rows_per_epoch(self) -> int:
        return int(self.chunk_rows.sum())

    @cached_property
    def chunk_starts(self) -> Rows:
        """First row of each chunk, and the number of rows at the end."""
        return np.concatenate([[0], np.cumsum(self.chunk_rows)]).astype(np.int64)

    def rows(self, start: int, stop: int) -> Rows:
        """The rows at positions [start, stop), int64 (stop - start,), each in [0, rows_per_epoch)."""
        pieces = [np.empty(0, np.int64)]
        for number in range(start // self.window, -(-stop // self.window)):
            first = number * self.window
            piece = self._window(number)
            pieces.append(piece[max(start - first, 0) : stop - first])
        return np.concatenate(pieces)

    def epoch(self, position: int) -> int:
        """The epoch, from 0, that a position lies in."""
        return position // self.rows_per_epoch

    def spans(self, start: int, stop: int) -> list[tuple[int, int]]:
        """[start, stop) cut at the windows' boundaries: units of reading, in order."""
        cuts = [start, *range((start // self.window + 1) * self.window, stop, self.window), stop]
        return [(a, b) for a, b in itertools.pairwise(cuts) if a < b]

    def chunk_of(self, rows: Rows) -> Rows:
        """The chunk of each row, int64 (n,)."""
        return np.searchsorted(self.chunk_starts, rows, side="right") - 1

    def _window(self, number: int) -> Rows:
        """The rows of a window in their final order; what it holds of each epoch is shuffled apart."""
        size = self.rows_per_epoch
        first, stop = number * self.window, (number + 1) * self.window
        pieces = []
        for epoch in range(first // size, -(-stop // size)):
            rows = self._chunk_order(epoch, max(first - epoch * size, 0), min(stop - epoch * size, size))
            pieces.append(rows[np.argsort(mix(self.seed, epoch, 1, rows), kind="stable")])
        return np.concatenate(pieces)

    def _chunk_order(self, epoch: int, start: int, stop: int) -> Rows:
        """Rows [start, stop) of an epoch whose chunks lie in seeded order and whose rows still lie as in storage."""
        chunks = np.argsort(mix(self.seed, epoch, 0, np.arange(len(self.chunk_rows))), kind="stable")
        ends = np.cumsum(self.chunk_rows[chunks])
        low, high = np.searchsorted(ends, [start, stop - 1], side="right")
        chosen = chunks[low : high + 1]
        sizes = self.chunk_rows[chosen]
        begins = ends[low : high + 1] - sizes
        within = np.arange(int(sizes.sum())) - np.repeat(begins - begins[0], sizes)
        rows = np.repeat(self.chunk_starts[chosen], sizes) + within
        return rows[start - begins[0] : stop - begins[0]].astype(np.int64)


def mix(*keys: int | npt.NDArray[np.integer]) -> npt.NDArray[np.uint64]:
    """A uniform 64-bit hash of integers, elementwise: splitmix64 (Steele, Lea, Flood 2014) folded over the keys.

    Own arithmetic because NumPy does not promise that its generators give the same stream in a later release, and an
    order must survive an upgrade between two attempts of a run.
    """
    with np.errstate(over="ignore"):
        state = np.zeros(1, np.uint64)
        for key in keys:
            z = (state ^ np.atleast_1d(np.asarray(key)).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = z ^ (z >> np.uint64(31))
        return state


def deal(steps_fed: int, micro_batches: int, workers: int) -> list[list[int]]:
    """The micro-batchs of a step, by rank, `steps_fed` steps after the feed began: blocks are dealt in turn from there.

    Where the workers divide the blocks, rank r has the blocks j with j mod workers = r in every step; else its share
    wanders, and differs by one block at most between ranks.
    """
    dealt = steps_fed * micro_batches
    return [[j for j in range(micro_batches) if (dealt + j) % workers == rank] for rank in range(workers)]


def total_steps(rows: int, epochs: float, batch: int) -> int:
    """Optimiser steps that see every row `epochs` times: the last one may reach into the next epoch,
    none is cut off.
    """
    return max(1, -(-round(rows * epochs) // batch))


def shuffle_quality(order: Order, articles: Rows, batch: int, batches: int = 16) -> dict[str, float]:
    """How far the order is from a perfect shuffle, measured over the first batches.

    Args:
        articles: int64 (rows_per_epoch,), the article of each row.

    Returns:
        neighbour_correlation: Pearson correlation of a row's number with its successor's (0 for a perfect shuffle).
        articles_per_batch: mean number of different articles in a global batch.
        articles_per_batch_ideal: the same for rows drawn from the whole epoch without regard to where they lie.
    """
    size = order.rows_per_epoch
    batch = min(batch, size)
    batches = max(1, min(batches, size // batch))
    rows = order.rows(0, batch * batches)
    perfect = np.argsort(mix(order.seed, 2, np.arange(size)), kind="stable")[: batch * batches]
    x = rows.astype(np.float64)
    spread = bool(x[:-1].std() > 0 and x[1:].std() > 0) if len(x) > 2 else False
    correlation = float(np.corrcoef(x[:-1], x[1:])[0, 1]) if spread else 0.0

    def different(chosen: Rows) -> float:
        return float(np.mean([len(np.unique(articles[piece])) for piece in chosen.reshape(batches, batch)]))

    return {
        "neighbour_correlation": correlation,
        "articles_per_batch": different(rows),
        "articles_per_batch_ideal": different(perfect),
    }
