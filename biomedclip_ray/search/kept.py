"""Vectors of the rows that a filter lets pass, read once and kept: a search is then one product in memory.

Lance reads the vectors of such rows anew for every search, and a search by the index has a floor of 5 ms: at 300,000
rows a filter that a tenth passes took 14 ms, at a million one that one in a thousand passes 12. From memory 10,000
rows of width 512 take 0.7 ms and 30,000 2.5, exactly, and what a filter costs at first is paid once: 5 to 12 us a row.
It is paid at once and not behind the first answer, whose next page would else be of another order.

Where there are more filters than room, one that is asked seldom does not push out one that is asked often: reading
vectors again for every question costs more than the index does.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from threading import Lock
from typing import NamedTuple

import lance
import numpy as np
from numpy.typing import NDArray

from biomedclip_ray.clip.vectors import to_matrix
from biomedclip_ray.search.table import Found

KEPT_BYTES = 64 * 2**20
"""Of one filter's vectors at most, else they are not kept: 32,768 rows of width 512, 0.3 s when first asked, and 1.4
where the table's files are not in memory either.
"""
ALL_BYTES = 512 * 2**20
"""Of all filters together."""
_HALVED = 10_000  # questions after which the count of each filter is halved


class Vectors(NamedTuple):
    """Row ids (n,) and their vectors (n, d) of unit length."""

    ids: NDArray[np.uint64]
    unit: NDArray[np.float32]

    def nearest(self, query: NDArray[np.float32], depth: int) -> Found:
        """The `depth` nearest rows by cosine, in no order; `query` (d,) is of unit length."""
        # Row by row: a product of all at once gives equal vectors scores that differ in the last bit, and takes 20
        # times as long where other processes keep the cores busy.
        ids, scores = self.ids, np.vecdot(self.unit, query)
        if depth < len(ids):
            best = np.argpartition(-scores, depth - 1)[:depth]
            ids, scores = ids[best], scores[best]
        return Found(ids, scores)


class Kept:
    """Of one table. Safe to use from several threads."""

    def __init__(self, dataset: lance.LanceDataset) -> None:
        self._dataset = dataset
        self._held: OrderedDict[tuple[str, str | None], Vectors] = OrderedDict()
        self._asked: Counter[tuple[str, str | None]] = Counter()
        self._questions = 0
        self._lock = Lock()

    def of(self, column: str, where: str | None, rows: int) -> Vectors | None:
        """The vectors of the `rows` rows that pass; None where others need the room more."""
        key = (column, where)
        width = 4 * self._dataset.schema.field(column).type.list_size
        with self._lock:
            self._count(key)
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
            if self._in_the_way(key, rows * width) is None:
                return None
        made = self._read(column, where)
        with self._lock:
            others = self._in_the_way(key, made.unit.nbytes)
            if others is not None:  # meanwhile another may have taken the room
                for other in others:
                    del self._held[other]
                self._held[key] = made
        return made

    def _count(self, key: tuple[str, str | None]) -> None:
        self._asked[key] += 1
        self._questions += 1
        if self._questions % _HALVED == 0:  # what was asked long ago counts ever less
            self._asked = Counter({each: count // 2 for each, count in self._asked.items() if count > 1})

    def _in_the_way(self, key: tuple[str, str | None], size: int) -> list[tuple[str, str | None]] | None:
        """What must go for so many bytes: what is asked least, and of that what was asked longest ago; None where it is
        asked as often as `key`.
        """
        over = sum(vectors.unit.nbytes for vectors in self._held.values()) + size - ALL_BYTES
        found = []
        for other, vectors in sorted(self._held.items(), key=lambda item: self._asked[item[0]]):
            if over <= 0:
                break
            if self._asked[other] >= self._asked[key]:
                return None
            over -= vectors.unit.nbytes
            found.append(other)
        return found

    def _read(self, column: str, where: str | None) -> Vectors:
        table = self._dataset.scanner(columns=[column], filter=where, with_row_id=True).to_table()
        vectors = to_matrix(table[column])
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32, copy=False)
        return Vectors(table["_rowid"].to_numpy(), unit)
