"""`oa_file_list.csv`, the list of the legacy packages: found by PMCID, and told as an inventory of the cloud service.

The list had up to seven million lines. A process keeps 16 bytes of each, its number and where it stands in the file,
and reads a line when it is asked for; the inventory is written to a temporary file and streamed from there.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

import numpy as np

from biomedclip_ray.schema import Reason
from biomedclip_ray.sources.bucket import INVENTORIES, PUBLIC_BUCKET, ObjectError, SourceError

NAME = "oa_file_list.csv"
_NO_DATE = "1970-01-01T00-00Z"
_DATE = re.compile(r"(\d{4}-\d{2}-\d{2})(?:[ T](\d{2}):(\d{2}))?")
# the header's names over the years, without spaces and capitals; the last three need not be there
_COLUMNS = {
    "path": ("file", "articlefile"),
    "pmcid": ("accessionid",),
    "license": ("license",),
    "citation": ("citation", "articlecitation"),
    "pmid": ("pmid",),
    "date": ("date", "lastupdated"),
    "retracted": ("retracted",),
}
_NEEDED = ("path", "pmcid", "license")


@dataclass(frozen=True)
class Listed:
    """One line of the list."""

    number: int
    path: str
    license: str
    citation: str | None
    pmid: str | None
    date: str
    retracted: bool

    @property
    def pmcid(self) -> str:
        return f"PMC{self.number}"


class PackageList:
    """The list in a folder; read when it is first asked for.

    Its methods raise SourceError where the file cannot be read or is no such list.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / NAME
        self._lock = threading.Lock()
        self._temporary: IO[bytes] | None = None
        self._content_md5 = ""

    @property
    def date(self) -> str:
        """When the newest package was updated: `2025-09-10T00-00Z`, as an inventory's date."""
        return self._read[2]

    @property
    def manifest_key(self) -> str:
        return f"{INVENTORIES}/{self.date}/manifest.json"

    @property
    def data_key(self) -> str:
        return f"{INVENTORIES}/data/oa_file_list-{self.date}.csv.gz"

    def find(self, number: int) -> Listed | None:
        """The line of a PMCID; of several the last."""
        numbers, offsets, _ = self._read
        at = int(np.searchsorted(numbers, number))
        if at == len(numbers) or numbers[at] != number:
            return None
        with self.file.open("rb") as file:
            return self._line(file, int(offsets[at]))

    def locate(self, listed: Listed) -> Path:
        """Where a package lies: as the list says, below its own folder or below oa_package/ of it.

        Raises:
            ObjectError: the list names a path outside the folder.
        """
        path = PurePosixPath(listed.path)
        if path.is_absolute() or ".." in path.parts or not listed.path.isprintable():
            raise ObjectError(Reason.BAD_PACKAGE, f"{listed.path!r} is outside the folder")
        inside = self.folder / path
        return inside if inside.exists() or path.parts[0] != "oa_package" else self.folder.joinpath(*path.parts[1:])

    def manifest(self) -> bytes:
        """The inventory's manifest.json; its bytes change when a line or a package's size does."""
        self._write_lines()
        # no MD5checksum: that of gzip bytes would change with the zlib of the machine
        files = [{"key": self.data_key, "contentMD5": self._content_md5}]
        schema = "Bucket, Key, LastModifiedDate, ETag"
        return json.dumps({"sourceBucket": PUBLIC_BUCKET, "fileSchema": schema, "files": files}, indent=2).encode()

    def lines(self) -> BinaryIO:
        """The inventory's gzip CSV; closed by the caller."""
        return Path(self._write_lines()).open("rb")

    def _write_lines(self) -> str:
        with self._lock:
            if self._temporary is None:
                digest = hashlib.md5(usedforsecurity=False)
                # lives as long as this list, and goes with it
                temporary = tempfile.NamedTemporaryFile(prefix="biomedclip-packages-", suffix=".csv.gz")  # noqa: SIM115
                with gzip.GzipFile(fileobj=temporary, mode="wb", mtime=0, compresslevel=1) as stream:
                    for line in self._inventory():
                        digest.update(line)
                        stream.write(line)
                temporary.flush()
                self._temporary, self._content_md5 = temporary, digest.hexdigest()
            return str(self._temporary.name)

    def _inventory(self) -> Iterator[bytes]:
        _, offsets, _ = self._read
        with self.file.open("rb") as file:
            for offset in offsets.tolist():
                listed = self._line(file, offset)
                facts = f"{listed}{self._size(listed)}"
                etag = hashlib.md5(facts.encode(), usedforsecurity=False).hexdigest()
                row = (PUBLIC_BUCKET, f"metadata/{listed.pmcid}.1.json", listed.date, etag)
                yield (",".join(f'"{value}"' for value in row) + "\n").encode()

    def _size(self, listed: Listed) -> int:
        try:
            return self.locate(listed).stat().st_size
        except (OSError, ObjectError):
            return -1  # listed all the same, so that the catalog's ledger says that it is not there

    def _line(self, file: IO[bytes], offset: int) -> Listed:
        file.seek(offset)
        cells = _cells(file.readline())

        def cell(column: str) -> str:
            at = self._columns.get(column)
            return cells[at].strip() if at is not None and at < len(cells) else ""

        return Listed(
            number=_number(cell("pmcid")),
            path=cell("path"),
            license=cell("license"),
            citation=cell("citation") or None,
            pmid=cell("pmid") or None,
            date=match[0] if (match := _DATE.match(cell("date"))) else "",
            retracted=cell("retracted").lower() in ("yes", "true", "1"),
        )

    @cached_property
    def _columns(self) -> dict[str, int]:
        try:
            with self.file.open("rb") as file:
                names = [re.sub("[^a-z(]", "", name.lower()).partition("(")[0] for name in _cells(file.readline())]
        except OSError as error:
            raise SourceError(f"source.uri={self.folder}: {NAME}: {error.strerror}") from error
        found = {
            column: next((names.index(name) for name in spellings if name in names), -1)
            for column, spellings in _COLUMNS.items()
        }
        if missing := [column for column in _NEEDED if found[column] < 0]:
            expected = ", ".join(_COLUMNS[column][0] for column in missing)
            raise SourceError(f"source.uri={self.folder}: {NAME} has no column {expected}; is it PMC's list?")
        return {column: at for column, at in found.items() if at >= 0}

    @cached_property
    def _read(self) -> tuple[Any, Any, str]:
        """PMCIDs without their letters, sorted; where the line of each begins; the newest date."""
        id_at, date_at = self._columns["pmcid"], self._columns.get("date", -1)
        numbers, offsets, newest = [], [], ""
        try:
            with self.file.open("rb") as file:
                offset = len(file.readline())
                for line in file:
                    cells = _cells(line)
                    if id_at < len(cells) and (number := _number(cells[id_at])) >= 0:
                        numbers.append(number)
                        offsets.append(offset)
                        if 0 <= date_at < len(cells) and _DATE.match(cells[date_at]):
                            newest = max(newest, cells[date_at])
                    offset += len(line)
        except OSError as error:
            raise SourceError(f"source.uri={self.folder}: {NAME}: {error.strerror}") from error
        if not numbers:
            raise SourceError(f"source.uri={self.folder}: {NAME} lists no package")
        # of equal numbers the last line: np.unique takes the first of the reversed list
        unique, first = np.unique(np.array(numbers, np.int64)[::-1], return_index=True)
        match = _DATE.match(newest)
        date = f"{match[1]}T{match[2] or '00'}-{match[3] or '00'}Z" if match else _NO_DATE
        return unique, np.array(offsets, np.int64)[::-1][first], date


def _cells(line: bytes) -> list[str]:
    """A line's cells; none where it is no CSV."""
    try:
        return next(csv.reader([line.decode("utf-8-sig", "replace").rstrip("\r\n")]), [])
    except csv.Error:
        return []


def _number(pmcid: str) -> int:
    """`"PMC123"` -> 123; -1 for anything else."""
    match = re.fullmatch(r"\s*(?:PMC)?(\d{1,15})\s*", pmcid)
    return int(match[1]) if match else -1
