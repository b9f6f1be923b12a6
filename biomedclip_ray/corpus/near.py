"""Near duplicates: which of millions of perceptual hashes differ in a few bits, and whether the images are really the
same.

Two hashes within `radius` bits agree exactly in at least 2 of radius + 2 bands of bits, whatever the bits are. So for
each choice of two bands the hashes are sorted with those bands in front, and only neighbours that share them are
compared: ten million hashes take 35 seconds and 1.8 GB, all their pairs would take a day (benchmarks/near.py). A hash
is a hint and no more (plots on white share it), so every pair found gets a second look at the pixels before anything
follows from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, pairwise

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Indices = NDArray[np.int64]
Indices32 = NDArray[np.int32]
Signature = NDArray[np.uint8]

# More different images of one hash, or of hashes in one bucket, are a crowd: all its pairs would cost the square of its
# size.
CROWD = 64
# Neighbours that each member of a crowd is paired with: copies of one image still hang together, plots on white cost
# little.
LINKS = 8
# Cells of a side: a square of 0.2% of an image's area is 2.1 of them wide, so that some 2 x 2 cells lie in it almost
# whole.
SIGNATURE_SIDE = 48
# Residual over contrast, and the worst difference of 255, of means over 2 x 2 cells. 319 figures (219 real) are called
# the same when recompressed (quality 30, 50) or halved in all cases, shrunk to a third in 99%; with a square of 0.2%
# tinted in one place or blackened, 0 to 2% are, in two places 0 to 0.3% (means over 32 x 32 cells, 1% of them left out:
# 41 to 96% and 20 to 84%).
LOOK_LIMIT = 0.2
WORST_LIMIT = 40
# Of the sides' ratio, as a logarithm: a copy keeps its shape but for a rounded pixel.
SHAPE_LIMIT = 0.05

_NONE: Hashes = np.zeros(0, np.uint64)


@dataclass(frozen=True)
class NearPairs:
    """Pairs of positions, left < right, sorted and each once; and the positions in a crowd too large to
    search whole.
    """

    left: Indices
    right: Indices
    crowded: Indices


def near_pairs(hashes: Hashes, radius: int, crowd: int = CROWD) -> NearPairs:
    """All pairs of positions whose 64-bit hashes differ in at most `radius` bits.

    Complete except in crowds, whose members are paired with some LINKS neighbours each (of a pair that is missed one is
    in `crowded`): of more than `crowd` positions with one hash; of more than `crowd` different hashes that agree in two
    bands, or more than LINKS of them that are near (unless `crowd` is larger than CROWD, for those who want
    everything).

    Args:
        hashes: (n,) uint64, in any order, repeats allowed.
        radius: bits, 0 to 16.

    Raises:
        ValueError: the radius is out of range.
    """
    table = sort_hashes(hashes, radius, crowd)
    return assemble(table, [search(table.values, radius, range(layouts(radius)), crowd)], crowd)


@dataclass(frozen=True)
class SortedHashes:
    """The positions of hashes in their order; of each hash the first place in it, and how many there are; which are few
    enough for all their pairs; and the hashes of these.
    """

    order: Indices32
    starts: Indices32
    sizes: Indices32
    usable: NDArray[np.bool_]
    values: Hashes


@dataclass(frozen=True)
class Found:
    """Pairs of places in `SortedHashes.values`, each found by one choice of bands only; and places in a crowd."""

    first: Indices32
    second: Indices32
    crowded: Indices32


def sort_hashes(hashes: Hashes, radius: int, crowd: int = CROWD) -> SortedHashes:
    """The first of three steps of `near_pairs`; the second may be many tasks. Raises ValueError as that does."""
    if not 0 <= radius <= 16:
        raise ValueError(f"radius={radius}: between 0 and 16 bits, or two bands would say nothing")
    order = np.argsort(hashes, kind="stable").astype(np.int32)
    ordered = hashes[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)])
    sizes = np.diff(np.append(starts, len(ordered)))
    usable = sizes <= crowd
    return SortedHashes(
        order, starts.astype(np.int32), sizes.astype(np.int32), usable, ordered[starts[usable]] if radius else _NONE
    )


def layouts(radius: int) -> int:
    """Choices of two bands, each of which can be searched apart."""
    return (radius + 1) * (radius + 2) // 2 if radius else 0


def search(values: Hashes, radius: int, which: range, crowd: int = CROWD) -> Found:
    """The second step: what some choices of bands find, each sorted hash compared with its neighbours; a choice takes
    five times the memory of the values.
    """
    found: list[NDArray[np.uint64]] = [np.zeros((2, 0), np.uint64)]
    crowded: list[Hashes] = [_NONE]
    for bands, earlier in islice(_layouts(radius), which.start, which.stop, which.step) if which else ():
        pairs, more = _neighbours(values, radius, crowd, bands, earlier)
        found += pairs
        crowded += more
    first, second = (_positions(values, side).astype(np.int32) for side in np.concatenate(found, axis=1))
    return Found(first, second, np.searchsorted(values, np.unique(np.concatenate(crowded))).astype(np.int32))


def assemble(table: SortedHashes, searched: Sequence[Found], crowd: int = CROWD) -> NearPairs:
    """The last step: positions of what all choices have found, and of what has one hash."""
    starts, sizes, usable = table.starts.astype(np.int64), table.sizes.astype(np.int64), table.usable
    crowded = [_members(starts[~usable], sizes[~usable])]
    lefts, rights = _same_hash(starts, sizes, crowd)
    starts, sizes = starts[usable], sizes[usable]
    if searched and len(table.values):
        first, second = (np.concatenate([getattr(one, side) for one in searched]) for side in ("first", "second"))
        more = np.unique(np.concatenate([one.crowded for one in searched]))
        crowded.append(_members(starts[more], sizes[more]))
        near_left, near_right = _products(starts, sizes, first, second)
        lefts, rights = np.concatenate([lefts, near_left]), np.concatenate([rights, near_right])
    del starts, sizes
    one, other, many = table.order[lefts], table.order[rights], len(table.order)
    del lefts, rights
    packed = np.minimum(one, other).astype(np.int64) * many
    packed += np.maximum(one, other)
    del one, other
    packed.sort()
    left, right = np.divmod(packed, max(1, many))
    return NearPairs(left, right, np.sort(table.order[np.concatenate(crowded)]).astype(np.int64))


def signature(pixels: Signature) -> Signature:
    """An image's (h, w, 3) uint8 pixels as a (6912,) uint8 vector of means over a 48 x 48 grid;
    stretched, not cropped.
    """
    rows, columns = (np.linspace(0, size, SIGNATURE_SIDE + 1) for size in pixels.shape[:2])
    total = np.zeros((pixels.shape[0] + 1, pixels.shape[1] + 1, 3), np.int64)
    np.cumsum(np.cumsum(pixels, axis=0, dtype=np.int64), axis=1, out=total[1:, 1:])
    cells = np.diff(np.diff(_between(_between(total, rows), columns, axis=1), axis=0), axis=1)
    means = cells / (pixels.shape[0] * pixels.shape[1] / SIGNATURE_SIDE**2)
    return np.rint(means).clip(0, 255).astype(np.uint8).ravel()


def look_alike(left: Signature, right: Signature) -> NDArray[np.bool_]:
    """Which rows of two (m, 6912) uint8 arrays of signatures show the same image.

    Means over 2 x 2 cells at every place are compared: compression errs to both sides in neighbouring cells, a spot
    that was added or moved does not. After their means are taken out, the residual of the two over the smaller one's
    contrast is at most LOOK_LIMIT, and no place differs by more than WORST_LIMIT. Flat images, which have no contrast
    to compare, are the same only if equal.
    """
    a, b = _blurred(left), _blurred(right)
    contrast = np.minimum(np.einsum("ij,ij->i", a, a), np.einsum("ij,ij->i", b, b))
    a -= b
    residual = np.einsum("ij,ij->i", a, a)
    return (residual <= LOOK_LIMIT**2 * contrast) & (np.abs(a).max(axis=1, initial=0) <= WORST_LIMIT)


def _blurred(signatures: Signature) -> NDArray[np.float32]:
    """(m, 47 * 47 * 3): the mean of each 2 x 2 cells, less that of all."""
    grid = signatures.reshape(-1, SIGNATURE_SIDE, SIGNATURE_SIDE, 3).astype(np.float32)
    rows = grid[:, 1:] + grid[:, :-1]
    means: NDArray[np.float32] = (rows[:, :, 1:] + rows[:, :, :-1]).reshape(len(grid), -1)
    means *= np.float32(0.25)
    means -= means.mean(axis=1, keepdims=True)
    return means


def _same_hash(starts: Indices, sizes: Indices, crowd: int) -> tuple[Indices, Indices]:
    """Pairs inside each run of equal hashes, as positions in the sorted order: all, or in a crowd with
    the next LINKS.
    """
    lefts, rights = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for size in np.unique(sizes[sizes > 1]):
        left, right = np.nonzero(np.tri(size, size, -1).T) if size <= crowd else _next_ones(int(size))
        run = starts[sizes == size][:, None]
        lefts.append((run + left).ravel())
        rights.append((run + right).ravel())
    return np.concatenate(lefts), np.concatenate(rights)


def _members(starts: Indices, sizes: Indices) -> Indices:
    """All positions of the runs."""
    before = np.cumsum(sizes) - sizes
    return np.repeat(starts - before, sizes) + np.arange(sizes.sum())


def _next_ones(size: int) -> tuple[Indices, Indices]:
    """Each of `size` positions with the next LINKS."""
    left = np.repeat(np.arange(size), LINKS)
    right = left + np.tile(np.arange(1, LINKS + 1), size)
    return left[right < size], right[right < size]


def _products(starts: Indices, sizes: Indices, first: Indices, second: Indices) -> tuple[Indices, Indices]:
    """Every position of one hash with every position of the other, for each pair of hashes."""
    lefts, rights = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    shapes = sizes[first] * (1 << 32) + sizes[second]
    for shape in np.unique(shapes):
        here = shapes == shape
        rows, columns = np.divmod(np.arange((shape >> 32) * (shape & 0xFFFFFFFF)), shape & 0xFFFFFFFF)
        lefts.append((starts[first[here]][:, None] + rows).ravel())
        rights.append((starts[second[here]][:, None] + columns).ravel())
    return np.concatenate(lefts), np.concatenate(rights)


def _neighbours(
    values: Hashes, radius: int, crowd: int, bands: list[tuple[int, int]], earlier: list[np.uint64]
) -> tuple[list[NDArray[np.uint64]], list[Hashes]]:
    """Pairs of sorted, distinct `values` within the radius that agree in the two bands in front and are met there
    first; and those that are in a crowd.
    """
    found: list[NDArray[np.uint64]] = []
    crowded: list[Hashes] = []
    links = LINKS if crowd <= CROWD else crowd
    key = np.uint64(64 - bands[0][1] - bands[1][1])
    front = _permuted(values, bands)
    front.sort()  # plain values, which numpy sorts with vector instructions, and not an argsort
    linked = np.zeros(len(front), np.uint16)
    at = np.flatnonzero((front[:-1] ^ front[1:]) >> key == 0).astype(np.int32)
    for shift in range(1, crowd + 1):
        at = at[: np.searchsorted(at, len(front) - shift)]
        difference = front[at] ^ front[at + shift]
        if shift > 1:
            in_bucket = difference >> key == 0
            at, difference = at[in_bucket], difference[in_bucket]
        if not len(at):
            break
        close = np.bitwise_count(difference) <= radius
        for mask in earlier:  # another choice of bands has this pair too, and comes first
            close &= difference & mask != 0
        here = at[close]
        found.append(np.stack([_restored(front[here], bands), _restored(front[here + shift], bands)]))
        linked[here] += 1
        if shift >= links:
            enough = linked[at] >= links
            crowded.append(_restored(front[at[enough]], bands))
            at = at[~enough]
    else:
        crowded.append(_restored(front[at], bands))
    return found, crowded


def _positions(values: Hashes, wanted: Hashes) -> Indices:
    """np.searchsorted, in the order of the values: looking up ten million at random misses every cache."""
    order = np.argsort(wanted)
    result = np.empty(len(wanted), np.int64)
    result[order] = np.searchsorted(values, wanted[order])
    return result


def _layouts(radius: int) -> Iterator[tuple[list[tuple[int, int]], list[np.uint64]]]:
    """For every two bands: all bands, each (lowest bit, bits), those two in front; and masks of those that stood before
    them.

    A pair that agrees in one of the masked bands has been met in an earlier layout.
    """
    edges = np.linspace(0, 64, radius + 3).astype(int).tolist()
    bands = [(low, high - low) for low, high in pairwise(edges)]
    for first, second in combinations(range(len(bands)), 2):
        rest = [number for number in range(len(bands)) if number not in (first, second)]
        masks, top = [], 64 - bands[first][1] - bands[second][1]
        for number in rest:
            top -= bands[number][1]
            if number < second:
                masks.append(np.uint64((1 << bands[number][1]) - 1 << top))
        yield [bands[number] for number in (first, second, *rest)], masks


def _permuted(values: Hashes, bands: list[tuple[int, int]]) -> Hashes:
    """The values with their bands moved together in a new order."""
    result, top = np.zeros_like(values), 64
    for low, bits in bands:
        top -= bits
        result |= (values >> np.uint64(low) & np.uint64((1 << bits) - 1)) << np.uint64(top)
    return result


def _restored(values: Hashes, bands: list[tuple[int, int]]) -> Hashes:
    """The inverse of `_permuted`."""
    result, top = np.zeros_like(values), 64
    for low, bits in bands:
        top -= bits
        result |= (values >> np.uint64(top) & np.uint64((1 << bits) - 1)) << np.uint64(low)
    return result


def _between(
    total: NDArray[np.float64] | NDArray[np.int64], edges: NDArray[np.float64], axis: int = 0
) -> NDArray[np.float64]:
    """The rows (or columns) of a running sum at fractional places, by linear interpolation."""
    whole = np.minimum(edges.astype(int), total.shape[axis] - 2)
    part = (edges - whole).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    result: NDArray[np.float64] = total.take(whole, axis) * (1 - part) + total.take(whole + 1, axis) * part
    return result
