"""Mutated metadata, inventories and pictures: each is read or refused with the declared error, soon and within bounded memory.

XML has its own in pmc/test_jats_xml.py. Seeded: a failure comes again. The slow ones make 20,000 inputs of each kind.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import resource
import time
from collections.abc import Callable
from typing import Any, BinaryIO

import pyarrow as pa
import pytest

from biomedclip_ray.config import SourceSelect
from biomedclip_ray.figures.image import ImageError, decode, prepare
from biomedclip_ray.pmc.bucket import SourceError
from biomedclip_ray.pmc.catalog import judge, parse_metadata
from biomedclip_ray.pmc.inventory import ENTRIES, Inventory, entries
from biomedclip_ray.schema import CATALOG, Reason
from tests.figures.test_image_fuzz import SEEDS, sound

ENTRY = {"pmcid": "PMC10", "version": 2, "key": "metadata/PMC10.2.json", "last_modified": "2026-11-12", "etag": "e"}
METADATA = {
    "pmcid": "PMC10",
    "version": 2,
    "pmid": None,
    "doi": "10.1/x",
    "title": "Sounds move µ",
    "citation": "C",
    "is_manuscript": False,
    "is_historical_ocr": False,
    "is_retracted": False,
    "license_code": "CC BY",
    "xml_url": f"s3://pmc-oa-opendata/PMC10.2/PMC10.2.xml?md5={'a' * 32}",
    "media_urls": [f"s3://pmc-oa-opendata/PMC10.2/f{n}.jpg?md5={'b' * 32}" for n in range(3)],
}
STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 2, 2.0, 1e308, 10**30, float("inf"), float("nan"), "", "x", "\ud800", "PMC10", "PMC10.2/", "a\0b",
    "s3://b/PMC10.2/../x", "s3://b/PMC10.2/\udfff.jpg", "s3://b/PMC10.2/\n", [], [[]], {}, {"a": 1}, [None], "9" * 5000,
)  # fmt: skip
MB = 1024 * 1024


def _damaged(rng: random.Random, data: bytes) -> bytes:
    """One to six cuts, flips, insertions, repeats and extreme numbers."""
    result = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at, kind = rng.randrange(len(result) + 1), rng.randrange(6)
        if kind == 0 and at < len(result):
            result[at] ^= rng.randint(1, 255)
        elif kind == 1:
            del result[at : at + rng.choice((1, 2, 4, 100, 10_000))]
        elif kind == 2:
            result[at:at] = rng.randbytes(rng.randint(1, 20))
        elif kind == 3:
            result[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\1"))
        elif kind == 4:
            result[at:at] = result[at : at + 200] * rng.choice((1, 2, 50))
        else:
            result[at:at] = rng.choice((b'"', b",", b"\n", b"[" * 3000, b"{", b"\\", b"\xed\xa0\x80", b'""'))
    return bytes(result)


def _metadata(rng: random.Random) -> bytes:
    raw: dict[str, Any] = dict(METADATA)
    for _ in range(rng.randint(0, 3)):
        key, value = rng.choice([*raw, "new"]), rng.choice(STRANGE)
        if rng.random() < 0.2:
            raw.pop(key, None)
        elif rng.random() < 0.3:
            raw["media_urls"] = [*METADATA["media_urls"], value]  # type: ignore[misc]
        else:
            raw[key] = value
    data = json.dumps(raw).encode()
    return _damaged(rng, data) if rng.random() < 0.5 else data


def _metadata_is_read_or_refused(rng: random.Random) -> bool:
    try:
        row = parse_metadata(_metadata(rng), ENTRY)
    except ValueError:
        return False
    assert judge(row, SourceSelect()) in (None, *Reason)
    table = pa.Table.from_pylist([row | {"part": 0}], schema=CATALOG)
    keys = [row["xml_key"], *(media["key"] for media in table["media"][0].as_py())]
    assert all(key.startswith("PMC10.2/") and "/../" not in key and "\0" not in key for key in keys)
    return True


class _OneFile:
    """A bucket that holds an inventory's file."""

    uri = "memory"

    def __init__(self, data: bytes) -> None:
        self.data = data

    def stream(self, key: str) -> BinaryIO:
        return io.BytesIO(self.data)

    def get(self, key: str, md5: str | None = None) -> bytes:
        return self.data

    def folders(self, prefix: str) -> list[str]:
        return []


def _lines(n: int) -> bytes:
    out = io.StringIO()
    rows = [["pmc-oa-opendata", f"metadata/PMC{n}.1.json", "2026-11-12T08:15:30.000Z", f"{n:032x}"] for n in range(n)]
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows(rows)
    return out.getvalue().encode()


LINES = _lines(30)


def _inventory_is_read_or_refused(rng: random.Random) -> bool:
    data = _damaged(rng, LINES) if rng.random() < 0.7 else LINES
    packed = gzip.compress(data, 1)
    if rng.random() < 0.4:
        packed = _damaged(rng, packed)
    try:
        tables = list(entries(_OneFile(packed), Inventory("2026-11-20T01-00Z", "x", ("all.csv.gz",))))
    except SourceError as error:
        assert "all.csv.gz" in str(error)
        return False
    for table in tables:
        assert table.schema == ENTRIES
        assert all(key.startswith("metadata/PMC") for key in table["key"].to_pylist())
        assert table["pmcid"].null_count == table["version"].null_count == 0
    return True


def _picture_is_kept_or_refused(rng: random.Random) -> bool:
    try:
        picture = prepare(
            _damaged(rng, sound(rng.choice(SEEDS))),
            short_side=40,
            quality=90,
            min_side=8,
            max_pixels=4_000_000,
            max_aspect=12,
        )
    except ImageError as error:
        assert error.reason.sentence
        return False
    assert decode(picture.jpeg).shape == (picture.height, picture.width, 3)
    assert picture.original_width * picture.original_height <= 4_000_000
    return True


KINDS = {
    "metadata": _metadata_is_read_or_refused,
    "inventory": _inventory_is_read_or_refused,
    "picture": _picture_is_kept_or_refused,
}


def _try(what: Callable[[random.Random], bool], n: int) -> int:
    """How many of n inputs are read; none may take 5 seconds, or all together 500 MB."""
    before, read = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for seed in range(n):
        started = time.monotonic()
        try:
            read += what(random.Random(seed))
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
        assert time.monotonic() - started < 5, f"seed {seed}"
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 500 * MB
    return read


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_inputs_are_read_or_refused(kind: str) -> None:
    assert 40 < _try(KINDS[kind], 600) < 560


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_many_mutated_inputs_are_read_or_refused(kind: str) -> None:
    assert 1000 < _try(KINDS[kind], 20_000) < 19_500
