"""An object store on loopback that answers as slowly as it is told: what S3's distance costs, without S3.

Just what pyarrow and boto3 ask for: GET with a range, HEAD, PUT, DELETE, and lists. It holds everything in memory, in
one thread of this process that waits for many answers at once; an answer leaves in one piece, for headers that go ahead
of their body wait 40 ms for an acknowledgement.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_REASONS = {200: "OK", 204: "No Content", 206: "Partial Content", 404: "Not Found", 412: "Precondition Failed"}
_XML = {"Content-Type": "application/xml"}
Query = dict[str, list[str]]
Answer = tuple[int, bytes, dict[str, str]]


class Store:
    """What the store holds, and how long an answer takes."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.delay_s = 0.0
        self.asked = 0
        """Requests so far."""

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        asked = urlsplit(path)
        key = unquote(asked.path).lstrip("/").partition("/")[2]
        query = parse_qs(asked.query, keep_blank_values=True)
        self.asked += 1
        answers = {"HEAD": self._head, "GET": self._get, "PUT": self._put, "DELETE": self._delete, "POST": self._post}
        return answers[method](key, query, headers, body)

    def _head(self, key: str, query: Query, headers: dict[str, str], body: bytes) -> Answer:
        if key and key not in self.objects:
            return 404, b"", {}
        size = str(len(self.objects.get(key, b"")))
        return 200, b"", {"Content-Length": size, "ETag": _etag(b""), "Last-Modified": "Sun, 29 Nov 2026 00:00:00 GMT"}

    def _get(self, key: str, query: Query, headers: dict[str, str], body: bytes) -> Answer:
        if "list-type" in query:
            return 200, self._list(query), _XML
        if key not in self.objects:
            return 404, b"<Error><Code>NoSuchKey</Code></Error>", _XML
        data = self.objects[key]
        if wanted := headers.get("range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last) + 1 if last else None]
            span = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
            return 206, part, {"Content-Range": span, "ETag": _etag(b"")}
        return 200, data, {"ETag": _etag(b"")}

    def _put(self, key: str, query: Query, headers: dict[str, str], body: bytes) -> Answer:
        if "partNumber" in query:
            self.uploads.setdefault(key, {})[int(query["partNumber"][0])] = body
        elif key:
            if headers.get("if-none-match") == "*" and key in self.objects:
                return 412, b"<Error><Code>PreconditionFailed</Code></Error>", _XML
            self.objects[key] = body
        return 200, b"", {"ETag": _etag(b"")}

    def _delete(self, key: str, query: Query, headers: dict[str, str], body: bytes) -> Answer:
        self.objects.pop(key, None)
        return 204, b"", {}

    def _post(self, key: str, query: Query, headers: dict[str, str], body: bytes) -> Answer:
        """The beginning and the end of an upload in parts, and deleting many objects at once."""
        if "uploads" in query:
            told = f"<Key>{escape(key)}</Key><UploadId>one</UploadId>"
            answer = f"<InitiateMultipartUploadResult>{told}</InitiateMultipartUploadResult>"
        elif "uploadId" in query:
            parts = self.uploads.pop(key, {})
            self.objects[key] = b"".join(parts[number] for number in sorted(parts))
            answer = f"<CompleteMultipartUploadResult><Key>{escape(key)}</Key></CompleteMultipartUploadResult>"
        else:
            answer = "<DeleteResult/>"
        return 200, answer.encode(), _XML

    def _list(self, query: Query) -> bytes:
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        most = int(query.get("max-keys", ["1000"])[0])
        after = query.get("continuation-token", [""])[0]
        keys, folders = [], set()
        for key in sorted(self.objects):
            if not key.startswith(prefix) or key <= after:
                continue
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                keys.append(key)
        page = keys[:most]
        more = len(keys) > most
        lines = [
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.objects[key])}</Size>"
            "<LastModified>2026-11-29T00:00:00.000Z</LastModified></Contents>"
            for key in page
        ]
        lines += [f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders)]
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        head = f"<IsTruncated>{str(more).lower()}</IsTruncated><KeyCount>{len(page) + len(folders)}</KeyCount>{token}"
        space = "http://s3.amazonaws.com/doc/2006-03-01/"
        return (
            f'<?xml version="1.0"?><ListBucketResult xmlns="{space}">{head}{"".join(lines)}</ListBucketResult>'.encode()
        )


class _Connection(asyncio.Protocol):
    """One client: its requests in turn, as HTTP/1.1 has them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.buffer = bytearray()
        self.head: tuple[str, str, dict[str, str]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while True:
            if self.head is None:
                end = self.buffer.find(b"\r\n\r\n")
                if end < 0:
                    return
                first, *lines = self.buffer[:end].decode().split("\r\n")
                del self.buffer[: end + 4]
                method, path, _ = first.split(" ")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                self.head = method, path, headers
                if headers.get("expect") == "100-continue":
                    self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            method, path, headers = self.head
            if headers.get("transfer-encoding") == "chunked":
                found = _unchunked(self.buffer)
                if found is None:
                    return
                body, used = found
                del self.buffer[:used]
            else:
                size = int(headers.get("content-length", 0))
                if len(self.buffer) < size:
                    return
                body = bytes(self.buffer[:size])
                del self.buffer[:size]
            self.head = None
            if "aws-chunked" in headers.get("content-encoding", ""):
                body = (_unchunked(body) or (b"", 0))[0]
            answer = _told(method, *self.store.answer(method, path, headers, body))
            asyncio.get_running_loop().call_later(self.store.delay_s, self.transport.write, answer)


def _told(method: str, status: int, body: bytes, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} {_REASONS[status]}", *(f"{name}: {value}" for name, value in headers.items())]
    if "Content-Length" not in headers:
        lines.append(f"Content-Length: {len(body)}")
    head = "\r\n".join([*lines, "", ""]).encode()
    return head if method == "HEAD" else head + body


def _unchunked(data: bytes | bytearray) -> tuple[bytes, int] | None:
    """A body in chunks that begins the data, and how many bytes it took; None where its end has not come yet."""
    at, body = 0, bytearray()
    while (end := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:end].split(b";")[0], 16)
        if size:
            body += data[end + 2 : end + 2 + size]
            at = end + 4 + size
            continue
        while (next_end := data.find(b"\r\n", end + 2)) >= 0:  # what may follow: headers, and an empty line
            if next_end == end + 2:
                return bytes(body), next_end + 2
            end = next_end
        return None
    return None


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


@contextmanager
def object_store() -> Iterator[Store]:
    """A store that boto3, pyarrow and Ray find by AWS_ENDPOINT_URL; set `delay_s` of what this gives
    when it matters.
    """
    store, loop = Store(), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def begin() -> Any:
        return await loop.create_server(lambda: _Connection(store), "127.0.0.1", 0, backlog=1024)

    server = asyncio.run_coroutine_threadsafe(begin(), loop).result()
    told = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        yield store
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
