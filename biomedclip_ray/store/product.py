"""A product: what a stage leaves in storage. Immutable, named by a fingerprint, made of parts, finished by a manifest.

This file is a product's identity and how it is read; `attempt.py` is the work on one that is not finished yet.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from biomedclip_ray.schema import LEDGER
from biomedclip_ray.store.ahead import each
from biomedclip_ray.store.place import Place

FINGERPRINT = re.compile(r"[0-9a-f]{12}")
MANIFEST = "_MANIFEST.json"
_PART = re.compile(r"(?:.*/)?part-(\d+)\.parquet")


class StageError(RuntimeError):
    """A stage cannot go on; the message says why, and what can be done (exit code 1)."""


@dataclass(frozen=True)
class Product:
    """One stage's product below a root, finished or not."""

    root: str
    stage: str
    version: int
    config: dict[str, Any]
    inputs: tuple[tuple[str, str], ...]
    fingerprint: str

    @classmethod
    def load(cls, root: str, stage: str, fingerprint: str) -> Product:
        """A finished product as its manifest tells it. Raises FileNotFoundError."""
        manifest = json.loads(Place(root).at(f"{stage}/{fingerprint}").read(MANIFEST))
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

    def done_parts(self) -> set[int]:
        """Parts whose data and ledger files are both there."""
        data, ledger = (
            {int(found[1]) for name in self.place.list(folder) if (found := _PART.fullmatch(name))}
            for folder in ("data", "ledger")
        )
        return data & ledger

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest of a finished product. Raises FileNotFoundError before that."""
        loaded: dict[str, Any] = json.loads(self.place.read(MANIFEST))
        return loaded

    @property
    def parts(self) -> int:
        """How many parts a finished product has."""
        return int(self.manifest["parts"])

    def read(self, part: int, columns: list[str] | None = None) -> pa.Table:
        """The rows of one part, sorted by id; only `columns` where given, their pieces asked for together."""
        return self.file(part).to_table(columns=columns)

    def file(self, part: int) -> ds.ParquetFileFragment:
        """The Parquet file of one part, wherever it lies; nothing of it has been read yet."""
        return self._file(data_name(part))

    def scan(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Every part in order, one table each; those that follow are read meanwhile."""
        return each(range(self.parts), lambda part: self.read(part, columns))

    def read_ledger(self, part: int) -> pa.Table:
        """What one part dropped, sorted by id."""
        return self._file(ledger_name(part)).to_table().cast(LEDGER)

    def ledger(self) -> pa.Table:
        """Every dropped unit with its reason."""
        return pa.concat_tables([LEDGER.empty_table(), *each(range(self.parts), self.read_ledger)])

    def _file(self, name: str) -> ds.ParquetFileFragment:
        at, size = self._files[name]
        return Place(self.root).parquet(at, size) if at else self.place.parquet(name, size)

    @cached_property
    def _files(self) -> dict[str, tuple[str | None, int]]:
        """The files of a finished product: name -> name below the root of one that is taken by reference
        (`corpus/own.py`), else None; bytes, so that no request asks for them.
        """
        return {file["name"]: (file.get("at"), file["bytes"]) for file in self.manifest["files"]}


def data_name(part: int) -> str:
    return f"data/part-{part:05d}.parquet"


def ledger_name(part: int) -> str:
    return f"ledger/part-{part:05d}.parquet"


def _without_resources(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: _without_resources(value) for key, value in config.items() if key != "resources"}
    return config
