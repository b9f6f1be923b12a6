"""One bundle on all sets, and the rows of many bundles side by side: what the stage and workflows/evaluate.py share."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from biomedclip_ray.config import Evaluate
from biomedclip_ray.evaluate.features import Each, Kept
from biomedclip_ray.evaluate.on_sets import measure_set
from biomedclip_ray.evaluate.sets import LabelledSet
from biomedclip_ray.store.place import Place

if TYPE_CHECKING:
    from biomedclip_ray.clip.encoder import Encoder

Near = Callable[[NDArray[np.uint64]], NDArray[np.bool_] | None]
Written = dict[tuple[str, str], tuple[str, str, dict[str, Any]]]
"""(set, task) -> (kind, file of its rows below the place of all rows, what measure.py needs beside them)."""


def measure_bundle(
    encoder: Encoder,
    sets: Sequence[LabelledSet],
    features: str,
    section: Evaluate,
    rows: Place,
    near: Near | None = None,
    each: Each | None = None,
    told: Callable[[str, dict[str, Any]], None] | None = None,
) -> tuple[dict[str, Any], Written]:
    """Figures of each set by name, and where the rows behind them were written.

    Args:
        features: URI of the folder with this bundle's kept vectors.
        rows: where the rows go, a file a set and task.
        near: perceptual hashes -> which of them the bundle saw in training.
        each: runs the encoding (see `features.Kept`).
        told: called with each set's name and figures as they come.
    """
    shown: dict[str, Any] = {}
    written: Written = {}
    for labelled in sets:
        vectors = Kept(encoder, features, labelled, each)
        # small fits and sums: several BLAS threads on cores that others use as well made them ten times slower
        with threadpool_limits(1, "blas"):
            figures, found = measure_set(
                vectors, labelled, section.bootstraps, section.seed, section.max_left_out, near, section.corruptions
            )
        shown[labelled.name] = figures
        for task, (kind, table, about) in found.items():
            name = f"{_safe(labelled.name)}-{_safe(task)}.parquet"
            write_rows(rows, name, table)
            written[labelled.name, task] = kind, f"{rows.uri}/{name}", about
        if told is not None:
            told(labelled.name, figures)
    return shown, written


def gather(
    written: Mapping[str, Written],
) -> dict[tuple[str, str], tuple[str, dict[str, pa.Table], dict[str, Any]]]:
    """The rows of each task of each set for every bundle, as `compare.comparison` takes them."""
    out: dict[tuple[str, str], tuple[str, dict[str, pa.Table], dict[str, Any]]] = {}
    for bundle, tasks in written.items():
        for where, (kind, uri, about) in tasks.items():
            entry = out.setdefault(where, (kind, {}, about))
            folder, _, name = uri.rpartition("/")
            entry[1][bundle] = pq.read_table(Place(folder).open(name))
    return out


def write_rows(place: Place, name: str, rows: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(rows, sink, compression="zstd")
    place.write(name, sink.getvalue())


def _safe(name: str) -> str:
    return "".join(sign if sign.isalnum() or sign in "._-" else "_" for sign in name)
