"""The index: a Lance table of every embedded pair, exact search on a small one, IVF_PQ on a large one.

Filters always run before the search: filtering k results afterwards loses rows (16 of 322 came back in one report), and
a filter that one row in a thousand passes must still give min(k, all that pass). Below `embed.ann_rows` search is exact,
which at 100,000 rows of 512 numbers took 270 ms on two busy cores; above, the probe count is
raised until measured recall is good enough, and the settings are stored with the recall they gave.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import lance
import numpy as np
import pyarrow as pa
from lance.fragment import FragmentMetadata, write_fragments
from numpy.typing import NDArray

from biomedclip_ray.store.place import Place
from biomedclip_ray.store.product import StageError

TABLE = "index.lance"
SETTINGS = "search.json"
METRIC = "cosine"
VECTORS = ("image_vector", "text_vector")

WANTED_RECALL = 0.95
_REFINE = (10, 50)  # so many times k rows are re-ranked with their whole vectors: a row must find itself first
_QUERIES = 200
_NOT_SHOWN = frozenset({*VECTORS, "thumbnail"})

Column = Literal["image_vector", "text_vector"]


class BadIndexError(StageError):
    """An index that is not there, is empty, or does not hold the rows that it should."""


@dataclass(frozen=True)
class Filters:
    """What a row must be to be searched at all; None does not filter."""

    kinds: tuple[str, ...] | None = None
    licenses: tuple[str, ...] | None = None
    splits: tuple[str, ...] | None = None
    year_from: int | None = None
    year_to: int | None = None

    def sql(self) -> str | None:
        """The condition in Lance's SQL; values are quoted, so that any text is only a value."""
        terms = []
        for column, values in (("figure_kind", self.kinds), ("license", self.licenses), ("split", self.splits)):
            if values is not None:
                quoted = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
                terms.append(f"{column} IN ({quoted})" if values else "false")
        if self.year_from is not None:
            terms.append(f"year >= {int(self.year_from)}")
        if self.year_to is not None:
            terms.append(f"year <= {int(self.year_to)}")
        return " AND ".join(terms) or None


@dataclass(frozen=True)
class Hit:
    """One found row: its score (cosine, or BM25 for text search) and its columns."""

    score: float
    row: dict[str, Any]

    @property
    def pair_id(self) -> str:
        return str(self.row["pair_id"])


@dataclass(frozen=True)
class Settings:
    """How the table is searched, and the recall@10 that this gave when it was built."""

    exact: bool = True
    nprobes: int = 0
    refine_factor: int = 0
    recall: dict[str, float] = field(default_factory=dict)


class Index:
    """An opened index. Safe to use from several threads; holds no rows in memory."""

    def __init__(self, dataset: lance.LanceDataset, settings: Settings) -> None:
        self.dataset = dataset
        self.settings = settings
        self.dimensions = int(dataset.schema.field("image_vector").type.list_size)
        self._shown = [name for name in dataset.schema.names if name not in _NOT_SHOWN]

    @classmethod
    def open(cls, uri: str) -> Index:
        """Open the index in an embed product's folder (or its `index.lance`).

        Raises:
            BadIndexError: there is none.
        """
        place = Place(uri.rstrip("/").removesuffix("/" + TABLE))
        try:
            settings = Settings(**json.loads(place.read(SETTINGS)))
        except FileNotFoundError as error:
            raise BadIndexError(f"{place.uri} holds no finished index; run the embed stage") from error
        return cls(_open(place), settings)

    def count(self, filters: Filters | None = None) -> int:
        """Rows, of those that pass."""
        return int(self.dataset.count_rows(filter=filters.sql() if filters else None))

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
        query = np.asarray(vector, np.float32)
        if query.shape != (self.dimensions,):
            raise ValueError(f"the index has {self.dimensions} dimensions, the query shape {query.shape}")
        length = float(np.linalg.norm(query))
        if not (np.isfinite(length) and length > 0):
            raise ValueError("the query vector has no direction (zero, NaN or infinite)")
        if k < 1:
            raise ValueError(f"k={k}: at least one row must be asked for")
        columns = [*self._shown, "thumbnail"] if thumbnails else self._shown
        where = filters.sql() if filters else None
        rows = _nearest(self.dataset, query, k, column, columns, where, self.settings)
        if not self.settings.exact and len(rows) < k:
            # too few of the probed partitions' rows pass: the scalar index leaves little to search exactly
            rows = _nearest(self.dataset, query, k, column, columns, where, Settings())
        return sorted((Hit(1.0 - row.pop("_distance"), row) for row in rows), key=lambda hit: (-hit.score, hit.pair_id))

    def text_search(
        self, query: str, k: int = 10, filters: Filters | None = None, thumbnails: bool = False
    ) -> list[Hit]:
        """The k rows whose caption matches the words best (BM25), among those that pass the filters."""
        if not query.strip():
            return []
        columns = [*self._shown, "thumbnail"] if thumbnails else self._shown
        scanner = self.dataset.scanner(
            columns=columns,
            full_text_query={"query": query, "columns": ["caption"]},
            filter=filters.sql() if filters else None,
            prefilter=True,
            limit=k,
            disable_scoring_autoprojection=False,
        )
        rows = scanner.to_table().to_pylist()
        return sorted((Hit(row.pop("_score"), row) for row in rows), key=lambda hit: (-hit.score, hit.pair_id))

    def get(self, pair_id: str) -> dict[str, Any] | None:
        """Every column of one row, thumbnail and vectors too; None where it is not in the index."""
        quoted = pair_id.replace("'", "''")
        rows: list[dict[str, Any]] = (
            self.dataset.scanner(filter=f"pair_id = '{quoted}'", limit=1).to_table().to_pylist()
        )
        return rows[0] if rows else None


def write_rows(place: Place, tables: Iterable[pa.Table], schema: pa.Schema) -> list[FragmentMetadata]:
    """Write rows as fragments that no version of the table holds yet; many processes may do so at once."""
    batches = (batch for table in tables for batch in table.cast(schema).to_batches())
    reader = pa.RecordBatchReader.from_batches(schema, batches)
    uri = f"{place.uri}/{TABLE}"
    written: list[FragmentMetadata] = write_fragments(
        reader, uri, schema, mode="create", storage_options=storage_options(uri)
    )
    return written


def commit(place: Place, fragments: list[FragmentMetadata], schema: pa.Schema, rows: int) -> lance.LanceDataset:
    """Make the table of all fragments in one commit and count it.

    Raises:
        BadIndexError: no rows, or another number than `rows`.
    """
    uri = f"{place.uri}/{TABLE}"
    if not rows:
        raise BadIndexError(f"{uri}: no rows to index")
    operation = lance.LanceOperation.Overwrite(schema, fragments)
    dataset = lance.LanceDataset.commit(uri, operation, storage_options=storage_options(uri))
    there = dataset.count_rows()
    if there != rows:
        raise BadIndexError(f"{uri} holds {there} rows after its commit, expected {rows}")
    return dataset


def finish(place: Place, ann_rows: int, seed: int = 0) -> Settings:
    """Build the scalar, text and, from `ann_rows` rows, vector indices, and write the settings last."""
    dataset = _open(place)
    for column, kind in (
        ("pair_id", "BTREE"),
        ("year", "BTREE"),
        ("figure_kind", "BITMAP"),
        ("license", "BITMAP"),
        ("split", "BITMAP"),
        ("caption", "INVERTED"),
    ):
        dataset.create_scalar_index(column, index_type=kind)
    settings = Settings() if dataset.count_rows() < ann_rows else _approximate(dataset, seed)
    place.write(SETTINGS, json.dumps(asdict(settings), indent=1).encode())
    return settings


def _approximate(dataset: lance.LanceDataset, seed: int) -> Settings:
    """Build IVF_PQ on both vectors and find the fewest probes, and rows re-ranked, that reach the wanted recall.

    Queries are rows of the table, by the searched column's own vectors and by the other's, and each of these must reach it
    alone: captions lie apart from pictures (the modality gap), and a probe count that serves pictures fails text queries.
    """
    rows = dataset.count_rows()
    dimensions = dataset.schema.field("image_vector").type.list_size
    partitions = max(1, round(rows**0.5))
    sub_vectors = next(n for n in range(max(1, dimensions // 8), 0, -1) if dimensions % n == 0)
    for column in VECTORS:
        dataset.create_index(
            column, "IVF_PQ", metric=METRIC, num_partitions=partitions, num_sub_vectors=sub_vectors, replace=True
        )
    chosen = np.random.default_rng(seed).choice(rows, min(_QUERIES, rows), replace=False)
    sample = dataset.take(np.sort(chosen).tolist(), columns=list(VECTORS))
    queries = {name: np.array(sample[name].to_pylist(), np.float32) for name in VECTORS}
    every = np.concatenate(list(queries.values()))
    truth = {column: np.split(exact_neighbours(dataset, column, every), len(VECTORS)) for column in VECTORS}
    for refine_factor in _REFINE:
        probes = 1
        while True:
            settings = Settings(False, probes, refine_factor)
            recall = {
                f"{name} in {column}@10": round(_recall(dataset, column, queries[name], exact, settings), 4)
                for column in VECTORS
                for name, exact in zip(queries, truth[column], strict=True)
            }
            if min(recall.values()) >= WANTED_RECALL or probes >= partitions:
                break
            probes = min(2 * probes, partitions)
        if min(recall.values()) >= WANTED_RECALL:
            break
    return replace(settings, recall=recall)


def exact_neighbours(
    dataset: lance.LanceDataset, column: str, queries: NDArray[np.float32], k: int = 10
) -> NDArray[np.uint64]:
    """Row ids of the k nearest rows of each query, (queries, k); one scan of the table serves all queries.

    A search for each query alone would read the column two hundred times: hours at fifteen million rows.
    """
    best = np.full((len(queries), k), -np.inf, np.float32)
    ids = np.zeros((len(queries), k), np.uint64)
    for batch in dataset.scanner(columns=[column], with_row_id=True, batch_size=8192).to_batches():
        vectors = batch[column].flatten().to_numpy(zero_copy_only=False).reshape(batch.num_rows, -1)
        scores = np.concatenate([best, queries @ vectors.T], axis=1)
        row_ids = np.broadcast_to(batch["_rowid"].to_numpy(zero_copy_only=False), (len(queries), batch.num_rows))
        keep = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        best = np.take_along_axis(scores, keep, axis=1)
        ids = np.take_along_axis(np.concatenate([ids, row_ids], axis=1), keep, axis=1)
    return ids


def _recall(
    dataset: lance.LanceDataset,
    column: str,
    queries: NDArray[np.float32],
    truth: NDArray[np.uint64],
    settings: Settings,
) -> float:
    """Share of the exact neighbours that the settings find, over all queries."""
    found = 0
    for query, exact in zip(queries, truth, strict=True):
        nearest = _nearest(dataset, query, truth.shape[1], column, ["_rowid"], None, settings)
        found += len({row["_rowid"] for row in nearest} & set(exact.tolist()))
    return found / truth.size


def _nearest(
    dataset: lance.LanceDataset,
    query: NDArray[np.float32],
    k: int,
    column: str,
    columns: list[str],
    where: str | None,
    settings: Settings,
) -> list[dict[str, Any]]:
    nearest: dict[str, Any] = {"column": column, "q": query, "k": k, "metric": METRIC, "use_index": not settings.exact}
    if not settings.exact:
        nearest |= {"nprobes": settings.nprobes, "refine_factor": settings.refine_factor}
    scanner = dataset.scanner(columns=[*columns, "_distance"], nearest=nearest, filter=where, prefilter=True)
    rows: list[dict[str, Any]] = scanner.to_table().to_pylist()
    return rows


def _open(place: Place) -> lance.LanceDataset:
    uri = f"{place.uri}/{TABLE}"
    return lance.dataset(uri, storage_options=storage_options(uri))


def storage_options(uri: str) -> dict[str, str] | None:
    """What Lance's own S3 client must be told that pyarrow reads from the environment."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not uri.startswith("s3://") or not endpoint:
        return None
    return {"aws_endpoint": endpoint, "allow_http": str(endpoint.startswith("http://")).lower()}
