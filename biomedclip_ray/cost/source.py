"""What is known of a source before it is read: how many articles it has and, of a folder, how many images a few of them
have, and how large these are.

A bucket of one's own is not PubMed Central in small: the sample's images have a fifth of the bytes of those that were
measured, and four times their time was planned for them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from statistics import fmean
from typing import Any

import pyarrow as pa

from biomedclip_ray.config import Config
from biomedclip_ray.cost.inputs import Rates
from biomedclip_ray.images.formats import ARTICLE_EXTENSIONS, has_extension
from biomedclip_ray.jats.media import stem
from biomedclip_ray.pmc.catalog import UNIT, catalog, parse_metadata
from biomedclip_ray.run.record import Inventory
from biomedclip_ray.sources.bucket import Bucket, ObjectError, SourceError
from biomedclip_ray.sources.inventory import entries
from biomedclip_ray.sources.open import open_bucket
from biomedclip_ray.sources.s3 import PUBLIC_BUCKET

_COUNTED = 200_000
"""Lines of an inventory that are counted: half a second; a longer one is taken for PubMed Central's."""
_LOOKED_AT = 32
"""Articles of a folder of which metadata, XML and an image are read: half a second."""
_DISK = {"latency_ms": 1.0, "requests_per_s": 1e5}

Row = dict[str, Any]


def known(config: Config, inventory: Inventory, rates: Rates) -> tuple[dict[str, float], Rates]:
    """What of World's assumptions is known of this source, and the rates that hold there.

    The article versions, and how many of them may be used, are as a finished catalog counted them; else its inventory's
    lines, all of them usable, for whoever put articles into a bucket of their own has chosen them. Nothing is fetched
    of a bucket: it may answer slowly, or not at all, and the run is about to begin. PubMed Central's own is not looked
    into: World is about it.

    Raises:
        SourceError: the inventory is needed and cannot be read.
    """
    product = catalog.plan(config, inventory)
    facts: dict[str, float] = {}
    if product.finished:
        count = next(count for count in product.manifest["counts"] if count["unit"] == UNIT)
        facts = {"versions": max(1.0, count["in"]), "usable": count["kept"] / max(1, count["in"]), "commercial": 1.0}
    if config.source.uri.removeprefix("s3://").split("/")[0] == PUBLIC_BUCKET:
        return facts, rates
    remote = config.source.uri.startswith("s3://")
    rows: list[Row] = []
    try:
        bucket = open_bucket(config.source.uri, config.source.resources)
        if product.finished:
            rows = product.read(0, ["xml_key", "media"]).slice(0, _LOOKED_AT).to_pylist()
        else:
            lines = _lines(bucket, inventory)
            if lines.num_rows > _COUNTED:
                return {}, rates
            facts = {"versions": max(1.0, lines.num_rows), "usable": 1.0, "commercial": 1.0}
            if lines.num_rows and not remote:
                some = {n * lines.num_rows // _LOOKED_AT for n in range(_LOOKED_AT)}
                rows = _rows(bucket, lines.take(sorted(some)).to_pylist())
    except SourceError:
        if not product.finished:
            raise
        return facts, rates  # it is gone, and may be needed no more
    images = [_images(row) for row in rows]
    if any(images):
        facts |= {"figures": fmean(map(len, images)), "with_file": 1.0}
    if remote:
        return facts, rates
    facts |= _DISK | _sizes(bucket, [row["xml_key"] for row in rows], [keys[0] for keys in images if keys], rates)
    return facts, dataclasses.replace(rates, request_ms=0.0)  # a disk answers at once, and there is no client


def _lines(bucket: Bucket, inventory: Inventory) -> pa.Table:
    """Of the inventory, a few more than are counted at most."""
    read: list[pa.Table] = []
    for table in entries(bucket, inventory):
        read.append(table)
        if sum(each.num_rows for each in read) > _COUNTED:
            break
    return pa.concat_tables(read) if read else pa.table({})


def _rows(bucket: Bucket, lines: Sequence[Row]) -> list[Row]:
    """Catalog's rows of those that have one."""
    rows = []
    for line in lines:
        with suppress(ObjectError, ValueError):  # catalog's to report
            rows.append(parse_metadata(bucket.get(line["key"]), line))
    return rows


def _images(row: Row) -> list[str]:
    """Keys of an article's images, one of each stem: a thumbnail is no second one."""
    keys = [media["key"] for media in row["media"] if has_extension(media["key"], ARTICLE_EXTENSIONS)]
    return list({stem(key): key for key in keys}.values())


def _sizes(bucket: Bucket, texts: Sequence[str], images: Sequence[str], rates: Rates) -> dict[str, float]:
    """Bytes of an XML and of an image, as far as they can be read."""

    def mean(keys: Sequence[str]) -> float:
        sizes = []
        for key in keys:
            with suppress(ObjectError):
                sizes.append(len(bucket.get(key)))
        return fmean(sizes) if sizes else 0.0

    found = {}
    if text := mean(texts):
        found["xml_bytes"] = text
    if image := mean(images):
        found |= {"media_bytes": image, "image_scale": image / rates.image_bytes}
    return found
