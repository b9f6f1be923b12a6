"""The source: PubMed Central's cloud-service layout, in an S3 bucket or in a local folder of the same shape.

One object is fetched within a deadline and a number of tries, and is checked against its md5; whatever goes wrong becomes
an `ObjectError` with a ledger reason, so that one bad object is one row and never the end of a run. A source that does not
answer at all is a `SourceError`: an error of the configuration, never an empty product.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from biomedclip_ray.config import SourceResources
from biomedclip_ray.schema import Reason

INVENTORIES = "inventory-reports/pmc-oa-opendata/metadata"
PUBLIC_BUCKET = "pmc-oa-opendata"
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}-\d{2}Z")
_CHUNK = 1 << 20


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


@lru_cache(maxsize=8)
def open_bucket(uri: str, resources: SourceResources) -> Bucket:
    """The bucket at a URI: `s3://NAME[/PREFIX]` or a folder. One per process, with its connections kept open.

    A folder that holds oa_file_list.csv is one of legacy packages (`oa_package.py`).

    Raises:
        SourceError: no such folder, or a URI of another kind.
    """
    if uri.startswith("s3://"):
        return S3Bucket(uri, resources)
    if "://" in uri and not uri.startswith("file://"):
        raise SourceError(f"source.uri={uri}: expected s3://BUCKET or a folder")
    folder = Path(uri.removeprefix("file://")).expanduser()
    if not folder.is_dir():
        raise SourceError(f"source.uri={uri}: no such folder; expected a bucket in the layout of the PMC Cloud Service")
    if (folder / "oa_file_list.csv").is_file():
        from biomedclip_ray.pmc.oa_package import PackageBucket

        return PackageBucket(folder)
    return FolderBucket(folder)


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


class S3Bucket:
    """An S3 bucket, read unsigned where it is PMC's own or where this machine has no credentials."""

    def __init__(self, uri: str, resources: SourceResources) -> None:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config

        self.uri = uri.rstrip("/")
        self.name, _, prefix = self.uri.removeprefix("s3://").partition("/")
        self.prefix = f"{prefix}/" if prefix else ""
        self.resources = resources
        session = boto3.Session()
        public = self.name == PUBLIC_BUCKET or session.get_credentials() is None
        config = Config(
            signature_version=UNSIGNED if public else None,
            max_pool_connections=resources.max_connections,
            connect_timeout=min(10.0, resources.deadline_s),
            read_timeout=min(30.0, resources.deadline_s),
            tcp_keepalive=True,
        )
        # bodies break too, which botocore does not retry: `get` retries all of it, and the patient client is for the rest
        self.client, self.patient = (
            session.client(
                "s3",
                region_name="us-east-1" if self.name == PUBLIC_BUCKET else None,
                config=config.merge(Config(retries={"total_max_attempts": attempts, "mode": "standard"})),
            )
            for attempts in (1, resources.retries + 1)
        )

    def get(self, key: str, md5: str | None = None) -> bytes:
        deadline = time.monotonic() + self.resources.deadline_s
        for attempt in range(self.resources.retries + 1):
            try:
                data = self._read(key, deadline)
                check_md5(key, data, md5)
                return data
            except ObjectError as error:
                pause = random.uniform(0.5, 1.5) * min(20.0, 0.2 * 2**attempt)
                final = error.reason is Reason.MISSING_OBJECT or attempt == self.resources.retries
                # a wrong md5 may be a broken transfer once, not twice
                if final or (error.reason is Reason.MD5_MISMATCH and attempt >= 1):
                    raise
                if time.monotonic() + pause > deadline:
                    raise ObjectError(Reason.DEADLINE, f"{key}: {error.detail}") from error
                time.sleep(pause)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _read(self, key: str, deadline: float) -> bytes:
        from botocore.exceptions import BotoCoreError, HTTPClientError

        body = self._open(self.client, key)
        chunks = []
        try:
            while chunk := body.read(_CHUNK):
                chunks.append(chunk)
                if time.monotonic() > deadline:
                    raise ObjectError(Reason.DEADLINE, f"{key}: still arriving after {self.resources.deadline_s:g} s")
        except (BotoCoreError, HTTPClientError, OSError) as error:
            raise ObjectError(Reason.FETCH_FAILED, f"{key}: {error}") from error
        finally:
            body.close()
        return b"".join(chunks)

    def stream(self, key: str) -> BinaryIO:
        return self._open(self.patient, key)

    def _open(self, client: Any, key: str) -> BinaryIO:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            body: BinaryIO = client.get_object(Bucket=self.name, Key=self.prefix + key)["Body"]
            return body
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            # 403 on a key that the inventory names is how rate limits sometimes look: worth another try, unlike 404
            reason = Reason.MISSING_OBJECT if status == 404 else Reason.FETCH_FAILED
            raise ObjectError(reason, f"{key}: HTTP {status} {error.response['Error'].get('Code', '')}") from error
        except BotoCoreError as error:
            raise ObjectError(Reason.FETCH_FAILED, f"{key}: {error}") from error

    def folders(self, prefix: str) -> list[str]:
        return [name for page in self._pages(self.prefix + prefix) for name in page]

    def _pages(self, prefix: str) -> Iterator[list[str]]:
        from botocore.exceptions import BotoCoreError, ClientError

        pages = self.patient.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix, Delimiter="/")
        try:
            for page in pages:
                found = [entry["Prefix"] for entry in page.get("CommonPrefixes", [])]
                yield [name.removeprefix(prefix).rstrip("/") for name in found]
        except (BotoCoreError, ClientError) as error:
            raise SourceError(f"source.uri={self.uri} cannot be reached: {error}") from error


def check_md5(key: str, data: bytes, md5: str | None) -> None:
    """Raises ObjectError (MD5_MISMATCH) where the bytes are not those the metadata promises."""
    if md5 is not None:
        actual = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if actual != md5:
            raise ObjectError(Reason.MD5_MISMATCH, f"{key}: {len(data)} bytes with md5 {actual}, expected {md5}")
