"""A source in S3: PubMed Central's public bucket, or a copy in a bucket of one's own."""

from __future__ import annotations

import io
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from typing import Any, BinaryIO, TypeVar

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from biomedclip_ray.config import SourceResources
from biomedclip_ray.run.pace import pace
from biomedclip_ray.schema import Reason
from biomedclip_ray.sources.bucket import PUBLIC_BUCKET, ObjectError, SourceError, check_md5
from biomedclip_ray.sources.deadline import until, watched
from biomedclip_ray.store.place import Place

Fetched = TypeVar("Fetched")
_PIECE = 8 << 20
_RANGE = 64 << 10  # at least; what is read at once comes at once
PAID_BUCKETS = ("biorxiv-src-monthly", "medrxiv-src-monthly")
"""Whose reader pays."""
# The ETag of an object that was put in one go; of several parts it ends in "-" and their number.
_MD5 = re.compile(r"[0-9a-f]{32}")
_TOO_MANY = (429, 503)
_REFUSALS = 4  # for each try: while the limit is looked for, half of the requests may be refused for a second or two


class S3Bucket:
    """An S3 bucket, read unsigned where it is PMC's own or where this machine has no credentials."""

    def __init__(self, uri: str, resources: SourceResources) -> None:
        place = Place(uri)
        self.uri = place.uri
        self.name, _, prefix = place.plain.removeprefix("s3://").partition("/")
        self.prefix = f"{prefix}/" if prefix else ""
        self.resources = resources
        self.payer = {"RequestPayer": "requester"} if resources.requester_pays or self.name in PAID_BUCKETS else {}
        self.pace = pace(f"{place.endpoint or 's3'}/{self.name}")
        session = boto3.Session()
        public = self.name == PUBLIC_BUCKET or session.get_credentials() is None
        config = Config(
            signature_version=UNSIGNED if public else None,
            max_pool_connections=resources.max_connections,
            # silence ends before the object's time does, or there would be no second try
            connect_timeout=min(10.0, resources.deadline_s / 3),
            read_timeout=min(30.0, resources.deadline_s / 3),
            tcp_keepalive=True,
        )
        # bodies break too, which botocore does not retry: `_again` retries all of it, and the patient client is for
        # lists
        self.client, self.patient = (
            watched(
                session.client(
                    "s3",
                    endpoint_url=place.endpoint,  # None: as the environment says
                    region_name="us-east-1" if self.name == PUBLIC_BUCKET else None,
                    config=config.merge(Config(retries={"total_max_attempts": attempts, "mode": "standard"})),
                )
            )
            for attempts in (1, resources.retries + 1)
        )

    def get(self, key: str, md5: str | None = None) -> bytes:
        def whole(deadline: float) -> bytes:
            answer = self._ask("get_object", key, deadline)
            data: bytes = answer["Body"]
            check_md5(key, data, md5 or _md5_of(answer))
            return data

        return self._again(key, whole)

    def stream(self, key: str) -> BinaryIO:
        """The object from the local disk, fetched in pieces: each has a deadline and tries of its own, all are of one
        ETag.
        """
        head = self._again(key, lambda deadline: self._ask("head_object", key, deadline))
        size, etag = head["ContentLength"], head["ETag"]
        with ExitStack() as undo:
            file: BinaryIO = undo.enter_context(tempfile.TemporaryFile(prefix="biomedclip-"))
            for start in range(0, size, _PIECE):
                piece = range(start, min(start + _PIECE, size))
                file.write(self._again(key, partial(self._piece, key, piece, etag)))
            file.seek(0)
            undo.pop_all()
            return file

    def objects(self) -> Iterator[dict[str, Any]]:
        """Key (below the prefix), Size and LastModified of each object. Raises SourceError."""
        pages = self.patient.get_paginator("list_objects_v2").paginate(
            Bucket=self.name, Prefix=self.prefix, **self.payer
        )
        try:
            for page in pages:
                for entry in page.get("Contents", []):
                    yield entry | {"Key": entry["Key"].removeprefix(self.prefix)}
        except (BotoCoreError, ClientError) as error:
            raise SourceError(f"source.uri={self.uri} cannot be listed: {error}") from error

    def ranged(self, key: str) -> BinaryIO:
        """An object to be read anywhere in it, in pieces as they are asked for; all are of one ETag. Raises
        ObjectError.
        """
        head = self._again(key, lambda deadline: self._ask("head_object", key, deadline))

        def fetch(of: range) -> bytes:
            return self._again(key, partial(self._piece, key, of, head["ETag"]))

        return io.BufferedReader(_Ranged(head["ContentLength"], fetch), _RANGE)

    def _piece(self, key: str, of: range, etag: str, deadline: float) -> bytes:
        answer = self._ask("get_object", key, deadline, Range=f"bytes={of.start}-{of.stop - 1}", IfMatch=etag)
        data: bytes = answer["Body"]
        if len(data) != len(of):
            raise ObjectError(Reason.FETCH_FAILED, f"{key}: {len(data)} bytes came where {len(of)} were asked for")
        return data

    def _again(self, key: str, fetch: Callable[[float], Fetched]) -> Fetched:
        """What `fetch`, called with its deadline, returns once it does not fail. Raises ObjectError."""
        deadline = time.monotonic() + self.resources.deadline_s
        attempt = refusals = 0
        while True:
            try:
                return fetch(deadline)
            except _Refused as error:  # the source had no time, which says little about the object
                if refusals >= _REFUSALS * self.resources.retries:
                    raise
                pause = _pause(refusals, 1.0) if error.retry_after is None else error.retry_after
                if time.monotonic() + pause > deadline:
                    raise ObjectError(Reason.DEADLINE, error.detail) from error
                time.sleep(pause)
                refusals += 1
            except ObjectError as error:
                pause = _pause(attempt)
                final = error.reason is Reason.MISSING_OBJECT or attempt == self.resources.retries
                # a wrong md5 may be a broken transfer once, not twice
                if final or (error.reason is Reason.MD5_MISMATCH and attempt >= 1):
                    raise
                if time.monotonic() + pause > deadline:
                    raise ObjectError(Reason.DEADLINE, f"{key}: {error.detail}") from error
                time.sleep(pause)
                attempt += 1

    def _ask(self, operation: str, key: str, deadline: float, **more: str) -> dict[str, Any]:
        """An answer, and its body in bytes. Raises ObjectError."""
        try:
            self.pace.wait(deadline)
            with until(deadline):
                answer: dict[str, Any] = getattr(self.client, operation)(
                    Bucket=self.name, Key=self.prefix + key, **self.payer, **more
                )
                if "Body" in answer:
                    with closing(answer["Body"]) as body:
                        answer["Body"] = body.read()
                return answer
        except TimeoutError as error:
            raise ObjectError(Reason.DEADLINE, f"{key}: {error}") from error
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status in _TOO_MANY:
                self.pace.refused()
                raise _Refused(f"{key}: HTTP {status}", _retry_after(error)) from error
            # 403 on a key that the inventory names is how rate limits sometimes look: worth another try, unlike 404
            reason = Reason.MISSING_OBJECT if status == 404 else Reason.FETCH_FAILED
            raise ObjectError(reason, f"{key}: HTTP {status} {error.response['Error'].get('Code', '')}") from error
        except (BotoCoreError, OSError) as error:
            raise ObjectError(Reason.FETCH_FAILED, f"{key}: {error}") from error

    def folders(self, prefix: str) -> list[str]:
        prefix = self.prefix + prefix
        pages = self.patient.get_paginator("list_objects_v2").paginate(
            Bucket=self.name, Prefix=prefix, Delimiter="/", **self.payer
        )
        try:
            with until(time.monotonic() + self.resources.deadline_s):
                found = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", [])]
        except (BotoCoreError, ClientError, TimeoutError) as error:
            raise SourceError(f"source.uri={self.uri} cannot be reached: {error}") from error
        return [name.removeprefix(prefix).rstrip("/") for name in found]


class _Ranged(io.RawIOBase):
    """A file of `size` bytes of which `fetch` brings any range."""

    def __init__(self, size: int, fetch: Callable[[range], bytes]) -> None:
        self._size, self._fetch, self._at = size, fetch, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        of = range(self._at, min(self._at + len(buffer), self._size))
        if not of:
            return 0
        buffer[: len(of)] = self._fetch(of)
        self._at += len(of)
        return len(of)


def _md5_of(answer: dict[str, Any]) -> str | None:
    """The md5 of an object by the server's word, or None where its ETag is something else."""
    plain = answer.get("ServerSideEncryption") in (None, "AES256") and "SSECustomerAlgorithm" not in answer
    etag = str(answer.get("ETag", "")).strip('"')
    return etag if plain and _MD5.fullmatch(etag) else None


class _Refused(ObjectError):
    """Too many requests: this one waits as long as it was told, the others only slow down."""

    def __init__(self, detail: str, retry_after: float | None) -> None:
        super().__init__(Reason.FETCH_FAILED, detail)
        self.retry_after = retry_after


def _retry_after(error: ClientError) -> float | None:
    """Seconds that the source named, if it did."""
    told = error.response["ResponseMetadata"].get("HTTPHeaders", {}).get("retry-after", "")
    return float(told) if told.isdigit() else None


def _pause(attempt: int, most: float = 20.0) -> float:
    """Seconds before the next try: twice as long each time up to `most`, give or take half: tasks shall not come back
    at once.
    """
    return random.uniform(0.5, 1.5) * min(most, 0.2 * 2**attempt)
