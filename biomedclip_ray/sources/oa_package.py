"""Legacy oa_package tarballs in a folder, seen as a bucket in the cloud service's layout.

PMC removed them in August 2026; who has kept some goes on using them: `oa_file_list.csv` is the inventory, a package is
version 1 of its article, its .nxml the article's XML, and the metadata JSON is put together from the list and the XML.

A package is decompressed once into memory and its members are slices of it: gzip has no random access, and a pass for
each member took 403 ms instead of 61 for PMC2924383 with its 14. Packages stay open up to CACHE_BYTES and are read one
at a time in a process, so that sixteen threads neither read one twice nor hold sixteen of them. Each stage thus reads a
package once. Members come from strangers: names are taken flat, links, devices and sparse files are refused, sizes are
capped before memory is spent, and whatever a tarball holds becomes an `ObjectError` for the ledger.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from biomedclip_ray.jats.article import Article, JatsError, parse_article
from biomedclip_ray.jats.licenses import license_code
from biomedclip_ray.schema import Reason
from biomedclip_ray.sources.bucket import INVENTORIES, PUBLIC_BUCKET, ObjectError, check_md5
from biomedclip_ray.sources.oa_list import Listed, PackageList

MEMBER_BYTES = 256 << 20
PACKAGE_BYTES = 1 << 30
MEMBERS = 20_000
CACHE_BYTES = 256 << 20
_CHUNK = 1 << 20
_METADATA = re.compile(r"metadata/PMC(\d+)\.1\.json")
_OBJECT = re.compile(r"PMC(\d+)\.1/([^/]+)")
# what tarfile raises on damaged archives, beside its own errors: headers that hold no numbers, no text or no end
_BROKEN = (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, IndexError, OverflowError, RecursionError)


class PackageError(ValueError):
    """A tarball that cannot be used; the message says why."""


@dataclass(frozen=True)
class Package:
    """A decompressed package: where each member lies in `raw`, and why a member was refused."""

    raw: bytes | bytearray
    members: dict[str, tuple[int, int]]
    refused: dict[str, str]

    def read(self, name: str) -> bytes:
        """The bytes of a member. Raises KeyError."""
        start, size = self.members[name]
        return bytes(memoryview(self.raw)[start : start + size])

    def md5(self, name: str) -> str:
        start, size = self.members[name]
        return hashlib.md5(memoryview(self.raw)[start : start + size], usedforsecurity=False).hexdigest()

    @property
    def xml(self) -> str | None:
        """The name of the article's XML, or None."""
        found = sorted(name for name in self.members if name.endswith((".nxml", ".xml")))
        return next((name for name in found if name.endswith(".nxml")), found[0] if found else None)


def read_package(data: bytes, member_bytes: int = MEMBER_BYTES, package_bytes: int = PACKAGE_BYTES) -> Package:
    """Open a .tar.gz, whatever its bytes are.

    Members are regular files directly in the package or in its one folder; those of other paths are left out, as
    nothing in a package's XML can mean them. Links, devices, sparse files and members over `member_bytes` are refused
    by name.

    Raises:
        PackageError: no gzip, no tar, cut or damaged, over `package_bytes` when decompressed, or over MEMBERS members.
    """
    try:
        raw = _decompressed(data, package_bytes)
        members, refused = _index(raw, member_bytes)
    except _BROKEN as error:
        if isinstance(error, PackageError):
            raise
        raise PackageError(f"{type(error).__name__}: {error}") from error
    return Package(raw, members, refused)


def _decompressed(data: bytes, limit: int) -> bytearray:
    raw = bytearray()
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:  # read to its end, which checks length and CRC
        while chunk := stream.read(_CHUNK):
            raw += chunk
            if len(raw) > limit:
                raise PackageError(f"more than {limit:,} bytes when decompressed")
    return raw


def _index(raw: bytearray, member_bytes: int) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    members: dict[str, tuple[int, int]] = {}
    refused: dict[str, str] = {}
    with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as archive:
        number, before = 0, 0
        while (member := archive.next()) is not None:
            # a size below zero leads backwards, and round and round for ever
            if archive.offset <= before:
                raise PackageError(f"the member at byte {before:,} has no size")
            number, before = number + 1, archive.offset
            if number > MEMBERS:
                raise PackageError(f"more than {MEMBERS:,} members")
            name = _safe_name(member.name)
            if name is None or member.isdir() or name in members or name in refused:
                continue
            if not member.isreg() or member.issparse():
                refused[name] = "a link, device or sparse file"
            elif member.size > member_bytes:
                refused[name] = f"{member.size:,} bytes, more than {member_bytes:,}"
            else:
                members[name] = (member.offset_data, member.size)
        end = archive.offset
    if any(start + size > len(raw) for start, size in members.values()):
        raise PackageError("it ends within a member")
    # tarfile takes a damaged header for the end of the archive
    if raw[end:].strip(b"\0"):
        raise PackageError(f"no member header at byte {end:,}")
    return members, refused


def _safe_name(path: str) -> str | None:
    """The plain name of a member that lies in the package or in its folder, else None."""
    parts = path.removeprefix("./").split("/")
    name = parts[-1]
    if len(parts) > 2 or any(part in ("", ".", "..") for part in parts) or not name.isprintable():
        return None
    return name


class PackageBucket:
    """Packages below a folder that holds oa_file_list.csv, by the keys of the cloud service."""

    def __init__(self, folder: Path, member_bytes: int = MEMBER_BYTES, package_bytes: int = PACKAGE_BYTES) -> None:
        self.folder = folder.absolute()
        self.uri = str(self.folder)
        self.list = PackageList(self.folder)
        self.limits = (member_bytes, package_bytes)
        self._lock = threading.Lock()
        self._open: OrderedDict[int, Package] = OrderedDict()

    def get(self, key: str, md5: str | None = None) -> bytes:
        data = self._read(key)
        check_md5(key, data, md5)
        return data

    def stream(self, key: str) -> BinaryIO:
        if key == self.list.data_key:
            return self.list.lines()
        return io.BytesIO(self.get(key))

    def folders(self, prefix: str) -> list[str]:
        return [self.list.date] if prefix == f"{INVENTORIES}/" else []

    def _read(self, key: str) -> bytes:
        if key == self.list.manifest_key:
            return self.list.manifest()
        if key == self.list.data_key:
            with self.list.lines() as lines:
                return lines.read()
        match = _METADATA.fullmatch(key) or _OBJECT.fullmatch(key)
        listed = self.list.find(int(match[1])) if match else None
        if match is None or listed is None:
            raise ObjectError(Reason.MISSING_OBJECT, key)
        package = self._package(listed)
        article_id = f"{listed.pmcid}.1"
        name = match[2] if match.re is _OBJECT else f"{article_id}.json"
        if name == f"{article_id}.json":
            return _metadata(listed, package)
        if name == f"{article_id}.xml" and package.xml:
            name = package.xml
        if name in package.refused:
            raise ObjectError(Reason.BAD_PACKAGE, f"{key}: {package.refused[name]}")
        if name not in package.members:
            raise ObjectError(Reason.MISSING_OBJECT, f"{key}: not in {listed.path}")
        return package.read(name)

    def _package(self, listed: Listed) -> Package:
        with self._lock:
            if listed.number in self._open:
                self._open.move_to_end(listed.number)
                return self._open[listed.number]
            package = self._opened(listed)
            self._open[listed.number] = package
            # never less than two: threads work on the end of one article and the beginning of the next
            while len(self._open) > 2 and sum(len(one.raw) for one in self._open.values()) > CACHE_BYTES:
                self._open.popitem(last=False)
            return package

    def _opened(self, listed: Listed) -> Package:
        member_bytes, package_bytes = self.limits
        try:
            path = self.list.locate(listed)
            size = path.stat().st_size
            if size > package_bytes:
                raise ObjectError(Reason.BAD_PACKAGE, f"{listed.path}: {size:,} bytes, more than {package_bytes:,}")
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise ObjectError(Reason.MISSING_OBJECT, listed.path) from error
        except OSError as error:
            raise ObjectError(Reason.FETCH_FAILED, f"{listed.path}: {error.strerror}") from error
        try:
            package = read_package(data, member_bytes, package_bytes)
        except PackageError as error:
            raise ObjectError(Reason.BAD_PACKAGE, f"{listed.path}: {error}") from error
        if package.xml is None:
            raise ObjectError(Reason.BAD_PACKAGE, f"{listed.path}: no .nxml in it")
        return package


def _metadata(listed: Listed, package: Package) -> bytes:
    """The metadata JSON that the cloud service would have for the package; the same bytes every time."""
    assert package.xml is not None
    article_id = f"{listed.pmcid}.1"
    article = _article(package.read(package.xml))
    media, pdf = [], None
    for name in sorted({*package.members, *package.refused}):
        md5 = f"?md5={package.md5(name)}" if name in package.members else ""
        url = f"s3://{PUBLIC_BUCKET}/{article_id}/{name}{md5}"
        if name.endswith(".pdf") and pdf is None:
            pdf = url
        elif name not in (package.xml, "license.txt", f"{article_id}.xml", f"{article_id}.json"):
            media.append(url)
    metadata: dict[str, Any] = {
        "pmcid": listed.pmcid,
        "version": 1,
        "pmid": listed.pmid or (article and article.pmid),
        "doi": article and article.doi,
        "title": article and article.title,
        "citation": listed.citation,
        "is_pmc_openaccess": True,
        "is_manuscript": False,
        "is_historical_ocr": False,
        "is_retracted": listed.retracted,
        # "NO-CC CODE" stands in the list where the licence is the publisher's own, or was not understood
        "license_code": license_code(listed.license) or (article and article.license),
        "xml_url": f"s3://{PUBLIC_BUCKET}/{article_id}/{article_id}.xml?md5={package.md5(package.xml)}",
        "pdf_url": pdf,
        "text_url": None,
        "media_urls": media,
    }
    return json.dumps(metadata, indent=2, ensure_ascii=False).encode()


def _article(xml: bytes) -> Article | None:
    """None for XML that cannot be parsed, which ingest says in its ledger."""
    try:
        return parse_article(xml)
    except JatsError:
        return None
