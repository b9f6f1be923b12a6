"""A later inventory makes a new product beside the old one, its parent: what did not change is taken over, not fetched.

The new product is whole: the parent's rows are copied into its files, so that one part stays one file, the corpus stays
aligned with the pairs, and the parent can be removed. Referring to the parent's files instead would save the copy, but
every reader would have to merge, leave out and sort, for ever.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from biomedclip_ray.store.ledger import Ledger
from biomedclip_ray.store.place import Place
from biomedclip_ray.store.product import MANIFEST, Product

Row = dict[str, Any]


@dataclass(frozen=True)
class Previous:
    """One part of the parent by article id: its rows, and what its ledger says. Empty where there is no parent."""

    rows: dict[str, list[Row]]
    dropped: dict[str, list[Row]]

    @classmethod
    def read(cls, parent: Product | None, part: int) -> Previous:
        rows: dict[str, list[Row]] = defaultdict(list)
        dropped: dict[str, list[Row]] = defaultdict(list)
        if parent is not None:
            for row in parent.read(part).to_pylist():
                rows[row["article_id"]].append(row)
            for row in parent.read_ledger(part).to_pylist():
                dropped[row["id"].partition("/")[0]].append(row)
        return cls(dict(rows), dict(dropped))

    def knows(self, article_id: str) -> bool:
        """True if the article was dealt with and nothing of it was lost to network or disk, which
        deserves another try.
        """
        dropped = self.dropped.get(article_id, [])
        return (article_id in self.rows or bool(dropped)) and not any(row["transient"] for row in dropped)

    def take(self, article_id: str, ledger: Ledger) -> list[Row]:
        """The article's rows; its ledger rows are copied into `ledger`."""
        ledger.rows += self.dropped.get(article_id, [])
        return self.rows.get(article_id, [])

    def count(self, article_id: str, unit: str) -> int:
        """How many of a unit the parent's ledger has for the article."""
        return sum(row["unit"] == unit for row in self.dropped.get(article_id, []))


def unchanged(earlier: list[Row] | None, now: list[Row]) -> bool:
    """Whether rows are the same but for when they were last touched: an object put again with the same ETag is the
    same.
    """
    return earlier is not None and list(map(_without_touch, earlier)) == list(map(_without_touch, now))


def _without_touch(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "last_modified"}


def earlier_catalog(product: Product) -> Product | None:
    """The newest finished catalog of an earlier inventory with the same configuration and version, or None."""
    found: list[tuple[str, Product]] = []
    place = Place(product.root).at(product.stage)
    for fingerprint in place.folders():
        if fingerprint == product.fingerprint or not place.exists(f"{fingerprint}/{MANIFEST}"):
            continue
        other = Product.load(product.root, product.stage, fingerprint)
        same = other.version == product.version and _without_date(other.config) == _without_date(product.config)
        if same and other.config["date"] < product.config["date"]:
            found.append((other.config["date"], other))
    return max(found, key=lambda pair: pair[0])[1] if found else None


def parent_of(source: Product) -> Product | None:
    """The parent that a finished product's manifest names, or None; also None where it has been removed."""
    return load_parent(source, source.manifest.get("parent", {}).get("fingerprint"))


def load_parent(product: Product, fingerprint: str | None) -> Product | None:
    """The finished product of the same stage with that fingerprint, or None where there is none, or no longer."""
    if fingerprint is None:
        return None
    try:
        return Product.load(product.root, product.stage, fingerprint)
    except FileNotFoundError:
        return None


def finished_before(source: Product, plan: Callable[[Product], Product]) -> tuple[Product | None, Product | None]:
    """The nearest ancestor of `source` that was worked through to its end, and what `plan` says came of it; (None,
    None) where none was: a delta that ended half way, as a nightly one may, is passed over.
    """
    earlier = parent_of(source)
    while earlier is not None:
        if (product := plan(earlier)).finished:
            return earlier, product
        earlier = parent_of(earlier)
    return None, None


def _without_date(config: dict[str, Any]) -> str:
    return json.dumps({k: v for k, v in config.items() if k not in ("date", "checksum")}, sort_keys=True)
