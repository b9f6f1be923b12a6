"""Mutated inputs of every kind: each is read or refused with the declared error, soon and within bounded memory.

Metadata, inventories, articles' XML, images, legacy packages, and one's own pairs as Parquet, CSV and shards. Seeded: a
failure comes again. The slow ones make 20,000 inputs of each kind.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
import resource
import tarfile
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lxml import etree

from biomedclip_ray.config import ConfigError, Ingest, SourceSelect
from biomedclip_ray.images.errors import ImageError
from biomedclip_ray.images.image import Recipe, decode, prepare
from biomedclip_ray.pmc.catalog import parse_metadata, rejection
from biomedclip_ray.pmc.ingest import read_article
from biomedclip_ray.run.record import Inventory
from biomedclip_ray.schema import ARTICLES, CATALOG, Reason
from biomedclip_ray.sources.bucket import ObjectError, SourceError
from biomedclip_ray.sources.inventory import ENTRIES, entries
from biomedclip_ray.sources.oa_package import PackageBucket
from biomedclip_ray.sources.own_files import find_files, records
from biomedclip_ray.store.ledger import Ledger
from tests.images.test_image_fuzz import SEEDS, sound
from tests.jats.test_xml import ARTICLE, mutated

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


def _metadata_is_read_or_refused(rng: random.Random, folder: Path) -> bool:
    try:
        row = parse_metadata(_metadata(rng), ENTRY)
    except ValueError:
        return False
    assert rejection(row, SourceSelect()) in (None, *Reason)
    table = pa.Table.from_pylist([row | {"part": 0}], schema=CATALOG)
    keys = [row["xml_key"], *(media["key"] for media in table["media"][0].as_py())]
    assert all(key.startswith("PMC10.2/") and "/../" not in key and "\0" not in key for key in keys)
    return True


_GROUPS = b"""<article xmlns:mml="http://www.w3.org/1998/Math/MathML" xmlns:xlink="http://www.w3.org/1999/xlink"><front><article-meta>
<permissions><license><license-p>under a Creative Commons CC BY 4.0 licence</license-p></license></permissions></article-meta></front><body>
<p>See <xref ref-type="fig" rid="G">Figure 1</xref>, 10<sup>4</sup> cells<sup><xref ref-type="bibr" rid="b1">1</xref>,<xref rid="b2">2</xref></sup>.
<fig-group id="G"><caption><p>Organs.</p></caption><fig id="A"><label>A</label><caption><p>A liver, <inline-formula><alternatives><tex-math>$10^{-4}$
</tex-math><mml:math><mml:msup><mml:mn>10</mml:mn><mml:mrow><mml:mo>-</mml:mo><mml:mn>4</mml:mn></mml:mrow></mml:msup></mml:math></alternatives>
</inline-formula>.</p></caption><graphic xlink:href="f0"/></fig><fig id="B"><graphic xlink:href="f1"/><fig id="C"><graphic xlink:href="f2"/></fig>
</fig></fig-group> and more.</p><table-wrap id="T"><caption><p>Doses</p></caption><alternatives><graphic xlink:href="f2"/><table><tr><td>1</td></tr>
</table></alternatives></table-wrap></body><back><ref-list><ref id="b1"/><ref id="b2"/></ref-list></back></article>"""
_OLD = b"""<?xml version="1.0"?><OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/"><GetRecord><record><metadata>
<article xmlns="http://dtd.nlm.nih.gov/2.0/xsd/archivearticle" xmlns:xlink="http://www.w3.org/1999/xlink"><front><article-meta>
<copyright-statement>CC BY-NC</copyright-statement></article-meta></front><body><sec><p>Seen in <xref ref-type="fig" rid="F1">Fig. 1</xref>.</p></sec></body>
<floats-wrap><fig id="F1"><label>Figure 1</label><caption><title>Cells</title><p>Bar, 5 &#956;m.</p></caption><graphic xlink:href="f1"/></fig></floats-wrap>
</article></metadata></record></GetRecord></OAI-PMH>"""


def _rearranged(rng: random.Random, article: bytes) -> bytes:
    """Well-formed: elements moved, doubled, renamed, emptied or taken out, attributes exchanged."""
    root = etree.fromstring(article, etree.XMLParser(resolve_entities=False))
    for _ in range(rng.randint(1, 8)):
        every = [element for element in root.iter(etree.Element) if element is not root]
        if not every:
            break
        one, other = rng.choice(every), rng.choice(every)
        match rng.randrange(6):
            case 0 if other not in one.iter():
                other.append(one)
            case 1:
                other.addnext(deepcopy(one))
            case 2:
                one.tag = other.tag
            case 3:
                one.attrib.update(dict(other.attrib))
            case 4:
                one.text = rng.choice(("", "4", "x " * 2000, ",", "(A)", other.text or ""))
            case 5:
                one.getparent().remove(one)
    return etree.tostring(root)


def _article_gives_a_row_or_a_reason(rng: random.Random, folder: Path) -> bool:
    xml = rng.choice((ARTICLE, _GROUPS, _OLD))
    xml = mutated(rng, xml) if rng.random() < 0.5 else _rearranged(rng, xml)
    names = ["f0.jpg", "f1.jpg", "f2.jpg", *re.findall(r'href="([\w.-]+)"', ARTICLE.decode())]
    media = [{"key": f"PMC10.2/{name}", "md5": "b" * 32} for name in names]
    entry = parse_metadata(json.dumps(METADATA).encode(), ENTRY) | {"part": 0, "media": media}
    ledger = Ledger("ingest")
    article = read_article(entry, xml, Ingest(tables=rng.random() < 0.5), SourceSelect().allowed(), ledger)
    dropped = [each for each in ledger.rows if each["unit"] == "article"]
    assert len(dropped) == (article is None)
    if article is None:
        return False
    pa.Table.from_pylist([article], schema=ARTICLES)
    figures = article["figures"]
    assert figures and all(figure["caption"] and figure["media"] for figure in figures)
    assert len({figure["figure_id"] for figure in figures}) == len(figures)
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


def _inventory_is_read_or_refused(rng: random.Random, folder: Path) -> bool:
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


def _picture_is_kept_or_refused(rng: random.Random, folder: Path) -> bool:
    try:
        picture = prepare(_damaged(rng, sound(rng.choice(SEEDS))), Recipe(40, 90, 8, 4_000_000, 12))
    except ImageError as error:
        assert error.reason.sentence
        return False
    assert decode(picture.jpeg).shape == (picture.height, picture.width, 3)
    assert picture.original_width * picture.original_height <= 4_000_000
    return True


HOSTILE = (
    "../up.jpg",
    "/etc/passwd",
    "p/../up.jpg",
    "p//x.jpg",
    "p/deeper/x.jpg",
    "p/",
    "",
    "./",
    "p/\n",
    "p/" + "l" * 300,
)
MEMBER_TYPES = (b"0", b"0", b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"L", b"K", b"x", b"g", b"S", b"9")


def _tar(rng: random.Random, members: dict[str, bytes]) -> bytes:
    """A tar of these members, some hostile ones among them, in one of its three forms, packed or damaged or both."""
    out = io.BytesIO()
    form = rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))
    with tarfile.open(fileobj=out, mode="w", format=form, encoding="utf-8") as archive:
        for name, data in members.items():
            if rng.random() < 0.15:
                archive.addfile(*_hostile(rng, form))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    data = out.getvalue()
    if rng.random() < 0.4:
        data = _damaged(rng, data)
    if rng.random() < 0.2:  # a header whose checksum is right and whose size is not
        info = tarfile.TarInfo(rng.choice(("p/x.jpg", "p/a.nxml", *HOSTILE)))
        info.size, info.type = rng.choice((0, 1, 511, 10**6, 1 << 40)), rng.choice(MEMBER_TYPES)
        block = 512 * rng.randrange(len(data) // 512 + 1)
        data = data[:block] + info.tobuf(tarfile.GNU_FORMAT) + data[block:]
    return data


def _hostile(rng: random.Random, form: int) -> tuple[tarfile.TarInfo, BinaryIO]:
    info = tarfile.TarInfo(rng.choice(("p/h.jpg", *HOSTILE[: -1 if form == tarfile.USTAR_FORMAT else None])))
    info.type, info.linkname = rng.choice(MEMBER_TYPES[:9]), rng.choice(("", "a.nxml", "/etc/passwd", "../x"))
    if form == tarfile.PAX_FORMAT and rng.random() < 0.5:
        key = rng.choice(("size", "path", "linkpath", "GNU.sparse.size", "GNU.sparse.map", "GNU.sparse.major", "mtime"))
        info.pax_headers = {key: rng.choice(("0", "-1", "9" * 30, "x", "../../up", "0,1", "1e400", "nan"))}
    return info, io.BytesIO(b"")


PACKAGE = {
    "p/a.nxml": b"<article><front><article-meta><title-group><article-title>T</article-title></title-group></article-meta></front></article>",
    "p/" + "long" * 20 + ".jpg": b"j" * 700,
    "p/µ.gif": b"g" * 3,
    "p/license.txt": b"CC BY",
}


def _package_is_read_or_refused(rng: random.Random, folder: Path) -> bool:
    packed = gzip.compress(_tar(rng, PACKAGE), 1)
    if rng.random() < 0.1:
        packed = _damaged(rng, packed)
    (folder / "PMC7.tar.gz").write_bytes(packed)
    (folder / "oa_file_list.csv").write_text("File,Accession_ID,Date,License\nPMC7.tar.gz,PMC7,2024-01-02,CC BY\n")
    bucket = PackageBucket(folder, package_bytes=20 * MB)
    entry = {"pmcid": "PMC7", "version": 1, "key": "metadata/PMC7.1.json", "last_modified": "", "etag": ""}
    try:
        row = parse_metadata(bucket.get("metadata/PMC7.1.json"), entry)
    except ObjectError as error:
        assert error.reason is Reason.BAD_PACKAGE
        return False
    for media in row["media"]:
        assert media["key"].count("/") == 1
        try:
            data = bucket.get(media["key"], media["md5"])
        except ObjectError as error:
            assert error.reason is Reason.BAD_PACKAGE
        else:
            assert len(data) <= 20 * MB
    return True


def _parquet() -> bytes:
    out = io.BytesIO()
    rows = {"image": [bytes([n]) * 50 for n in range(20)], "text": [f"text µ {n}" for n in range(20)]}
    pq.write_table(pa.table(rows | {"patient": [n % 3 or None for n in range(20)]}), out, row_group_size=8)
    return out.getvalue()


PARQUET = _parquet()
CSV = "".join(f'scans/{n}.png,"a ""text"", µ {n}",{n % 3}\n' for n in range(20)).encode()
SHARD = {f"{n:03}.{ending}": f"{n} {ending}".encode() * 20 for n in range(6) for ending in ("jpg", "txt")}


def _own_files_are_read_or_refused(form: str, rng: random.Random, folder: Path) -> bool:
    if form == "jsonl":
        lines = [json.dumps({"image": f"{n}.png", "text": f"µ {n}", "id": rng.choice(STRANGE)}) for n in range(20)]
        data = "\n".join(lines).encode()
        data = _damaged(rng, data) if rng.random() < 0.7 else data
    elif form == "tar":
        data = _tar(rng, SHARD | {"6.jpg": b"j", "6.json": json.dumps(rng.choice(STRANGE)).encode()})
    else:
        data = PARQUET if form == "parquet" else CSV
        data = _damaged(rng, data) if rng.random() < 0.7 else data
        if form == "csv":
            header = b"image,text,patient\n"
            data = (_damaged(rng, header) if rng.random() < 0.3 else header) + data
    (folder / f"pairs.{form}").write_bytes(data)
    try:
        files = find_files(str(folder / f"pairs.{form}"), 50)
    except ConfigError as error:
        assert str(error).startswith("own.uri")
        return False
    whole = True
    for record in (record for piece in files.pieces for record in records(files, piece)):
        whole &= record.fault is None
        assert record.fault is None or record.fault[0] in (Reason.BROKEN_FILE, Reason.MISSING_OBJECT, Reason.TOO_LARGE)
        assert isinstance(record.text, str)
    return whole


KINDS = {
    "article": _article_gives_a_row_or_a_reason,
    "metadata": _metadata_is_read_or_refused,
    "inventory": _inventory_is_read_or_refused,
    "picture": _picture_is_kept_or_refused,
    "package": _package_is_read_or_refused,
    "own_parquet": partial(_own_files_are_read_or_refused, "parquet"),
    "own_csv": partial(_own_files_are_read_or_refused, "csv"),
    "own_jsonl": partial(_own_files_are_read_or_refused, "jsonl"),
    "own_shard": partial(_own_files_are_read_or_refused, "tar"),
}


def _try(what: Callable[[random.Random, Path], bool], n: int, folder: Path) -> int:
    """How many of n inputs are read; none may take 5 seconds, or all together 500 MB."""
    before, read = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for seed in range(n):
        started = time.monotonic()
        try:
            read += what(random.Random(seed), folder)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
        assert time.monotonic() - started < 5, f"seed {seed}"
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 500 * MB
    return read


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_inputs_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    assert 40 < _try(KINDS[kind], 600, tmp_path) < 560


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_many_mutated_inputs_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    assert 1000 < _try(KINDS[kind], 20_000, tmp_path) < 19_500
