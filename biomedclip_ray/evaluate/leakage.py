"""Was a bundle trained on what it is to be tested with? By article, by image and by group; reads ids and
hashes only.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from biomedclip_ray.config import ConfigError
from biomedclip_ray.store.product import Product

NEAR_BITS = 4
"""Bits of 64 in which the perceptual hashes of two copies of an image may differ."""


class LeakageError(ConfigError):
    """The bundle was trained on what it would be tested with (exit code 2)."""


def check_leakage(bundle: Product, pairs: Product, corpus: Product, split: str) -> None:
    """Refuse a bundle whose own train split holds an article or an image of today's held-out split.

    An image counts as held out when any pair of its group is: near copies that curate dropped as conflicts too.

    Raises:
        LeakageError: with the first such pair; or the bundle's corpus is gone, so that nobody can tell.
        ConfigError: nothing is held out.
    """
    groups: set[int] = set()
    for table in corpus.scan(["split", "kept", "group"]):
        groups.update(table.filter(pc.and_(table["kept"], pc.equal(table["split"], split)))["group"].to_pylist())
    if not groups:
        raise ConfigError(
            f"evaluate.split={split}: {corpus.uri} holds no kept pair of that split; "
            f"raise curate.splits.{split} or take more articles"
        )
    wanted = pa.array(sorted(groups), pa.int64())
    articles: set[str] = set()
    pictures: set[str] = set()
    for judged, facts in _aligned(corpus, pairs, ["split", "kept", "group"], ["pmcid", "sha256"]):
        here = pc.and_(judged["kept"], pc.equal(judged["split"], split))
        articles.update(facts["pmcid"].filter(here).to_pylist())
        pictures.update(facts["sha256"].filter(pc.is_in(judged["group"], wanted)).to_pylist())
    trained = _trained_on(bundle)
    if trained is None:
        return
    held_articles, held_pictures = pa.array(sorted(articles), pa.string()), pa.array(sorted(pictures), pa.string())
    old_corpus, old_pairs = trained
    same = old_corpus.fingerprint == corpus.fingerprint
    for judged, facts in _aligned(old_corpus, old_pairs, ["split", "kept", "group"], ["pair_id", "pmcid", "sha256"]):
        used = pc.and_(judged["kept"], pc.equal(judged["split"], "train"))
        seen = pc.or_kleene(pc.is_in(facts["pmcid"], held_articles), pc.is_in(facts["sha256"], held_pictures))
        if same:
            seen = pc.or_kleene(seen, pc.is_in(judged["group"], wanted))
        leaked = facts["pair_id"].filter(pc.and_(used, seen))
        if len(leaked):
            raise LeakageError(
                f"bundle {bundle.uri} was trained on {leaked[0]} (corpus {old_corpus.fingerprint}), which is in the "
                f"{split} split of corpus {corpus.fingerprint}; train on this corpus, or evaluate on the bundle's own"
            )


def near_copies(hashes: NDArray[np.uint64], bundle: Product) -> NDArray[np.bool_] | None:
    """Which images of a foreign set have a near copy among those that the bundle was trained on.

    Args:
        hashes: (m,) perceptual hashes (`images.image.perceptual_hash`).

    Returns:
        (m,), or None where the bundle was not trained here.
    """
    trained = _trained_on(bundle)
    if trained is None:
        return None
    search = NearSearch(hashes)
    for judged, facts in _aligned(*trained, ["split", "kept"], ["phash"]):
        used = pc.and_(judged["kept"], pc.equal(judged["split"], "train"))
        search.look_in(facts["phash"].filter(used).drop_null().to_numpy().astype(np.uint64))
    return search.found


class NearSearch:
    """Which of some hashes have one within NEAR_BITS among any number of others, given in turn.

    Of NEAR_BITS + 1 pieces of the hash one must be equal (Norouzi et al. 2012, multi-index hashing), so only the hashes
    that share a piece are compared: some 20 of 32,768 instead of all, and the answer is brute force's.
    """

    def __init__(self, hashes: NDArray[np.uint64]) -> None:
        self.hashes, self.place = np.unique(hashes, return_inverse=True)
        self._hit = np.zeros(len(self.hashes), bool)
        edges = np.linspace(0, 64, NEAR_BITS + 2).round().astype(int)
        self.pieces = []
        for low, high in pairwise(edges):
            mask = np.uint64((1 << int(high - low)) - 1)
            values = (self.hashes >> np.uint64(low)) & mask
            starts = np.concatenate([[0], np.cumsum(np.bincount(values.astype(np.int64), minlength=int(mask) + 1))])
            self.pieces.append((np.uint64(low), mask, np.argsort(values, kind="stable"), starts))

    @property
    def found(self) -> NDArray[np.bool_]:
        """(m,) in the order of the hashes given."""
        out: NDArray[np.bool_] = self._hit[self.place]
        return out

    def look_in(self, others: NDArray[np.uint64]) -> None:
        """Compare with some more; a block of them at a time stays in the cache."""
        for start in range(0, len(others), 8192):
            block = others[start : start + 8192]
            for low, mask, order, starts in self.pieces:
                values = ((block >> low) & mask).astype(np.int64)
                counts = starts[values + 1] - starts[values]
                for rows in _bounded(counts):
                    number = counts[rows]
                    ends = np.cumsum(number)
                    within = np.arange(ends[-1]) - np.repeat(ends - number, number)
                    mine = order[np.repeat(starts[values[rows]], number) + within]
                    near = np.bitwise_count(self.hashes[mine] ^ np.repeat(block[rows], number)) <= NEAR_BITS
                    self._hit[mine[near]] = True


def _bounded(counts: NDArray[np.int64]) -> Iterator[slice]:
    """Runs of rows with at most a million candidates together (or one row): blank images crowd into one piece."""
    reach = np.cumsum(counts)
    start = 0
    while start < len(counts):
        base = reach[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(reach, base + (1 << 20), "right")))
        if reach[stop - 1] > base:
            yield slice(start, stop)
        start = stop


def _trained_on(bundle: Product) -> tuple[Product, Product] | None:
    """Corpus and pairs that the bundle was trained on; None where it was not trained here."""
    inputs = {item["stage"]: item["fingerprint"] for item in bundle.manifest["inputs"]}
    if "curate" not in inputs:
        return None
    corpus, pairs = (
        Product(bundle.root, stage, 0, {}, (), inputs[stage]) if stage in inputs else None
        for stage in ("curate", "preprocess")
    )
    for product in (corpus, pairs):
        if product is None or not product.finished:
            raise LeakageError(f"bundle {bundle.uri}: what it was trained on is no longer in {bundle.root}")
    assert corpus is not None and pairs is not None
    return corpus, pairs


def _aligned(
    corpus: Product, pairs: Product, judged: list[str], facts: list[str]
) -> Iterator[tuple[pa.Table, pa.Table]]:
    return zip(corpus.scan(judged), pairs.scan(facts), strict=True)
