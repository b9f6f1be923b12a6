"""Recall of each checkpoint on the validation split, in a task of its own: the training workers never wait for it.

A failed validation costs its figure, not the run: an evaluation on rank 0 that the others do not take part in has hung
whole runs elsewhere. The pairs are copied once into the product; a checkpoint's figures go to validation/.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from ray.exceptions import RayError
from ray.train import Checkpoint

from biomedclip_ray.run.placement import Placement
from biomedclip_ray.store.ahead import each
from biomedclip_ray.store.parquet import parquet_bytes, some_rows
from biomedclip_ray.store.place import Place
from biomedclip_ray.store.product import Product
from biomedclip_ray.train import checkpoint as checkpoints

SPLIT = "validation"
PAIRS = "validation.parquet"
FIGURES = "validation"
SCORE = "validation_recall_at_10"
K = 10
_AHEAD = 8  # parts that are read at once: a row group of images each


def copy_pairs(pairs: Product, corpus: Product, count: int, place: Place) -> int:
    """Copy the first `count` kept validation pairs (storage order is hash order) to the product; how
    many there were.
    """

    def read(part: int) -> pa.Table | None:
        marks = corpus.read(part, ["split", "kept"])
        rows = np.flatnonzero(pc.and_(pc.equal(marks["split"], SPLIT), marks["kept"]).to_numpy())
        if not len(rows):
            return None
        found = some_rows(pairs.file(part), rows[:count], ["pair_id", "image", "text"])
        return pa.concat_tables(table for _, table in found)

    tables: list[pa.Table] = []
    found = 0
    for table in each(range(corpus.parts), read, _AHEAD):
        if table is not None:
            tables.append(table.slice(0, count - found))
            found += tables[-1].num_rows
        if found >= count:
            break
    if tables:
        place.write(PAIRS, parquet_bytes(pa.concat_tables(tables)))
    return found


@dataclass(frozen=True)
class Validation:
    """What Ray Train calls with each checkpoint: returns {validation_recall_at_10}.

    It measures in a task of its own: of one that the kernel kills Ray Train hears no exception that it would survive.

    Attributes:
        product: URI of the train product.
        start: URI of the bundle that training started from.
        where: size and place of the task.
    """

    product: str
    start: str
    where: Placement

    def __call__(self, checkpoint: Checkpoint) -> dict[str, float]:
        task = _measure.options(**self.where.options, max_retries=1)
        try:
            figures: dict[str, float] = ray.get(task.remote(self.product, self.start, checkpoint))
        except RayError as error:
            raise RuntimeError(f"{checkpoint.path} could not be measured: {error}") from None
        return {SCORE: score(figures)}


@ray.remote
def _measure(product: str, start: str, checkpoint: Checkpoint) -> dict[str, float]:
    from biomedclip_ray.clip.bundle import load_bundle
    from biomedclip_ray.clip.encoder import Encoder

    place = Place(product)
    table = pq.read_table(io.BytesIO(place.read(PAIRS)))
    bundle = load_bundle(start)
    with checkpoint.as_directory() as folder:
        bundle.model.load_state_dict(checkpoints.weights(Path(folder), bundle.model))
    encoder = Encoder(bundle)
    image = encoder.encode_images(table["image"].to_pylist())
    text = encoder.encode_text(table["text"].to_pylist())
    if not (np.isfinite(image).all() and np.isfinite(text).all()):
        raise ArithmeticError(f"{checkpoint.path}: vectors that are not finite")
    figures = {
        "n": len(image),
        "text_to_image": recall_at(K, text, image),
        "image_to_text": recall_at(K, image, text),
    }
    place.write(f"{FIGURES}/{Path(checkpoint.path).name}.json", json.dumps(figures).encode())
    return figures


def score(figures: dict[str, float]) -> float:
    """What checkpoints are compared by: the mean of both ways."""
    return (figures["text_to_image"] + figures["image_to_text"]) / 2


def recall_at(k: int, query: npt.NDArray[np.float32], pool: npt.NDArray[np.float32]) -> float:
    """Share of queries whose own row of the pool is among the k nearest; ties count at their expected rank."""
    similarity = query @ pool.T
    own = np.diagonal(similarity)[:, None]
    better = (similarity > own).sum(1)
    tied = (similarity == own).sum(1) - 1
    return float(np.clip((k - better) / (tied + 1), 0, 1).mean())


def figures(place: Place) -> dict[int, dict[str, float]]:
    """Steps done -> what `Validation` measured there."""
    return {
        checkpoints.step_of(name.removesuffix(".json")): json.loads(place.read(name)) for name in place.list(FIGURES)
    }
