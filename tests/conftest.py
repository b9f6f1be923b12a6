"""What every test may ask for: the folder of real articles and labelled sets, where it lies beside the checkout."""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing may be fetched; what is needed is made by the tests


def _data(name: str) -> Path:
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("BIOMEDCLIP_TEST_DATA", default)) / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; set BIOMEDCLIP_TEST_DATA to the folder that holds {name}/")
    return folder


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> Iterator[None]:
    """Tests and what they start can be interrupted as from a terminal; what a shell starts in its background begins
    with SIGINT ignored.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def corpus() -> Path:
    """Real articles in the bucket's layout and the truth about their figures."""
    return _data("corpus")


@pytest.fixture(scope="session")
def eval_sets() -> Path:
    """Real labelled sets."""
    return _data("eval")


class S3:
    """A real S3 endpoint over HTTP on loopback, with faults to order: `faults["a/key"] = ["503", "truncate"]`.

    Each GET of the key ("": of a list) takes the next fault; when they are used up it is answered well. "stall" sends
    half of the body and then nothing for `stall_s`; "drip" a byte every `drip_s`; "wait 2" is a 503 that says when to
    come again. Every GET takes `delay_s` longer; those that `hold` names wait for `release`.
    """

    def __init__(self) -> None:
        self.faults: dict[str, list[str]] = {}
        self.stall_s, self.drip_s = 5.0, 0.1
        self.delay_s = 0.0
        self.gets: list[str] = []
        self.heads: list[str] = []
        self.writes: list[str] = []
        self.signed: list[bool] = []
        self._lock = threading.Lock()
        self._gate = threading.Event()
        self.release()
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.release()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def upload(self, folder: Path, keep: Callable[[str], bool] = lambda key: True) -> str:
        """Put a folder's files into a new bucket; returns its URI."""
        client, bucket = boto3.client("s3"), f"bucket-{uuid.uuid4().hex}"
        client.create_bucket(Bucket=bucket)
        for path in sorted(folder.rglob("*")):
            key = path.relative_to(folder).as_posix()
            if path.is_file() and keep(key):
                client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
        return f"s3://{bucket}"

    def hold(self, wanted: Callable[[str], bool], after: int) -> None:
        """Answer the first `after` GETs of the keys that are wanted; the others wait: a source slow
        where a test looks.
        """
        self._wanted, self._free, self._gate = wanted, after, threading.Event()

    def release(self) -> None:
        """Let everything go that waits, and hold nothing any more."""
        self._gate.set()
        self.hold(lambda key: False, 0)

    def _wait_at_the_gate(self, key: str) -> None:
        with self._lock:
            gate, wanted = self._gate, self._wanted(key)
            self._free -= wanted
            held = wanted and self._free < 0
        if held:
            gate.wait(600)

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        key = environ["PATH_INFO"].strip("/").partition("/")[2]
        if environ["REQUEST_METHOD"] == "HEAD" and key:
            self.heads.append(key)
        if environ["REQUEST_METHOD"] in ("PUT", "POST") and key:
            self.writes.append(key)
        if environ["REQUEST_METHOD"] == "GET":
            self.signed.append("HTTP_AUTHORIZATION" in environ)
            if key:
                self.gets.append(key)
                self._wait_at_the_gate(key)
                time.sleep(self.delay_s)
            fault = self.faults.get(key, []).pop(0) if self.faults.get(key) else ""
            if fault.startswith("wait "):
                start("503 Slow Down", [("Content-Type", "application/xml"), ("Retry-After", fault.split()[1])])
                return [b"<Error><Code>SlowDown</Code><Message>later</Message></Error>"]
            if fault in ("403", "500", "503"):
                start(f"{fault} Fault", [("Content-Type", "application/xml")])
                return [b"<Error><Code>SlowDown</Code><Message>later</Message></Error>"]
            if fault in ("truncate", "stall", "corrupt"):
                body = b"".join(self._app(environ, start))
                if fault == "corrupt":
                    return [bytes(255 - byte for byte in body)]
                return self._half(body, self.stall_s if fault == "stall" else 0.0)
            if fault == "drip":
                return self._drip(b"".join(self._app(environ, start)))
        return self._app(environ, start)  # type: ignore[no-any-return]

    @staticmethod
    def _half(body: bytes, pause: float) -> Iterator[bytes]:
        yield body[: len(body) // 2]
        time.sleep(pause)

    def _drip(self, body: bytes) -> Iterator[bytes]:
        for byte in body:
            yield bytes([byte])
            time.sleep(self.drip_s)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    """The endpoint of this session; started before a cluster whose workers are to find it in their environment."""
    server = S3()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield server
    server.close()


@pytest.fixture
def s3(s3_server: S3) -> S3:
    """The session's S3 endpoint without faults; boto3, pyarrow and Ray find it by AWS_ENDPOINT_URL."""
    s3_server.faults, s3_server.gets, s3_server.delay_s = {}, [], 0.0
    s3_server.stall_s, s3_server.drip_s = 5.0, 0.1
    s3_server.release()
    return s3_server
