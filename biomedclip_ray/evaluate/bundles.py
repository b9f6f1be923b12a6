"""One bundle on all sets, and the rows of many bundles side by side: what the stage and workflows/evaluate.py share."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits

from biomedclip_ray.config import Evaluate, PartResources
from biomedclip_ray.config.section import Precision
from biomedclip_ray.evaluate.features import Each, Encoded, Job, Kept, Worker, features_of, jobs_of
from biomedclip_ray.evaluate.on_sets import Measured, Near, ask_untrained, measure_set
from biomedclip_ray.evaluate.sets import LabelledSet
from biomedclip_ray.evaluate.tasks import TooLittle
from biomedclip_ray.store.place import Place

if TYPE_CHECKING:
    from biomedclip_ray.clip.encoder import Encoder

Written = dict[tuple[str, str], tuple[str, str, dict[str, Any]]]
"""(set, task) -> (kind, file of its rows below the place of all rows, what measure.py needs beside them)."""


class Asked:
    """One bundle at work on sets: everything encoded, then what needs no training, then all the rest."""

    def __init__(
        self,
        encoder: Encoder,
        sets: Sequence[LabelledSet],
        features: str,
        section: Evaluate,
        each: Each | None = None,
        uri: str = "",
    ) -> None:
        """`features`: URI of the folder with the vectors of all bundles. `each`: see `features.Kept`. `uri`: the
        bundle's, for a fusion head.
        """
        self.encoder, self.section, self.uri = encoder, section, uri
        self.sets = {one.name: one for one in sets}
        self.features = features_of(features, encoder)
        self.vectors = {one.name: Kept(encoder, self.features, one, each) for one in sets}
        self.begun: dict[str, Measured] = {}

    @property
    def encoded(self) -> dict[str, int]:
        """Images and texts that went through the model for this bundle; the others were known."""
        kept = self.vectors.values()
        return {kind: sum(vectors.encoded[kind] for vectors in kept) for kind in ("images", "texts")}

    def encode(self) -> None:
        """Every image of every set."""
        for name, labelled in self.sets.items():
            for table in labelled.tables:
                self.vectors[name].table(table)

    def first(self) -> dict[str, Any]:
        """Figures of what needs no training, by set."""
        section = self.section
        for name, labelled in self.sets.items():
            with _one_thread():
                self.begun[name] = ask_untrained(
                    self.vectors[name], labelled, section.bootstraps, section.seed, section.max_left_out
                )
        return {name: figures for name, (figures, _) in self.begun.items()}

    def all(
        self, rows: Place, near: Near | None = None, told: Callable[[str, dict[str, Any]], None] | None = None
    ) -> tuple[dict[str, Any], Written]:
        """All figures by set, and where the rows behind them were written.

        Args:
            rows: where the rows go, a file a set and task.
            near: perceptual hashes and images -> which of them the bundle saw in training.
            told: called with each set's name and figures as they come.
        """
        section = self.section
        shown: dict[str, Any] = {}
        written: Written = {}
        for name, labelled in self.sets.items():
            with _one_thread():
                figures, found = measure_set(
                    self.vectors[name],
                    labelled,
                    section.bootstraps,
                    section.seed,
                    section.max_left_out,
                    near,
                    section.corruptions,
                    self.begun.get(name),
                    self._fused(labelled) if section.fusion.epochs else None,
                )
            shown[name] = figures
            for task, (kind, table, about) in found.items():
                file = f"{_safe(name)}-{_safe(task)}.parquet"
                write_rows(rows, file, table)
                written[name, task] = kind, f"{rows.uri}/{file}", about
            if told is not None:
                told(name, figures)
        return shown, written

    def _fused(self, labelled: LabelledSet) -> Callable[[str], pa.Table | str]:
        """What the fusion head of a split answered; it is trained here where no cluster did."""
        from biomedclip_ray.clip.encoder import Encoder
        from biomedclip_ray.evaluate import fusion

        def said(split: str) -> pa.Table | str:
            job = fusion.Job.of(self.uri, self.features, labelled, split, self.section)
            where = Place(job.place)
            try:
                if not job.done:
                    own = Encoder.load(job.bundle, precision=job.precision, packed=False)  # its towers may be trained
                    fusion.fit(job, own, fusion.InPlace(where))
            except TooLittle as error:
                return str(error)
            return pq.read_table(where.open(fusion.SAID))

        return said


def _one_thread() -> AbstractContextManager[Any]:
    """Small fits and sums: several BLAS threads on cores that others use as well made them ten times slower."""
    limits: AbstractContextManager[Any] = threadpool_limits(1, "blas")
    return limits


def encode_on_cluster(
    uri: str, sets: Sequence[LabelledSet], features: str, resources: PartResources, precision: Precision = "float32"
) -> dict[Job, Encoded]:
    """Every image of every set encoded by one bundle all over the connected cluster, a part a job; `features.recalled`
    takes what is returned. A worker holds a part's vectors and a few hundred files (kill -9 loses that part), this
    process the keys.
    """
    from biomedclip_ray.run.stream import stream  # Ray: one machine needs none

    jobs = [job for labelled in sets for table in labelled.tables for job in jobs_of(labelled, table)]
    threads = math.ceil(resources.num_cpus)
    found = stream("evaluate", Worker, (uri, features, precision, threads), jobs, resources)
    return dict(zip(jobs, found, strict=True))


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
