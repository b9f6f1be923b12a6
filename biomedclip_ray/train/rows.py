"""The rows that are trained on, as flat arrays: where each lies in storage, its article, and whom it is no negative of.

About 32 bytes a pair: 15 million pairs are half a gigabyte in one process, and no feed task ever joins or searches.
Only the small corpus files and the footers of the pairs files are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from biomedclip_ray.config import PartResources
from biomedclip_ray.run.tasks import HereTasks, Tasks
from biomedclip_ray.store.ahead import each
from biomedclip_ray.store.product import Product
from biomedclip_ray.train.order import Rows, mix

SPLIT = "train"
"""What is trained on."""
CHUNK = 32
"""Parts that one task reads."""
_THREADS = 16
_RESOURCES = PartResources(num_cpus=0.5)  # it waits for storage


@dataclass(frozen=True)
class SplitRows:
    """The kept rows of one split, ordered by part, row group and row. A chunk is what one row group holds of them.

    Attributes:
        part, row_group, chunk_rows: int64 (chunks,), where a chunk lies and how many rows it has, never none.
        row: int64 (n,), the row within its row group.
        group: int64 (n,), equal where two pairs show the same image or belong to one figure.
        article: int64 (n,), numbers the articles.
    """

    part: Rows
    row_group: Rows
    chunk_rows: Rows
    row: Rows
    group: Rows
    article: Rows

    def __len__(self) -> int:
        return len(self.row)

    @property
    def pairs(self) -> int:
        """Different pairs: copies of one, which lie side by side, count once."""
        starts = np.cumsum(self.chunk_rows)[:-1]
        new = np.diff(self.row) != 0
        new[starts - 1] = True
        return 1 + int(np.count_nonzero(new))


def find_rows(
    pairs: Product,
    corpus: Product,
    split: str,
    kind_weights: Mapping[str, float] | None = None,
    tasks: Tasks | None = None,
) -> SplitRows:
    """The kept rows of `split`; a pair of a kind in `kind_weights` stands there as often as its weight says.

    Copies of a pair lie beside it, so that one reading of its row group serves them all, and share its group, so that
    they are not each other's negatives. A weight's fraction is drawn by hash of the pair's place.

    Raises:
        ValueError: pairs and corpus do not have the same rows in a part, or the split is empty.
    """
    weights, run = dict(kind_weights or {}), tasks or HereTasks()
    products = run.put((pairs, corpus))
    read = [
        run.submit(_RESOURCES, _read, products, range(at, min(at + CHUNK, corpus.parts)), split, weights)[0]
        for at in range(0, corpus.parts, CHUNK)
    ]
    found = [piece for chunk in run.get(read) for piece in chunk if len(piece.row)]
    if not found:
        raise ValueError(
            f"the corpus {corpus.uri} keeps no pair of the split {split!r}; look at its ledger counts, "
            "or give the split a share in curate.splits"
        )
    articles, figures = (np.cumsum([0] + [int(getattr(p, k).max()) + 1 for p in found]) for k in ("article", "figure"))
    figure = np.concatenate([piece.figure + first for piece, first in zip(found, figures[:-1], strict=True)])
    return SplitRows(
        part=np.concatenate([piece.part for piece in found]),
        row_group=np.concatenate([piece.row_group for piece in found]),
        chunk_rows=np.concatenate([piece.chunk_rows for piece in found]),
        row=np.concatenate([piece.row for piece in found]),
        group=_no_negatives(np.concatenate([piece.group for piece in found]), figure),
        article=np.concatenate([piece.article + first for piece, first in zip(found, articles[:-1], strict=True)]),
    )


def texts(pairs: Product, corpus: Product, split: str) -> Iterator[str]:
    """The training texts of the kept rows of a split, in storage order; what a tokenizer is fitted on."""

    def read(part: int) -> list[str]:
        marks = corpus.read(part, ["split", "kept"])
        wanted = pc.and_(pc.equal(marks["split"], split), marks["kept"])
        found: list[str] = pairs.read(part, ["text"])["text"].filter(wanted).to_pylist()
        return found

    for found in each(range(corpus.parts), read):
        yield from found


@dataclass(frozen=True)
class _PartRows:
    part: Rows
    row_group: Rows
    chunk_rows: Rows
    row: Rows
    group: Rows
    article: Rows
    figure: Rows


def _read(products: tuple[Product, Product], parts: range, split: str, weights: dict[str, float]) -> list[_PartRows]:
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(lambda part: _part_rows(*products, part, split, weights), parts))


def _part_rows(pairs: Product, corpus: Product, part: int, split: str, weights: dict[str, float]) -> _PartRows:
    marks = corpus.read(part, ["pair_id", "split", "group", "kept"])
    sizes = np.array([group.num_rows for group in pairs.file(part).row_groups], np.int64)
    if sizes.sum() != marks.num_rows:
        raise ValueError(
            f"part {part}: {pairs.uri} has {sizes.sum()} rows and {corpus.uri} has {marks.num_rows}; "
            "they must be aligned: run curate again on these pairs"
        )
    wanted = pc.and_(pc.equal(marks["split"], split), marks["kept"])
    chosen = np.flatnonzero(wanted.to_numpy())
    if weights:
        chosen = np.repeat(chosen, _times(pairs.read(part, ["figure_kind"])["figure_kind"].take(chosen), weights, part))
    ends = np.cumsum(sizes)
    groups = np.searchsorted(ends, chosen, side="right")
    row_group, chunk_rows = np.unique(groups, return_counts=True)
    ids = marks["pair_id"].take(chosen)
    return _PartRows(
        part=np.full(len(row_group), part, np.int64),
        row_group=row_group.astype(np.int64),
        chunk_rows=chunk_rows.astype(np.int64),
        row=chosen - (ends - sizes)[groups],
        group=pc.fill_null(marks["group"], -1).to_numpy()[chosen].astype(np.int64),
        article=_number(pc.replace_substring_regex(ids, r"^([^/]*).*$", r"\1")),
        figure=_number(pc.replace_substring_regex(ids, r"^([^/]*/[^/#]*).*$", r"\1")),
    )


def _times(kinds: pa.ChunkedArray, weights: dict[str, float], part: int) -> Rows:
    """How often each row stands in an epoch."""
    weight = np.array([weights.get(kind, 1.0) for kind in kinds.to_pylist()])
    draw = mix(part, np.arange(len(weight))) / 2.0**64
    return (weight + draw).astype(np.int64)


def _number(names: pa.ChunkedArray) -> Rows:
    """Equal strings get equal numbers from 0."""
    return pc.dictionary_encode(names).combine_chunks().indices.to_numpy().astype(np.int64)


def _no_negatives(group: Rows, figure: Rows) -> Rows:
    """One number for pairs linked by an image or a figure: panels of one figure share a caption's facts.

    Links chain (A shows B's image, B is of C's figure): that masks a few negatives more than it must, and keeps the
    loss to one integer a pair.
    """
    linked = group >= 0
    names, group_number = np.unique(group[linked], return_inverse=True)
    figures = int(figure.max()) + 1
    nodes = figures + len(names)
    edges = coo_array(
        (np.ones(int(linked.sum()), np.int8), (figure[linked], figures + group_number)), shape=(nodes, nodes)
    )
    _, component = connected_components(edges, directed=False)
    return component[figure].astype(np.int64)
