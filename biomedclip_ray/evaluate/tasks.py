"""What an evaluation task is: it names the columns it needs and gives one row a sample; figures are made of rows in
measure.py.

A task never resamples and never averages: two bundles are compared from their rows, and whoever doubts a figure
recomputes it from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from biomedclip_ray.evaluate.sets import LabelledSet

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

    def run(self, vectors: Vectors, labelled: LabelledSet) -> pa.Table:
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


@dataclass(frozen=True)
class Test:
    """The rows of the test table that have a vector."""

    __test__ = False  # pytest takes every Test for a test
    rows: NDArray[np.int64]
    ids: list[str]
    clusters: list[str]
    values: list[Any]
    """As the set gives them: label, labels or answer."""
    labels: NDArray[np.int64]
    """Of a classification; else empty."""
    images: Floats

    @classmethod
    def of(cls, vectors: Vectors, labelled: LabelledSet) -> Test:
        """Raises TooLittle where no row has a vector."""
        table, images = labelled.tables["test"], vectors.images("test")
        rows = np.flatnonzero(np.isfinite(images).all(axis=1))
        if not len(rows):
            raise TooLittle("no image of the test table has a finite vector")
        ids, clusters, values = ([side[row] for row in rows] for side in (table.ids, table.clusters, table.values))
        labels = table.labels[rows] if len(table.labels) else table.labels
        return cls(rows, ids, clusters, values, labels, images[rows])
