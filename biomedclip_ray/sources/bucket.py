"""The source: PubMed Central's cloud-service layout, in an S3 bucket or in a local folder of the same shape.

One object is fetched within a deadline and a number of tries, and is checked against its md5; whatever goes wrong
becomes an `ObjectError` with a ledger reason, so that one bad object is one row and never the end of a run. A source
that does not answer at all is a `SourceError`: an error of the configuration, never an empty product.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import BinaryIO, Protocol

from biomedclip_ray.schema import Reason

INVENTORIES = "inventory-reports/pmc-oa-opendata/metadata"
PUBLIC_BUCKET = "pmc-oa-opendata"
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}-\d{2}Z")


class SourceError(RuntimeError):
    """The source cannot be reached or is not in the layout; the message names the URI and the fix (exit code 2)."""


class ObjectError(RuntimeError):
    """One object could not be had; `reason` goes to the ledger."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail


class Bucket(Protocol):
    """Objects by key."""

    uri: str

    def get(self, key: str, md5: str | None = None) -> bytes:
        """All bytes of an object. Raises ObjectError."""

    def stream(self, key: str) -> BinaryIO:
        """An object to be read once from its beginning; closed by the caller. Raises ObjectError."""

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders directly below a prefix. Raises SourceError where the bucket does not answer."""


def inventory_dates(bucket: Bucket) -> list[str]:
    """Dates of the inventories that the bucket keeps, oldest first (`hive/` and `data/` beside them are no dates).

    Raises:
        SourceError: there is none.
    """
    dates = sorted(name for name in bucket.folders(f"{INVENTORIES}/") if _DATE.fullmatch(name))
    if not dates:
        raise SourceError(
            f"source.uri={bucket.uri}: no inventory below {INVENTORIES}/; is it a bucket in PMC's layout?"
        )
    return dates


class FolderBucket:
    """A local folder in the bucket's layout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.uri = str(self.folder)

    def get(self, key: str, md5: str | None = None) -> bytes:
        try:
            data = (self.folder / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise ObjectError(Reason.MISSING_OBJECT, key) from error
        except OSError as error:
            raise ObjectError(Reason.FETCH_FAILED, f"{key}: {error.strerror}") from error
        check_md5(key, data, md5)
        return data

    def stream(self, key: str) -> BinaryIO:
        try:
            return (self.folder / key).open("rb")
        except FileNotFoundError as error:
            raise ObjectError(Reason.MISSING_OBJECT, key) from error

    def folders(self, prefix: str) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self.folder / prefix) if entry.is_dir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise SourceError(f"source.uri={self.uri}: {prefix}: {error.strerror}") from error


def check_md5(key: str, data: bytes, md5: str | None) -> None:
    """Raises ObjectError (MD5_MISMATCH) where the bytes are not those the metadata promises."""
    if md5 is not None:
        actual = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if actual != md5:
            raise ObjectError(Reason.MD5_MISMATCH, f"{key}: {len(data)} bytes with md5 {actual}, expected {md5}")
