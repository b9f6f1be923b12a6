"""A copy of what a run reads, in the bucket's own layout: whoever sets `source.uri` to it goes on without the network.

The inventory is copied as it is, so that the copy leads to the same catalog, with the same fingerprint: a root made
from PubMed Central is carried on from the copy. Hence the metadata of every article that the selection looked at is
copied, also where it was then dropped; XML and media only of those that were kept. A run on the copy may select less,
never more.

The inventory's manifest is written last: a copy that is not finished is no source. An object is held in memory while it
is copied; what lies there already with the md5 of the metadata is left alone, which only parts cut off halfway ask
about.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from biomedclip_ray.config import Config, ConfigError, Source
from biomedclip_ray.pmc.catalog import INVENTORY
from biomedclip_ray.run.record import Inventory
from biomedclip_ray.run.stage import Made, Outcome, RunParts, Stage
from biomedclip_ray.schema import Reason
from biomedclip_ray.sources.bucket import INVENTORIES, Bucket, ObjectError, SourceError
from biomedclip_ray.sources.inventory import read_entries
from biomedclip_ray.sources.open import open_bucket
from biomedclip_ray.store.ahead import fetch_ahead
from biomedclip_ray.store.attempt import Attempt
from biomedclip_ray.store.ledger import Ledger, PartResult
from biomedclip_ray.store.place import FULL, Place
from biomedclip_ray.store.product import Product

VERSION = 1
UNIT = "object"
OBJECTS = pa.schema({"key": pa.string(), "md5": pa.string(), "bytes": pa.int64(), "copied": pa.bool_()})
_MANIFEST = "_inventory.json"


def _content(
    config: Config, inventory: Inventory, catalog: Product, articles: Product | None, out: str
) -> dict[str, Any]:
    return {"out": Place(out).uri, "media": "all" if articles is None else "figures"}


def _work(
    attempt: Attempt,
    run_parts: RunParts,
    config: Config,
    inventory: Inventory,
    catalog: Product,
    articles: Product | None,
    out: str,
) -> Made:
    attempt.parts = catalog.parts
    place = Place(out)
    if not attempt.place.exists(_MANIFEST):  # the source drops an inventory after 30 days
        attempt.place.write(_MANIFEST, _copy_inventory(config.source, inventory, place))
    run_parts(_part, config.preprocess.resources, (catalog, articles, config.source, place))
    return Made({"inventory": inventory.date}, config.preprocess.transient_limit)


record = Stage("mirror", VERSION, _content, _work)
"""The record of a copy: one row for each object. Reads the catalog, and the articles where only figures' media are
copied.
"""


def mirror(config: Config, inventory: Inventory, catalog: Product, articles: Product | None, out: str) -> Outcome:
    """Copy the objects of a finished catalog to the place `out`, or find that done.

    Media of the figures in `articles` (alternatives too), or all media, supplements among them, where it is None. A
    record that is finished is made anew where the copy has lost its inventory: remove that to have every object looked
    at again.

    Raises:
        ConfigError: `out` is the source.
        SourceError: the source keeps the inventory no longer, and this copy has not begun with it.
        UnfinishedError: too many objects were lost to network or disk (preprocess.transient_limit).
    """
    place = Place(out)
    if place.uri == Place(config.source.uri).uri:
        raise ConfigError(f"--out {out} is the source itself; give another place")
    inputs = (inventory, catalog, articles, out)
    planned = record.plan(config, *inputs)
    if planned.finished and not place.exists(_manifest_key(inventory)):
        planned.place.delete_all()
    outcome = record.run(config, *inputs)
    if outcome.state != "skipped":
        place.write(_manifest_key(inventory), outcome.product.place.read(_MANIFEST))
    return outcome


def _manifest_key(inventory: Inventory) -> str:
    return f"{INVENTORIES}/{inventory.date}/manifest.json"


def _copy_inventory(source: Source, inventory: Inventory, place: Place) -> bytes:
    """Copy the inventory's files; returns its manifest, which is not copied yet."""
    bucket = open_bucket(source.uri, source.resources)
    try:
        manifest = bucket.get(_manifest_key(inventory), inventory.checksum)
        md5s = {file["key"]: file.get("MD5checksum") for file in json.loads(manifest)["files"]}
        for key in inventory.files:
            place.write(key, bucket.get(key, md5s[key]))
    except (ObjectError, KeyError) as error:
        raise SourceError(f"source.uri={bucket.uri}: inventory {inventory.date} cannot be copied: {error}") from error
    return manifest


@dataclass(frozen=True)
class _Object:
    """One object: where it lies, where it goes, and its md5 where that is known. `must_have`: whether a copy counts
    only with that md5 (an ETag is a md5 where the object was put in one go, else it just matches nothing).
    """

    key: str
    md5: str | None
    must_have: bool
    targets: tuple[str, ...]


@dataclass(frozen=True)
class _Copied:
    md5: str
    bytes: int
    copied: bool


def _part(part: int, catalog: Product, articles: Product | None, source: Source, place: Place) -> PartResult:
    bucket = open_bucket(source.uri, source.resources)
    ledger = Ledger("mirror")
    rows: list[dict[str, Any]] = []
    objects = list(_objects(part, catalog, articles))
    threads = source.resources.threads
    with ThreadPoolExecutor(threads) as pool:
        for item, done in fetch_ahead(pool, lambda o: _copy(bucket, place, o), objects, ahead=2 * threads):
            if isinstance(done, ObjectError):
                ledger.drop(UNIT, item.key, done.reason, done.detail)
            else:
                rows.append({"key": item.key, "md5": done.md5, "bytes": done.bytes, "copied": done.copied})
    rows.sort(key=lambda row: str(row["key"]))
    ledger.count(UNIT, len(objects), len(rows))
    return PartResult(pa.Table.from_pylist(rows, schema=OBJECTS), ledger)


def _objects(part: int, catalog: Product, articles: Product | None) -> Iterator[_Object]:
    """What a run reads of one part: the newest version's metadata, and of the versions kept XML and media."""
    kept = {row["article_id"]: row for row in catalog.read(part).to_pylist()}
    entries = read_entries(catalog.place.at(INVENTORY), part, catalog.parts).to_pylist()
    newest = {entry["pmcid"]: entry for entry in entries}  # the last of each, by version
    wanted = None if articles is None else _figure_media(articles, part)
    for entry in newest.values():
        article_id = f"{entry['pmcid']}.{entry['version']}"
        row = kept.get(article_id)
        second = (f"{article_id}/{article_id}.json",) if row is not None else ()
        yield _Object(entry["key"], entry["etag"], False, (entry["key"], *second))
        if row is None:
            continue
        yield _Object(row["xml_key"], row["xml_md5"], True, (row["xml_key"],))
        media = {m["key"]: m["md5"] for m in row["media"] if wanted is None or m["key"] in wanted}
        for key, md5 in media.items():
            if key != row["xml_key"]:
                yield _Object(key, md5, True, (key,))


def _figure_media(articles: Product, part: int) -> set[str]:
    rows = articles.read(part, ["figures"])["figures"].to_pylist()
    return {media["key"] for figures in rows for figure in figures for media in figure["media"] if media["found"]}


def _copy(bucket: Bucket, place: Place, item: _Object) -> _Copied | ObjectError:
    try:
        if item.md5 is not None and (there := _there(place, item)) is not None:
            return there
        data = bucket.get(item.key, item.md5 if item.must_have else None)
        for target in item.targets:
            place.write(target, data)
    except ObjectError as error:
        return error
    except OSError as error:  # the copy's disk or network
        if error.errno in FULL:  # nothing else would find room either
            raise
        return ObjectError(Reason.FETCH_FAILED, f"{item.key}: not written to {place.uri}: {error}")
    return _Copied(hashlib.md5(data, usedforsecurity=False).hexdigest(), len(data), True)


def _there(place: Place, item: _Object) -> _Copied | None:
    """The object as it lies in the copy at every target with the right md5, or None."""
    size = 0
    for target in item.targets:
        try:
            data = place.read(target)
        except FileNotFoundError:
            return None
        if hashlib.md5(data, usedforsecurity=False).hexdigest() != item.md5:
            return None
        size = len(data)
    return _Copied(str(item.md5), size, False)
