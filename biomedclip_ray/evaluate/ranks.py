"""Exact ranks of both directions from one matrix product, in square tiles that any number of processes count.

The thresholds are the best right scores, in float64; each tile is then multiplied once and gives counts of both
directions (`tiles.py`), which add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from scipy.special import digamma

from biomedclip_ray.evaluate.tiles import (
    TIE,
    Best,
    Both,
    Counted,
    Float64s,
    Floats,
    Ints,
    Keys,
    Thresholds,
    best_in_tile,
    count_tile,
    merge,
)

DIRECTIONS = ("text_to_image", "image_to_text")

TILE = 32_768
"""Rows and columns of a tile: 128 MB of vectors of width 512, and a quarter of a minute on one core."""


class Tile(NamedTuple):
    """Where a tile lies: texts first, then images; stops are exclusive."""

    text: int
    text_stop: int
    image: int
    image_stop: int


@dataclass(frozen=True)
class Ranks:
    """Where the best right answer of each query stands, ties kept apart. Arrays are int64 of shape (n,)."""

    above: Ints
    """Wrong candidates that score higher than the best right one."""
    tied: Ints
    """Wrong candidates that score the same."""
    right: Ints
    """Right candidates that share the best score (at least 1)."""

    def hits(self, k: int) -> Float64s:
        """Probability that a right candidate is among the first k when ties are broken at random, (n,).

        With r places left for `right + tied` equal candidates: 1 - C(tied, r) / C(right + tied, r).
        """
        hits = np.zeros(len(self.above))
        hits[self.above < k] = 1.0
        open_rows = np.flatnonzero((hits > 0) & (self.tied > 0))
        right, tied = self.right[open_rows], self.tied[open_rows]
        places = np.minimum(k - self.above[open_rows], right + tied)
        missed: Any = np.ones(len(open_rows))
        for i in range(int(right.max(initial=0))):
            counts = i < right
            left = np.maximum(right + tied - places - i, 0)
            missed *= np.where(counts, left / np.where(counts, right + tied - i, 1), 1.0)
        hits[open_rows] = 1.0 - missed
        return hits

    def expected(self) -> Float64s:
        """Expected rank of the first right candidate, from 1, (n,)."""
        out: Float64s = self.above + (self.right + self.tied + 1) / (self.right + 1)
        return out

    def reciprocal(self) -> Float64s:
        """Expected reciprocal of that rank, (n,)."""
        out: Any = 1.0 / (self.above + 1.0)
        alone = np.flatnonzero((self.tied > 0) & (self.right == 1))
        above, tied = self.above[alone], self.tied[alone]
        # the mean of 1 / rank over tied + 1 places that are equally likely
        out[alone] = (digamma(above + tied + 2.0) - digamma(above + 1.0)) / (tied + 1)
        many = np.flatnonzero((self.tied > 0) & (self.right > 1))
        # rows that are alike once: of chance levels all are, each a sum over the whole pool
        kinds, of = np.unique(
            np.stack([self.above[many], self.tied[many], self.right[many]], axis=1), axis=0, return_inverse=True
        )
        values = np.empty(len(kinds))
        for number, (a, t, r) in enumerate(kinds.tolist()):
            j = np.arange(1, t + 2)
            # the share of orders in which none is found in the first j places
            reached = np.concatenate([[1.0], np.cumprod((t - j + 1) / (t + r - j + 1))])
            values[number] = ((reached[:-1] - reached[1:]) / (a + j)).sum()
        out[many] = values[of]
        return out


Job = tuple[Tile, Any]


def rank(text: Floats, image: Floats, readings: Mapping[str, Keys], tile: int = TILE) -> dict[str, dict[str, Ranks]]:
    """Ranks of each reading and direction, in this process.

    Args:
        text, image: (n, d) and (m, d) float32 vectors of unit length (n and m may differ: many captions an image).
        readings: name -> keys; the first is counted for every row, the others only where they differ from it.

    Returns:
        reading -> direction -> Ranks.

    Raises:
        ValueError: a text without an image that belongs to it, or an image without text; keys of another length.
    """
    text, image = np.ascontiguousarray(text, np.float32), np.ascontiguousarray(image, np.float32)

    def each(work: Callable[..., Any], jobs: Iterable[Job]) -> Iterator[tuple[Tile, Any]]:
        for at, argument in jobs:
            yield at, work(text[at.text : at.text_stop], image[at.image : at.image_stop], argument)

    edges = [[*range(0, len(side), tile), len(side)] for side in (text, image)]
    return ranked(edges[0], edges[1], readings, each)


def ranked(
    text_edges: Sequence[int],
    image_edges: Sequence[int],
    readings: Mapping[str, Keys],
    each: Callable[..., Iterable[tuple[Tile, Any]]],
) -> dict[str, dict[str, Ranks]]:
    """`rank` with the tiles run by `each(work, jobs)`, which yields `(tile, work(text block, image block, argument))`
    in any order. This process holds numbers of a row, never vectors or scores: some 100 bytes a row and reading.

    Args:
        text_edges, image_edges: where the blocks of vectors begin, and after the last where it ends.
    """
    n, m = text_edges[-1], image_edges[-1]
    for name, keys in readings.items():
        if len(keys.text) != n or len(keys.image) != m:
            raise ValueError(f"{name}: keys of {len(keys.text)} texts and {len(keys.image)} images, not {n} and {m}")
    tiles = [Tile(*rows, *columns) for rows in pairwise(text_edges) for columns in pairwise(image_edges)]
    best = {name: _best(n, m, name, keys, tiles, each) for name, keys in readings.items()}
    sides, places = zip(*(_thresholds([found[side] for found in best.values()]) for side in (0, 1)), strict=True)
    counts = [Counted(*(np.zeros(len(side.row), np.int64) for _ in range(2))) for side in sides]
    # what a tile counts against is that of its rows and that of its columns: made once a block, not once a tile
    asked = [
        {start: side.within(start, stop) for start, stop in pairwise(edges)}
        for side, edges in zip(sides, (text_edges, image_edges), strict=True)
    ]
    jobs = ((at, (asked[0][at.text][1], asked[1][at.image][1])) for at in tiles)
    for at, found in each(count_tile, jobs):
        owners = asked[0][at.text][0], asked[1][at.image][0]
        for total, positions, part in zip(counts, owners, found, strict=True):
            total.above[positions] += part[0]
            total.tied[positions] += part[1]
    out: dict[str, dict[str, Ranks]] = {}
    for number, (name, found) in enumerate(best.items()):
        out[name] = {}
        for direction, side, total, entries in zip(DIRECTIONS, found, counts, places, strict=True):
            mine = entries[number]
            out[name][direction] = Ranks(total.above[mine], total.tied[mine] - side.right, side.right)
    return out


def _best(
    n: int, m: int, name: str, keys: Keys, tiles: list[Tile], each: Callable[..., Iterable[tuple[Tile, Any]]]
) -> Both:
    """The best right score of each text and of each image."""
    both = tuple(Best(np.full(size, -np.inf), np.zeros(size, np.int64)) for size in (n, m))
    jobs = []
    for at in tiles:
        mine = Keys(keys.text[at.text : at.text_stop], keys.image[at.image : at.image_stop])
        if np.isin(mine.text, mine.image).any():
            jobs.append((at, mine))
    for at, found in each(best_in_tile, jobs):
        for total, start, part in zip(both, (at.text, at.image), found, strict=True):
            merge(total, slice(start, start + len(part[0])), Best(*part))
    for total, what in zip(both, ("text", "image"), strict=True):
        alone = np.flatnonzero(total.right == 0)
        if len(alone):
            raise ValueError(f"{name}: nothing belongs to {len(alone)} of the {what}s; the first is row {alone[0]}")
    return both[0], both[1]


def _thresholds(bests: list[Best]) -> tuple[Thresholds, list[Ints]]:
    """One side's thresholds, and for each reading the entry of each row: its own only where its best differs from the
    first's.
    """
    n = len(bests[0].score)
    rows, scores, places = [np.arange(n)], [bests[0].score], [np.arange(n)]
    length = n
    for best in bests[1:]:
        other = np.flatnonzero(best.score > bests[0].score + TIE)
        mine = np.arange(n)
        mine[other] = length + np.arange(len(other))
        length += len(other)
        rows.append(other)
        scores.append(best.score[other])
        places.append(mine)
    return Thresholds(np.concatenate(rows), np.concatenate(scores), n), places
