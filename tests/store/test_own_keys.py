"""Keys and certificates of one's own: objects under a KMS key, and a store behind a certificate authority that nobody
else knows.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import boto3
import lance
import pyarrow as pa
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from biomedclip_ray.search.table import storage_options
from biomedclip_ray.store.place import KMS_KEY, Place
from tests.conftest import S3

KEY = "arn:aws:kms:us-east-1:000000000000:key/8a7c1d5e-0000-4000-8000-1234567890ab"


def test_objects_and_the_index_are_put_under_the_key_that_the_environment_names(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    bucket = s3.upload(tmp_path / "empty")
    place, client = Place(f"{bucket}/root"), boto3.client("s3")
    name = bucket.removeprefix("s3://")
    place.write("plain", b"abc")
    assert "SSEKMSKeyId" not in client.head_object(Bucket=name, Key="root/plain")
    monkeypatch.setenv(KMS_KEY, KEY)
    place.write("part", b"abc")
    assert place.create("lease", b"mine")
    assert not place.create("lease", b"yours")
    lance.write_dataset(pa.table({"a": [1, 2]}), f"{bucket}/root/table.lance", storage_options=storage_options(place))
    written = [one["Key"] for one in client.list_objects_v2(Bucket=name)["Contents"] if one["Key"] != "root/plain"]
    assert {"root/part", "root/lease"} < set(written)
    for key in written:
        head = client.head_object(Bucket=name, Key=key)
        assert (head.get("ServerSideEncryption"), head.get("SSEKMSKeyId")) == ("aws:kms", KEY), key
    assert place.read("part") == b"abc"


ASKED = """
import lance, pyarrow as pa, httpx, os, boto3
from biomedclip_ray.search.table import storage_options
from biomedclip_ray.store.place import Place
boto3.client("s3").create_bucket(Bucket="hospital")
place = Place("s3://hospital/root")
place.write("part", b"abc")
assert place.read("part") == b"abc" and place.list() == {"part": 3}
uri, options = "s3://hospital/root/table.lance", storage_options(place)
lance.write_dataset(pa.table({"a": [1]}), uri, storage_options=options)
assert lance.dataset(uri, storage_options=options).count_rows() == 1
assert httpx.get(os.environ["AWS_ENDPOINT_URL"]).status_code == 200
print("all four clients")
"""


@pytest.fixture
def behind_tls(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """(URL of an S3 on loopback, the certificate of the authority that signed its own)."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    ca, key, request, signed = (tmp_path / name for name in ("ca.pem", "ca.key", "server.csr", "server.pem"))
    (tmp_path / "names").write_text("subjectAltName=DNS:localhost")
    made = ["-newkey", "rsa:2048", "-nodes", "-keyout"]
    sign = ["x509", "-req", "-in", request, "-CA", ca, "-CAkey", key, "-CAcreateserial", "-out", signed, "-days", "2"]
    for command in (
        ["req", "-x509", *made, key, "-out", ca, "-days", "2", "-subj", "/CN=a hospital"],
        ["req", *made, tmp_path / "server.key", "-out", request, "-subj", "/CN=localhost"],
        [*sign, "-extfile", tmp_path / "names"],
    ):
        subprocess.run([openssl, *map(str, command)], check=True, capture_output=True)
    app = DomainDispatcherApplication(create_backend_app)
    context = (str(signed), str(tmp_path / "server.key"))
    server = make_server("127.0.0.1", 0, app, threaded=True, ssl_context=context)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://localhost:{server.server_port}", ca
    server.shutdown()
    server.server_close()


def test_with_three_variables_every_client_trusts_an_authority_of_ones_own(behind_tls: tuple[str, Path]) -> None:
    url, ca = behind_tls
    plain = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    env = plain | {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "t", "AWS_SECRET_ACCESS_KEY": "t"}
    env |= {"AWS_DEFAULT_REGION": "us-east-1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    trusted = dict.fromkeys(("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), str(ca))
    asked = subprocess.run([sys.executable, "-c", ASKED], env=env | trusted, capture_output=True, text=True)
    assert asked.stdout == "all four clients\n", asked.stderr
    refused = subprocess.run([sys.executable, "-c", ASKED], env=env, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "SSL" in refused.stderr
