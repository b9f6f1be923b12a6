"""Withdraw what must go, a patient's or a publisher's wish: an article, a figure, a pair, a patient of one's own pairs.

Products are immutable but for this. The rows leave each product's files, finished or not, with whatever the ledgers say
of them, and the manifests count anew. Index and evaluation are made anew by the next run from vectors that stay; models
cannot forget, so the bundles that were trained on the rows are named. Only hashes are kept, so that another
configuration does not take the rows in again.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from biomedclip_ray.config import STAGES, Config
from biomedclip_ray.corpus.own import ids_of
from biomedclip_ray.store.attempt import Attempt
from biomedclip_ray.store.erased import Erased, wholes
from biomedclip_ray.store.lease import HeldError, alive
from biomedclip_ray.store.place import Place
from biomedclip_ray.store.product import FINGERPRINT, MANIFEST, Product

_WORDS = re.compile(r"[\s/\\,;:'\"#()\[\]]+")


@dataclass
class Withdrawal:
    """What was found and done."""

    rows: dict[str, int] = field(default_factory=dict)
    """`stage/fingerprint` -> rows that left it."""
    bundles: list[str] = field(default_factory=list)
    """Bundles that were trained on a row that left."""
    again: list[str] = field(default_factory=list)
    """Indices and evaluations that the next run makes anew."""


def erase(config: Config, name: str) -> Withdrawal:
    """Erase an id from every product below the root.

    Args:
        name: an article, a figure or a pair as ids are written; of own pairs also the patient (group) as their files
            say, or the id of a record that names no patient.

    Raises:
        HeldError: a driver is at work in this root.
    """
    root = config.root
    place = Place(root)
    names = [f"{stage}/{one}" for stage in STAGES for one in place.at(stage).folders() if FINGERPRINT.fullmatch(one)]
    if busy := alive(place.at(one) for one in names):
        raise HeldError(f"{busy[0]}; nothing is erased while a driver works in this root: wait for it, or stop it")
    ids = ids_of(config, name)
    done = Withdrawal()
    seen_by: set[str] = set()
    for one in names:
        product = _product(root, one)
        gone, trained = _erase_from(product, ids)
        if trained:
            seen_by.add(product.fingerprint)
        amended = False
        if (gone and _sums_up(product)) or _deleted(product, ids):
            _open_again(product)
            done.again.append(one)
        elif amended := product.finished and (bool(gone) or _is_stale(product)):
            Attempt(product, "resumed", product.parts).amend()
        if gone or amended:
            done.rows[one] = gone
    if done.rows:
        for one in names:
            _refer_anew(_product(root, one), root)
        Erased.load(root).add(root, ids)
        place.delete("report.html")  # it shows examples; the next run writes it anew
    done.bundles = list(_bundles(place, seen_by))
    return done


def _product(root: str, name: str) -> Product:
    stage, _, fingerprint = name.partition("/")
    return Product(root, stage, 0, {}, (), fingerprint)


def _erase_from(product: Product, ids: frozenset[str]) -> tuple[int, bool]:
    """Rows that left a product, and whether one of them was trained on."""
    gone, trained = 0, False
    current = Attempt(product, "resumed")
    for part in sorted(product.done_parts()):
        rows, ledger = current.read(part), current.read_ledger(part)
        key = "pair_id" if "pair_id" in rows.column_names else "article_id"
        out = _matches(rows[key], ids)
        said = pc.or_(_matches(ledger["id"], ids), _matches(ledger["detail"], ids))
        said = pc.or_(said, _named(ledger["id"], ids))
        named = pc.and_(_named(ledger["detail"], ids), pc.invert(said))  # a path, in the row of another
        if not any(pc.any(mask).as_py() for mask in (out, said, named)):
            continue
        left = rows.filter(out)
        if "split" in left.column_names and "kept" in left.column_names:
            trained |= bool(pc.any(pc.and_(pc.equal(left["split"], "train"), left["kept"])).as_py())
        kept = _kept(product.stage, left, current.counts(part))
        lost = Counter(ledger.filter(said)["unit"].to_pylist())
        counts = {unit: (kept[unit] + lost[unit], kept[unit]) for unit in kept.keys() | lost.keys()}
        detail = pc.if_else(named, "", ledger["detail"])
        ledger = ledger.set_column(ledger.column_names.index("detail"), ledger.schema.field("detail"), detail)
        current.take_out(part, rows.filter(pc.invert(out)), ledger.filter(pc.invert(said)), counts)
        gone += left.num_rows + pc.or_(said, named).to_pylist().count(True)
    return gone, trained


def _kept(stage: str, rows: pa.Table, units: Iterable[str]) -> Counter[str]:
    """How many units of each kind rows are; a stage that is not named here has one unit, and a row for each."""
    if stage == "curate":
        return Counter({"pair": rows["kept"].to_pylist().count(True)})
    if stage == "preprocess":
        return Counter("panel" if panel else "picture" for panel in rows["panel"].to_pylist())
    if stage == "ingest":
        return Counter({"article": rows.num_rows, "figure": sum(map(len, rows["figures"].to_pylist()))})
    if stage == "catalog":
        return Counter({"article_version": rows.num_rows})
    return Counter(dict.fromkeys(units, rows.num_rows))


def _matches(column: pa.ChunkedArray, ids: frozenset[str]) -> pa.Array:
    return pa.array(
        [any(part in ids for part in wholes(name)) for name in pc.fill_null(column, "").to_pylist()], pa.bool_()
    )


def _named(column: pa.ChunkedArray, ids: frozenset[str]) -> pa.Array:
    """Where a word or a part of a path is one of the ids, as a patient's folder is; numbers are no names there."""
    words = (
        (word for word in _WORDS.split(text) if not word.isdigit()) for text in pc.fill_null(column, "").to_pylist()
    )
    return pa.array([any(one in ids for word in said for one in wholes(word)) for said in words], pa.bool_())


def _sums_up(product: Product) -> bool:
    """Whether it holds more than parts: an index, or an evaluation with the rank of each pair."""
    return any(not name.startswith(("data/", "ledger/", "_")) for name in product.place.list())


def _deleted(product: Product, ids: frozenset[str]) -> bool:
    """Whether an index that a sync extended still has, as a deleted row, what left it then."""
    if not product.finished:
        return False
    deleted = product.manifest.get("index", {}).get("deleted", [])
    return bool(pc.any(_matches(pa.chunked_array([deleted], pa.string()), ids)).as_py())


def _is_stale(product: Product) -> bool:
    """Whether an erasure that was killed has left files of other sizes than the manifest says."""
    sizes = product.place.list()
    files = product.manifest["files"]
    return any("at" not in file and sizes.get(file["name"]) != file["bytes"] for file in files)


def _open_again(product: Product) -> None:
    """Take a product back to its parts: what was made of them holds words, vectors and ids of rows that left."""
    product.place.delete(MANIFEST)
    for name in product.place.list():
        if not name.startswith(("data/", "ledger/")):
            product.place.delete(name)


def _refer_anew(product: Product, root: str) -> None:
    """Let a product that takes files by reference say what they hold now."""
    if not product.finished or not any("at" in file for file in product.manifest["files"]):
        return
    place, files = Place(root), []
    for file in product.manifest["files"]:
        stage, fingerprint, name = file["at"].split("/", 2)
        there = {one["name"]: one for one in json.loads(place.read(f"{stage}/{fingerprint}/{MANIFEST}"))["files"]}
        files.append(file | {key: there[name][key] for key in ("bytes", "rows")})
    rows = sum(file["rows"] for file in files if re.match(r"data/", file["name"]))
    counts = [count | {"in": rows, "kept": rows} for count in product.manifest["counts"]]
    product.place.write(MANIFEST, json.dumps(product.manifest | {"files": files, "counts": counts}, indent=1).encode())


def _bundles(place: Place, corpora: set[str]) -> Iterator[str]:
    """Bundles of training products whose corpus is among these, finished or not."""
    for one in place.at("train").folders():
        there = place.at(f"train/{one}")
        if not FINGERPRINT.fullmatch(one) or not there.exists(MANIFEST):
            continue
        manifest = json.loads(there.read(MANIFEST))
        if any(source["fingerprint"] in corpora for source in manifest["inputs"]):
            yield f"{manifest.get('bundle_id', 'unknown')} ({there.uri})"
