"""Preprints: MECA packages of bioRxiv and medRxiv in a folder or bucket, seen as a bucket in the cloud service's
layout.

A package is a zip: manifest.xml names the article's XML and the files of its figures, mostly TIFFs of 5 to 20 MB.
Neither its name (a uuid) nor its folder (the month) says which preprint it is: DOI and version stand in the XML, so an
inventory opens each package once, at its two ends. Afterwards a key says where its package lies, and nobody searches. A
preprint's id is RX and the digits of its DOI; its versions are versions of one article, so the newest wins. In S3 the
reader pays for requests and bytes (0.09 dollars a GB outside of us-east-1): a package is fetched in ranges, and what no
figure needs is never read.

As packages come from strangers: sizes are capped before memory is spent, and what a zip holds becomes an `ObjectError`
for the ledger.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import posixpath
import re
import threading
import zipfile
import zlib
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from lxml import etree

from biomedclip_ray.jats.article import JatsError, parse_article
from biomedclip_ray.schema import Reason, hash64
from biomedclip_ray.sources.bucket import INVENTORIES, ObjectError, SourceError, check_md5
from biomedclip_ray.sources.s3 import S3Bucket

ENDING = ".meca"
MEMBER_BYTES = 256 << 20
MEMBERS = 20_000
_OPEN_PACKAGES = 32
_HEAD_BYTES = 256 << 10  # DOI and version stand at the front of the XML
_THREADS = 16
_DOI = re.compile(rb'<article-id\b[^>]*pub-id-type\s*=\s*"doi"[^>]*>\s*(10\.[^<\s]+)')
_VERSION = re.compile(rb"<article-version\b[^>]*>\s*\d+\.(\d{1,6})\s*<")
_METADATA = re.compile(r"metadata/(RX\d+)\.(\d+)/(.+\.meca)\.json", re.IGNORECASE)
_OBJECT = re.compile(r"RX\d+\.\d+/(.+?\.meca)/(.+)", re.IGNORECASE)
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    RuntimeError,
    NotImplementedError,
    ValueError,
    KeyError,
    OverflowError,
)
_AMPERSAND = re.compile(rb"&(?![A-Za-z][A-Za-z0-9]{0,40};|#)")
_PARSER = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, recover=True, huge_tree=False)


@dataclass(frozen=True)
class Found:
    """A package in its place: its name, its size, and when it was changed."""

    name: str
    size: int
    changed: datetime


class Shelf(Protocol):
    """Where packages lie."""

    uri: str

    def packages(self) -> list[Found]:
        """Every package, by name. Raises SourceError."""

    def open(self, name: str) -> BinaryIO:
        """A package for reading anywhere in it. Raises ObjectError."""


class FolderShelf:
    """Packages in a folder and its folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.uri = str(self.folder)

    def packages(self) -> list[Found]:
        found = []
        for path in self.folder.rglob("*"):
            if path.name.lower().endswith(ENDING) and path.is_file():
                stat = path.stat()
                name = path.relative_to(self.folder).as_posix()
                found.append(Found(name, stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC)))
        return sorted(found, key=lambda one: one.name)

    def open(self, name: str) -> BinaryIO:
        path = self.folder / name
        try:
            if not path.resolve().is_relative_to(self.folder.resolve()):
                raise ObjectError(Reason.MISSING_OBJECT, f"{name} is outside the folder")
            return path.open("rb")
        except FileNotFoundError as error:
            raise ObjectError(Reason.MISSING_OBJECT, name) from error
        except OSError as error:
            raise ObjectError(Reason.FETCH_FAILED, f"{name}: {error.strerror}") from error


class S3Shelf:
    """Packages in a bucket, as biorxiv-src-monthly has them: Current_Content/April_2019/<uuid>.meca."""

    def __init__(self, bucket: S3Bucket) -> None:
        self.bucket = bucket
        self.uri = bucket.uri

    def packages(self) -> list[Found]:
        objects = (one for one in self.bucket.objects() if one["Key"].lower().endswith(ENDING))
        return sorted(
            (Found(one["Key"], one["Size"], one["LastModified"]) for one in objects), key=lambda one: one.name
        )

    def open(self, name: str) -> BinaryIO:
        return self.bucket.ranged(name)


class Package:
    """An open package: what its manifest names. Threads may read it together."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        """Raises ObjectError (BAD_PACKAGE) where it is no zip with a manifest and an article in it."""
        self.name = name
        try:
            self.zip = zipfile.ZipFile(file)
            self.members = {info.filename.replace("\\", "/"): info for info in self.zip.infolist()}
        except _BROKEN as error:
            raise self._bad(f"{type(error).__name__}: {error}") from error
        if len(self.members) > MEMBERS:
            raise self._bad(f"more than {MEMBERS:,} members")
        manifests = sorted(
            (n for n in self.members if n.rpartition("/")[2] == "manifest.xml"), key=lambda n: n.count("/")
        )
        if not manifests:
            raise self._bad("no manifest.xml in it")
        # a few packages lie in a folder of their own within the zip
        self.base = manifests[0].rpartition("/")[0]
        root = etree.fromstring(_mended(self.read(manifests[0])), _PARSER)
        self.xml: str | None = None
        self.images: list[str] = []
        for item in () if root is None else root.iter("{*}item"):
            for instance in item.iter("{*}instance"):
                self._take(
                    item.get("item-type") or item.get("type") or "",
                    instance.get("media-type") or "",
                    instance.get("href") or "",
                )
        if self.xml is None:
            raise self._bad("manifest.xml names no article in XML")

    def _take(self, kind: str, media_type: str, href: str) -> None:
        name = posixpath.normpath(posixpath.join(self.base, href.strip().replace("\\", "/")))
        if not href.strip() or name.startswith(("../", "/")) or not name.isprintable():
            return
        if kind == "article" and media_type.endswith("xml") and self.xml is None:
            self.xml = name
        elif media_type.startswith("image/") and name not in self.images:
            self.images.append(name)

    def read(self, name: str, limit: int | None = None) -> bytes:
        """A member's bytes, or its first `limit`. Raises ObjectError."""
        info = self.members.get(name)
        if info is None:
            raise ObjectError(Reason.MISSING_OBJECT, f"{name} is not in {self.name}")
        if info.file_size > MEMBER_BYTES and limit is None:
            raise self._bad(f"{name}: {info.file_size:,} bytes, more than {MEMBER_BYTES:,}")
        try:
            with self.zip.open(info) as member:
                return member.read(MEMBER_BYTES + 1 if limit is None else limit)
        except _BROKEN as error:
            raise self._bad(f"{name}: {type(error).__name__}: {error}") from error
        except OSError as error:
            raise ObjectError(Reason.FETCH_FAILED, f"{self.name}: {error}") from error

    def article(self) -> bytes:
        assert self.xml is not None
        return _mended(self.read(self.xml))

    def _bad(self, why: str) -> ObjectError:
        return ObjectError(Reason.BAD_PACKAGE, f"{self.name}: {why}")


class MecaBucket:
    """Packages on a shelf, by keys of the cloud service's form."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.uri = shelf.uri
        self._lock = threading.Lock()
        self._open: OrderedDict[str, Package] = OrderedDict()

    def get(self, key: str, md5: str | None = None) -> bytes:
        data = self._read(key)
        check_md5(key, data, md5)
        return data

    def stream(self, key: str) -> BinaryIO:
        return io.BytesIO(self.get(key))

    def folders(self, prefix: str) -> list[str]:
        return [self._date] if prefix == f"{INVENTORIES}/" else []

    def _read(self, key: str) -> bytes:
        if key.startswith(INVENTORIES):
            return self._inventory(key)
        if match := _METADATA.fullmatch(key):
            return _metadata(f"{match[1]}.{match[2]}", self._package(match[3]))
        if match := _OBJECT.fullmatch(key):
            package = self._package(match[1])
            return package.article() if match[2] == package.xml else package.read(match[2])
        raise ObjectError(Reason.MISSING_OBJECT, key)

    def _inventory(self, key: str) -> bytes:
        if key == f"{INVENTORIES}/{self._date}/manifest.json":
            lines = hashlib.md5(self._lines, usedforsecurity=False).hexdigest()
            files = [{"key": self._data_key, "contentMD5": lines}]
            schema = "Bucket, Key, LastModifiedDate, ETag"
            return json.dumps({"sourceBucket": "preprints", "fileSchema": schema, "files": files}, indent=2).encode()
        if key == self._data_key:
            return gzip.compress(self._lines, mtime=0)
        raise ObjectError(Reason.MISSING_OBJECT, key)

    def _package(self, name: str) -> Package:
        with self._lock:
            if name not in self._open:
                self._open[name] = Package(self.shelf.open(name), name)
            self._open.move_to_end(name)
            while len(self._open) > _OPEN_PACKAGES:
                self._open.popitem(last=False)
            return self._open[name]

    @cached_property
    def _found(self) -> list[Found]:
        found = self.shelf.packages()
        if not found:
            raise SourceError(f"source.uri={self.uri}: no package ({ENDING}) there")
        return found

    @cached_property
    def _date(self) -> str:
        """When the newest package came, as an inventory's date."""
        return max(one.changed for one in self._found).strftime("%Y-%m-%dT%H-%MZ")

    @property
    def _data_key(self) -> str:
        return f"{INVENTORIES}/data/preprints-{self._date}.csv.gz"

    @cached_property
    def _lines(self) -> bytes:
        """The inventory: a line for each package; the catalog takes the newest version, of two packages of one version
        the newer.
        """
        with ThreadPoolExecutor(_THREADS) as threads:
            named = list(zip(self._found, threads.map(self._named, self._found), strict=True))
        lines = []
        for one, (article, version) in sorted(named, key=lambda item: (item[1], item[0].changed, item[0].name)):
            etag = hashlib.md5(f"{one.name} {one.size} {one.changed}".encode(), usedforsecurity=False).hexdigest()
            key = f"metadata/{article}.{version}/{one.name}.json"
            row = ("preprints", key, one.changed.strftime("%Y-%m-%dT%H:%M:%S.000Z"), etag)
            lines.append(",".join('"' + value.replace('"', '""') + '"' for value in row) + "\n")
        return "".join(lines).encode()

    def _named(self, one: Found) -> tuple[str, int]:
        """Id and version of a package's preprint; a package that cannot be read gets a name too, and is said in the
        catalog's ledger.
        """
        try:
            with self.shelf.open(one.name) as file:
                package = Package(file, one.name)
                assert package.xml is not None
                head = package.read(package.xml, _HEAD_BYTES)
        except ObjectError:
            return f"RX{hash64(one.name)}", 1
        doi, version = _DOI.search(head), _VERSION.search(head)
        return preprint_id(doi[1].decode("utf-8", "replace") if doi else one.name), int(version[1]) if version else 1


def preprint_id(doi: str) -> str:
    """`10.1101/2024.05.08.593085` -> `RX20240508593085`; a DOI of another form gets a number by hash."""
    suffix = doi.partition("/")[2]
    digits = suffix.replace(".", "")
    return f"RX{digits}" if digits.isascii() and digits.isdigit() and len(digits) <= 18 else f"RX{hash64(doi.lower())}"


def _metadata(article_id: str, package: Package) -> bytes:
    """The metadata JSON that the cloud service would have for the preprint; the same bytes every time."""
    pmcid, _, version = article_id.partition(".")
    try:
        article = parse_article(package.article())
    except JatsError:
        article = None  # ingest says so in its ledger

    def url(name: str) -> str:
        return f"s3://preprints/{article_id}/{package.name}/{name}"

    metadata: dict[str, Any] = {
        "pmcid": pmcid,
        "version": int(version),
        "pmid": None,
        "doi": article and article.doi,
        "title": article and article.title,
        "citation": None,
        "is_manuscript": False,
        "is_historical_ocr": False,
        "is_retracted": False,  # a withdrawn preprint's newest version has no figures
        "license_code": article and article.license,
        "xml_url": url(str(package.xml)),
        "media_urls": [url(name) for name in package.images],
    }
    return json.dumps(metadata, indent=2, ensure_ascii=False).encode()


def _mended(xml: bytes) -> bytes:
    """Mended XML: some packages have white space or the DOCTYPE before the XML declaration, or an ampersand that is no
    entity.
    """
    xml = _AMPERSAND.sub(b"&amp;", xml)
    at = xml.find(b"<?xml", 0, 2000)
    if at <= 0:
        return xml
    end = xml.find(b"?>", at) + 2
    return xml[at:end] + xml[:at].strip() + xml[end:] if end > 1 else xml
