"""What an evaluation task is: it names the columns it needs and gives one row a sample; figures are made of rows in
measure.py.

A task never resamples and never averages: two bundles are compared from their rows, and whoever doubts a figure
recomputes it from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


class Vectors(Protocol):
    """Vectors of one bundle for one set: an encoder at work, or features that were kept."""

    logit_scale: float

    def images(self, table: str) -> Floats:
        """(n, d) float32 unit vectors of a table's images, in order; a row of NaN where there is none."""

    def encode_text(self, texts: Sequence[str]) -> Floats:
        """(n, d) float32 unit vectors."""


class TooLittle(ValueError):
    """A set holds too little for a task; the message is the sentence that stands in the figures' place."""


class Task(Protocol):
    """One kind of question asked of one set."""

    name: ClassVar[str]
    """Of its entry in evaluation.json."""
    kind: ClassVar[str]
    """Which figures measure.py makes of its rows."""
    columns: ClassVar[dict[str, tuple[str, ...]]]
    """Table of the set -> columns that it must hold."""

    def run(self, vectors: Vectors, labelled: Any) -> pa.Table:
        """One row a sample: sample_id, cluster, and what its kind needs. Rows without a vector are left out.

        Raises:
            TooLittle: the set cannot be asked this.
        """


def answers(ids: Sequence[str], clusters: Sequence[str], labels: NDArray[np.int64], logits: Floats) -> pa.Table:
    """Rows of kind "classification": the label's number and a float64 logit for each class."""
    flat = pa.array(np.ascontiguousarray(logits, np.float64).ravel())
    return pa.table(
        {
            "sample_id": pa.array(ids, pa.string()),
            "cluster": pa.array(clusters, pa.string()),
            "label": pa.array(labels, pa.int64()),
            "logits": pa.FixedSizeListArray.from_arrays(flat, logits.shape[1]),
        }
    )


def logits_of(rows: pa.Table) -> NDArray[np.float64]:
    """(n, classes) of such rows."""
    flat: NDArray[np.float64] = rows["logits"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(rows.num_rows, -1)


def whole(vectors: Floats) -> NDArray[np.int64]:
    """Rows that have a vector. Raises TooLittle where none has."""
    kept = np.flatnonzero(np.isfinite(vectors).all(axis=1))
    if not len(kept):
        raise TooLittle("no image of the test table has a finite vector")
    return kept
