"""Building the index: rows as fragments, then every index as tasks bounded in memory, and the settings with the recall
that they give.

Every step is a list of calls that may run anywhere (`Tasks`); the caller only commits what they wrote: the embed stage
runs them on workers, tests and small tables in turn. Centroids are trained once a vector column, each group of
fragments becomes a segment, the segments are merged and committed once. IVF_RQ (RaBitQ) is the default: on 60,000
vectors it was built 15 to 46 times as fast as IVF_PQ at the same recall and latency. Widths that do not divide by 8
take IVF_PQ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal, NamedTuple

import lance
import pyarrow as pa
from lance.fragment import FragmentMetadata, write_fragments
from lance.indices import IndicesBuilder
from lance.lance import indices as lance_indices

from biomedclip_ray.schema import index_schema
from biomedclip_ray.search import folding, outputs
from biomedclip_ray.search.calibrate import Tasks, calibrate, fragment_groups
from biomedclip_ray.search.filters import quoted
from biomedclip_ray.search.index import Index
from biomedclip_ray.search.table import (
    METRIC,
    SETTINGS,
    TABLE,
    VECTORS,
    BadIndexError,
    Settings,
    open_table,
    storage_options,
)
from biomedclip_ray.store.place import Place

_PQ_CODES = 256
_RQ_BITS = 5  # ranks so well by codes alone that only the wanted rows are read; at 1 bit ten times as many must be
_SAMPLES_A_PARTITION = 64
_TRAIN_ITERATIONS = 10
_WORD_MEMORY_MB = 2048
_DELETED = 1000  # pair ids in one condition

REBUILD_SHARE = 0.2
"""New rows, of those that were there, above which the centroids are trained anew."""

_SCALARS = {
    "pair_id": "BTREE",
    "article_id": "BTREE",
    "pmcid": "BTREE",
    "figure_id": "BTREE",
    "journal": "BTREE",
    "year": "BTREE",
    "figure_kind": "BITMAP",
    "license": "BITMAP",
    "split": "BITMAP",
}


def in_turn(calls: list[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[Any]:
    """Tasks in this process, one after another."""
    return [function(*arguments) for function, arguments in calls]


def from_rows(folder: str, rows: list[dict[str, Any]], ann_rows: int = 100_000) -> Index:
    """A finished index of a few rows in a folder; columns that are not given are null, `words` are those of the
    caption.
    """
    schema = index_schema(len(rows[0]["image_vector"]))
    known = ("article_id", "pmid", "doi")
    table = pa.Table.from_pylist(
        [
            {
                "words": folding.document(row.get("caption") or "", *(row.get(name) for name in known)),
                "pmcid": (row.get("article_id") or "").partition(".")[0],
                "figure_id": row["pair_id"].partition("#")[0],
                **row,
            }
            for row in rows
        ],
        schema=schema,
    )
    place = Place(folder)
    commit(place, write_rows(place, [table], schema), schema, len(rows))
    finish(place, ann_rows)
    return Index.open(folder)


def write_rows(
    place: Place, tables: Iterable[pa.Table], schema: pa.Schema, mode: Literal["create", "append"] = "create"
) -> list[FragmentMetadata]:
    """Write rows as fragments that no version of the table holds yet; many processes may do so at once.

    Args:
        mode: append where there is a table, which they are to be part of.
    """
    batches = (batch for table in tables for batch in table.cast(schema).to_batches())
    reader = pa.RecordBatchReader.from_batches(schema, batches)
    uri = place.at(TABLE).plain
    written: list[FragmentMetadata] = write_fragments(
        reader, uri, schema, mode=mode, storage_options=storage_options(place)
    )
    return written


def commit(place: Place, fragments: list[FragmentMetadata], schema: pa.Schema, rows: int) -> lance.LanceDataset:
    """Make the table of all fragments in one commit and count it.

    Raises:
        BadIndexError: no rows, or another number than `rows`.
    """
    uri = place.at(TABLE).plain
    if not rows:
        raise BadIndexError(f"{uri}: no rows to index")
    operation = lance.LanceOperation.Overwrite(schema, fragments)
    dataset = lance.LanceDataset.commit(uri, operation, storage_options=storage_options(place))
    check_rows(place, rows)
    return dataset


def check_rows(place: Place, rows: int) -> None:
    """Raises BadIndexError where the table holds another number of rows."""
    there = open_table(place).count_rows()
    if there != rows:
        raise BadIndexError(f"{place.at(TABLE).plain} holds {there} rows after its commit, expected {rows}")


def finish(place: Place, ann_rows: int, tasks: Tasks = in_turn, seed: int = 0) -> Settings:
    """Build the scalar and word indices and, from `ann_rows` rows, the vector indices; write the settings last."""
    dataset = open_table(place)
    trained = VECTORS if dataset.count_rows() >= ann_rows else ()
    groups = fragment_groups(dataset)
    whole = [fragment for group in groups for fragment in group]
    made = _run(
        tasks,
        {("model", column): (train, (place, column)) for column in trained}
        | {column: (scalar_segment, (place, column, kind, whole)) for column, kind in _SCALARS.items()}
        | {(folding.COLUMN, n): (word_segment, (place, group)) for n, group in enumerate(groups)}
        | {"outputs": (outputs.measure, (place, seed))},
    )
    made |= _run(
        tasks,
        {
            (column, n): (vector_segment, (place, made["model", column], group))
            for column in trained
            for n, group in enumerate(groups)
        },
    )
    made |= _run(
        tasks,
        {
            column: (merge, (place, [made[column, n] for n in range(len(groups))]))
            for column in (folding.COLUMN, *trained)
        },
    )
    for column in (*_SCALARS, folding.COLUMN, *trained):
        dataset = dataset.commit_existing_index_segments(f"{column}_idx", column, [made[column]])
    settings: Settings = replace(Settings(), **made["outputs"])
    if trained:
        settings = calibrate(place, settings, tasks, seed)
    place.write(SETTINGS, json.dumps(asdict(settings), indent=1).encode())
    return settings


def _run(tasks: Tasks, calls: dict[Any, tuple[Callable[..., Any], tuple[Any, ...]]]) -> dict[Any, Any]:
    """The results of calls by their names."""
    return dict(zip(calls, tasks(list(calls.values())), strict=True))


def extend(
    place: Place,
    written: Sequence[FragmentMetadata],
    withdrawn: Sequence[str],
    ann_rows: int,
    tasks: Tasks = in_turn,
    seed: int = 0,
) -> Settings:
    """Bring a copy of a finished table up to date: what was written is appended, withdrawn pair ids are deleted, the
    indices extended by what is new, and recall measured again. Centroids and partitions stay, so this costs as much as
    the new rows do, until `REBUILD_SHARE` of the rows is new: then every index is built anew.
    """
    before = open_table(place).count_rows()
    rows = tasks([(_change, (place, written, withdrawn))])[0]
    settings = Settings(**json.loads(place.read(SETTINGS)))
    new = sum(fragment.num_rows for fragment in written)
    if new > REBUILD_SHARE * before or settings.exact != (rows < ann_rows):
        dataset = open_table(place)
        for index in dataset.describe_indices():
            dataset.drop_index(index.name)
        return finish(place, ann_rows, tasks, seed)
    tasks([(_index_new, (place,))])
    if not settings.exact:
        settings = calibrate(place, settings, tasks, seed)
    place.write(SETTINGS, json.dumps(asdict(settings), indent=1).encode())
    return settings


def _change(place: Place, written: Sequence[FragmentMetadata], withdrawn: Sequence[str]) -> int:
    """Delete rows and append others; how many there are then."""
    dataset = open_table(place)
    for at in range(0, len(withdrawn), _DELETED):
        inside = ", ".join(quoted(name) for name in withdrawn[at : at + _DELETED])
        dataset.delete(f"pair_id IN ({inside})")
    if written:
        operation = lance.LanceOperation.Append(written)
        dataset = lance.LanceDataset.commit(dataset, operation, read_version=dataset.version)
    return int(dataset.count_rows())


def _index_new(place: Place) -> None:
    # Without a number Lance joins small partitions (128 became 2 or 3), and the probes that were measured mean nothing.
    # Words must be indexed before anybody searches: rows outside the index are scored by another corpus.
    open_table(place).optimize.optimize_indices(num_indices_to_merge=1)


class VectorModel(NamedTuple):
    """What all segments of a vector index share."""

    column: str
    kind: str
    centroids: pa.FixedSizeListArray
    codes: Any
    """RaBitQ's rotation (JSON), or PQ's codebook."""


def train(place: Place, column: str) -> VectorModel:
    """Train the centroids of a vector column on a sample of its rows, and what its codes need."""
    dataset = open_table(place)
    rows = dataset.count_rows()
    partitions = partitions_for(rows)
    builder = IndicesBuilder(dataset, column)
    ivf = builder.train_ivf(
        partitions,
        distance_type=METRIC,
        sample_rate=max(1, min(_SAMPLES_A_PARTITION, rows // partitions)),
        max_iters=_TRAIN_ITERATIONS,
    )
    width = builder.dimension
    if width % 8 == 0:
        return VectorModel(column, "IVF_RQ", ivf.centroids, lance_indices.build_rq_model(width, _RQ_BITS, "float32"))
    sub_vectors = next(n for n in range(max(1, width // 8), 0, -1) if width % n == 0)
    pq = builder.train_pq(ivf, sub_vectors, sample_rate=min(256, rows // _PQ_CODES))
    return VectorModel(column, "IVF_PQ", ivf.centroids, pq.codebook)


def partitions_for(rows: int) -> int:
    """The square root of the rows: probing and choosing partitions then cost about the same."""
    return max(1, round(rows**0.5))


def vector_segment(place: Place, model: VectorModel, fragments: list[int]) -> Any:
    """The segment of a vector index over these fragments."""
    kinds: dict[str, Any] = {"rabitq_model": model.codes, "num_bits": _RQ_BITS}
    if model.kind == "IVF_PQ":
        width = model.codes.type.list_size
        sub_vectors = model.centroids.type.list_size // width
        kinds = {"pq_codebook": model.codes, "num_sub_vectors": sub_vectors}
    return open_table(place).create_index_uncommitted(
        model.column,
        model.kind,
        name=f"{model.column}_idx",
        metric=METRIC,
        num_partitions=len(model.centroids),
        ivf_centroids=model.centroids,
        fragment_ids=fragments,
        **kinds,
    )


def scalar_segment(place: Place, column: str, kind: str, fragments: list[int]) -> Any:
    """A scalar index of one column."""
    return open_table(place).create_index_uncommitted(column, kind, name=f"{column}_idx", fragment_ids=fragments)


def word_segment(place: Place, fragments: list[int]) -> Any:
    """The segment of the word index over these fragments."""
    return open_table(place).create_index_uncommitted(
        folding.COLUMN,
        "INVERTED",
        name=f"{folding.COLUMN}_idx",
        fragment_ids=fragments,
        memory_limit=_WORD_MEMORY_MB,
        **folding.INVERTED_INDEX,
    )


def merge(place: Place, segments: list[Any]) -> Any:
    """One segment of many: words are scored by one corpus, and a search opens one file."""
    return segments[0] if len(segments) == 1 else open_table(place).merge_existing_index_segments(segments)
