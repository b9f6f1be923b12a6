#!/usr/bin/env bash
# Guess: writing a hundred bytes to S3 with pyarrow's filesystem is one PUT.
# Seen (pyarrow 26.0.1): open_output_stream begins an upload in parts, sends one part and completes it: three requests in turn, whatever
# the size. Behind a store that answers in 30 ms a small file takes 90; a million of them are three million paid requests.
# S3FileSystem(allow_delayed_open=True), or ?allow_delayed_open=true in a URI, makes it one; neither is so unless it is said.
# Matters for: whoever writes manifests, marks or small Parquet files to object storage through pyarrow, Ray Data or Dataset.
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

asked = []


class Store(BaseHTTPRequestHandler):
    """Says yes to everything, and writes down what was asked."""

    protocol_version = "HTTP/1.1"

    def answer(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                self.rfile.read(size + 2)
            self.rfile.readline()
        else:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked.append(f"{self.command} {self.path}")
        begun = b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
        ended = b"<CompleteMultipartUploadResult/>"
        body = begun if self.path.endswith("?uploads") else ended if self.command == "POST" else b""
        self.send_response(200)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_POST = answer

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
threading.Thread(target=server.serve_forever, daemon=True).start()
for delayed in (False, True):
    store = S3FileSystem(
        access_key="a",
        secret_key="b",
        region="us-east-1",
        endpoint_override=f"http://127.0.0.1:{server.server_port}",
        allow_delayed_open=delayed,
    )
    asked.clear()
    with store.open_output_stream("bucket/small.json") as file:
        file.write(b"x" * 100)
    print(f"allow_delayed_open={delayed}:", asked)
    if len(asked) != (1 if delayed else 3):
        sys.exit(1)
PYTHON
