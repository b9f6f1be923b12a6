"""Stage: a bundle and the kept pairs -> both vectors, what search shows and filters by, and the Lance table of them.

Two passes. Parts first: each is encoded once and stands in data/ as Parquet, so an interrupted run resumes by part.
Then the table is written from there, fragments by many tasks and one commit by the driver, and its rows are counted
against pairs less ledger. An interrupted second pass starts again: it is minutes of copying, where one part is minutes
of a GPU. The map (x, y) is the plane of the largest variance of the image vectors, fitted between the passes: a
projection places any later vector too, which t-SNE cannot.

After a sync that left the weights as they were, both passes take over what they can (`sync.py`).
"""

from __future__ import annotations

import io
import math
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray
from PIL import Image

from biomedclip_ray.clip.vectors import check_unit, encode_pairs, to_column, to_matrix
from biomedclip_ray.config import Config, ConfigError, Embed, PartResources
from biomedclip_ray.corpus.aligned import check_aligned
from biomedclip_ray.corpus.curate import curate
from biomedclip_ray.run.capacity import Capacity, known
from biomedclip_ray.run.nodes import wait_for_nodes
from biomedclip_ray.run.placement import place
from biomedclip_ray.run.stage import Made, RunParts, Stage
from biomedclip_ray.schema import Reason, index_schema
from biomedclip_ray.search import build, folding
from biomedclip_ray.search.sync import Earlier, extend, find_earlier
from biomedclip_ray.search.table import TABLE
from biomedclip_ray.store.attempt import Attempt
from biomedclip_ray.store.ledger import Ledger, PartResult
from biomedclip_ray.store.parquet import conform
from biomedclip_ray.store.product import Product, StageError

VERSION = 4

PARTS_PER_FRAGMENT = 64
"""About 130,000 pairs and a gigabyte: fifteen million pairs are some hundred fragments."""

MAP_ROWS = 20_000
"""Image vectors that the map's plane is fitted to."""

MAP = "map.npy"
"""What `plane` gave for this table's map: an index that extends it places its rows by the same."""

_SHOWN = (
    "pair_id article_id pmcid figure_id panel label caption title journal year license doi pmid figure_kind".split()
)


class NonFiniteError(StageError):
    """A bundle whose towers overflow or whose weights hold NaN."""


def _content(config: Config, bundle: Product, pairs: Product, corpus: Product) -> dict[str, Any]:
    return config.embed.content()


def _work(
    attempt: Attempt, run_parts: RunParts, config: Config, bundle: Product, pairs: Product, corpus: Product
) -> Made:
    """Raises ConfigError where no pair passes, NonFiniteError where too many have no vector, BadIndexError where the
    table holds other rows than data/.
    """
    section = config.embed
    attempt.parts = pairs.parts
    earlier = find_earlier(
        pairs, bundle, lambda trained, before: embed.plan(config, trained, before, curate.plan(config, before))
    )
    attempt.parent = earlier.embedded if earlier else None
    run_parts(_Embedder, section.resources, (bundle.place.at("bundle").uri, pairs, corpus, section, earlier))
    expected = checked(attempt, section)
    if expected <= 0:
        raise ConfigError(f"embed.splits={list(section.splits)}: {corpus.uri} keeps no pair of them; name other splits")
    index = _build(attempt, expected, section.resources, section.ann_rows, earlier)
    return Made({"index": {"rows": expected, **index}}, section.transient_limit)


def _fit(config: Config, capacity: Capacity, *_: Any) -> list[str]:
    return capacity.lacks("embed.resources", config.embed.resources)


embed = Stage("embed", VERSION, _content, _work, fit=_fit)
"""Reads the bundle, the pairs and the corpus; the table lies at the product's place, `Index.open` reads it."""


def select(corpus: pa.Table, splits: tuple[str, ...]) -> tuple[NDArray[np.int64], Ledger]:
    """Rows of one part that are embedded, and the ledger of the others.

    Args:
        corpus: columns pair_id, split, kept.
    """
    ledger = Ledger("embed")
    kept = pc.fill_null(corpus["kept"], False).to_numpy()
    named = pc.is_in(corpus["split"], pa.array(splits, pa.string())).to_numpy()
    ids = corpus["pair_id"].to_pylist()
    for row in np.flatnonzero(~kept):
        ledger.drop("pair", ids[row], Reason.NOT_IN_CORPUS)
    for row in np.flatnonzero(kept & ~named):
        ledger.drop("pair", ids[row], Reason.SPLIT_NOT_EMBEDDED)
    rows = np.flatnonzero(kept & named)
    ledger.count("pair", len(ids), len(rows))
    return rows, ledger


def thumbnail(jpeg: bytes, side: int) -> bytes:
    """A JPEG whose long side is at most `side` pixels."""
    with Image.open(io.BytesIO(jpeg)) as opened:
        opened.draft("RGB", (2 * side, 2 * side))  # decoded at half or quarter scale where that is large enough
        small = opened.convert("RGB")
    small.thumbnail((side, side))
    sink = io.BytesIO()
    small.save(sink, "JPEG", quality=85)
    return sink.getvalue()


def plane(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The two principal axes of (n, d) vectors and their mean, scaled so that these vectors lie within [-1, 1].

    Returns:
        (3, d): mean, then the axes; (vector - mean) @ axis gives x and y. Signs are fixed (each axis' largest entry is
        positive), so that the same vectors give the same map.
    """
    mean = vectors.mean(axis=0, dtype=np.float64)
    centred = vectors - mean
    _, axes = np.linalg.eigh(centred.T @ centred)
    top = axes[:, ::-1].T[:2]
    top = np.concatenate([top, np.zeros((2 - len(top), vectors.shape[1]))])
    top *= np.sign(top[np.arange(2), np.abs(top).argmax(axis=1)])[:, None]
    reach = np.abs(centred @ top.T).max(axis=0)
    return np.stack([mean, *(top / np.where(reach > 0, reach, 1)[:, None])]).astype(np.float32)


class _Embedder:
    """Makes the rows of one part; holds the model, so one is made per process."""

    def __init__(self, bundle: str, pairs: Product, corpus: Product, section: Embed, earlier: Earlier | None) -> None:
        from biomedclip_ray.clip.encoder import Encoder

        self.encoder = Encoder.load(bundle, precision=section.precision)
        self.encoder.batch = section.batch
        self.pairs, self.corpus, self.section, self.earlier = pairs, corpus, section, earlier

    def __call__(self, part: int) -> PartResult:
        judged = self.corpus.read(part, ["pair_id", "split", "kept"])
        rows, ledger = select(judged, self.section.splits)
        schema = _part_schema(self.encoder.dimensions)
        if not len(rows):
            return PartResult(schema.empty_table(), ledger)
        facts = self.pairs.read(part, [*_SHOWN, "sha256", "text", "image"])
        check_aligned(self.corpus, self.pairs, part, judged, facts)
        facts = facts.take(rows)
        vectors, thumbnails, reused = self._vectors(part, facts)
        columns = {name: facts[name] for name in _SHOWN}
        columns |= {f"{name}_vector": to_column(matrix) for name, matrix in vectors.items()}
        columns |= {
            "words": pa.array(_words(facts), pa.string()),
            "split": judged["split"].take(rows),
            "thumbnail": thumbnails,
            "bundle": pa.array([self.encoder.bundle_id] * len(rows)),
        }
        sound = drop_non_finite(ledger, facts["pair_id"].to_pylist(), vectors)
        for name, matrix in vectors.items():
            check_unit(matrix[sound], f"{name} vectors")
        return PartResult(conform(pa.table(columns).filter(pa.array(sound)), schema), ledger, reused)

    def _vectors(self, part: int, facts: pa.Table) -> tuple[dict[str, NDArray[np.float32]], pa.ChunkedArray, int]:
        """Vectors (n, d) by tower and thumbnails, and how many rows of these the earlier embedding had already."""
        was, row = None, np.full(facts.num_rows, -1)
        if self.earlier is not None:
            was, row = self.earlier.unchanged(part, facts)
        old, new = np.flatnonzero(row >= 0), np.flatnonzero(row < 0)
        texts, images = (facts[name].take(new).to_pylist() for name in ("text", "image"))
        made = encode_pairs(self.encoder, texts, images, math.ceil(self.section.resources.num_cpus))
        drawn = pa.array([thumbnail(data, self.section.thumbnail) for data in images], pa.binary())
        if was is None or not len(old):
            return dict(zip(("text", "image"), made, strict=True)), pa.chunked_array([drawn]), 0
        place = np.empty(len(row), np.int64)
        place[np.concatenate([old, new])] = np.arange(len(row))
        taken = was.take(row[old])
        vectors = {
            name: np.concatenate([to_matrix(taken[f"{name}_vector"]), matrix])[place]
            for name, matrix in zip(("text", "image"), made, strict=True)
        }
        return vectors, pa.chunked_array([*taken["thumbnail"].chunks, drawn]).take(place), len(old)


def _part_schema(dimensions: int) -> pa.Schema:
    """data/ of this stage: the index's columns but the map, which is known only when all parts are."""
    return pa.schema([column for column in index_schema(dimensions) if column.name not in ("x", "y")])


def drop_non_finite(
    ledger: Ledger, ids: list[str], vectors: dict[str, NDArray[np.float32]], unit: str = "pair"
) -> NDArray[np.bool_]:
    """Which rows have a direction in every matrix (n, d) of vectors; the others go to the ledger, and are kept no
    longer.
    """
    sound = np.ones(len(ids), bool)
    for what, matrix in vectors.items():
        with np.errstate(over="ignore", invalid="ignore"):
            lengths = np.linalg.norm(matrix, axis=1)
        for row in np.flatnonzero(sound & ~(np.isfinite(lengths) & (lengths > 0))):
            ledger.drop(unit, ids[row], Reason.NON_FINITE, f"{what} vector")
            sound[row] = False
    ledger.count(unit, 0, -int((~sound).sum()))
    return sound


def _words(facts: pa.Table) -> list[str]:
    columns = (facts[name].to_pylist() for name in ("caption", "article_id", "pmid", "doi"))
    return [folding.document(*row) for row in zip(*columns, strict=True)]


def checked(attempt: Attempt, section: Embed) -> int:
    """Rows in data/, as the ledgers count them; an error where too many pairs were lost to non-finite vectors."""
    [pairs] = attempt.balance().counts
    rows, lost = pairs.kept, pairs.dropped.get(Reason.NON_FINITE.value, 0)
    if lost > section.non_finite_limit * (rows + lost):
        raise NonFiniteError(
            f"{attempt.product.uri}: {lost} of {rows + lost} pairs have a non-finite vector, above "
            "embed.non_finite_limit="
            f"{section.non_finite_limit:g}; the bundle's weights are broken or overflow: train from an earlier "
            "checkpoint"
        )
    return rows


def ray_tasks(resources: PartResources) -> build.Tasks:
    """Calls as tasks on the cluster's workers; in this process, one after another, where no cluster was started."""
    if not ray.is_initialized():
        return build.in_turn

    def run(calls: list[tuple[Any, tuple[Any, ...]]]) -> list[Any]:
        where = place(known(), resources.num_cpus)
        wait_for_nodes("embed", known(), [(where, 1)], resources.wait_for_nodes_s)
        task = ray.remote(**where.options)(_call)
        results: list[Any] = ray.get([task.remote(function, arguments) for function, arguments in calls])
        return results

    return run


def _call(function: Any, arguments: tuple[Any, ...]) -> Any:
    return function(*arguments)


def _build(
    attempt: Attempt, expected: int, resources: PartResources, ann_rows: int, earlier: Earlier | None
) -> dict[str, Any]:
    """Write the table from data/ and index it, or extend the earlier one, by tasks; what the manifest says of it. What
    an interrupted run left of it is removed first.
    """
    attempt.place.at(TABLE).delete_all()
    tasks = ray_tasks(resources)
    if earlier is None:
        (axes,) = tasks([(_map_axes, (attempt,))])
    else:
        axes = np.load(io.BytesIO(earlier.embedded.place.read(MAP)))
    sink = io.BytesIO()
    np.save(sink, axes)
    attempt.place.write(MAP, sink.getvalue())
    schema = index_schema(axes.shape[1])
    parts = range(attempt.parts or 0)
    chunks = [parts[at : at + PARTS_PER_FRAGMENT] for at in range(0, len(parts), PARTS_PER_FRAGMENT)]
    if earlier is not None:
        placed = partial(_placed, axes=axes, schema=schema)
        settings, deleted = extend(attempt, earlier, chunks, placed, ann_rows, tasks)
        build.check_rows(attempt.place, expected)
        return {**asdict(settings), "deleted": deleted}
    written = tasks([(_write_fragments, (attempt, chunk, axes, schema)) for chunk in chunks])
    fragments = [fragment for chunk in written for fragment in chunk]
    build.commit(attempt.place, fragments, schema, expected)
    return asdict(build.finish(attempt.place, ann_rows, tasks))


def _map_axes(attempt: Attempt) -> NDArray[np.float32]:
    return plane(_sample(attempt))


def _write_fragments(attempt: Attempt, parts: range, axes: NDArray[np.float32], schema: pa.Schema) -> list[Any]:
    return build.write_rows(attempt.place, (_placed(attempt.read(part), axes, schema) for part in parts), schema)


def _placed(table: pa.Table, axes: NDArray[np.float32], schema: pa.Schema) -> pa.Table:
    """The rows with their place on the map."""
    mean, *plane_axes = axes
    vectors = to_matrix(table["image_vector"])
    for name, axis in zip(("x", "y"), plane_axes, strict=True):
        table = table.append_column(name, pa.array((vectors - mean) @ axis, pa.float32()))
    return conform(table, schema)


def _sample(attempt: Attempt) -> NDArray[np.float32]:
    """Image vectors of the first parts: parts are drawn by hash, so the first are as good as any."""
    found: list[NDArray[np.float32]] = []
    for table in attempt.scan(["image_vector"]):
        found.append(to_matrix(table["image_vector"]))
        if sum(len(vectors) for vectors in found) >= MAP_ROWS:
            break
    return np.concatenate(found)[:MAP_ROWS]
