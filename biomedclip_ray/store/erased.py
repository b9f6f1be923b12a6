"""What was erased from a root and must not come back: hashes of ids, nothing else. `root/erased.json`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

from biomedclip_ray.store.place import Place

_FILE = "erased.json"
_ENDS = re.compile(r"[/#.]")


@dataclass(frozen=True)
class Erased:
    hashes: frozenset[str] = frozenset()

    @classmethod
    def load(cls, root: str) -> Erased:
        try:
            return cls(frozenset(json.loads(Place(root).read(_FILE))["sha256"]))
        except FileNotFoundError:
            return cls()

    def has(self, name: str) -> bool:
        """Whether an article, figure or pair was erased, by itself or with what it belongs to."""
        return bool(self.hashes) and any(_hash(part) in self.hashes for part in wholes(name))

    def add(self, root: str, names: Iterable[str]) -> None:
        hashes = sorted(self.hashes | {_hash(name) for name in names})
        Place(root).write(_FILE, json.dumps({"sha256": hashes}, indent=1).encode())


def wholes(name: str) -> list[str]:
    """A name and what it belongs to: `PMC1.2/F3#0` -> itself, PMC1.2/F3, PMC1.2, PMC1."""
    return [name, *(name[: end.start()] for end in _ENDS.finditer(name))]


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
