"""What evaluation.json says of the held-out pairs: retrieval in the pool of whole figures, slices of its queries, and
each kind of figure alone.

Headline figures are those of whole figures, whatever panels a corpus has. The slice by whole or panel is asked among
both, in a pool of its own: a figure and its panels are candidates for each other's captions there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from biomedclip_ray.config import Evaluate
from biomedclip_ray.evaluate import plots, retrieval
from biomedclip_ray.evaluate.bundles import write_rows
from biomedclip_ray.evaluate.intervals import METHOD
from biomedclip_ray.evaluate.pool import Pool
from biomedclip_ray.evaluate.ranks import DIRECTIONS, Keys, ranked
from biomedclip_ray.schema import Reason
from biomedclip_ray.store.ahead import each
from biomedclip_ray.store.attempt import Attempt
from biomedclip_ray.store.product import StageError

SLICES = ("figure_kind", "license", "year", "caption_words", "image")
_IMAGE = ("image",)
_KIND_POOL = 20_000
"""Pairs of one kind that are ranked among themselves at most: the first of each part in storage order, which is hash
order.
"""


def measure_pool(attempt: Attempt, section: Evaluate) -> dict[str, Any]:
    """What evaluation.json says of the pairs whose vectors lie in the product's parts; their rows go into rows/.

    Raises:
        StageError: too many vectors are not finite.
        RuntimeError: vectors of more than one bundle.
    """
    pool = Pool(attempt)
    meta, n, seed = pool.meta, len(pool), section.seed
    left_out = _left_out(attempt, n, section.max_left_out)
    bundles = pc.unique(meta["bundle"]).to_pylist()
    if len(bundles) != 1:
        raise RuntimeError(f"the pool holds vectors of {len(bundles)} bundles: {bundles}")
    texts = pc.fill_null(meta["text_sha256"], meta["pair_id"]).combine_chunks()
    words = texts.dictionary_encode().indices.to_numpy()  # as text they take half a gigabyte at 725,739 pairs
    keys = retrieval.readings(meta["group"].to_numpy(), words)
    rows = _ranked_rows(pool, keys, section)
    write_rows(attempt.place, "rows/pool.parquet", rows)
    shown = retrieval.measure_rows(rows, keys, section.bootstraps, seed)
    shown["control_shuffled"] = retrieval.control(
        lambda: pool.blocks("text_vector"), lambda: pool.blocks("image_vector"), n, seed
    )
    slices = retrieval.slices(rows, n, SLICES, section.bootstraps, seed)
    both = Pool(attempt, panels=True)
    if len(both) > n:
        own = np.arange(len(both))
        beside = _ranked_rows(both, {retrieval.STRICT: Keys(own, own)}, section)
        write_rows(attempt.place, "rows/pool_with_panels.parquet", beside)
        slices |= retrieval.slices(beside, len(both), _IMAGE, section.bootstraps, seed)
    pool.forget_tiles()
    strict = {way: retrieval.ranks_of(rows.filter(pc.equal(rows["direction"], way))) for way in DIRECTIONS}
    return {
        "bundle": bundles[0],
        "split": section.split,
        "n": n,
        "left_out": {"n": left_out.num_rows, "ids": left_out["id"].to_pylist()[:100]},
        "bootstraps": section.bootstraps,
        "interval": METHOD,
        "resampled": "articles",
        "seed": seed,
        "retrieval": {"n": n, "articles": len(pc.unique(meta["article_id"])), **shown},
        "slices": slices,
        "by_kind": _by_kind(pool, section),
        "rank_histogram": {way: plots.histogram(ranks.expected(), n) for way, ranks in strict.items()},
    }


def _left_out(attempt: Attempt, n: int, most: float) -> pa.Table:
    """Ledger rows of the pairs whose vector is not finite."""
    dropped = pa.concat_tables(each(range(attempt.parts or 0), attempt.read_ledger))
    left_out = dropped.filter(pc.equal(dropped["reason"], Reason.NON_FINITE.value))
    if left_out.num_rows > most * (n + left_out.num_rows):
        raise StageError(
            f"{left_out.num_rows} of {n + left_out.num_rows} held-out pairs have a vector that is not finite, more "
            f"than the share of {most:g} that may (evaluate.max_left_out); the first is {left_out['id'][0]}"
        )
    return left_out


def _ranked_rows(pool: Pool, keys: Mapping[str, Keys], section: Evaluate) -> pa.Table:
    """The rows of a pool, with the columns that slices are made by."""
    meta, edges = pool.meta, pool.edges()
    found = ranked(edges, edges, keys, pool.on_cluster(section.resources))
    ids, articles = (dict.fromkeys(DIRECTIONS, meta[name].to_pylist()) for name in ("pair_id", "article_id"))
    rows = retrieval.rows_of(ids, articles, found)
    image = pc.if_else(pc.equal(meta["panel"], 0), "whole", "panel")
    meta = meta.append_column("image", image)
    for column in SLICES:
        both = pa.concat_arrays([meta[column].combine_chunks()] * 2)
        rows = rows.append_column(column, pc.fill_null(both, "unknown"))
    return rows


def _by_kind(pool: Pool, section: Evaluate) -> dict[str, Any]:
    kinds = np.array(pc.fill_null(pool.meta["figure_kind"], "unknown").to_pylist(), object)
    rows = np.sort(np.concatenate([np.flatnonzero(kinds == kind)[:_KIND_POOL] for kind in np.unique(kinds)]))
    text, image = pool.take(rows)
    articles = np.array(pool.meta["article_id"].to_pylist())[rows]
    return retrieval.by_kind(text, image, kinds[rows].tolist(), articles, section.bootstraps, section.seed)
