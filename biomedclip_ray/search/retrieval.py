"""Retrieval through the index: what held-out captions and figures find among all that is indexed, beside what an exact
search finds, and the index's own recall.

Exact ranks of all with all (`evaluate/ranks.py`) grow with the square of the pool: 2.2 core-hours at 725,739 pairs,
forty days at fifteen million. Here a question costs milliseconds, and QUERIES of them tell a recall to 3 points. What
the index misses is measured on the same questions, by one scan of the vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from biomedclip_ray.clip.vectors import to_matrix
from biomedclip_ray.config import ConfigError
from biomedclip_ray.evaluate.intervals import METHOD, Clusters, Figure, means
from biomedclip_ray.evaluate.ranks import DIRECTIONS
from biomedclip_ray.evaluate.retrieval import KS, against
from biomedclip_ray.search.calibrate import fragment_groups, true_neighbours
from biomedclip_ray.search.filters import quoted
from biomedclip_ray.search.index import Index
from biomedclip_ray.search.table import Column

QUERIES = 1_000
NEIGHBOURS = 10
"""Of an exact search, that the index's own recall is measured on."""
_SIDES = dict(zip(DIRECTIONS, (("text_vector", "image_vector"), ("image_vector", "text_vector")), strict=True))
_THREADS = 4
_BATCH = 8_192


class Asked(NamedTuple):
    """The questions: rows of the index, their places in the order of its scan, and what they belong to."""

    ids: NDArray[np.uint64]
    places: NDArray[np.int64]
    clusters: Clusters
    vectors: dict[str, NDArray[np.float32]]


def through_index(index: Index, split: str, draws: int, seed: int, queries: int = QUERIES) -> dict[str, Any]:
    """Figures of at most `queries` pairs of a split, drawn by chance, among all rows of the index.

    Returns:
        {rows, queries, kind, ...}, and for each direction {"approximate", "exact": {recall@k: figure}, "index": figure
        of the share of the ten true neighbours that the index finds}; a figure is {value, low, high, chance, ...}.

    Raises:
        ConfigError: the index holds no pair of that split.
    """
    asked = _draw(index, split, queries, seed)
    rows = index.count()
    ks = [k for k in KS if k < rows or k <= NEIGHBOURS]
    out: dict[str, Any] = {
        "bundle": index.bundle,
        "split": split,
        "rows": rows,
        "queries": len(asked.ids),
        "kind": index.settings.kind,
        "interval": METHOD,
        "seed": seed,
    }
    for direction, (ours, theirs) in _SIDES.items():
        vectors, column = asked.vectors[ours], cast(Column, theirs)

        def found(row: int, vectors: NDArray[np.float32] = vectors, column: Column = column) -> NDArray[np.uint64]:
            return index.nearest(vectors[row], max(ks), column).ids

        with ThreadPoolExecutor(_THREADS) as threads:
            nearest = list(threads.map(found, range(len(vectors))))
        place = [_place(ids, own) for ids, own in zip(nearest, asked.ids, strict=True)]
        approximate = {f"recall@{k}": np.array([float(p < k) for p in place]) for k in ks}
        ranks = against(vectors, lambda column=column: _blocks(index, column), asked.places[None])  # type: ignore[misc]
        exact = {f"recall@{k}": ranks.hits(k) for k in ks}
        truth = _true_neighbours(index, column, vectors)
        shared = np.array(
            [len(np.intersect1d(ids[:NEIGHBOURS], own)) / len(own) for ids, own in zip(nearest, truth, strict=True)]
        )
        out[direction] = {
            "approximate": _figures(approximate, asked.clusters, rows, draws, seed),
            "exact": _figures(exact, asked.clusters, rows, draws, seed),
            "index": means({"index": shared}, asked.clusters, draws, seed)["index"],
        }
    return out


def _draw(index: Index, split: str, queries: int, seed: int) -> Asked:
    where = f"split = {quoted(split)}"
    ids, held = [], []
    for batch in index.dataset.scanner(columns=["split"], with_row_id=True).to_batches():
        ids.append(batch["_rowid"].to_numpy(zero_copy_only=False))
        held.append(pc.equal(batch["split"], split).to_numpy(zero_copy_only=False))
    every, own = np.concatenate(ids), np.flatnonzero(np.concatenate(held))
    if not len(own):
        raise ConfigError(f"the index holds no pair with {where}; embed.splits decides which it holds")
    places = np.sort(np.random.default_rng(seed).permutation(own)[:queries])
    columns = ["article_id", "text_vector", "image_vector"]
    rows = index.take(every[places], columns)
    vectors = {name: np.array([row[name] for row in rows], np.float32) for name in columns[1:]}
    return Asked(every[places], places, Clusters.number(np.array([row["article_id"] for row in rows])), vectors)


def _blocks(index: Index, column: str) -> Iterator[NDArray[np.float32]]:
    """All vectors of a column in the order of a scan."""
    for batch in index.dataset.scanner(columns=[column], batch_size=_BATCH).to_batches():
        yield to_matrix(pa.chunked_array([batch[column]]))


def _true_neighbours(index: Index, column: str, vectors: NDArray[np.float32]) -> NDArray[np.uint64]:
    """(queries, ten or all): row ids of the nearest."""
    if index.place is None:
        raise ValueError("the index has no place to read it from; open it with Index.open")
    every = [number for group in fragment_groups(index.dataset) for number in group]
    ((scores, ids),) = true_neighbours(index.place, column, {"asked": vectors}, [("", 1.0, None)], every)
    return ids[:, np.isfinite(scores).all(axis=0)]


def _place(ids: NDArray[np.uint64], own: np.uint64) -> float:
    """Where a row stands among those found, from 0; infinity where it does not."""
    at = np.flatnonzero(ids == own)
    return float(at[0]) if len(at) else float("inf")


def _figures(
    columns: dict[str, NDArray[np.float64]], clusters: Clusters, rows: int, draws: int, seed: int
) -> dict[str, Figure]:
    out = means(columns, clusters, draws, seed)
    for name, figure in out.items():
        figure["chance"] = min(1.0, int(name.partition("@")[2]) / rows)
    return out
