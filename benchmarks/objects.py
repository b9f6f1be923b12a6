"""An object store on loopback that answers as slowly as it is told: what S3's distance costs, without S3.

Just what pyarrow and boto3 ask for: GET with a range, HEAD, PUT, DELETE, and lists. It holds everything in memory.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, bytes]]
    uploads: ClassVar[dict[str, dict[int, bytes]]]
    delay_s: ClassVar[float]

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        time.sleep(self.delay_s)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _key(self) -> tuple[str, dict[str, list[str]]]:
        asked = urlsplit(self.path)
        return unquote(asked.path).lstrip("/").partition("/")[2], parse_qs(asked.query, keep_blank_values=True)

    def do_HEAD(self) -> None:
        key, _ = self._key()
        if key and key not in self.objects:
            self._answer(404)
        else:
            size = str(len(self.objects.get(key, b"")))
            self._answer(200, Content_Length=size, ETag=_etag(b""), Last_Modified="Sun, 29 Nov 2026 00:00:00 GMT")

    def do_GET(self) -> None:
        key, query = self._key()
        if "list-type" in query:
            self._answer(200, self._list(query), Content_Type="application/xml")
        elif key not in self.objects:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>", Content_Type="application/xml")
        else:
            data = self.objects[key]
            if wanted := self.headers.get("Range"):
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                part = data[int(first) : int(last) + 1 if last else None]
                span = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
                self._answer(206, part, Content_Range=span, ETag=_etag(b""))
            else:
                self._answer(200, data, ETag=_etag(b""))

    def do_PUT(self) -> None:
        key, query = self._key()
        body = self._body()
        if "partNumber" in query:
            self.uploads.setdefault(key, {})[int(query["partNumber"][0])] = body
        elif key:
            if self.headers.get("If-None-Match") == "*" and key in self.objects:
                self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
                return
            self.objects[key] = body
        self._answer(200, ETag=_etag(b""))

    def do_DELETE(self) -> None:
        self.objects.pop(self._key()[0], None)
        self._answer(204)

    def do_POST(self) -> None:
        """The beginning and the end of an upload in parts, and deleting many objects at once."""
        key, query = self._key()
        self._body()
        if "uploads" in query:
            told = f"<Key>{escape(key)}</Key><UploadId>one</UploadId>"
            answer = f"<InitiateMultipartUploadResult>{told}</InitiateMultipartUploadResult>"
        elif "uploadId" in query:
            parts = self.uploads.pop(key, {})
            self.objects[key] = b"".join(parts[number] for number in sorted(parts))
            answer = f"<CompleteMultipartUploadResult><Key>{escape(key)}</Key></CompleteMultipartUploadResult>"
        else:
            answer = "<DeleteResult/>"
        self._answer(200, answer.encode(), Content_Type="application/xml")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            body = b"".join(_chunks(body))
        return body

    def _list(self, query: dict[str, list[str]]) -> bytes:
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


def _chunks(body: bytes) -> Iterator[bytes]:
    while body:
        size, _, body = body.partition(b"\r\n")
        n = int(size.split(b";")[0], 16)
        if not n:
            return
        yield body[:n]
        body = body[n + 2 :]


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


@contextmanager
def object_store() -> Iterator[type[_Handler]]:
    """A store that boto3, pyarrow and Ray find by AWS_ENDPOINT_URL; set `delay_s` of what this gives
    when it matters.
    """

    class Handler(_Handler):
        objects: ClassVar[dict[str, bytes]] = {}
        uploads: ClassVar[dict[str, dict[int, bytes]]] = {}
        delay_s: ClassVar[float] = 0.0

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    told = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        yield Handler
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        server.shutdown()
        thread.join()
        server.server_close()
