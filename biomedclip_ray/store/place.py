"""Places: a URI seen as a folder of named files, on a local disk, S3 or any filesystem that pyarrow or fsspec knows.

A file appears whole or not at all: on a disk by temp + fsync + rename, on an object store by a single put. `create`
answers who was first, which is what a lease needs; on S3 that is a conditional put (If-None-Match), which pyarrow does
not offer, so boto3 sends it.

A bucket somewhere else than the environment says is named in its URI,
`s3://bucket/folder?endpoint_override=http://minio:9000`, as pyarrow reads it; every client here follows that
(`endpoint`).
"""

from __future__ import annotations

import errno
import os
import uuid
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs

# Arrow reads the pieces of files by 8 threads of a process, of which each waits for its answer.
pa.set_io_thread_count(max(32, pa.io_thread_count()))

_PARQUET = ds.ParquetFileFormat()

KMS_KEY = "BIOMEDCLIP_SSE_KMS_KEY_ID"
"""Environment variable with the id or ARN of the KMS key that objects are put under (SSE-KMS), on every node; none: the
bucket's own default.
"""

_ONE_PUT = 4 << 20
"""Bytes up to which Arrow's stream is one request; it costs a third of what boto3 takes for one."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Of an OSError: no room on the disk, or none for this user."""


class StorageError(OSError):
    """A place that cannot be reached, read or written; the message names the URI and the fix."""


@dataclass(frozen=True)
class Place:
    """A folder at `uri`. Names are relative, `/`-separated; names that begin with a dot are invisible to `list`."""

    uri: str

    def __post_init__(self) -> None:
        if "://" not in self.uri:
            object.__setattr__(self, "uri", str(Path(self.uri).expanduser().absolute()))
        plain, mark, query = self.uri.removeprefix("file://").partition("?") if self._remote else (self.uri, "", "")
        plain = plain.removeprefix("file://").rstrip("/") or "/"
        object.__setattr__(self, "uri", f"{plain}{mark}{query}")

    @property
    def local(self) -> Path | None:
        """The folder on a local disk, or None for remote places."""
        return None if "://" in self.uri else Path(self.uri)

    @property
    def _remote(self) -> bool:
        return "://" in self.uri and not self.uri.startswith("file://")

    @property
    def plain(self) -> str:
        """The URI without what stands after a question mark."""
        return self.uri.partition("?")[0] if self._remote else self.uri

    @property
    def endpoint(self) -> str | None:
        """Where an S3 place lies, if its URI says so: `http://minio:9000`."""
        if not self.uri.startswith("s3://"):
            return None
        options = parse_qs(self.uri.partition("?")[2])
        [named] = options.get("endpoint_override", [None])
        if named is None or "://" in named:
            return named
        return f"{options.get('scheme', ['https'])[0]}://{named}"

    def at(self, name: str) -> Place:
        return Place(f"{self.plain}/{name}{self.uri.removeprefix(self.plain)}")

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises FileNotFoundError."""
        # in one request; a stream would ask an object store for every 256 kB by themselves
        with self.open(name) as file:
            return bytes(file.read(file.size()))

    def open(self, name: str) -> pa.NativeFile:
        """A file for random access. Raises FileNotFoundError."""
        fs, path = self._file(name)
        return fs.open_input_file(path)

    def parquet(self, name: str, size: int | None = None) -> ds.ParquetFileFragment:
        """A Parquet file of which nothing has been read yet. `size`: its bytes; None: a request asks for them."""
        fs, path = self._file(name)
        return _PARQUET.make_fragment(path, filesystem=fs, file_size=size)

    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically; what stood there is replaced."""
        if self.local is not None:
            self._write_local(self.local / name, data, exclusive=False)
            return
        s3 = self.plain.startswith("s3://")
        if s3 and (len(data) > _ONE_PUT or _own_key()):
            _put(self.at(name), data)
            return
        fs, path = self._file(name)
        try:
            # left to itself Arrow packs and unpacks by the name's ending: a .gz would be packed twice
            with fs.open_output_stream(path, compression=None) as stream:
                stream.write(data)
        except OSError as error:
            if s3:
                raise StorageError(f"{self.at(name).uri}: {error}") from error
            raise

    def create(self, name: str, data: bytes) -> bool:
        """Write a file only if there is none; False where somebody was first."""
        if self.local is not None:
            return self._write_local(self.local / name, data, exclusive=True)
        if self.uri.startswith("s3://"):
            return _put(self.at(name), data, only_if_absent=True)
        # No conditional put here: the last of two writers wins, and reading back tells which one that was.
        if self.exists(name):
            return False
        self.write(name, data)
        return self.read(name) == data

    def exists(self, name: str) -> bool:
        fs, path = self._file(name)
        return fs.get_file_info(path).type != pafs.FileType.NotFound

    def list(self, prefix: str = "") -> dict[str, int]:
        """Files below `prefix` (a folder), recursively: name relative to this place -> bytes. A missing folder is
        empty.
        """
        return {name: size for name, (size, _) in self.stamps(prefix).items()}

    def stamps(self, prefix: str = "") -> dict[str, tuple[int, int]]:
        """As `list`, with the time of each file's last change: (bytes, nanoseconds; 0 where the store tells none)."""
        fs, base = self._file("")
        _, path = self._file(prefix)
        selector = pafs.FileSelector(path.rstrip("/"), recursive=True, allow_not_found=True)
        found = {}
        for info in fs.get_file_info(selector):
            if info.type == pafs.FileType.File and not info.base_name.startswith("."):
                found[info.path.removeprefix(base).lstrip("/")] = (info.size, info.mtime_ns or 0)
        return dict(sorted(found.items()))

    def folders(self) -> tuple[str, ...]:
        """Names of the folders directly below this place, sorted."""
        fs, path = self._file("")
        found = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        return tuple(sorted(info.base_name for info in found if info.type == pafs.FileType.Directory))

    def delete(self, name: str) -> None:
        """Remove a file; a missing one is no error."""
        fs, path = self._file(name)
        try:
            fs.delete_file(path)
        except FileNotFoundError:
            return

    def delete_all(self) -> None:
        """Remove the folder and everything below it; a missing one is no error."""
        fs, path = self._file("")
        try:
            fs.delete_dir(path)
        except FileNotFoundError:
            return

    def sweep(self) -> None:
        """Remove what writes to data/ and ledger/ have left that were killed halfway; an object store keeps nothing of
        those.
        """
        if self.local is not None:
            for folder in ("data", "ledger"):
                for torn in (self.local / folder).glob(".*.tmp"):
                    torn.unlink(missing_ok=True)

    def copy_from(self, other: Place, name: str) -> None:
        """Take a file of another place over, in pieces; between places of one S3 endpoint its bytes stay there."""
        both = (self, other)
        if all(place.plain.startswith("s3://") for place in both) and self.endpoint == other.endpoint:
            (bucket, _, key), (its_bucket, _, its_key) = (
                place.at(name).plain.removeprefix("s3://").partition("/") for place in both
            )
            client = _client(self.endpoint or os.environ.get("AWS_ENDPOINT_URL"))
            client.copy({"Bucket": its_bucket, "Key": its_key}, bucket, key, ExtraArgs=_own_key())
            return
        (fs, path), (its_fs, its_path) = (place._file(name) for place in both)
        fs.create_dir(path.rpartition("/")[0])
        pafs.copy_files(its_path, path, source_filesystem=its_fs, destination_filesystem=fs)

    def download(self, folder: Path) -> None:
        """Copy every file of this place into a local folder."""
        for name in self.list():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self.read(name))

    def upload(self, folder: Path) -> None:
        """Copy every file below a local folder into this place."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.write(path.relative_to(folder).as_posix(), path.read_bytes())

    def _file(self, name: str) -> tuple[pafs.FileSystem, str]:
        fs, base = _filesystem(self.uri)
        return fs, f"{base}/{name}" if name else base

    @staticmethod
    def _write_local(path: Path, data: bytes, exclusive: bool) -> bool:
        path.parent.mkdir(parents=True, exist_ok=True)
        temp = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            with temp.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if not exclusive:
                temp.replace(path)
                return True
            try:
                os.link(temp, path)
            except FileExistsError:
                return False
            except OSError:  # exFAT, FUSE and some network drives have no links
                return _created(path, data)
            return True
        except OSError as error:
            error.filename = error.filename or str(path)  # a write does not say to what
            raise
        finally:
            temp.unlink(missing_ok=True)


def _created(path: Path, data: bytes) -> bool:
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError:
        return False
    return True


@lru_cache(maxsize=256)
def _filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a URI and the path in it, without a slash at the end."""
    # a stream of S3's that is opened when it is closed sends what is small in one request instead of three
    delayed = f"{'&' if '?' in uri else '?'}allow_delayed_open=true" if uri.startswith("s3://") else ""
    try:
        fs, path = pafs.FileSystem.from_uri(uri + delayed)
    except pa.ArrowInvalid:
        import fsspec

        try:
            handler, path = fsspec.core.url_to_fs(uri)
        except (ValueError, ImportError) as error:
            raise StorageError(
                f"{uri}: {error}; use a folder, s3://, gs:// or a URI that pyarrow or fsspec knows"
            ) from error
        fs = pafs.PyFileSystem(pafs.FSSpecHandler(handler))
    return fs, path.rstrip("/")


def _put(place: Place, data: bytes, only_if_absent: bool = False) -> bool:
    """One request, so that an object is there whole or not at all; pyarrow's stream sends what is large in parts, and
    publishes what a write that failed has left. False where it is there already and must not be.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = place.plain.removeprefix("s3://").partition("/")
    condition = {"IfNoneMatch": "*"} if only_if_absent else {}
    try:
        _client(place.endpoint or os.environ.get("AWS_ENDPOINT_URL")).put_object(
            Bucket=bucket, Key=key, Body=data, **condition, **_own_key()
        )
    except ClientError as error:
        if only_if_absent and error.response["ResponseMetadata"]["HTTPStatusCode"] in (409, 412):
            return False
        raise StorageError(f"{place.uri}: {error}") from error
    except BotoCoreError as error:
        raise StorageError(f"{place.uri}: {error}") from error
    return True


def _own_key() -> dict[str, str]:
    """Of a put: the key of one's own that the environment names."""
    key = os.environ.get(KMS_KEY)
    return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key} if key else {}


@lru_cache(maxsize=16)
def _client(endpoint: str | None) -> Any:
    """One for each endpoint and process, threads share it; its making takes a second on a busy machine."""
    import boto3
    from botocore.config import Config

    return boto3.client("s3", endpoint_url=endpoint, config=Config(max_pool_connections=64))


def check_writable(uri: str) -> None:
    """Write a file below `uri`, read it back, remove it. Raises StorageError that names the place."""
    place = Place(uri)
    name, data = f"_preflight-{uuid.uuid4().hex}", uuid.uuid4().bytes
    try:
        place.write(name, data)
        back = place.read(name)
        place.delete(name)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{place.uri} cannot be written and read back: {error}".splitlines()[0]) from error
    if back != data:
        raise StorageError(f"{place.uri} gave back other bytes than were written")
