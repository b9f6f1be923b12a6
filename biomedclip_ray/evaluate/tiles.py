"""What one tile of scores gives: the best right score of each row and column, and how many scores lie above thresholds.

A score is read four times while it lies in the cache (above and near, for its row and for its column), so both
directions cost a fifth more than the product itself (1.1 to 1.3 of one sgemm, benchmarks/ranks.py). What lies within
float32's rounding of a threshold is computed again, so the counts are those of a float64 product.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Float64s = NDArray[np.float64]
Ints = NDArray[np.int64]

TIE = 1e-12
"""Two scores nearer than this are a tie. A float64 product of unit vectors of 512 numbers is wrong by at most 6e-14, so
equal vectors tie whatever a BLAS kernel does, and scores that differ in float32 inputs do not.
"""

_ROWS, _COLUMNS = 1024, 8192  # of the scores that are made at once (32 MB)
_COUNTED = 240  # rows counted together: a column's count fits into a byte, and 8 MB of scores stay in the cache
_DENSE = 1 / 64  # share of near scores from which a block is computed whole in float64


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


Both = tuple[Best, Best]  # of texts and of images


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
                merge(best, rows, Best(top, np.count_nonzero(own >= top[:, None] - TIE, axis=1)))
    return both[0], both[1]


def merge(total: Best, rows: slice | Ints, part: Best) -> None:
    """Take what a tile found into the whole."""
    old, new = total.score[rows], part.score
    with np.errstate(invalid="ignore"):  # -inf less -inf where neither holds a right one
        same = np.abs(new - old) <= TIE
    total.right[rows] = np.where(
        same, total.right[rows] + part.right, np.where(new > old, part.right, total.right[rows])
    )
    total.score[rows] = np.maximum(old, new)


def count_tile(text: Floats, image: Floats, sides: tuple[Thresholds, Thresholds]) -> tuple[Counted, Counted]:
    """Scores of one tile above each threshold of its texts and images, and those that tie with it.

    Args:
        text, image: float32 blocks of the tile.
        sides: thresholds of the texts (against all images of the tile) and of the images.
    """
    counts = tuple(Counted(np.zeros(len(s.row), np.int64), np.zeros(len(s.row), np.int64)) for s in sides)
    margin = margin_of(text, image)
    bounds = [float32_bounds(side.score, margin) for side in sides]
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


def margin_of(text: Floats, image: Floats) -> float:
    """The most by which a float32 product of these vectors can be wrong, in whatever order it is summed
    (Higham 2002, Accuracy and Stability of Numerical Algorithms, section 3.1)."""
    longest = [float(np.sqrt(np.einsum("ij,ij->i", side, side).max(initial=0))) for side in (text, image)]
    d = text.shape[1]
    unit = d * 2.0**-24
    return unit / (1 - unit) * longest[0] * longest[1] * 1.001


def float32_bounds(scores: Float64s, margin: float) -> tuple[Floats, Floats]:
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
