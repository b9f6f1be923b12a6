"""Exact ranks of both directions from one matrix product, in square tiles.

A score is read four times while it lies in the cache (above and near, for its row and for its column), so both
directions cost a tenth more than the product itself (1.1 to 1.2 of one sgemm, benchmarks/ranks.py). What lies within
float32's rounding of a threshold is computed again, so the ranks are those of a float64 product. Counts of tiles add
up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma

Floats = NDArray[np.floating[Any]]
Float64s = NDArray[np.float64]
Ints = NDArray[np.int64]

DIRECTIONS = ("text_to_image", "image_to_text")

TIE = 1e-12
"""Two scores nearer than this are a tie. A float64 product of unit vectors of 512 numbers is wrong by at most 6e-14, so
equal vectors tie whatever a BLAS kernel does, and scores that differ in float32 inputs do not.
"""

TILE = 32_768
"""Rows and columns of a tile: 128 MB of vectors of width 512, and a quarter of a minute on one core."""

_ROWS, _COLUMNS = 1024, 8192  # of the scores that are made at once (32 MB)
_COUNTED = 240  # rows counted together: a column's count fits into a byte, and 8 MB of scores stay in the cache
_DENSE = 1 / 64  # share of near scores from which a block is computed whole in float64


class Tile(NamedTuple):
    """Where a tile lies: texts first, then images; stops are exclusive."""

    text: int
    text_stop: int
    image: int
    image_stop: int


class Keys(NamedTuple):
    """One reading of what belongs together: text i and image j do where `text[i] == image[j]`."""

    text: Ints
    image: Ints


class Counted(NamedTuple):
    """For each threshold of one side: scores above it, and scores that tie with it (int64)."""

    above: Ints
    tied: Ints


class Best(NamedTuple):
    """For each row: the best right score (float64; -inf where a tile holds none), and how many right ones share it."""

    score: Float64s
    right: Ints


class Thresholds(NamedTuple):
    """What one side counts against: entry e asks for the scores of row `row[e]` above `score[e]`. The first entries are
    all rows in order (`plain` of them); those after it are the rows that another reading asks with a score of its own.
    """

    row: Ints
    score: Float64s
    plain: int

    def within(self, start: int, stop: int) -> tuple[Ints, Thresholds]:
        """Positions of the entries whose row lies in start..stop, and those entries with rows counted from start."""
        extra = self.plain + np.flatnonzero((self.row[self.plain :] >= start) & (self.row[self.plain :] < stop))
        places = np.concatenate([np.arange(start, stop), extra])
        return places, Thresholds(self.row[places] - start, self.score[places], stop - start)


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
        for row in np.flatnonzero((self.tied > 0) & (self.right > 1)):
            t, r = int(self.tied[row]), int(self.right[row])
            j = np.arange(1, t + 2)
            # the share of orders in which none is found in the first j places
            reached = np.concatenate([[1.0], np.cumprod((t - j + 1) / (t + r - j + 1))])
            out[row] = ((reached[:-1] - reached[1:]) / (self.above[row] + j)).sum()
        return out


Both = tuple[Best, Best]  # of texts and of images
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
    jobs, owners = [], {}
    for at in tiles:
        mine, own = zip(sides[0].within(at.text, at.text_stop), sides[1].within(at.image, at.image_stop), strict=True)
        owners[at] = mine
        jobs.append((at, own))
    for at, found in each(count_tile, jobs):
        for total, positions, part in zip(counts, owners[at], found, strict=True):
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
            _merge(total, slice(start, start + len(part[0])), Best(*part))
    for total, what in zip(both, ("text", "image"), strict=True):
        alone = np.flatnonzero(total.right == 0)
        if len(alone):
            raise ValueError(f"{name}: nothing belongs to {len(alone)} of the {what}s; the first is row {alone[0]}")
    return both[0], both[1]


def _merge(total: Best, rows: slice | Ints, part: Best) -> None:
    """Take what a tile found into the whole."""
    old, new = total.score[rows], part.score
    with np.errstate(invalid="ignore"):  # -inf less -inf where neither holds a right one
        same = np.abs(new - old) <= TIE
    total.right[rows] = np.where(
        same, total.right[rows] + part.right, np.where(new > old, part.right, total.right[rows])
    )
    total.score[rows] = np.maximum(old, new)


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


def best_in_tile(text: Floats, image: Floats, keys: Keys) -> Both:
    """The best right score of each text and image among those in one tile, in float64."""
    both = tuple(Best(np.full(len(side), -np.inf), np.zeros(len(side), np.int64)) for side in (text, image))
    order = [np.argsort(side, kind="stable") for side in keys]
    shared = np.intersect1d(keys.text, keys.image)
    firsts = [np.searchsorted(side[rows], shared) for side, rows in zip(keys, order, strict=True)]
    ends = [np.searchsorted(side[rows], shared, "right") for side, rows in zip(keys, order, strict=True)]
    single = (ends[0] - firsts[0] == 1) & (ends[1] - firsts[1] == 1)
    pair = [rows[first[single]] for rows, first in zip(order, firsts, strict=True)]
    scores = _scores(text, image, pair[0], pair[1])
    for best, rows in zip(both, pair, strict=True):
        best.score[rows], best.right[rows] = scores, 1
    for at in np.flatnonzero(~single):
        texts, images = (rows[first[at] : end[at]] for rows, first, end in zip(order, firsts, ends, strict=True))
        candidates = image[images].astype(np.float64)
        for start in range(0, len(texts), _ROWS):
            mine = texts[start : start + _ROWS]
            block = text[mine].astype(np.float64) @ candidates.T
            for best, rows, own in zip(both, (mine, images), (block, block.T), strict=True):
                top = own.max(axis=1)
                _merge(best, rows, Best(top, np.count_nonzero(own >= top[:, None] - TIE, axis=1)))
    return both[0], both[1]


def count_tile(text: Floats, image: Floats, sides: tuple[Thresholds, Thresholds]) -> tuple[Counted, Counted]:
    """Scores of one tile above each threshold of its texts and images, and those that tie with it.

    Args:
        text, image: float32 blocks of the tile.
        sides: thresholds of the texts (against all images of the tile) and of the images.
    """
    counts = tuple(Counted(np.zeros(len(s.row), np.int64), np.zeros(len(s.row), np.int64)) for s in sides)
    margin = _margin(text, image)
    bounds = [_bounds(side.score, margin) for side in sides]
    scores = np.empty((min(_ROWS, len(text)), min(_COLUMNS, len(image))), np.float32)
    flags = np.empty((2, min(_COUNTED, len(text)), scores.shape[1]), bool)
    for j in range(0, len(image), _COLUMNS):
        columns = slice(j, min(j + _COLUMNS, len(image)))
        across = _extra(sides[1], columns)
        for i in range(0, len(text), _ROWS):
            rows = slice(i, min(i + _ROWS, len(text)))
            block = scores[: rows.stop - rows.start, : columns.stop - columns.start]
            np.matmul(text[rows], image[columns].T, out=block)
            for start in range(0, len(block), _COUNTED):
                part = block[start : start + _COUNTED]
                at = (slice(rows.start + start, rows.start + start + len(part)), columns)
                _count_plain(part, at, text, image, sides, bounds, counts, flags[:, : len(part), : part.shape[1]])
                _count_extra(part, at, _extra(sides[0], at[0]), 0, text, image, sides, bounds, counts)
                _count_extra(part, at, across, 1, text, image, sides, bounds, counts)
    return counts[0], counts[1]


def _count_plain(
    part: Floats,
    at: tuple[slice, slice],
    text: Floats,
    image: Floats,
    sides: tuple[Thresholds, Thresholds],
    bounds: list[tuple[Floats, Floats]],
    counts: tuple[Counted, ...],
    flags: NDArray[np.bool_],
) -> None:
    """Count for each row and each column of a piece of the scores; at most 255 rows."""
    for side in (0, 1):
        if not sides[side].plain:
            continue
        low, high = (bound[at[side]] if side else bound[at[side], None] for bound in bounds[side])
        over, near = np.greater(part, high, out=flags[0]), np.greater_equal(part, low, out=flags[1])
        np.logical_xor(near, over, out=near)
        if side:
            counts[side].above[at[side]] += np.add.reduce(over.view(np.uint8), axis=0, dtype=np.uint8)
        else:
            counts[side].above[at[side]] += [np.count_nonzero(row) for row in over]
        places = np.flatnonzero(near)
        if not len(places):
            continue
        if len(places) > _DENSE * near.size:
            _count_dense(at, side, text, image, sides[side], over, counts[side])
            continue
        rows, columns = np.divmod(places, near.shape[1])
        rows += at[0].start
        columns += at[1].start
        entries = columns if side else rows
        gap = _scores(text, image, rows, columns) - sides[side].score[entries]
        np.add.at(counts[side].above, entries[gap > TIE], 1)
        np.add.at(counts[side].tied, entries[np.abs(gap) <= TIE], 1)


def _count_dense(
    at: tuple[slice, slice], side: int, text: Floats, image: Floats, own: Thresholds, over: Any, counts: Counted
) -> None:
    """The same where so many scores are near that the piece is made again in float64; what `over` gave
    is taken back.
    """
    gap = text[at[0]].astype(np.float64) @ image[at[1]].astype(np.float64).T
    gap -= own.score[at[1]] if side else own.score[at[0], None]
    counts.above[at[side]] += np.count_nonzero(gap > TIE, axis=1 - side) - np.count_nonzero(over, axis=1 - side)
    counts.tied[at[side]] += np.count_nonzero(np.abs(gap) <= TIE, axis=1 - side)


def _extra(side: Thresholds, span: slice) -> Ints:
    """Entries behind the plain ones whose row lies in the span."""
    rows = side.row[side.plain :]
    return side.plain + np.flatnonzero((rows >= span.start) & (rows < span.stop)) if len(rows) else rows


def _count_extra(
    part: Floats,
    at: tuple[slice, slice],
    entries: Ints,
    side: int,
    text: Floats,
    image: Floats,
    sides: tuple[Thresholds, Thresholds],
    bounds: list[tuple[Floats, Floats]],
    counts: tuple[Counted, ...],
) -> None:
    """Count against the thresholds of further readings: few rows, one at a time."""
    for entry in entries:
        row = int(sides[side].row[entry])
        scores = part[:, row - at[1].start] if side else part[row - at[0].start]
        over = scores > bounds[side][1][entry]
        counts[side].above[entry] += np.count_nonzero(over)
        near = np.flatnonzero((scores >= bounds[side][0][entry]) ^ over)
        if len(near):
            others = near + at[1 - side].start
            rows = np.full(len(near), row)
            exact = _scores(text, image, others, rows) if side else _scores(text, image, rows, others)
            gap = exact - sides[side].score[entry]
            counts[side].above[entry] += np.count_nonzero(gap > TIE)
            counts[side].tied[entry] += np.count_nonzero(np.abs(gap) <= TIE)


def _margin(text: Floats, image: Floats) -> float:
    """The most by which a float32 product of these vectors can be wrong, in whatever order it is summed
    (Higham 2002, Accuracy and Stability of Numerical Algorithms, section 3.1)."""
    longest = [float(np.sqrt(np.einsum("ij,ij->i", side, side).max(initial=0))) for side in (text, image)]
    d = text.shape[1]
    unit = d * 2.0**-24
    return unit / (1 - unit) * longest[0] * longest[1] * 1.001


def _bounds(scores: Float64s, margin: float) -> tuple[Floats, Floats]:
    """Float32 scores under the first lie under the threshold for certain, those over the second over it."""
    low, high = (scores + sign * (margin + TIE) for sign in (-1, 1))
    return (
        np.nextafter(low.astype(np.float32), np.float32(-np.inf)),
        np.nextafter(high.astype(np.float32), np.float32(np.inf)),
    )


def _scores(text: Floats, image: Floats, rows: Ints, columns: Ints) -> Float64s:
    """float64 products of single pairs; few at a time stay in the cache, which takes a third off."""
    out = np.empty(len(rows))
    for start in range(0, len(rows), 256):
        part = slice(start, start + 256)
        left, right = text[rows[part]].astype(np.float64), image[columns[part]].astype(np.float64)
        out[part] = np.einsum("ij,ij->i", left, right)
    return out
