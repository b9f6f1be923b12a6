"""Vectors of pairs: from the encoder into Arrow columns and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from biomedclip_ray.evaluate.retrieval import check_unit

if TYPE_CHECKING:
    from biomedclip_ray.clip.encoder import Encoder


def encode_pairs(
    encoder: Encoder, texts: list[str], images: list[bytes]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Text and image vectors, each (n, d) float32 of unit length; vector i belongs to pair i.

    Raises:
        ValueError: the encoder gave a vector that is not of unit length.
    """
    text, image = encoder.encode_text(texts), encoder.encode_images(images)
    check_unit(text, "text vectors")
    check_unit(image, "image vectors")
    return text, image


def to_column(vectors: NDArray[np.floating[Any]]) -> pa.FixedSizeListArray:
    """(n, d) as a column of fixed-size lists of float32."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float32).ravel()), vectors.shape[1])


def to_matrix(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """A column of fixed-size lists as (n, d) float32."""
    flat: NDArray[np.float32] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), column.type.list_size)
