"""Vectors of the rows that a filter lets pass, read once and kept: where few pass, a search is one product in memory.

Lance reads the vectors of such rows anew for every search, 12 us each: at a million rows a filter that one in a
thousand passes took 12 ms, and probing half of the partitions for one that one in a hundred passes 20. From memory they
take 0.1 and 0.8 ms, exactly, and what a filter costs at first is paid once: 0.12 s for 10,000 rows.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

import lance
import numpy as np
from numpy.typing import NDArray

from biomedclip_ray.clip.vectors import to_matrix
from biomedclip_ray.search.table import Found

KEPT_ROWS = 10_000
"""Rows that pass a filter at most, for their vectors to be kept."""
KEPT_BYTES = 256 * 2**20
"""Of all filters together; the one that was asked longest ago goes first."""


class Kept:
    """Of one table. Safe to use from several threads."""

    def __init__(self, dataset: lance.LanceDataset) -> None:
        self._dataset = dataset
        self._held: OrderedDict[tuple[str, str | None], tuple[NDArray[np.uint64], NDArray[np.float32]]] = OrderedDict()
        self._lock = Lock()

    def nearest(self, query: NDArray[np.float32], depth: int, column: str, where: str | None) -> Found:
        """The `depth` nearest rows by cosine, in no order, of those that pass; `query` (d,) is of unit length."""
        ids, vectors = self._of(column, where)
        # Row by row: a product of all at once gives equal vectors scores that differ in the last bit, and takes 20
        # times as long where other processes keep the cores busy.
        scores = np.vecdot(vectors, query)
        if depth < len(ids):
            best = np.argpartition(-scores, depth - 1)[:depth]
            ids, scores = ids[best], scores[best]
        return Found(ids, scores)

    def _of(self, column: str, where: str | None) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
        """Row ids (n,) and unit vectors (n, d)."""
        key = (column, where)
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        table = self._dataset.scanner(columns=[column], filter=where, with_row_id=True).to_table()
        vectors = to_matrix(table[column])
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32, copy=False)
        made = table["_rowid"].to_numpy(), unit
        with self._lock:
            self._held[key] = made
            while sum(vectors.nbytes for _, vectors in self._held.values()) > KEPT_BYTES and len(self._held) > 1:
                self._held.popitem(last=False)
        return made
