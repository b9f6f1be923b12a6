"""Smaller types for vectors that leave the server, and what they cost: recall@10 among vectors of that type, against
float32.

int8 is the float times one scale for all vectors (the largest number of a sample becomes 127), so products of two keep
their order; binary is the signs, eight to a byte, compared by the bits that differ.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from biomedclip_ray.store.place import Place

Output = Literal["float32", "float16", "int8", "binary"]

_ROWS = 10_000
_QUERIES = 100


def convert(vectors: NDArray[np.float32], output: Output, int8_scale: float) -> NDArray[Any]:
    """Unit vectors (n, d) as (n, d) of the type, or (n, ceil(d / 8)) uint8 for binary, the first number in the highest
    bit.

    >>> convert(np.array([[0.6, -0.8]], np.float32), "int8", 127.0).tolist()
    [[76, -102]]
    >>> convert(np.array([[0.6, -0.8]], np.float32), "binary", 0.0).tolist()
    [[128]]
    """
    if output == "int8":
        return np.clip(np.rint(vectors * int8_scale), -127, 127).astype(np.int8)
    if output == "binary":
        return np.packbits(vectors > 0, axis=-1)
    return vectors.astype(output)


def measure(place: Place, seed: int) -> dict[str, Any]:
    """`int8_scale` and `output_recall` of `table.Settings`, over a sample of the table's rows and queries of both
    columns.
    """
    from biomedclip_ray.search.table import VECTORS, open_table  # the server's ingress converts, and needs no Lance

    dataset = open_table(place)
    rows = dataset.count_rows()
    chosen = np.sort(np.random.default_rng(seed).choice(rows, min(_ROWS, rows), replace=False))
    table = dataset.take(chosen.tolist(), columns=list(VECTORS))
    matrices = {
        name: table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(chosen), -1)
        for name in VECTORS
    }
    images = matrices["image_vector"]
    scale = 127.0 / max(float(np.abs(matrix).max()) for matrix in matrices.values())
    queries = np.concatenate([matrix[:_QUERIES] for matrix in matrices.values()])
    truth = _best(queries @ images.T)
    recall = {}
    for output in ("float16", "int8"):
        coded = [convert(each, output, scale).astype(np.float32) for each in (queries, images)]
        recall[output] = _shared(truth, _best(coded[0] @ coded[1].T))
    signs = [np.where(each > 0, np.float32(1), np.float32(-1)) for each in (queries, images)]
    recall["binary"] = _shared(
        truth, _best(signs[0] @ signs[1].T)
    )  # the product of signs is d less twice the bits that differ
    return {"int8_scale": scale, "output_recall": recall}


def _best(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    k = min(10, scores.shape[1])
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def _shared(truth: NDArray[np.int64], found: NDArray[np.int64]) -> float:
    same = sum(len(set(a) & set(b)) for a, b in zip(truth.tolist(), found.tolist(), strict=True))
    return round(same / truth.size, 4)
