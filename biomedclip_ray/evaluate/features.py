"""Vectors that are kept: a product of their own, keyed by bundle and the hash of each image or text.

A bundle's id is a hash of weights, tokenizer and preprocessing, so another set, seed, prompt, metric or number of draws
encodes nothing that was encoded before. A part is a file, written whole: a killed run loses one. An item without a
vector is kept too, with its reason, so that it is not tried again for each figure.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from biomedclip_ray.clip.vectors import to_column, to_matrix
from biomedclip_ray.config.section import Precision
from biomedclip_ray.evaluate.readers import Images
from biomedclip_ray.evaluate.sets import LabelledSet, load_set
from biomedclip_ray.images.errors import UNREADABLE
from biomedclip_ray.images.image import as_pillow
from biomedclip_ray.images.phash import perceptual_hash
from biomedclip_ray.store.ahead import fetch_ahead
from biomedclip_ray.store.place import Place

if TYPE_CHECKING:
    from biomedclip_ray.clip.encoder import Encoder

Floats = NDArray[np.floating[Any]]

PART = 2048
"""Images in a part: a minute or two of a CPU, 4 MB of vectors."""
_READ = 256
"""Of their bytes held at once."""
NO_IMAGE = "no image in this row, nor a file where it points"
NON_FINITE = "the vector is not finite"


@dataclass(frozen=True)
class Encoded:
    """What one part of a table came to."""

    keys: list[str]
    encoded: int
    """Items that went through the model now; the others were known."""


@dataclass
class Features:
    """The kept vectors of one bundle at one place. Parts never change, so each is asked for its keys once."""

    uri: str
    _seen: set[str] = field(default_factory=set)
    _have: dict[str, dict[str, str]] = field(default_factory=dict)

    def have(self, kind: str) -> Mapping[str, str]:
        """key -> file of every item of a kind ("images", "texts") that is kept."""
        found = self._have.setdefault(kind, {})
        for name in self._files(kind):
            if name not in self._seen:
                column = pq.read_table(Place(self.uri).open(name), columns=["key"])["key"]
                found.update(dict.fromkeys(column.to_pylist(), name))
                self._seen.add(name)
        return found

    def keep(self, kind: str, keys: Sequence[str], vectors: Floats, reasons: Sequence[str], hashes: Any = None) -> None:
        """Write a part. Items with a reason have no vector. `hashes`: perceptual hashes (uint64) of images."""
        if not keys:
            return
        table = pa.table(
            {
                "key": pa.array(keys, pa.string()),
                "vector": to_column(np.nan_to_num(vectors)),
                "reason": pa.array(reasons, pa.string()),
                "phash": pa.array(hashes if hashes is not None else [0] * len(keys), pa.uint64()),
            }
        )
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        name = hashlib.sha256("".join(keys).encode()).hexdigest()[:16]
        Place(self.uri).write(f"{kind}/part-{name}.parquet", sink.getvalue())

    def read(self, kind: str, keys: Sequence[str]) -> tuple[Floats, list[str], NDArray[np.uint64]]:
        """Vectors (n, d), reasons ("" where there is a vector; NaN rows where there is none) and perceptual hashes, by
        key.

        Raises:
            KeyError: a key that is not kept.
        """
        where = self.have(kind)
        rows: dict[str, list[int]] = {}
        for row, key in enumerate(keys):
            rows.setdefault(key, []).append(row)
        files = sorted({where[key] for key in rows})
        vectors: Floats = np.empty((0, 1), np.float32)
        reasons, hashes = [""] * len(keys), np.zeros(len(keys), np.uint64)
        for name in files:
            table = pq.read_table(Place(self.uri).open(name))
            matrix = to_matrix(table["vector"])
            if not len(vectors):
                vectors = np.full((len(keys), matrix.shape[1]), np.nan, np.float32)
            columns = zip(*(table[column].to_pylist() for column in ("key", "reason", "phash")), strict=True)
            for at, (key, reason, phash) in enumerate(columns):
                for row in rows.get(key, ()):
                    reasons[row], hashes[row] = reason, phash
                    vectors[row] = np.nan if reason else matrix[at]
        return vectors, reasons, hashes

    def _files(self, kind: str) -> list[str]:
        return [f"{kind}/{name.rpartition('/')[2]}" for name in Place(self.uri).list(kind)]


def key_of(data: bytes) -> str:
    """What an image or a text is known by."""
    return hashlib.sha256(data).hexdigest()[:32]


def encode_part(
    encoder: Encoder, features: Features, images: Images, start: int, stop: int, threads: int = 1
) -> Encoded:
    """Encode rows start..stop of a table's images that are not kept yet. Decoding runs ahead of the
    model in threads.
    """
    known, new = features.have("images"), set[str]()
    keys: list[str] = []
    fresh: list[tuple[str, bytes]] = []
    made: list[tuple[list[str], Floats, list[str], list[int]]] = []
    with ThreadPoolExecutor(threads) as pool:
        for first in range(start, stop, _READ):
            for data in images.fetch(first, min(first + _READ, stop)):
                key = NO_IMAGE if data is None else key_of(data)
                keys.append(key)
                if data is not None and key not in known and key not in new:
                    new.add(key)
                    fresh.append((key, data))
            made += _encode(encoder, fresh, pool, threads)
            fresh = []
    if made:
        parts = [list(column) for column in zip(*made, strict=True)]
        vectors = np.concatenate(parts[1])
        names, reasons, hashes = ([item for part in parts[i] for item in part] for i in (0, 2, 3))
        features.keep("images", names, vectors, reasons, hashes)
        return Encoded(keys, len(names))
    return Encoded(keys, 0)


def _encode(
    encoder: Encoder, items: list[tuple[str, bytes]], pool: ThreadPoolExecutor, threads: int
) -> Iterator[tuple[list[str], Floats, list[str], list[int]]]:
    batches = [items[i : i + encoder.batch] for i in range(0, len(items), encoder.batch)]
    for batch, (pixels, reasons, hashes) in fetch_ahead(pool, lambda b: _pixels(encoder, b), batches, threads + 1):
        vectors = np.full((len(batch), encoder.dimensions), np.nan, np.float32)
        good = [row for row, reason in enumerate(reasons) if not reason]
        if good:
            vectors[good] = encoder.encode_pixels(pixels)
        for row in good:
            if not np.isfinite(vectors[row]).all():
                reasons[row] = NON_FINITE
        yield [key for key, _ in batch], vectors, reasons, hashes


def _pixels(encoder: Encoder, batch: list[tuple[str, bytes]]) -> tuple[Any, list[str], list[int]]:
    """Pixels of the images that decode; of each a reason or "", and its perceptual hash."""
    import torch

    found, reasons, hashes = [], [], []
    for _, data in batch:
        try:
            with as_pillow(data) as image:  # decoded once for both
                pixels = encoder.pixels([image])
                phash = int(perceptual_hash(np.asarray(image.convert("RGB"))))
            found.append(pixels)
            hashes.append(phash)
            reasons.append("")
        except UNREADABLE as error:
            hashes.append(0)
            unknown = isinstance(error, UnidentifiedImageError)  # its message names an address in memory
            reasons.append("not an image of a known format" if unknown else f"not readable as an image: {error}"[:200])
    return (torch.cat(found) if found else None), reasons, hashes


class Kept:
    """One bundle's vectors for one set, as tasks ask for them (`tasks.Vectors`); encodes what is not kept yet."""

    def __init__(self, encoder: Encoder, uri: str, labelled: LabelledSet, each: Each | None = None) -> None:
        """`each(jobs)`: what encoding the jobs gives, in their order; encoded here where None."""
        self.encoder, self.labelled, self.features = encoder, labelled, Features(uri)
        self.logit_scale = encoder.logit_scale
        self.encoded = {"images": 0, "texts": 0}
        self._each = each or self._here
        self._tables: dict[str, tuple[Floats, list[str], NDArray[np.uint64]]] = {}
        self._texts: dict[str, NDArray[np.float32]] = {}

    def images(self, table: str) -> Floats:
        return self.table(table)[0]

    def table(self, name: str) -> tuple[Floats, list[str], NDArray[np.uint64]]:
        """Vectors, reasons and perceptual hashes of a table, in order."""
        if name not in self._tables:
            count = len(self.labelled.tables[name].ids)
            keys: list[str] = []
            for part in self._each(jobs_of(self.labelled, name)):
                keys += part.keys
                self.encoded["images"] += part.encoded
            there = [row for row, key in enumerate(keys) if key != NO_IMAGE]
            vectors = np.full((count, self.encoder.dimensions), np.nan, np.float32)
            reasons, hashes = [NO_IMAGE] * count, np.zeros(count, np.uint64)
            if there:
                found, why, hashed = self.features.read("images", [keys[row] for row in there])
                vectors[there], hashes[there] = found, hashed
                for row, reason in zip(there, why, strict=True):
                    reasons[row] = reason
            self._tables[name] = vectors, reasons, hashes
        return self._tables[name]

    def _here(self, jobs: list[Job]) -> Iterator[Encoded]:
        for _, table, start, stop in jobs:
            yield encode_part(self.encoder, self.features, self.labelled.tables[table].images, start, stop)

    def of(self, images: Images) -> Floats:
        """(n, d) vectors of any images, encoded here, in this process; kept like all others."""
        part = encode_part(self.encoder, self.features, images, 0, images.count)
        self.encoded["images"] += part.encoded
        there = [row for row, key in enumerate(part.keys) if key != NO_IMAGE]
        vectors = np.full((images.count, self.encoder.dimensions), np.nan, np.float32)
        if there:
            vectors[there] = self.features.read("images", [part.keys[row] for row in there])[0]
        return vectors

    def encode_text(self, texts: Sequence[str]) -> Floats:
        missing = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if missing:
            keys = [key_of(text.encode()) for text in missing]
            known = self.features.have("texts")
            fresh = [row for row, key in enumerate(keys) if key not in known]
            if fresh:
                vectors = self.encoder.encode_text([missing[row] for row in fresh])
                reasons = ["" if np.isfinite(vector).all() else NON_FINITE for vector in vectors]
                self.features.keep("texts", [keys[row] for row in fresh], vectors, reasons)
                self.encoded["texts"] += len(fresh)
            self._texts |= dict(zip(missing, self.features.read("texts", keys)[0], strict=True))
        return np.stack([self._texts[text] for text in texts]) if texts else np.empty((0, self.encoder.dimensions))


Job = tuple[str, str, int, int]
"""URI of a set, its table, first row, row after the last."""
Each = Callable[[list[Job]], Iterable[Encoded]]


def jobs_of(labelled: LabelledSet, table: str) -> list[Job]:
    """The parts of a table."""
    count = len(labelled.tables[table].ids)
    return [(labelled.uri, table, i, min(i + PART, count)) for i in range(0, count, PART)]


class Worker:
    """Encodes parts of sets for one bundle: holds the model, reads sets by their URI."""

    def __init__(self, bundle: str, features: str, precision: Precision = "float32", threads: int = 1) -> None:
        """`features`: URI of the folder with the vectors of all bundles. `threads`: that decode."""
        import torch

        from biomedclip_ray.clip.encoder import Encoder

        torch.set_num_threads(max(1, threads))
        self.encoder, self.threads = Encoder.load(bundle, precision=precision), threads
        self.features = Features(features_of(features, self.encoder))
        self.sets: dict[str, LabelledSet] = {}

    def __call__(self, job: Job) -> Encoded:
        where, table, start, stop = job
        if where not in self.sets:
            self.sets[where] = load_set(where)
        return encode_part(
            self.encoder, self.features, self.sets[where].tables[table].images, start, stop, self.threads
        )


def features_of(root: str, encoder: Encoder) -> str:
    """Where a bundle's vectors lie: those in bfloat16 are others than those in float32."""
    return f"{root}/{encoder.bundle_id}" + ("" if encoder.precision == "float32" else f"-{encoder.precision}")


def recalled(found: Mapping[Job, Encoded]) -> Each:
    """What was encoded before, wherever that was."""
    return lambda jobs: (found[job] for job in jobs)
