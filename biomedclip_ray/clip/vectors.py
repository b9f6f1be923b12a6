"""Vectors of pairs: from the encoder into Arrow columns and back."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

if TYPE_CHECKING:
    from biomedclip_ray.clip.encoder import Encoder


def check_unit(vectors: NDArray[np.floating[Any]], what: str) -> None:
    """Raise ValueError unless `vectors` is (n, d), finite and of unit length to 1e-3."""
    if vectors.ndim != 2:
        raise ValueError(f"{what}: expected an (n, d) array, got shape {vectors.shape}")
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) <= 1e-3))
    if len(wrong):
        raise ValueError(
            f"{what}: {len(wrong)} of {len(vectors)} vectors are not of unit length "
            f"(row {wrong[0]} has length {lengths[wrong[0]]:.4g}); cosine ranks need normalised features"
        )


def encode_pairs(
    encoder: Encoder, texts: list[str], images: list[bytes], threads: int = 1
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Text and image vectors, each (n, d) float32 as the encoder gives them; vector i belongs to pair i.

    Of unit length but where an image or text overflows a tower: what that means, a ledger row or an error, is the
    caller's to say.

    Args:
        threads: images are decoded in so many threads while the model works on earlier ones (one thread beside the
            sample's model on one core each: 1.4 times as fast as in turn).
    """
    image = np.empty((len(images), encoder.dimensions), np.float32)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[int, Future[Any]]] = deque()

        def encode_next() -> None:
            at, pixels = waiting.popleft()
            image[at : at + encoder.batch] = encoder.encode_pixels(pixels.result())

        for start in range(0, len(images), encoder.batch):
            waiting.append((start, pool.submit(encoder.pixels, images[start : start + encoder.batch])))
            if len(waiting) > threads:  # no more batches of pixels are held than decode at once, and one
                encode_next()
        while waiting:
            encode_next()
    return encoder.encode_text(texts), image


def to_column(vectors: NDArray[np.floating[Any]]) -> pa.FixedSizeListArray:
    """(n, d) as a column of fixed-size lists of float32."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float32).ravel()), vectors.shape[1])


def to_matrix(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """A column of fixed-size lists as (n, d) float32."""
    flat: NDArray[np.float32] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), column.type.list_size)
