"""The held-out pairs as vectors: read by tasks that hold no model, encoded by processes that do.

A split of 0.2% is two pairs of each part. Tasks of their own read them while the model is loaded and while others are
encoded: read by the process that encodes, 2,000 parts behind a store that answers in 30 ms were 9.6 ms a part in which
a GPU would have stood still. Nothing that only measures is imported here, for each of these processes would load it.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from biomedclip_ray.clip.vectors import encode_pairs, to_column
from biomedclip_ray.config import Evaluate
from biomedclip_ray.corpus.aligned import check_aligned
from biomedclip_ray.schema import Reason
from biomedclip_ray.store.ledger import Ledger, PartResult
from biomedclip_ray.store.parquet import conform, some_rows
from biomedclip_ray.store.product import Product

PARTS_TOGETHER = 64
"""Parts of the pairs in one part of this stage. A split of 0.2% is two pairs of each: read one after the other behind a
store that answers in 30 ms they were 111 ms a part, and no batch for a GPU. Where a tenth is held out, 64 parts of a
thousand pairs are 200 MB of images.
"""

Read = tuple[pa.Table | None, Ledger]
"""Figures with their images and texts, None where there are none; and what was dropped."""

_WORDS = (10, 25, 50, 100, 200)


def parts_of(pairs: Product) -> int:
    """How many parts the pool of a product of pairs is made of."""
    return -(-pairs.parts // PARTS_TOGETHER)


def held_out(corpus: pa.Table, pairs: pa.Table, split: str) -> tuple[np.ndarray, Ledger]:
    """Rows of one part that are encoded, and the ledger of the other held-out pairs.

    Args:
        corpus: columns pair_id, split, kept; pairs: columns pair_id, figure_id, panel; aligned row by row.

    Returns:
        Ascending row numbers (int64): kept, in `split`, a panel or the first whole image of its figure.
    """
    ledger, rows, seen = Ledger("evaluate"), [], set()
    candidates = np.flatnonzero(_is_held_out(corpus, split).to_numpy())
    ids, figures, panels = (pairs[name].to_pylist() for name in ("pair_id", "figure_id", "panel"))
    for row in candidates:
        if panels[row] == 0 and figures[row] in seen:
            ledger.drop("held-out pair", ids[row], Reason.SECOND_IMAGE)
            continue
        if panels[row] == 0:
            seen.add(figures[row])
        rows.append(row)
    ledger.count("held-out pair", len(candidates), len(rows))
    return np.array(rows, np.int64), ledger


class HeldOut:
    """Encodes the held-out figures of a part; holds the model, so one is made per process."""

    def __init__(self, bundle: str, pairs: Product, corpus: Product, section: Evaluate) -> None:
        from biomedclip_ray.clip.encoder import Encoder

        self.encoder = Encoder.load(bundle, precision=section.precision)
        self.threads = math.ceil(section.resources.num_cpus)

    @staticmethod
    def read(part: int, bundle: str, pairs: Product, corpus: Product, section: Evaluate) -> Read:
        """The held-out figures of a part, and the ledger of the others."""
        first = part * PARTS_TOGETHER
        parts = range(first, min(first + PARTS_TOGETHER, pairs.parts))
        with ThreadPoolExecutor(PARTS_TOGETHER) as threads:
            found = list(threads.map(lambda one: _read(one, pairs, corpus, section.split), parts))
        ledger = Ledger("evaluate")
        for _, one in found:
            ledger.rows += one.rows
            for unit, counts in one.counts.items():
                ledger.count(unit, *counts)
        tables = [table for table, _ in found if table is not None]
        return pa.concat_tables(tables) if tables else None, ledger

    def __call__(self, read: Read) -> PartResult:
        found, ledger = read
        schema = _schema(self.encoder.dimensions)
        if found is None:
            return PartResult(schema.empty_table(), ledger)
        texts = found["text"].to_pylist()
        text, image = encode_pairs(self.encoder, texts, found["image"].to_pylist(), self.threads)
        lengths = np.stack([np.linalg.norm(side, axis=1) for side in (text, image)])
        good = np.flatnonzero((np.isfinite(lengths) & (lengths > 0)).all(axis=0))
        lost = sorted(set(range(len(texts))) - set(good.tolist()))
        for row in lost:
            ledger.drop("held-out pair", found["pair_id"][row].as_py(), Reason.NON_FINITE)
        ledger.count("held-out pair", 0, -len(lost))
        columns = {name: found[name].take(good) for name in (*_FACTS, "text_sha256", "group")}
        columns |= {
            "year": pc.cast(found["year"].take(good), pa.string()),
            "caption_words": pa.array([_length(texts[row]) for row in good]),
            "text_vector": to_column(text[good]),
            "image_vector": to_column(image[good]),
        }
        columns["bundle"] = pa.array([self.encoder.bundle_id] * len(good))
        return PartResult(conform(pa.table(columns), schema), ledger)


def _read(part: int, pairs: Product, corpus: Product, split: str) -> Read:
    """Of one part of the pairs: nothing where no row is held out, else the row groups that hold one."""
    judged = corpus.read(part, ["pair_id", "split", "group", "kept"])
    if not pc.any(_is_held_out(judged, split)).as_py():
        return None, Ledger("evaluate")
    file = pairs.file(part)
    named = file.to_table(columns=["pair_id", "figure_id", "panel"])
    check_aligned(corpus, pairs, part, judged, named)
    rows, ledger = held_out(judged, named, split)
    found = pa.concat_tables(
        table for _, table in some_rows(file, rows, [*_FACTS, "text_sha256", "year", "text", "image"])
    )
    return found.append_column("group", judged["group"].take(rows)), ledger


def _is_held_out(judged: pa.Table, split: str) -> pa.ChunkedArray:
    return pc.and_(judged["kept"], pc.equal(judged["split"], split))


_FACTS = ("pair_id", "article_id", "panel", "figure_kind", "license")


def _length(text: str) -> str:
    """The slice of a caption by its words: "11 to 25"."""
    words = len(text.split())
    low = 1
    for high in _WORDS:
        if words <= high:
            return f"{low} to {high}"
        low = high + 1
    return f"over {_WORDS[-1]}"


def _schema(dimensions: int) -> pa.Schema:
    """data/ of this stage: the held-out pairs with their vectors."""
    vector = pa.list_(pa.float32(), dimensions)
    return pa.schema(
        {
            "pair_id": pa.string(),
            "article_id": pa.string(),
            "panel": pa.int16(),
            "figure_kind": pa.string(),
            "license": pa.string(),
            "year": pa.string(),
            "caption_words": pa.string(),
            "text_sha256": pa.string(),
            "group": pa.int64(),
            "text_vector": vector,
            "image_vector": vector,
            "bundle": pa.string(),
        }
    )
