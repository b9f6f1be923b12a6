"""Was a bundle trained on what it is to be tested with? By article, by image and by group, from ids and hashes; images
of foreign sets whose hash is near one of training are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import ImageOps

from biomedclip_ray.config import ConfigError, PartResources
from biomedclip_ray.corpus.near import SHAPE_LIMIT, look_alike, signature
from biomedclip_ray.evaluate.readers import Images
from biomedclip_ray.images.errors import UNREADABLE
from biomedclip_ray.images.image import as_pillow
from biomedclip_ray.run.tasks import Tasks
from biomedclip_ray.schema import hash64
from biomedclip_ray.store.ahead import each
from biomedclip_ray.store.product import Product

NEAR_BITS = 4
"""Bits of 64 in which the perceptual hashes of two copies of an image may differ."""
CANDIDATES = 8
"""Training images whose pixels are compared with those of one image; more share a hash only where it says nothing."""
_ROW_BITS = 32

CHUNK = 32
"""Parts that one task reads."""
_THREADS = 32


class LeakageError(ConfigError):
    """The bundle was trained on what it would be tested with (exit code 2)."""


def check_leakage(
    tasks: Tasks, resources: PartResources, bundle: Product, pairs: Product, corpus: Product, split: str
) -> None:
    """Refuse a bundle whose own train split holds an article or an image of today's held-out split.

    An image counts as held out when any pair of its group is: near copies that curate dropped as conflicts too. Each
    file is read once, by tasks over CHUNK parts, and stays where it was read as 26 bytes a pair: one after the other
    behind a store that answers in 30 ms they were 555 ms a part.

    Raises:
        LeakageError: with the first such pair; or the bundle's corpus is gone, so that nobody can tell.
        ConfigError: nothing is held out.
    """

    def read(corpus: Product, pairs: Product) -> tuple[list[Any], list[Any]]:
        products = tasks.put((corpus, pairs))
        found = [
            tasks.submit(resources, _read, products, range(at, min(at + CHUNK, corpus.parts)), split, outputs=2)
            for at in range(0, corpus.parts, CHUNK)
        ]
        return [facts for facts, _ in found], [groups for _, groups in found]

    facts, held = read(corpus, pairs)
    groups, many = tasks.submit(resources, _together, *held, outputs=2)
    if not tasks.get([many])[0]:
        raise ConfigError(
            f"evaluate.split={split}: {corpus.uri} holds no kept pair of that split; "
            f"raise curate.splits.{split} or take more articles"
        )
    trained = _trained_on(bundle)
    if trained is None:
        return
    here = [tasks.submit(resources, _held_out, chunk, groups, outputs=2) for chunk in facts]
    articles, _ = tasks.submit(resources, _together, *(one for one, _ in here), outputs=2)
    image_hashes, _ = tasks.submit(resources, _together, *(one for _, one in here), outputs=2)
    old_corpus, old_pairs = trained
    same = old_corpus.fingerprint == corpus.fingerprint
    then = facts if same else read(old_corpus, old_pairs)[0]
    asked = [tasks.submit(resources, _leaked, one, articles, image_hashes, groups if same else None)[0] for one in then]
    for part, row in filter(None, tasks.get(asked)):
        raise LeakageError(
            f"bundle {bundle.uri} was trained on {old_pairs.read(part, ['pair_id'])['pair_id'][row]} (corpus "
            f"{old_corpus.fingerprint}), which is in the {split} split of corpus {corpus.fingerprint}; train on this "
            "corpus, or evaluate on the bundle's own"
        )


@dataclass(frozen=True)
class _Facts:
    """Some parts' pairs: whether each is held out, or trained on, its group, and hashes of its article and image."""

    part: NDArray[np.int32]
    held: NDArray[np.bool_]
    used: NDArray[np.bool_]
    group: NDArray[np.int64]
    article: NDArray[np.uint64]
    image_hash: NDArray[np.uint64]


def _read(products: tuple[Product, Product], parts: range, split: str) -> tuple[_Facts, NDArray[np.int64]]:
    """The facts, and the groups that are held out."""
    pieces = []
    for part, (judged, facts) in zip(
        parts, _aligned(*products, ["split", "kept", "group"], ["pmcid", "sha256"], parts), strict=True
    ):
        kept, of = judged["kept"].to_numpy(), judged["split"]
        pieces.append(
            _Facts(
                np.full(len(kept), part, np.int32),
                kept & pc.equal(of, split).to_numpy(),
                kept & pc.equal(of, "train").to_numpy(),
                judged["group"].to_numpy(),
                *(np.fromiter(map(hash64, facts[name].to_pylist()), np.uint64) for name in ("pmcid", "sha256")),
            )
        )
    whole = _Facts(*(np.concatenate([getattr(one, field.name) for one in pieces]) for field in fields(_Facts)))
    return whole, np.unique(whole.group[whole.held])


def _held_out(facts: _Facts, groups: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Articles and images that are held out."""
    return np.unique(facts.article[facts.held]), np.unique(facts.image_hash[_among(facts.group, groups)])


def _together(*values: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """All values, each once and sorted, and how many."""
    found = np.unique(np.concatenate(values))
    return found, len(found)


def _leaked(
    facts: _Facts, articles: NDArray[np.uint64], image_hashes: NDArray[np.uint64], groups: NDArray[np.int64] | None
) -> tuple[int, int] | None:
    """Part and row of the first pair that was trained on and is held out."""
    seen = _among(facts.article, articles) | _among(facts.image_hash, image_hashes)
    if groups is not None:
        seen |= _among(facts.group, groups)
    leaked = np.flatnonzero(facts.used & seen)
    if not len(leaked):
        return None
    part = int(facts.part[leaked[0]])
    return part, int(leaked[0] - np.flatnonzero(facts.part == part)[0])


def _among(values: NDArray[Any], known: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of the values are in a sorted array."""
    if not len(known):
        return np.zeros(len(values), bool)
    at = np.searchsorted(known, values)
    at[at == len(known)] = 0
    found: NDArray[np.bool_] = known[at] == values
    return found


@dataclass(frozen=True)
class Copies:
    """What of a foreign set the bundle saw in training. Both (m,)."""

    near: NDArray[np.bool_]
    """The perceptual hash of a training image is within NEAR_BITS: a hint, which plots on white give each other."""
    same: NDArray[np.bool_]
    """And the pixels of one of the first CANDIDATES such images are the same (`corpus.near.look_alike`)."""


def near_copies(hashes: NDArray[np.uint64], images: Images, bundle: Product) -> Copies | None:
    """Which images of a foreign set have a copy among those that the bundle was trained on.

    Args:
        hashes: (m,) perceptual hashes (`images.phash.perceptual_hash`); images: the same images.

    Returns:
        None where the bundle was not trained here.
    """
    trained = _trained_on(bundle)
    if trained is None:
        return None
    corpus, pairs = trained
    search = NearSearch(hashes)
    for part, (judged, facts) in enumerate(_aligned(corpus, pairs, ["split", "kept"], ["phash"])):
        used = pc.and_(judged["kept"], pc.equal(judged["split"], "train"))
        rows = np.flatnonzero(pc.and_(used, pc.is_valid(facts["phash"])).to_numpy(zero_copy_only=False))
        search.look_in(facts["phash"].take(rows).to_numpy().astype(np.uint64), (part << _ROW_BITS) + rows)
    return Copies(search.found, _same_pixels(search, images, pairs))


def _same_pixels(search: NearSearch, images: Images, pairs: Product) -> NDArray[np.bool_]:
    """A second look at those that were found: at the pixels, part by part."""
    mine, names = search.candidates()
    same = np.zeros(images.count, bool)
    ours = {int(row): _look(images.fetch(int(row), int(row) + 1)[0]) for row in np.unique(mine)}
    for part in np.unique(names >> _ROW_BITS):
        here = np.flatnonzero(names >> _ROW_BITS == part)
        rows, place = np.unique(names[here] & ((1 << _ROW_BITS) - 1), return_inverse=True)
        theirs = [_look(data) for data in pairs.read(int(part), ["image"])["image"].take(rows).to_pylist()]
        for row, at in zip(mine[here], place, strict=True):
            one, other = ours[int(row)], theirs[at]
            if one is not None and other is not None and abs(np.log(one[1] / other[1])) <= SHAPE_LIMIT:
                same[row] |= bool(look_alike(one[0][None], other[0][None])[0])
    return same


def _look(data: bytes | None) -> tuple[NDArray[np.uint8], float] | None:
    """An image's signature, and its height over its width; None where it cannot be read."""
    try:
        with as_pillow(data or b"") as image:
            pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except UNREADABLE:
        return None
    return signature(pixels), pixels.shape[0] / pixels.shape[1]


class NearSearch:
    """Which of some hashes have one within NEAR_BITS among any number of others, given in turn, and the first
    CANDIDATES of those.

    Of NEAR_BITS + 1 pieces of the hash one must be equal (Norouzi et al. 2012, multi-index hashing), so only the hashes
    that share a piece are compared: some 20 of 32,768 instead of all, and the answer is brute force's.
    """

    def __init__(self, hashes: NDArray[np.uint64]) -> None:
        self.hashes, self.place = np.unique(hashes, return_inverse=True)
        self._hits = np.zeros(len(self.hashes), np.int64)
        self._near: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
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
        out: NDArray[np.bool_] = self._hits[self.place] > 0
        return out

    def candidates(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(row of the hashes given, name of another that is near), the first CANDIDATES of each row."""
        if not self._near:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        hashes, names = (np.concatenate(side) for side in zip(*self._near, strict=True))
        order = np.argsort(hashes, kind="stable")
        starts = np.searchsorted(hashes[order], np.arange(len(self.hashes) + 1))
        counts = np.diff(starts)[self.place]
        rows = np.repeat(np.arange(len(self.place)), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        return rows, names[order[np.repeat(starts[self.place], counts) + within]]

    def _keep(self, mine: NDArray[np.int64], names: NDArray[np.int64]) -> None:
        """Note pairs of a hash and another that is near, each once, while there is room for them."""
        pairs = np.unique(np.stack([mine, names], axis=1), axis=0)
        first = np.searchsorted(pairs[:, 0], pairs[:, 0])
        kept = self._hits[pairs[:, 0]] + np.arange(len(pairs)) - first < CANDIDATES
        self._near.append((pairs[kept, 0], pairs[kept, 1]))
        np.add.at(self._hits, pairs[:, 0], 1)

    def look_in(self, others: NDArray[np.uint64], names: NDArray[np.int64] | None = None) -> None:
        """Compare with some more; a block of them at a time stays in the cache. `names`: what they are called."""
        called = np.arange(len(others)) if names is None else names
        for start in range(0, len(others), 8192):
            block, found = others[start : start + 8192], []
            for low, mask, order, starts in self.pieces:
                values = ((block >> low) & mask).astype(np.int64)
                counts = starts[values + 1] - starts[values]
                for rows in _bounded(counts):
                    number = counts[rows]
                    ends = np.cumsum(number)
                    within = np.arange(ends[-1]) - np.repeat(ends - number, number)
                    mine = order[np.repeat(starts[values[rows]], number) + within]
                    near = np.bitwise_count(self.hashes[mine] ^ np.repeat(block[rows], number)) <= NEAR_BITS
                    if near.any():
                        found.append((mine[near], np.repeat(called[start : start + 8192][rows], number)[near]))
            if found:
                self._keep(*(np.concatenate(side) for side in zip(*found, strict=True)))


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
    corpus: Product, pairs: Product, judged: list[str], facts: list[str], parts: range | None = None
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """The rows of each part in both products, in order; those of some parts are asked for at once."""

    def read(part: int) -> tuple[pa.Table, pa.Table]:
        return corpus.read(part, judged), pairs.read(part, facts)

    return each(range(corpus.parts) if parts is None else parts, read, _THREADS)
