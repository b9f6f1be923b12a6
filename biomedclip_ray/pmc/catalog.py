"""Stage catalog: inventory and metadata -> one row for each article version that is to be used.

The newest version of an article is chosen first and then judged; if it is filtered the article is dropped and never
falls back to an older version, or a retraction would come back. Only the newest version's JSON is read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from biomedclip_ray.config import Config, Source, SourceSelect
from biomedclip_ray.run.capacity import Capacity
from biomedclip_ray.run.record import Inventory
from biomedclip_ray.run.stage import Made, RunParts, Stage
from biomedclip_ray.schema import CATALOG, Reason
from biomedclip_ray.sources.bucket import Bucket, ObjectError, SourceError
from biomedclip_ray.sources.inventory import find_inventory, read_entries, read_list, read_listed, shard_entries
from biomedclip_ray.sources.open import open_bucket
from biomedclip_ray.store.attempt import Attempt
from biomedclip_ray.store.delta import Previous, earlier_catalog, load_parent, unchanged
from biomedclip_ray.store.erased import Erased
from biomedclip_ray.store.ledger import Ledger, PartResult
from biomedclip_ray.store.product import Product

VERSION = 4
UNIT, LISTED = "article_version", "listed_pmcid"
INVENTORY = "_inventory"
_DEALT = "parts.json"
_MD5 = re.compile(r"[0-9a-f]{32}")


def _content(config: Config, inventory: Inventory) -> dict[str, Any]:
    """The source enters by the inventory's date and checksum, not by its URI, and a list of PMCIDs by what it says.

    Raises:
        SourceError: the list cannot be read.
    """
    content = config.source.content(exclude={"uri", "inventory"})
    if config.source.select.pmcids is not None:
        ids = json.dumps(sorted(read_list(config.source.select.pmcids).items()))
        content["select"]["pmcids"] = hashlib.sha256(ids.encode()).hexdigest()[:16]
    return content | {"date": inventory.date, "checksum": inventory.checksum}


def _work(attempt: Attempt, run_parts: RunParts, config: Config, inventory: Inventory) -> Made:
    # kept with the product: a later inventory is compared with it, and the bucket drops its own after 30 days
    place = attempt.place.at(INVENTORY)
    bucket = open_bucket(config.source.uri, config.source.resources)
    if not place.exists(_DEALT):
        parent = earlier_catalog(attempt.product)
        parts = shard_entries(bucket, inventory, config.source, place, None if parent is None else parent.parts)
        dealt = {"parts": parts, "parent": None if parent is None else parent.fingerprint}
        place.write(_DEALT, json.dumps(dealt).encode())
    # the parent of the first start, whatever was finished beside it since: the parts are dealt as that one's
    dealt = json.loads(place.read(_DEALT))
    attempt.parts = dealt["parts"]
    attempt.parent = load_parent(attempt.product, dealt["parent"])
    run_parts(_part, config.catalog.resources, (attempt, config.source))
    return Made({"inventory": inventory.date}, config.catalog.transient_limit)


def _check(config: Config, inventory: Inventory) -> Iterator[str]:
    try:
        find_inventory(open_bucket(config.source.uri, config.source.resources), inventory.date)
    except SourceError as error:
        yield str(error)


def _fit(config: Config, capacity: Capacity, *_: Any) -> list[str]:
    return capacity.lacks("catalog.resources", config.catalog.resources)


catalog = Stage("catalog", VERSION, _content, _work, check=_check, fit=_fit)
"""Reads an inventory. Raises SourceError where that cannot be read, or selects nothing."""


def _part(part: int, attempt: Attempt, source: Source) -> PartResult:
    bucket = open_bucket(source.uri, source.resources)
    ledger = Ledger("catalog")
    articles = _by_article(attempt.product, attempt.parts or 0, part)
    before = {} if attempt.parent is None else _by_article(attempt.parent, attempt.parent.parts, part)
    previous = Previous.read(attempt.parent, part)
    rows: list[dict[str, Any]] = []
    fresh = []
    for pmcid, versions in articles.items():
        newest = versions[-1]
        for entry in versions[:-1]:
            again = entry["version"] == newest["version"]
            by = f"{entry['key']} by {newest['key']}" if again else f"by {_article_id(newest)}"
            ledger.drop(UNIT, _article_id(entry), Reason.SUPERSEDED, by)
        if unchanged(before.get(pmcid), versions) and previous.knows(_article_id(newest)):
            taken = previous.take(_article_id(newest), ledger)
            rows += [row | {"last_modified": newest["last_modified"]} for row in taken]
        else:
            fresh.append(newest)
    reused = len(rows)
    erased = Erased.load(attempt.product.root)
    with ThreadPoolExecutor(source.resources.threads) as pool:
        for entry, metadata in zip(fresh, pool.map(lambda e: _metadata(bucket, e), fresh), strict=True):
            if erased.has(_article_id(entry)):
                ledger.drop(UNIT, _article_id(entry), Reason.ERASED)
            elif isinstance(metadata, ObjectError):
                ledger.drop(UNIT, _article_id(entry), metadata.reason, metadata.detail)
            elif reason := rejection(metadata, source.select):
                ledger.drop(UNIT, _article_id(entry), reason, metadata["license"] if reason is Reason.LICENSE else "")
            else:
                rows.append(metadata | {"part": part})
    rows.sort(key=lambda row: str(row["article_id"]))
    ledger.count(UNIT, sum(map(len, articles.values())), len(rows))
    for listed in read_listed(attempt.place.at(INVENTORY), part):
        for _ in range(listed["times"] - 1):
            ledger.drop(LISTED, listed["pmcid"], Reason.LISTED_AGAIN)
        if not listed["known"]:
            ledger.drop(LISTED, listed["pmcid"], Reason.UNKNOWN_PMCID)
        ledger.count(LISTED, listed["times"], int(listed["known"]))
    withdrawn = tuple(sorted(set(previous.rows) - {row["article_id"] for row in rows}))
    return PartResult(pa.Table.from_pylist(rows, schema=CATALOG), ledger, reused, withdrawn)


def _by_article(product: Product, parts: int, part: int) -> dict[str, list[dict[str, Any]]]:
    """The inventory's entries of one part by PMCID, each list with the newest version last; a preprint's version may
    stand there in several packages, the newest last too.
    """
    articles: dict[str, list[dict[str, Any]]] = {}
    for entry in read_entries(product.place.at(INVENTORY), part, parts).to_pylist():
        versions = articles.setdefault(entry["pmcid"], [])
        if versions and versions[-1]["key"] == entry["key"]:  # a line that stands there twice
            versions.pop()
        versions.append(entry)
    return articles


def rejection(metadata: dict[str, Any], select: SourceSelect) -> Reason | None:
    """Why a version is not to be used, or None."""
    if metadata["is_retracted"] and not select.retracted:
        return Reason.RETRACTED
    if metadata["is_manuscript"] and not select.manuscripts:
        return Reason.MANUSCRIPT
    if metadata["is_historical_ocr"] and not select.historical_ocr:
        return Reason.HISTORICAL_OCR
    # a manuscript that is asked for carries the licence TDM, which no preset of reuse licences names
    if metadata["license"] not in select.allowed() and not (metadata["is_manuscript"] and metadata["license"] == "TDM"):
        return Reason.LICENSE
    return None


def _metadata(bucket: Bucket, entry: dict[str, Any]) -> dict[str, Any] | ObjectError:
    try:
        data = bucket.get(entry["key"])
    except ObjectError as error:
        return error
    try:
        return parse_metadata(data, entry)
    except ValueError as error:
        return ObjectError(Reason.BAD_METADATA, f"{entry['key']}: {error}")


def parse_metadata(data: bytes, entry: dict[str, Any]) -> dict[str, Any]:
    """The metadata JSON of an article version as a catalog row without its part.

    Raises:
        ValueError: it is no JSON of that form, or speaks of another article; nothing else, whatever the bytes are.
    """
    try:
        return _row(json.loads(data), entry)
    except (KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__} {error}") from error


def _row(raw: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    article_id = f"{raw['pmcid']}.{int(raw['version'])}"
    if article_id != _article_id(entry):
        raise ValueError(f"speaks of {article_id}")
    xml_key, xml_md5 = _object(raw["xml_url"], article_id)
    # a supplement's name with a no-break space in it is no reason to do without the figures
    urls = [url for url in raw.get("media_urls") or [] if not isinstance(url, str) or (url and url.isprintable())]
    media = [_object(url, article_id) for url in urls]
    return {
        "article_id": article_id,
        "pmcid": raw["pmcid"],
        "version": int(raw["version"]),
        "license": _text(raw.get("license_code")) or "unknown",
        "is_retracted": _flag(raw, "is_retracted"),
        "is_manuscript": _flag(raw, "is_manuscript"),
        "is_historical_ocr": _flag(raw, "is_historical_ocr"),
        "title": _text(raw.get("title")),
        "citation": _text(raw.get("citation")),
        "doi": _text(raw.get("doi")),
        "pmid": _text(raw.get("pmid")),
        "etag": entry["etag"],
        "last_modified": entry["last_modified"],
        "json_key": entry["key"],
        "xml_key": xml_key,
        "xml_md5": xml_md5,
        "media": [{"key": key, "md5": md5} for key, md5 in media],
    }


def _object(url: str, article_id: str) -> tuple[str, str | None]:
    """Key and md5 of `s3://pmc-oa-opendata/PMC1.1/file.jpg?md5=...`; keys stand there as they are, not percent-encoded.

    Raises:
        ValueError: the key is not under the article's own prefix, or is none that could be stored.
    """
    if not isinstance(url, str) or not url.isprintable():
        raise ValueError(f"{url!r} is no address")
    address, _, md5 = url.partition("?md5=")
    key = address.partition("://")[2].partition("/")[2]
    if not key.startswith(f"{article_id}/") or ".." in key.split("/"):
        raise ValueError(f"{url} is outside {article_id}/")
    return key, md5 if _MD5.fullmatch(md5) else None


_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False, "none": False, "": False}


def _flag(raw: dict[str, Any], name: str) -> bool:
    """A flag as JSON's true and false or as text. Raises ValueError where it is neither: a retraction is
    not guessed.
    """
    value = raw.get(name)
    flag = _FLAGS.get(str("" if value is None else value).strip().lower())
    if flag is None:
        raise ValueError(f"{name} is {value!r}, neither true nor false")
    return flag


def _text(value: Any) -> str | None:
    """Raises ValueError for half a surrogate pair, which JSON can hold and UTF-8 cannot."""
    if value is None or value == "":
        return None
    text = str(value)
    text.encode()
    return text


def _article_id(entry: dict[str, Any]) -> str:
    return f"{entry['pmcid']}.{entry['version']}"
