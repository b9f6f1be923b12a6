"""A product: what a stage leaves in storage. Immutable, named by a fingerprint, made of parts, finished by a manifest.

Resume is what lies on disk: a part whose data file and ledger file are both there is done, a product whose manifest is
there is finished. Finding that out costs one listing and reads no row again. Nothing here knows Ray.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version as installed_version
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from biomedclip_ray.schema import LEDGER, Reason
from biomedclip_ray.store.lease import HeldError, Lease
from biomedclip_ray.store.place import Place

FINGERPRINT = re.compile(r"[0-9a-f]{12}")
_PART = re.compile(r"(?:.*/)?part-(\d+)\.parquet")
MANIFEST = "_MANIFEST.json"
ROW_GROUP_BYTES = 16 * 1024 * 1024  # nested or huge row groups are what readers break on
_META = b"biomedclip_ray"
_RECORDED_PACKAGES = ("biomedclip-ray", "ray", "pyarrow", "torch", "open_clip_torch", "pillow", "lxml")


class StageError(RuntimeError):
    """A stage cannot go on; the message says why, and what can be done (exit code 1)."""


class UnfinishedError(RuntimeError):
    """Too many units were lost to network or disk; the same command tries their parts again (exit code 3)."""


@dataclass
class Count:
    """The balance of one unit: `came_in = kept + sum(dropped.values())`."""

    unit: str
    came_in: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    def check(self, stage: str) -> None:
        """Raises RuntimeError where units vanished or appeared: a bug in the stage, never in the data."""
        if self.came_in != self.kept + sum(self.dropped.values()):
            raise RuntimeError(
                f"{stage}: {self.unit}: in={self.came_in} but kept={self.kept} and dropped={self.dropped}"
            )

    def as_json(self) -> dict[str, Any]:
        return {"unit": self.unit, "in": self.came_in, "kept": self.kept, "dropped": dict(sorted(self.dropped.items()))}


class Ledger:
    """Collects what one part drops, and counts its units."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.rows: list[dict[str, Any]] = []
        self.counts: dict[str, tuple[int, int]] = {}

    def drop(self, unit: str, id: str, reason: Reason, detail: str = "") -> None:
        self.rows.append(
            {
                "stage": self.stage,
                "unit": unit,
                "id": id,
                "reason": reason.value,
                "transient": reason.transient,
                "detail": detail[:500],
            }
        )

    def count(self, unit: str, came_in: int, kept: int) -> None:
        """Add to the balance of a unit; called with numbers counted apart from the dropped rows."""
        before = self.counts.get(unit, (0, 0))
        self.counts[unit] = (before[0] + came_in, before[1] + kept)

    def table(self) -> pa.Table:
        return pa.Table.from_pylist(self.rows, schema=LEDGER)


@dataclass(frozen=True)
class PartResult:
    """What a worker made of one part."""

    data: pa.Table
    ledger: Ledger
    reused: int = 0
    """Rows taken over from the parent product."""
    withdrawn: tuple[str, ...] = ()
    """Ids that the parent has and this product has not."""


@dataclass
class Product:
    """One stage's product below a root. `parts` is known once the product runs or is finished."""

    root: str
    stage: str
    version: int
    config: dict[str, Any]
    inputs: tuple[tuple[str, str], ...]
    fingerprint: str
    state: str = "planned"
    seconds: float = 0.0
    peak_rss: int = 0
    running_parts: int | None = None
    parent: Product | None = None

    @classmethod
    def load(cls, root: str, stage: str, fingerprint: str) -> Product:
        """A finished product as its manifest tells it. Raises FileNotFoundError."""
        text = Place(root).at(f"{stage}/{fingerprint}").read(MANIFEST)
        manifest = json.loads(text)
        inputs = tuple((source["stage"], source["fingerprint"]) for source in manifest["inputs"])
        return cls(root, stage, manifest["version"], manifest["config"], inputs, fingerprint)

    @classmethod
    def plan(cls, root: str, stage: str, version: int, config: dict[str, Any], inputs: Sequence[Product]) -> Product:
        """The product that a stage would make; touches no storage.

        The fingerprint hashes stage, version, config without every `resources` subtree, and the inputs' fingerprints.
        """
        content = _without_resources(config)
        lineage = tuple((product.stage, product.fingerprint) for product in inputs)
        text = json.dumps([stage, version, content, lineage], sort_keys=True, ensure_ascii=False)
        fingerprint = hashlib.sha256(text.encode()).hexdigest()[:12]
        return cls(root, stage, version, content, lineage, fingerprint)

    @property
    def place(self) -> Place:
        return Place(self.root).at(f"{self.stage}/{self.fingerprint}")

    @property
    def uri(self) -> str:
        return self.place.uri

    @property
    def finished(self) -> bool:
        return self.place.exists(MANIFEST)

    @property
    def begun(self) -> bool:
        """Whether an earlier run has left something to go on from."""
        return any(not name.startswith("_") for name in self.place.list())

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest of a finished product. Raises FileNotFoundError before that."""
        loaded: dict[str, Any] = json.loads(self.place.read(MANIFEST))
        return loaded

    @property
    def parts(self) -> int:
        return self.running_parts if self.running_parts is not None else int(self.manifest["parts"])

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(self, part: int, columns: list[str] | None = None) -> pa.Table:
        """The rows of one part, sorted by id; only `columns` where given."""
        with self.open_data(part) as file:
            return pq.ParquetFile(file).read(columns=columns)

    def open_data(self, part: int) -> pa.NativeFile:
        """The Parquet file of one part, wherever it lies."""
        return self._open(data_name(part))

    def scan(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Every part in order, one table each."""
        for part in range(self.parts):
            yield self.read(part, columns)

    def read_ledger(self, part: int) -> pa.Table:
        """What one part dropped, sorted by id."""
        with self._open(ledger_name(part)) as file:
            return pq.ParquetFile(file).read().cast(LEDGER)

    def _open(self, name: str) -> pa.NativeFile:
        at = self._elsewhere.get(name)
        return Place(self.root).open(at) if at else self.place.open(name)

    @cached_property
    def _elsewhere(self) -> dict[str, str]:
        """Files that a finished product takes by reference (`corpus/own.py`): name -> name below the root."""
        if self.running_parts is not None:
            return {}
        return {file["name"]: file["at"] for file in self.manifest["files"] if "at" in file}

    def ledger(self) -> pa.Table:
        """Every dropped unit with its reason."""
        return pa.concat_tables([LEDGER.empty_table(), *map(self.read_ledger, range(self.parts))])

    # -- running ------------------------------------------------------------------------------------------------------

    @contextmanager
    def running(self, parts: int | None = None) -> Iterator[Product]:
        """Hold the product's lease while its stage runs; `parts` where it is made of parts.

        Raises:
            HeldError: another driver runs this stage on this root.
        """
        with Lease(self.place, f"{self.stage}/{self.fingerprint}") as lease:
            if self.finished:
                raise HeldError(f"{self.stage} was finished by {lease.before} just now; start again to go on from it")
            self.running_parts = parts
            self.place.sweep()
            self.state = "resumed" if self.begun else "ran"
            started = time.monotonic()
            yield self
            self.seconds = time.monotonic() - started

    def done_parts(self) -> set[int]:
        """Parts whose data and ledger files are both there."""
        data, ledger = (
            {int(found[1]) for name in self.place.list(folder) if (found := _PART.fullmatch(name))}
            for folder in ("data", "ledger")
        )
        return data & ledger

    def missing_parts(self) -> list[int]:
        return sorted(set(range(self.parts)) - self.done_parts())

    def write_part(
        self,
        part: int,
        data: pa.Table,
        ledger: pa.Table,
        counts: dict[str, tuple[int, int]],
        peak_rss: int = 0,
        reused: int = 0,
        withdrawn: Sequence[str] = (),
    ) -> None:
        """Write both files of a part, the ledger last: it is the mark that the part is done."""
        facts = {"counts": counts, "peak_rss": peak_rss, "reused": reused, "withdrawn": list(withdrawn)}
        note = json.dumps(facts).encode()
        self.place.write(data_name(part), parquet_bytes(data))
        self.place.write(ledger_name(part), parquet_bytes(ledger.sort_by("id").replace_schema_metadata({_META: note})))

    def finish_parts(self, transient_limit: float, extra: dict[str, Any] | None = None) -> None:
        """Balance the ledger of all parts and write the manifest.

        Raises:
            UnfinishedError: more than `transient_limit` of the units were lost to network or disk. Their parts are
                opened again, so that the next run of the same command tries them once more.
        """
        counts, transient, sync = self._balance()
        lost, units = sum(transient.values()), sum(count.came_in for count in counts)
        if lost > transient_limit * units:
            for part in transient:
                self.place.delete(ledger_name(part))
            raise UnfinishedError(
                f"{self.stage}: {lost} of {units} units lost to network or disk, above transient_limit={transient_limit}; "
                f"run the same command again to try those {len(transient)} parts once more"
            )
        if self.parent is not None:
            extra = {"parent": {"stage": self.stage, "fingerprint": self.parent.fingerprint, **sync}, **(extra or {})}
        self.finish(counts, extra)

    def finish(self, counts: Iterable[Count], extra: dict[str, Any] | None = None) -> None:
        """Write the manifest, the last file of a product: from now on it is finished and never changes."""
        balance = list(counts)
        for count in balance:
            count.check(self.stage)
        files = self.place.list()
        manifest = {
            "stage": self.stage,
            "version": self.version,
            "fingerprint": self.fingerprint,
            "config": self.config,
            "inputs": [{"stage": stage, "fingerprint": fingerprint} for stage, fingerprint in self.inputs],
            "parts": self.running_parts or 0,
            "files": [
                {"name": n, "bytes": b, "rows": self._rows(n)} for n, b in files.items() if not n.startswith("_")
            ],
            "counts": [count.as_json() for count in balance],
            "peak_rss": self.peak_rss,
            "versions": _versions(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **(extra or {}),
        }
        self.place.write(MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode())

    def _balance(self) -> tuple[list[Count], dict[int, int], dict[str, Any]]:
        """The counts over all parts, the transient rows of each part that has some, and what came from the parent."""

        def load(part: int) -> tuple[int, pa.Table]:
            with self.place.open(ledger_name(part)) as file:
                return part, pq.ParquetFile(file).read(columns=["unit", "reason", "transient"])

        counts: dict[str, Count] = {}
        transient: dict[int, int] = {}
        reused, withdrawn = 0, []
        with ThreadPoolExecutor(16) as threads:
            for part, table in threads.map(load, range(self.parts)):
                note = json.loads(table.schema.metadata[_META])
                self.peak_rss = max(self.peak_rss, note["peak_rss"])
                reused += note["reused"]
                withdrawn += note["withdrawn"]
                for unit, (came_in, kept) in note["counts"].items():
                    count = counts.setdefault(unit, Count(unit))
                    count.came_in += came_in
                    count.kept += kept
                for row in table.group_by(["unit", "reason"]).aggregate([([], "count_all")]).to_pylist():
                    dropped = counts.setdefault(row["unit"], Count(row["unit"])).dropped
                    dropped[row["reason"]] = dropped.get(row["reason"], 0) + row["count_all"]
                lost = table["transient"].to_pylist().count(True)
                if lost:
                    transient[part] = lost
        return list(counts.values()), transient, {"reused_rows": reused, "withdrawn": sorted(withdrawn)}

    def _rows(self, name: str) -> int | None:
        if not name.endswith(".parquet"):
            return None
        with self.place.open(name) as file:
            return int(pq.read_metadata(file).num_rows)


def data_name(part: int) -> str:
    return f"data/part-{part:05d}.parquet"


def ledger_name(part: int) -> str:
    return f"ledger/part-{part:05d}.parquet"


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with exactly the columns, order and types of `schema`. Raises KeyError for a missing column."""
    return pa.table([table[name].cast(schema.field(name).type) for name in schema.names], schema=schema)


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as a Parquet file; row groups of about 16 MiB, binary columns stored as they are.

    JPEG bytes do not compress and do not repeat: without compression and dictionary 131 MB of them are written in 0.08 s
    instead of 0.93 s.
    """
    leaves = _leaves(table.schema)
    binary = {name for name, type_ in leaves.items() if pa.types.is_binary(type_) or pa.types.is_large_binary(type_)}
    row_bytes = max(1, table.nbytes // max(1, table.num_rows))
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        row_group_size=max(1, ROW_GROUP_BYTES // row_bytes),
        compression={name: "none" if name in binary else "zstd" for name in leaves},
        use_dictionary=[name for name in leaves if name not in binary],
        write_statistics=True,
    )
    return sink.getvalue()


def _leaves(schema: pa.Schema) -> dict[str, pa.DataType]:
    """The Parquet leaf columns of a schema, as write_table names them, with their types."""

    def walk(name: str, type_: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
        if pa.types.is_struct(type_):
            for child in type_:
                yield from walk(f"{name}.{child.name}", child.type)
        elif pa.types.is_list(type_) or pa.types.is_fixed_size_list(type_):
            yield from walk(f"{name}.list.element", type_.value_type)
        else:
            yield name, type_

    return dict(leaf for column in schema for leaf in walk(column.name, column.type))


def _without_resources(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: _without_resources(value) for key, value in config.items() if key != "resources"}
    return config


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: installed_version(name) for name in _RECORDED_PACKAGES}}
