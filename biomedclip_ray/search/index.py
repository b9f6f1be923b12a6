"""The index: a Lance table of every embedded pair, opened for search. `build.py` writes it, `query.py` combines what is
found here.

Filters always run before the search: filtering k results afterwards loses rows (16 of 322 came back in one report). A
table, and a filter that few rows pass, is searched exactly (`kept.py`); else so many partitions are probed as reached
the wanted recall when the index was built, at that share of the rows (with the probes of no filter, recall was 0.63
where one row in a thousand passed). Ids and scores are found first, rows are read only for what is returned.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from lance.query import FullTextQuery
from numpy.typing import NDArray

from biomedclip_ray.search import folding, words
from biomedclip_ray.search.filters import Filters, quoted
from biomedclip_ray.search.kept import KEPT_BYTES, Kept
from biomedclip_ray.search.table import (
    SETTINGS,
    TABLE,
    VECTORS,
    BadIndexError,
    Column,
    Found,
    Settings,
    nearest_rows,
    open_table,
)
from biomedclip_ray.store.place import Place

TIERS = (28, 160, 2048)
"""Rows that an approximate search finds, whatever k, and of which the better three quarters are given: so the first k
of a larger k are the smaller k. Whoever reads on gets what a deeper search adds, and after that what an exact one does.
Each row costs 30 us.
"""
_TIES = 8
"""Rows found beyond k by an exact search, to see whether equal ones follow; more where they do."""
_TAKEN = 10_000  # rows read at once
_NOT_SHOWN = frozenset({*VECTORS, "thumbnail", folding.COLUMN})


@dataclass(frozen=True)
class Hit:
    """One found row: its score (cosine, BM25 for words, or what `query.py` makes of several) and its columns."""

    score: float
    row: dict[str, Any]

    @property
    def pair_id(self) -> str:
        return str(self.row["pair_id"])


class Index:
    """An opened index. Safe to use from several threads; holds no rows in memory but vectors of small tables and of
    filters that few rows pass.

    >>> from tempfile import TemporaryDirectory
    >>> from biomedclip_ray.search import build
    >>> rows = [
    ...     {"pair_id": f"PMC{n}.1/F1#0", "article_id": f"PMC{n}.1", "caption": f"IL-6 in {kind}", "figure_kind": kind,
    ...      "image_vector": [np.cos(n), np.sin(n)], "text_vector": [1.0, 0.0], "year": 2020 + n, "bundle": "b"}
    ...     for n, kind in enumerate(["gels", "charts", "gels"])
    ... ]
    >>> folder = TemporaryDirectory()
    >>> index = build.from_rows(folder.name, rows)
    >>> [hit.pair_id for hit in index.search([1.0, 0.1], k=2)]
    ['PMC0.1/F1#0', 'PMC1.1/F1#0']
    >>> [hit.pair_id for hit in index.text_search("IL6 gel", filters=Filters(year_from=2021))]
    ['PMC2.1/F1#0']
    >>> folder.cleanup()
    """

    def __init__(self, dataset: lance.LanceDataset, settings: Settings, place: Place | None = None) -> None:
        self.dataset = dataset
        self.settings = settings
        self.place = place
        self.dimensions = int(dataset.schema.field("image_vector").type.list_size)
        self._shown = [name for name in dataset.schema.names if name not in _NOT_SHOWN]
        self._rows = lru_cache(1024)(lambda where: int(dataset.count_rows(filter=where)))
        self._kept = Kept(dataset)
        # An object store is asked for each of these rows alone: there so many are too many.
        local = place is not None and place.local is not None
        self._kept_rows = max(settings.exact_rows, KEPT_BYTES // (4 * self.dimensions) if local else 0)

    @classmethod
    def open(cls, uri: str) -> Index:
        """Open the index in an embed product's folder (or its `index.lance`).

        Raises:
            BadIndexError: there is none.
        """
        place = Place(uri)
        if place.plain.endswith(f"/{TABLE}"):
            place = Place(place.uri.replace(f"/{TABLE}", "", 1))
        try:
            settings = Settings(**json.loads(place.read(SETTINGS)))
        except FileNotFoundError as error:
            raise BadIndexError(f"{place.uri} holds no finished index; run the embed stage") from error
        return cls(open_table(place), settings, place)

    def withdrawn(self) -> bool:
        """Whether the index was taken back since it was opened, as `--erase` does with one that held what had to go."""
        return self.place is not None and not self.place.exists(SETTINGS)

    def count(self, filters: Filters | None = None) -> int:
        """Rows, of those that pass."""
        return self._rows(filters.sql() if filters else None)

    @property
    def bundle(self) -> str:
        """The bundle whose vectors these are."""
        return str(self.dataset.head(1, columns=["bundle"])["bundle"][0].as_py())

    def search(
        self,
        vector: NDArray[np.floating[Any]] | Sequence[float],
        k: int = 10,
        column: Column = "image_vector",
        filters: Filters | None = None,
        thumbnails: bool = False,
    ) -> list[Hit]:
        """The k rows nearest by cosine among those that pass the filters, best first, equal ones by pair_id.

        Args:
            vector: (d,) of any length but zero.

        Raises:
            ValueError: another number of dimensions, or a vector of zeros, NaN or infinity.
        """
        return self.hits(self.nearest(vector, k, column, filters), thumbnails)

    def text_search(
        self, query: str, k: int = 10, filters: Filters | None = None, thumbnails: bool = False
    ) -> list[Hit]:
        """The k rows whose captions match the words best (BM25), among those that pass the filters: those that hold
        every word (`words.py`), or where there is none, some.
        """
        return self.hits(self.matching(words.read(query), k, filters), thumbnails)

    def nearest(
        self,
        vector: NDArray[np.floating[Any]] | Sequence[float],
        k: int = 10,
        column: Column = "image_vector",
        filters: Filters | None = None,
    ) -> Found:
        """What `search` finds, as row ids and cosines."""
        query = self.unit(vector)
        if k < 1:
            raise ValueError(f"k={k}: at least one row must be asked for")
        where = filters.sql() if filters else None
        passing, rows = self._rows(where), self._rows(None)
        if not passing:
            return _nothing()
        settings = self.settings

        def look(depth: int, probes: int) -> Found:
            return nearest_rows(self.dataset, query, depth, column, where, probes, settings.refine_factor)

        small = passing <= self._kept_rows and (where is not None or settings.exact)
        if small and (vectors := self._kept.of(column, where, passing)):
            return self._first(partial(vectors.nearest, query), k, k + _TIES, passing)
        if settings.exact or passing <= settings.exact_rows:
            return self._first(partial(look, probes=0), k, k + _TIES, passing)
        probes = settings.nprobes(passing / rows)
        found = _nothing()
        for tier in TIERS:
            added = self._first(partial(look, probes=probes), tier * 3 // 4, tier, passing)
            found = _after(found, added)
            if len(found.ids) >= k:
                return Found(found.ids[:k], found.scores[:k])
        added = self._first(partial(look, probes=0), k, k + _TIES, passing)
        found = _after(found, added)
        return Found(found.ids[:k], found.scores[:k])

    def matching(
        self,
        reading: words.Reading,
        k: int = 10,
        filters: Filters | None = None,
        without: tuple[words.Reading, ...] = (),
    ) -> Found:
        """What `text_search` finds, as row ids and BM25 scores; `without` is what a caption must not hold."""
        if not reading.required:
            return _nothing()
        where = filters.sql() if filters else None
        found = _nothing()
        for query in dict.fromkeys((reading.all_of(without), reading.any_of(without))):

            def look(depth: int, query: FullTextQuery = query) -> Found:
                return self._words(query, depth, where)

            found = self._first(look, k, k + _TIES, self._rows(None))
            if len(found.ids):
                break
        return found

    def hits(self, found: Found, thumbnails: bool = False) -> list[Hit]:
        """The rows of what was found, in its order."""
        columns = [*self._shown, "thumbnail"] if thumbnails else self._shown
        rows = self.take(found.ids, columns)
        return [Hit(float(score), row) for score, row in zip(found.scores, rows, strict=True)]

    def take(self, ids: NDArray[np.uint64], columns: list[str]) -> list[dict[str, Any]]:
        """The columns of these rows, in this order."""
        if not len(ids):
            return []
        inside = ",".join(map(str, ids.tolist()))
        table = self.dataset.scanner(columns=columns, filter=f"_rowid IN ({inside})", with_row_id=True).to_table()
        place = {row_id: n for n, row_id in enumerate(table["_rowid"].to_pylist())}
        rows: list[dict[str, Any]] = table.drop_columns(["_rowid"]).take([place[n] for n in ids.tolist()]).to_pylist()
        return rows

    def get(self, pair_id: str) -> dict[str, Any] | None:
        """Every column of one row, thumbnail and vectors too; None where it is not in the index."""
        where = f"pair_id = {quoted(pair_id)}"
        rows: list[dict[str, Any]] = self.dataset.scanner(filter=where, limit=1).to_table().to_pylist()
        return rows[0] if rows else None

    def vector_of(self, pair_id: str, column: Column) -> tuple[int, NDArray[np.float32]]:
        """Row id and vector of one row.

        Raises:
            ValueError: it is not in the index.
        """
        where = f"pair_id = {quoted(pair_id)}"
        rows = self.dataset.scanner(columns=[column], filter=where, limit=1, with_row_id=True).to_table().to_pylist()
        if not rows:
            raise ValueError(f"the index has no {pair_id!r}")
        return rows[0]["_rowid"], np.array(rows[0][column], np.float32)

    def unit(self, vector: NDArray[np.floating[Any]] | Sequence[float]) -> NDArray[np.float32]:
        """A query vector of unit length.

        Raises:
            ValueError: another number of dimensions, or a vector of zeros, NaN or infinity.
        """
        query = np.asarray(vector, np.float32)
        if query.shape != (self.dimensions,):
            raise ValueError(f"the index has {self.dimensions} dimensions, the query shape {query.shape}")
        length = float(np.linalg.norm(query.astype(np.float64)))
        if not (np.isfinite(length) and length > 0):
            raise ValueError("the query vector has no direction (zero or non-finite)")
        return (query / np.float32(length)).astype(np.float32)

    def holding(self, readings: Sequence[words.Reading]) -> NDArray[np.uint64]:
        """Row ids of the captions that hold every unit of one of the readings."""
        found = [self._words(reading.all_of(), None, None).ids for reading in readings if reading.required]
        return np.unique(np.concatenate([np.empty(0, np.uint64), *found]))

    def column(
        self,
        name: str,
        filters: Filters | None = None,
        readings: Sequence[words.Reading] | None = None,
        without: tuple[words.Reading, ...] = (),
    ) -> Iterator[pa.Array]:
        """One column of the rows that pass, and whose captions match one of the readings (as `matching` does) where
        there are some.
        """
        where = filters.sql() if filters else None
        if readings is None:
            for batch in self.dataset.scanner(columns=[name], filter=where).to_batches():
                yield batch[name]
            return
        ids = np.empty(0, np.uint64)
        for reading in readings:
            if reading.required:
                whole = self._words(reading.all_of(without), None, where)
                found = whole if len(whole.ids) else self._words(reading.any_of(without), None, where)
                ids = np.union1d(ids, found.ids)
        for at in range(0, len(ids), _TAKEN):
            rows = self.take(ids[at : at + _TAKEN], [name])
            yield pa.array([row[name] for row in rows], self.dataset.schema.field(name).type)

    def _words(self, query: FullTextQuery, depth: int | None, where: str | None) -> Found:
        scanner = self.dataset.scanner(
            columns=["_score"],
            with_row_id=True,
            full_text_query=query,
            filter=where,
            prefilter=True,
            limit=depth,
            disable_scoring_autoprojection=True,
        )
        table = scanner.to_table()
        return Found(table["_rowid"].to_numpy(), table["_score"].to_numpy())

    def _first(self, look: Any, k: int, depth: int, most: int) -> Found:
        """The first k of what `look` finds, equal scores in the order of pair_id: so it looks on while the last found
        equals the k-th.
        """
        while True:
            depth = min(depth, most)
            found: Found = look(depth)
            ids, scores = found
            order = np.argsort(-scores, kind="stable")
            ids, scores = ids[order], scores[order]
            if len(ids) <= k or depth >= most or len(ids) < depth or scores[-1] < scores[k - 1]:
                break
            depth *= 4
        wanted = int((scores >= scores[k - 1]).sum()) if len(ids) > k else len(ids)
        ids, scores = ids[:wanted], scores[:wanted]
        tied = np.concatenate([scores[1:] == scores[:-1], [False]]) if len(ids) else np.zeros(0, bool)
        tied[1:] |= tied[:-1]
        if tied.any():
            names = np.full(len(ids), "", object)
            names[tied] = [row["pair_id"] for row in self.take(ids[tied], ["pair_id"])]
            order = np.array(sorted(range(len(ids)), key=lambda n: (-scores[n], names[n])))
            ids, scores = ids[order], scores[order]
        return Found(ids[:k], scores[:k])


def _after(found: Found, added: Found) -> Found:
    """What was found, and after it what is new in `added`."""
    new = ~np.isin(added.ids, found.ids)
    return Found(np.concatenate([found.ids, added.ids[new]]), np.concatenate([found.scores, added.scores[new]]))


def _nothing() -> Found:
    return Found(np.empty(0, np.uint64), np.empty(0, np.float32))
