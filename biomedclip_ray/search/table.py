"""The Lance table of an index: where it lies, how it is searched, and the search for vectors that all others use."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import lance
import numpy as np
from numpy.typing import NDArray

from biomedclip_ray.store.place import KMS_KEY, Place
from biomedclip_ray.store.product import StageError

TABLE = "index.lance"
SETTINGS = "search.json"
METRIC = "cosine"
VECTORS = ("image_vector", "text_vector")
_READ_BYTES = 64 * 1024

Column = Literal["image_vector", "text_vector"]


class BadIndexError(StageError):
    """An index that is not there, is empty, or does not hold the rows that it should."""


class Found(NamedTuple):
    """Row ids (n,) uint64 and scores (n,) float32, best first, equal ones by pair_id."""

    ids: NDArray[np.uint64]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class Settings:
    """How the table is searched, and the recall@10 that this gave when it was built."""

    kind: str = "exact"
    """exact, IVF_RQ or IVF_PQ."""
    refine_factor: int = 0
    """So many times the wanted rows are ranked again by their whole vectors."""
    exact_rows: int = 0
    """A filter that so few rows pass is searched exactly."""
    probes: dict[str, int] = field(default_factory=dict)
    """Share of the rows that pass -> partitions probed; between two shares the smaller one's hold."""
    partitions: int = 0
    recall: dict[str, float] = field(default_factory=dict)
    """What was searched -> recall@10 against exact search."""
    output_recall: dict[str, float] = field(default_factory=dict)
    """Type of a vector's numbers (`outputs.py`) -> recall@10 among vectors of that type, against float32."""
    int8_scale: float = 0.0
    """What a float is multiplied by to become int8."""

    @property
    def exact(self) -> bool:
        return self.kind == "exact"

    def nprobes(self, share: float) -> int:
        """Partitions to probe where this share of the rows passes; all where it is below every share
        that was measured.
        """
        measured = [float(key) for key in self.probes if float(key) <= share]
        return self.probes[f"{max(measured):g}"] if measured else self.partitions


def nearest_rows(
    dataset: lance.LanceDataset,
    query: NDArray[np.float32],
    depth: int,
    column: str,
    where: str | None,
    probes: int,
    refine_factor: int,
) -> Found:
    """The `depth` nearest rows among those that pass; exact where no partition is to be probed. Scores are cosines of
    whole vectors.
    """
    nearest: dict[str, Any] = {"column": column, "q": query, "k": depth, "metric": METRIC, "use_index": probes > 0}
    if probes:
        # Without a refine_factor Lance gives twice the distance where the index covers every row, and once where it
        # does not.
        nearest |= {"nprobes": probes, "refine_factor": max(1, refine_factor)}
    scanner = dataset.scanner(columns=["_distance"], with_row_id=True, nearest=nearest, filter=where, prefilter=True)
    table = scanner.to_table()
    return Found(table["_rowid"].to_numpy(), 1 - table["_distance"].to_numpy())


def open_table(place: Place) -> lance.LanceDataset:
    """The Lance table below a place.

    Rows that lie within 64 kB of each other are read at once, as from object stores: the vectors of a tenth of the rows
    then take 5 us of a CPU each, and 9 with the 4 kB that Lance has for files.
    """
    return lance.dataset(place.at(TABLE).plain, storage_options=storage_options(place), block_size=_READ_BYTES)


def storage_options(place: Place) -> dict[str, str] | None:
    """What Lance's own S3 client must be told that pyarrow reads from the URI or the environment."""
    if not place.uri.startswith("s3://"):
        return None
    endpoint = place.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    key = os.environ.get(KMS_KEY)
    options = {"aws_endpoint": endpoint, "allow_http": str(endpoint.startswith("http://")).lower()} if endpoint else {}
    options |= {"aws_server_side_encryption": "aws:kms", "aws_sse_kms_key_id": key} if key else {}
    return options or None
