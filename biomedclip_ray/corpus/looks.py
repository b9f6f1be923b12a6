"""The second look of curate: of images whose hashes are near, whether their pixels are.

Each image is read and shrunk once, where its part is; what is compared with one another comes together in shards of
some ten thousand pairs, so that no task holds more than 2 GB, whatever the share of the images that are looked at.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biomedclip_ray.corpus.groups import Numbers, components
from biomedclip_ray.corpus.near import SHAPE_LIMIT, SIGNATURE_SIDE, look_alike, signature
from biomedclip_ray.images.image import decode
from biomedclip_ray.store.parquet import some_rows
from biomedclip_ray.store.product import Product

SHARD = 1 << 16
"""Pairs, or images, of one shard: at most twice as many images, of 7 kB each."""
PARTS = 256
"""That one task reads images of, at most."""
_THREADS = 16
_PAIRS_AT_ONCE = 1 << 11  # 0.3 GB

Signatures = tuple[NDArray[np.uint8], NDArray[np.float64]]
"""(n, 6912) of images, and their height over width."""


@dataclass(frozen=True)
class Plan:
    """Who is compared with whom, and where.

    Attributes:
        left, right: rows of the pairs, shard after shard; `bounds`: where each shard begins and ends.
        row, shard: which row's image is needed in which shard, by row.
        part_bounds: the first row of each part, and the end of the last.
        images: different images.
    """

    left: Numbers
    right: Numbers
    bounds: NDArray[np.int64]
    row: Numbers
    shard: Numbers
    part_bounds: NDArray[np.int64]
    images: int


def plan(left: Numbers, right: Numbers, *sizes: list[int]) -> tuple[Plan, tuple[int, list[range]]]:
    """The plan; and how many shards it has and the parts whose images each task reads.

    What hangs together stays together as far as a shard allows, so that few images are needed in two.

    Args:
        left, right: rows whose hashes are near.
        sizes: rows of each part, chunk by chunk.
    """
    part_bounds = np.cumsum([0, *(size for chunk in sizes for size in chunk)])
    images = np.unique(np.concatenate([left, right]))
    one, other = (np.searchsorted(images, side).astype(np.int32) for side in (left, right))
    together = components(len(images), one, other)[one] if len(left) else one
    order = np.lexsort((left, together)).astype(np.int32)
    del together
    left, right = left[order], right[order]
    seen = np.unique(np.stack([one[order], other[order]], axis=1).ravel(), return_index=True)[1]
    del one, other, order
    cost = np.maximum(np.bincount(seen // 2, minlength=len(left)), 1).cumsum()
    at = (cost - 1) // SHARD
    shards = int(at[-1]) + 1 if len(at) else 0
    bounds = np.searchsorted(at, np.arange(shards + 1))
    needed = np.unique(np.concatenate([side.astype(np.int64) * shards + at for side in (left, right)]))
    row, shard = (half.astype(np.int32) for half in np.divmod(needed, max(1, shards)))
    made = Plan(left, right, bounds, row, shard, part_bounds, len(images))
    return made, (shards, _ranges(np.diff(np.searchsorted(row, part_bounds)), PARTS, SHARD))


def _ranges(images: NDArray[np.int64], parts: int, most: int) -> list[range]:
    """Runs of at most so many parts with at most so many images together (or one part); those without any are left
    out.
    """
    found: list[range] = []
    first, held = 0, 0
    for part, many in enumerate(images.tolist()):
        if held and (held + many > most or part - first >= parts):
            found.append(range(first, part))
            held = 0
        if not held:
            first = part
        held += many
    return [*found, range(first, len(images))] if held else found


def look_at(pairs: Product, plan: Plan, parts: range) -> Any:
    """For each shard the signatures of what it needs of these parts, by row; where there is one shard, that alone."""
    first, last = np.searchsorted(plan.row, plan.part_bounds[[parts.start, parts.stop]])
    row, shard = plan.row[first:last], plan.shard[first:last]
    rows, place = np.unique(row, return_inverse=True)
    signatures, shapes = _signatures(pairs, parts, plan.part_bounds, rows)
    pieces = [
        (signatures[place[shard == number]], shapes[place[shard == number]]) for number in range(len(plan.bounds) - 1)
    ]
    return pieces[0] if len(pieces) == 1 else tuple(pieces)


def compare(plan: Plan, shard: int, *pieces: Signatures) -> NDArray[np.bool_]:
    """Which pairs of a shard show the same image."""
    here = slice(*plan.bounds[shard : shard + 2])
    left, right = plan.left[here], plan.right[here]
    rows = np.unique(np.concatenate([left, right]))
    signatures, shapes = (np.concatenate(column) for column in zip(*pieces, strict=True))
    first, second = np.searchsorted(rows, left), np.searchsorted(rows, right)
    same = np.abs(np.log(shapes[first] / shapes[second])) <= SHAPE_LIMIT
    for at in range(0, len(left), _PAIRS_AT_ONCE):
        some = slice(at, at + _PAIRS_AT_ONCE)
        same[some] &= look_alike(signatures[first[some]], signatures[second[some]])
    return np.asarray(same, bool)


def _signatures(pairs: Product, parts: range, part_bounds: NDArray[np.int64], rows: NDArray[Any]) -> Signatures:
    """Of some rows' images. Reads the row groups that hold them and no others."""
    result = np.zeros((len(rows), 3 * SIGNATURE_SIDE**2), np.uint8)
    shapes = np.ones(len(rows))

    def read(part: int) -> None:
        first, last = np.searchsorted(rows, part_bounds[part : part + 2])
        if first == last:
            return
        wanted = rows[first:last].astype(np.int64) - part_bounds[part]
        for some, table in some_rows(pairs.file(part), wanted, ["image"]):
            for number, image in enumerate(table["image"], start=int(first) + some.start):
                pixels = decode(image.as_py())
                result[number], shapes[number] = signature(pixels), pixels.shape[0] / pixels.shape[1]

    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(read, parts))
    return result, shapes
