"""The work on a product that is not finished: one driver at a time, part by part, and the manifest at its end.

Resume is what lies on disk: a part whose data file and ledger file are both there is done. Finding that out costs one
listing and reads no row again. Nothing here knows Ray; an `Attempt` goes to workers as it is.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version as installed_version
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from biomedclip_ray.schema import LEDGER
from biomedclip_ray.store.ahead import each
from biomedclip_ray.store.lease import HeldError, Lease
from biomedclip_ray.store.ledger import Count
from biomedclip_ray.store.parquet import parquet_bytes
from biomedclip_ray.store.place import Place
from biomedclip_ray.store.product import MANIFEST, Product, data_name, ledger_name

_META = b"biomedclip_ray"
_REQUESTS = 32  # at once, to an object store
_RECORDED_PACKAGES = ("biomedclip-ray", "ray", "pyarrow", "torch", "open_clip_torch", "pillow", "lxml")


class UnfinishedError(RuntimeError):
    """Too many units were lost to network or disk; the same command tries their parts again (exit code 3)."""


class Balance(NamedTuple):
    """What the ledgers of all parts say together."""

    counts: list[Count]
    transient: dict[int, int]
    """Rows that were lost to network or disk, of each part that has some."""
    taken_over: dict[str, Any]
    """What came from the parent."""
    rows: dict[str, int]
    """Of each file of a part."""


@dataclass
class Attempt:
    """One driver's work on one product: what changes while it runs."""

    product: Product
    state: Literal["ran", "resumed"]
    parts: int | None = None
    """How many parts the product is made of; None where it is not made of parts."""
    parent: Product | None = None
    """The product of an earlier inventory that unchanged rows are taken from."""
    peak_rss: int = 0
    """Most bytes of main memory that one worker has held."""
    _balanced: Balance | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """To a worker goes what it needs, without the rows of every file."""
        return self.__dict__ | {"_balanced": None}

    @property
    def place(self) -> Place:
        return self.product.place

    def missing_parts(self) -> list[int]:
        return sorted(set(range(self._all_parts())) - self.product.done_parts())

    def read(self, part: int, columns: list[str] | None = None) -> pa.Table:
        """The rows of a part that is done."""
        return self.place.parquet(data_name(part)).to_table(columns=columns)

    def read_ledger(self, part: int) -> pa.Table:
        """What a part that is done dropped."""
        return self.place.parquet(ledger_name(part)).to_table().cast(LEDGER)

    def counts(self, part: int) -> dict[str, list[int]]:
        """How many of each unit came into a part that is done, and how many were kept."""
        counts: dict[str, list[int]] = self._note(part)["counts"]
        return counts

    def scan(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Every part in order, when all are done; those that follow are read meanwhile."""
        return each(range(self._all_parts()), lambda part: self.read(part, columns))

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
        note = json.dumps(facts | {"rows": data.num_rows}).encode()
        self.place.write(data_name(part), parquet_bytes(data))
        self.place.write(ledger_name(part), parquet_bytes(ledger.sort_by("id").replace_schema_metadata({_META: note})))

    def take_out(self, part: int, data: pa.Table, ledger: pa.Table, gone: dict[str, tuple[int, int]]) -> None:
        """Write a part without rows that were erased: `gone` says how many of each unit came in and were kept."""
        note = self._note(part)
        counts = {
            unit: (came_in - gone.get(unit, (0, 0))[0], kept - gone.get(unit, (0, 0))[1])
            for unit, (came_in, kept) in note["counts"].items()
        }
        self.write_part(part, data, ledger, counts, note["peak_rss"], note["reused"], note["withdrawn"])

    def amend(self) -> None:
        """Write the manifest of a finished product again, as its parts are after rows were erased."""
        counts, _, _, rows = self._balance()
        sizes = self.place.list()
        files = [
            file | {"bytes": sizes.get(file["name"], 0), "rows": rows.get(file["name"], file["rows"])}
            for file in self.product.manifest["files"]
        ]
        for count in counts:
            count.check(self.product.stage)
        manifest = self.product.manifest | {"files": files, "counts": [count.as_json() for count in counts]}
        self.place.write(MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode())

    def finish_parts(self, transient_limit: float, facts: dict[str, Any] | None = None) -> None:
        """Balance the ledger of all parts and write the manifest.

        Raises:
            UnfinishedError: more than `transient_limit` of the units were lost to network or disk. Their parts are
                opened again, so that the next run of the same command tries them once more.
        """
        counts, transient, taken_over, rows = self.balance()
        lost, units = sum(transient.values()), sum(count.came_in for count in counts)
        if lost > transient_limit * units:
            for part in transient:
                self.place.delete(ledger_name(part))
            raise UnfinishedError(
                f"{self.product.stage}: {lost} of {units} units lost to network or disk, above transient_limit="
                f"{transient_limit}; run the same command again to try those {len(transient)} parts once more"
            )
        parent = {}
        if self.parent is not None:
            parent = {"parent": {"stage": self.parent.stage, "fingerprint": self.parent.fingerprint, **taken_over}}
        self.finish(counts, parent | (facts or {}), rows)

    def finish(
        self, counts: Iterable[Count], facts: dict[str, Any] | None = None, rows: dict[str, int] | None = None
    ) -> None:
        """Write the manifest, the last file of a product: from now on it is finished and never changes.

        Args:
            rows: of the files whose number of rows is known; other Parquet files are asked.
        """
        product, balance = self.product, list(counts)
        rows = rows or {}
        for count in balance:
            count.check(product.stage)
        manifest = {
            "stage": product.stage,
            "version": product.version,
            "fingerprint": product.fingerprint,
            "config": product.config,
            "inputs": [{"stage": stage, "fingerprint": fingerprint} for stage, fingerprint in product.inputs],
            "parts": self.parts or 0,
            "files": [
                {"name": name, "bytes": size, "rows": rows[name] if name in rows else self._rows(name)}
                for name, size in self.place.list().items()
                if not name.startswith("_")
            ],
            "counts": [count.as_json() for count in balance],
            "peak_rss": self.peak_rss,
            "versions": _versions(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **(facts or {}),
        }
        self.place.write(MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode())

    def _note(self, part: int) -> dict[str, Any]:
        ledger = pa.BufferReader(self.place.read(ledger_name(part)))
        note: dict[str, Any] = json.loads(pq.read_schema(ledger).metadata[_META])
        return note

    def _all_parts(self) -> int:
        if self.parts is None:
            raise RuntimeError(f"{self.product.stage}: nobody has said of how many parts it is made")
        return self.parts

    def balance(self) -> Balance:
        """What the ledgers of all parts, which are done, say together; read once.

        Only ledgers are read, each whole in one request: with them and the data files' footers asked for one after the
        other, closing 2,000 parts took 161 ms a part behind a store that answers in 30 ms.
        """
        if self._balanced is None:
            self._balanced = self._balance()
        return self._balanced

    def _balance(self) -> Balance:
        def load(part: int) -> tuple[int, pa.Table, list[dict[str, Any]]]:
            ledger = pa.BufferReader(self.place.read(ledger_name(part)))
            table = pq.ParquetFile(ledger).read(columns=["unit", "reason", "transient"])
            return part, table, table.group_by(["unit", "reason"]).aggregate([([], "count_all")]).to_pylist()

        counts: dict[str, Count] = {}
        transient: dict[int, int] = {}
        rows: dict[str, int] = {}
        reused, withdrawn = 0, []
        with ThreadPoolExecutor(_REQUESTS) as threads:
            for part, table, dropped_here in threads.map(load, range(self._all_parts())):
                note = json.loads(table.schema.metadata[_META])
                rows |= {data_name(part): note["rows"], ledger_name(part): table.num_rows}
                self.peak_rss = max(self.peak_rss, note["peak_rss"])
                reused += note["reused"]
                withdrawn += note["withdrawn"]
                for unit, (came_in, kept) in note["counts"].items():
                    count = counts.setdefault(unit, Count(unit))
                    count.came_in += came_in
                    count.kept += kept
                for row in dropped_here:
                    dropped = counts.setdefault(row["unit"], Count(row["unit"])).dropped
                    dropped[row["reason"]] = dropped.get(row["reason"], 0) + row["count_all"]
                lost = table["transient"].to_pylist().count(True)
                if lost:
                    transient[part] = lost
        return Balance(list(counts.values()), transient, {"reused_rows": reused, "withdrawn": sorted(withdrawn)}, rows)

    def _rows(self, name: str) -> int | None:
        if not name.endswith(".parquet"):
            return None
        with self.place.open(name) as file:
            return int(pq.read_metadata(file).num_rows)


@contextmanager
def attempt(product: Product, parts: int | None = None) -> Iterator[Attempt]:
    """Hold the product's lease and work on it; `parts` where it is known of how many it is made.

    Raises:
        HeldError: another driver runs this stage on this root, or has just finished it.
    """
    with Lease(product.place, f"{product.stage}/{product.fingerprint}") as lease:
        if product.finished:
            raise HeldError(f"{product.stage} was finished by {lease.before} just now; start again to go on from it")
        product.place.sweep()
        yield Attempt(product, "resumed" if product.begun else "ran", parts)


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: installed_version(name) for name in _RECORDED_PACKAGES}}
