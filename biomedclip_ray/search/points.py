"""The map of an index: its figures as points, as many as a browser draws smoothly."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from biomedclip_ray.search.index import Index

MOST = 100_000


class Points(NamedTuple):
    """x and y (n,) float32 from about -1 to 1, the figures' kinds as places in `kinds` (n,), and their pair_ids."""

    x: NDArray[np.float32]
    y: NDArray[np.float32]
    kind: NDArray[np.int32]
    kinds: list[str]
    ids: list[str]


def points(index: Index, most: int = MOST) -> Points:
    """Every figure that has a place, or `most` rows of the table drawn evenly."""
    columns = ["pair_id", "x", "y", "figure_kind"]
    rows = index.count()
    if rows <= most:
        table = index.dataset.to_table(columns=columns)
    else:
        drawn = np.linspace(0, rows - 1, most).astype(np.int64)
        table = index.dataset.take(drawn.tolist(), columns=columns)
    table = table.filter(pc.and_(pc.is_finite(table["x"]), pc.is_finite(table["y"])))
    kinds = pc.fill_null(table["figure_kind"], "unknown").combine_chunks().dictionary_encode()
    return Points(
        table["x"].to_numpy(),
        table["y"].to_numpy(),
        kinds.indices.to_numpy(),
        kinds.dictionary.to_pylist(),
        table["pair_id"].to_pylist(),
    )
