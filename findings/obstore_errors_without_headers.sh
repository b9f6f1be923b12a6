#!/usr/bin/env bash
# Guess: an exception of obstore for an answer 503 or 429 lets one read the answer's headers, so that a client that paces itself can wait
# as long as Retry-After says (boto3 has them in error.response["ResponseMetadata"]["HTTPHeaders"]).
# Seen (obstore 0.12.1): with retries off, GenericError comes at once, its attributes are none and its text has the status, the body and
# the address, and no header: the seconds that the server asked for cannot be had. With retries on, obstore waits by its own schedule.
# Matters for: whoever reads a rate-limited bucket with obstore (or Zarr, Icechunk, Daft's likes on object_store) and wants one budget of requests.
# Exit 0: it is still so. Exit 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'obstore==0.12.1'
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import obstore
from obstore.store import S3Store

asked = []


class Busy(BaseHTTPRequestHandler):
    """Says how long to wait, to whoever can hear it: 3 s."""

    def do_GET(self):
        asked.append(time.monotonic())
        self.send_response(503)
        self.send_header("Retry-After", "3")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Busy)
threading.Thread(target=server.serve_forever, daemon=True).start()
for retries in (0, 2):
    store = S3Store(
        "bucket",
        endpoint=f"http://127.0.0.1:{server.server_port}",
        region="us-east-1",
        skip_signature=True,
        client_options={"allow_http": True},
        retry_config={"max_retries": retries},
    )
    asked.clear()
    try:
        obstore.get(store, "key")
    except obstore.exceptions.BaseError as error:
        text = str(error)
        had = [name for name in dir(error) if not name.startswith("_") and name not in ("args", "add_note", "with_traceback")]
    waited = max([0.0, *(after - before for before, after in zip(asked, asked[1:]))])
    heard = "retry-after" in text.lower() or waited >= 2.5
    print(f"max_retries={retries}: {len(asked)} requests, at most {waited:.1f} s apart; attributes {had}; Retry-After heard: {heard}")
    print("  " + text.splitlines()[0].split(" in ")[-1])
    if "503" not in text or heard or had:
        sys.exit(1)
PYTHON
