"""What an index of a later inventory takes over from that of an earlier one with the same weights: the vectors of what
did not change, and the table, extended by what did.

A bundle that stays (train.epochs=0 with model.bundle) would else encode every pair again for the thousandth that is
new. The parent is copied, not changed: products are immutable. What left the table stays in the copy's files as deleted
rows until the index is built anew; their ids are kept, so that `--erase` knows of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lance.fragment import FragmentMetadata
from numpy.typing import NDArray

from biomedclip_ray.clip.vectors import to_matrix
from biomedclip_ray.search import build
from biomedclip_ray.search.calibrate import Tasks
from biomedclip_ray.search.table import SETTINGS, TABLE, VECTORS, Settings, open_table
from biomedclip_ray.store.attempt import Attempt
from biomedclip_ray.store.delta import finished_before, parent_of
from biomedclip_ray.store.place import Place
from biomedclip_ray.store.product import FINGERPRINT, MANIFEST, Product

MADE = (*VECTORS, "thumbnail")
"""Columns that only an image and its text decide."""


@dataclass(frozen=True)
class Earlier:
    """An embedding of an earlier inventory's pairs."""

    pairs: Product
    embedded: Product

    @property
    def deleted(self) -> list[str]:
        """Ids of rows that its table holds as deleted ones."""
        return list(self.embedded.manifest["index"].get("deleted", []))

    def unchanged(self, part: int, facts: pa.Table) -> tuple[pa.Table, NDArray[np.int64]]:
        """The rows of a part with what is taken over of them, and which of them (n,) is that of each of `facts`
        (columns pair_id, sha256, text); -1 where image or text are new.
        """
        made = self.embedded.read(part, ["pair_id", *MADE])
        row_of = {pair_id: row for row, pair_id in enumerate(made["pair_id"].to_pylist())}
        known = set(_keys(self.pairs.read(part, ["pair_id", "sha256", "text"])))
        rows = [row_of.get(key[0], -1) if key in known and key[1] else -1 for key in _keys(facts)]
        return made, np.array(rows, np.int64)


def find_earlier(pairs: Product, bundle: Product, plan: Callable[[Product, Product], Product]) -> Earlier | None:
    """The embedding of the nearest earlier inventory that is finished, or None.

    Args:
        plan: (bundle, pairs) -> the embedding that would be made of them.
    """
    if parent_of(pairs) is None:
        return None
    for trained in _same_weights(bundle):
        before, embedded = finished_before(pairs, lambda before, trained=trained: plan(trained, before))  # type: ignore[misc]
        if before is not None and embedded is not None and before.parts == pairs.parts:
            return Earlier(before, embedded)
    return None


def _same_weights(bundle: Product) -> Iterator[Product]:
    """The bundle, and others of its root with the very weights: one that was trained, and was then taken as it is."""
    yield bundle
    place = Place(bundle.root).at(bundle.stage)
    for fingerprint in place.folders():
        if fingerprint == bundle.fingerprint or not FINGERPRINT.fullmatch(fingerprint):
            continue
        if place.exists(f"{fingerprint}/{MANIFEST}"):
            other = Product.load(bundle.root, bundle.stage, fingerprint)
            if other.manifest["bundle_id"] == bundle.manifest["bundle_id"]:
                yield other


def extend(
    attempt: Attempt,
    earlier: Earlier,
    chunks: list[range],
    placed: Callable[[pa.Table], pa.Table],
    ann_rows: int,
    tasks: Tasks,
) -> tuple[Settings, list[str]]:
    """Copy the earlier table and extend it to hold what data/ holds, by tasks; also gives the ids of the rows that it
    now holds as deleted ones.

    Args:
        chunks: of parts; each is compared by one task.
        placed: rows of data/ -> rows of the table, with their place on the earlier map.
    """
    parent = earlier.embedded.place
    names = [name for name in parent.list() if name == SETTINGS or name.startswith(f"{TABLE}/")]
    tasks([(_copy, (parent, attempt.place, names[n :: len(chunks)])) for n in range(len(chunks))])
    changes = tasks([(_changes, (attempt, earlier.embedded, chunk, placed)) for chunk in chunks])
    left = [pair_id for change in changes for pair_id in change.left]
    settings = build.extend(
        attempt.place,
        [fragment for change in changes for fragment in change.written],
        [*left, *(pair_id for change in changes for pair_id in change.replaced)],
        ann_rows,
        tasks,
    )
    return settings, sorted({*earlier.deleted, *left})


class _Changes(NamedTuple):
    written: list[FragmentMetadata]
    """Rows that are new or other than the parent's."""
    replaced: list[str]
    """Ids of those that are other."""
    left: list[str]
    """Ids that only the parent has."""


def _changes(attempt: Attempt, parent: Product, parts: range, placed: Callable[[pa.Table], pa.Table]) -> _Changes:
    replaced: list[str] = []
    left: list[str] = []

    def tables() -> Iterator[pa.Table]:
        for part in parts:
            now, was = attempt.read(part), parent.read(part)
            other = pa.array(~_same(now, was))
            new = now.filter(other)
            left.extend(was["pair_id"].filter(pc.invert(pc.is_in(was["pair_id"], now["pair_id"]))).to_pylist())
            replaced.extend(new["pair_id"].filter(pc.is_in(new["pair_id"], was["pair_id"])).to_pylist())
            if new.num_rows:
                yield placed(new)

    schema = open_table(attempt.place).schema
    return _Changes(build.write_rows(attempt.place, tables(), schema, mode="append"), replaced, left)


def _same(now: pa.Table, was: pa.Table) -> NDArray[np.bool_]:
    """Which rows of `now` (n,) stand in `was` as they are."""
    row_of = {pair_id: row for row, pair_id in enumerate(was["pair_id"].to_pylist())}
    rows = np.array([row_of.get(pair_id, -1) for pair_id in now["pair_id"].to_pylist()], np.int64)
    there = np.flatnonzero(rows >= 0)
    ours, theirs = now.take(there), was.take(rows[there])
    equal = np.ones(len(there), bool)
    for name in now.column_names:
        if name in VECTORS:
            equal &= (to_matrix(ours[name]) == to_matrix(theirs[name])).all(axis=1)
        else:
            both_null = pc.and_(pc.is_null(ours[name]), pc.is_null(theirs[name]))
            alike = pc.or_(pc.fill_null(pc.equal(ours[name], theirs[name]), False), both_null)
            equal &= alike.to_numpy()
    same = np.zeros(len(rows), bool)
    same[there] = equal
    return same


def _copy(parent: Place, place: Place, names: list[str]) -> None:
    for name in names:
        place.copy_from(parent, name)


def _keys(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    return zip(*(table[name].to_pylist() for name in ("pair_id", "sha256", "text")), strict=True)
