#!/usr/bin/env bash
# Guess: open_input_stream(path).read() of pyarrow's S3FileSystem fetches an object in one request, as boto3's get_object does.
# Seen (pyarrow 26.0.1): read() without a size fetches 256 KiB at a time, each a GET with a range and each waited for before the next:
# 8 MiB are 32 GETs and a HEAD. Behind a store that answers in 30 ms that is a second, whatever the line. open_input_file and
# read(size()) are one GET and the HEAD; so is read(SIZE) of the stream.
# Matters for: whoever reads weights, images or manifests whole through pyarrow.fs, where the docs offer streams for sequential reading.
# Exit 0: it is still so. Exit 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'pyarrow==26.0.1'
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pyarrow.fs import S3FileSystem

CONTENT = bytes(8 << 20)
asked = []


class Store(BaseHTTPRequestHandler):
    """One object, whole or by a range."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        asked.append("HEAD")
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()

    def do_GET(self):
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        part = CONTENT[first : last + 1]
        asked.append("GET")
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
threading.Thread(target=server.serve_forever, daemon=True).start()
store = S3FileSystem(
    access_key="a", secret_key="b", region="us-east-1", endpoint_override=f"http://127.0.0.1:{server.server_port}"
)


def gets(read):
    asked.clear()
    assert read() == CONTENT
    return asked.count("GET"), asked.count("HEAD")


def stream():
    with store.open_input_stream("bucket/weights") as file:
        return file.read()


def stream_of_a_size():
    with store.open_input_stream("bucket/weights") as file:
        return file.read(len(CONTENT))


def at_once():
    with store.open_input_file("bucket/weights") as file:
        return file.read(file.size())


found = {one.__name__: gets(one) for one in (stream, stream_of_a_size, at_once)}
print("(GET, HEAD):", found)
sys.exit(found != {"stream": (32, 1), "stream_of_a_size": (1, 1), "at_once": (1, 1)})
PYTHON
