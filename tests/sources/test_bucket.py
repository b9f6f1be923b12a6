"""The source over real HTTP: what a fault becomes, and what is tried again."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import boto3
import pytest

from biomedclip_ray.config import SourceResources
from biomedclip_ray.schema import Reason
from biomedclip_ray.sources.bucket import PUBLIC_BUCKET, ObjectError, SourceError, inventory_dates
from biomedclip_ray.sources.open import open_bucket
from biomedclip_ray.sources.s3 import S3Bucket, _pause
from tests.conftest import S3

QUICK = SourceResources(retries=3, deadline_s=20)
AT_ONCE = 15.0
"""Seconds: what drips or stalls here would take minutes; the deadlines are one second."""
KEY, DATA = "PMC1.1/a b.jpg", bytes(range(256)) * 400
MD5 = hashlib.md5(DATA, usedforsecurity=False).hexdigest()


@pytest.fixture
def uri(s3: S3, tmp_path: Path) -> str:
    (tmp_path / "PMC1.1").mkdir()
    (tmp_path / KEY).write_bytes(DATA)
    return s3.upload(tmp_path)


@pytest.mark.parametrize("faults", [["503"], ["503", "500", "503"], ["403"], ["truncate"], ["corrupt"]])
def test_a_passing_fault_is_tried_again_and_the_bytes_are_whole(s3: S3, uri: str, faults: list[str]) -> None:
    s3.faults[KEY] = list(faults)
    assert open_bucket(uri, QUICK).get(KEY, MD5) == DATA
    assert s3.gets.count(KEY) == len(faults) + 1


def test_a_source_may_lie_at_another_endpoint_than_the_environment_says(
    s3: S3, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The public bucket beside a root on one's own MinIO."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens there
    bucket = open_bucket(f"{uri}?endpoint_override={s3.url}", QUICK)
    assert bucket.get(KEY, MD5) == DATA


def test_an_object_without_md5_is_checked_against_its_etag_where_that_is_a_md5(s3: S3, uri: str) -> None:
    s3.faults[KEY] = ["corrupt"]
    assert open_bucket(uri, QUICK).get(KEY) == DATA
    assert s3.gets.count(KEY) == 2
    client, bucket = boto3.client("s3"), uri.removeprefix("s3://")
    upload = client.create_multipart_upload(Bucket=bucket, Key="parts")["UploadId"]
    part = client.upload_part(Bucket=bucket, Key="parts", UploadId=upload, PartNumber=1, Body=DATA)
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    client.complete_multipart_upload(Bucket=bucket, Key="parts", UploadId=upload, MultipartUpload=parts)
    assert client.head_object(Bucket=bucket, Key="parts")["ETag"].endswith('-1"')
    assert open_bucket(uri, QUICK).get("parts") == DATA


def test_a_lasting_503_is_transient_and_names_the_object(s3: S3, uri: str) -> None:
    s3.faults[KEY] = ["503"] * 99
    with pytest.raises(ObjectError, match=r"a b.jpg: HTTP 503") as caught:
        open_bucket(uri, QUICK).get(KEY)
    assert caught.value.reason is Reason.FETCH_FAILED
    assert caught.value.reason.transient
    assert s3.gets.count(KEY) == 1 + 4 * QUICK.retries


def test_a_refused_request_waits_as_long_as_it_was_told_and_the_others_go_on(s3: S3, uri: str, tmp_path: Path) -> None:
    s3.faults[KEY] = ["wait 2"]
    bucket = open_bucket(uri, QUICK)
    boto3.client("s3").put_object(Bucket=uri.removeprefix("s3://"), Key="other", Body=DATA)
    with ThreadPoolExecutor() as pool:
        started = time.monotonic()
        refused = pool.submit(lambda: (bucket.get(KEY, MD5), time.monotonic() - started))
        others = [pool.submit(lambda: (bucket.get("other", MD5), time.monotonic() - started)) for _ in range(5)]
        data, waited = refused.result()
        assert data == DATA
        assert waited >= 2
        assert min(other.result()[1] for other in others) < 2


def test_a_passing_503_on_a_list_or_a_stream_is_tried_again(s3: S3, uri: str) -> None:
    bucket = open_bucket(uri, QUICK)
    s3.faults = {"": ["503", "503"], KEY: ["503"]}
    assert bucket.folders("") == ["PMC1.1"]
    assert bucket.stream(KEY).read() == DATA
    assert s3.faults == {"": [], KEY: []}


def test_a_stream_comes_in_pieces_and_only_the_one_that_broke_comes_again(
    s3: S3, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("biomedclip_ray.sources.s3._PIECE", 40_000)
    s3.faults[KEY] = ["", "truncate", "503"]
    with open_bucket(uri, QUICK).stream(KEY) as stream:
        assert stream.read() == DATA
    assert s3.gets.count(KEY) == 5  # 102,400 bytes are three pieces
    boto3.client("s3").put_object(Bucket=uri.removeprefix("s3://"), Key="empty", Body=b"")
    assert open_bucket(uri, QUICK).stream("empty").read() == b""


def test_a_stream_that_drips_stops_at_the_deadline(s3: S3, uri: str) -> None:
    s3.faults[KEY] = ["drip"] * 99
    started = time.monotonic()
    with pytest.raises(ObjectError, match="a b.jpg: still arriving at the deadline") as caught:
        open_bucket(uri, SourceResources(retries=3, deadline_s=1.0)).stream(KEY)
    assert caught.value.reason is Reason.DEADLINE
    assert time.monotonic() - started < AT_ONCE


def test_a_stream_of_an_object_that_is_replaced_meanwhile_is_no_mixture(
    s3: S3, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("biomedclip_ray.sources.s3._PIECE", 40_000)
    s3.hold(lambda key: key == KEY, after=1)
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(open_bucket(uri, SourceResources(retries=0, deadline_s=20)).stream, KEY)
        while s3.gets.count(KEY) < 2:
            time.sleep(0.01)
        boto3.client("s3").put_object(Bucket=uri.removeprefix("s3://"), Key=KEY, Body=DATA[::-1])
        s3.release()
        with pytest.raises(ObjectError, match="a b.jpg: HTTP 412"):
            stream.result(timeout=10)


def test_a_missing_key_is_final_and_asked_for_once(s3: S3, uri: str) -> None:
    with pytest.raises(ObjectError) as caught:
        open_bucket(uri, QUICK).get("PMC1.1/gone.jpg")
    assert caught.value.reason is Reason.MISSING_OBJECT
    assert not caught.value.reason.transient
    assert s3.gets.count("PMC1.1/gone.jpg") == 1


def test_a_wrong_md5_is_tried_twice_and_says_what_came(s3: S3, uri: str) -> None:
    with pytest.raises(ObjectError, match=f"102400 bytes with md5 {MD5}, expected {'0' * 32}") as caught:
        open_bucket(uri, QUICK).get(KEY, "0" * 32)
    assert caught.value.reason is Reason.MD5_MISMATCH
    assert s3.gets.count(KEY) == 2


def test_a_read_that_never_ends_stops_at_the_deadline(s3: S3, uri: str) -> None:
    s3.faults[KEY], s3.stall_s = ["stall"] * 99, 60.0
    started = time.monotonic()
    with pytest.raises(ObjectError, match="a b.jpg") as caught:
        open_bucket(uri, SourceResources(retries=3, deadline_s=1.5)).get(KEY)
    assert caught.value.reason.transient
    assert time.monotonic() - started < AT_ONCE


def test_a_body_that_drips_stops_at_the_deadline(s3: S3, uri: str) -> None:
    s3.faults[KEY] = ["drip"] * 99
    bucket = open_bucket(uri, SourceResources(retries=3, deadline_s=1.0))
    started = time.monotonic()
    with pytest.raises(ObjectError, match="a b.jpg: still arriving at the deadline") as caught:
        bucket.get(KEY)
    assert caught.value.reason is Reason.DEADLINE
    assert time.monotonic() - started < AT_ONCE
    assert s3.gets.count(KEY) == 1
    s3.faults.clear()
    assert bucket.get(KEY, MD5) == DATA  # the same bucket's next object, over a connection that works


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n"])
def test_headers_that_drip_stop_at_the_deadline(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut in its headers an answer looks whole and empty, so that the deadline must be asked and not the answer."""
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:

        def drip() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.recv(65536)
                connection.sendall(head)
                for _ in range(600):
                    connection.sendall(b"X-A: 1\r\n" if head else b" ")
                    time.sleep(0.1)

        ended = pool.submit(drip)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        bucket = S3Bucket("s3://dripping", SourceResources(retries=0, deadline_s=1.0))
        started = time.monotonic()
        with pytest.raises(ObjectError, match="a b.jpg") as caught:
            bucket.get(KEY)
        assert caught.value.reason is Reason.DEADLINE
        assert time.monotonic() - started < AT_ONCE
        ended.result(timeout=30)  # our end of the connection is closed: the server has noticed


def test_a_read_that_stalls_once_is_tried_again_within_the_deadline(s3: S3, uri: str) -> None:
    s3.faults[KEY] = ["stall"]
    bucket = open_bucket(uri, SourceResources(retries=3, deadline_s=9))
    started = time.monotonic()
    assert bucket.get(KEY, MD5) == DATA
    assert 3 <= time.monotonic() - started < 9
    assert s3.gets.count(KEY) == 2


def test_a_list_that_drips_stops_at_the_deadline(s3: S3, uri: str) -> None:
    s3.faults[""] = ["drip"] * 99
    bucket = open_bucket(uri, SourceResources(retries=0, deadline_s=1.0))
    started = time.monotonic()
    with pytest.raises(SourceError, match="cannot be reached: still arriving at the deadline"):
        bucket.folders("")
    assert time.monotonic() - started < AT_ONCE


def test_pauses_between_tries_grow_are_bounded_and_differ() -> None:
    pauses = [[_pause(attempt) for _ in range(200)] for attempt in range(12)]
    for attempt, drawn in enumerate(pauses):
        middle = min(20.0, 0.2 * 2**attempt)
        assert 0.5 * middle <= min(drawn) < 0.7 * middle
        assert 1.3 * middle < max(drawn) <= 1.5 * middle


def test_tries_wait_longer_each_time(s3: S3, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    sleep, here = time.sleep, threading.get_ident()  # other threads, the server's too, sleep as ever
    monkeypatch.setattr(time, "sleep", lambda s: waited.append(s) if threading.get_ident() == here else sleep(s))
    s3.faults[KEY] = ["500"] * 5
    assert open_bucket(uri, SourceResources(retries=5, deadline_s=60)).get(KEY, MD5) == DATA
    pauses = [pause for pause in waited if pause >= 0.1]  # waiting for a turn of the budget is shorter
    assert len(pauses) == len(set(pauses)) == 5
    assert all(0.5 <= pause / (0.2 * 2**attempt) <= 1.5 for attempt, pause in enumerate(pauses))


@pytest.mark.parametrize("signed", [True, False])
def test_without_credentials_nothing_is_signed(
    s3: S3, uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, signed: bool
) -> None:
    _publish(uri.removeprefix("s3://"))
    if not signed:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert _authorizations(s3, S3Bucket(uri, QUICK)) == {signed}


def test_the_public_bucket_is_read_unsigned_also_with_credentials(s3: S3, uri: str) -> None:
    boto3.client("s3").create_bucket(Bucket=PUBLIC_BUCKET)
    _publish(PUBLIC_BUCKET)
    assert _authorizations(s3, S3Bucket(f"s3://{PUBLIC_BUCKET}", QUICK)) == {False}


def _publish(bucket: str) -> None:
    """As PMC's own is: the server refuses what is unsigned elsewhere."""
    client = boto3.client("s3")
    client.put_bucket_acl(Bucket=bucket, ACL="public-read")
    client.put_object(Bucket=bucket, Key=KEY, Body=DATA, ACL="public-read")


def _authorizations(s3: S3, bucket: S3Bucket) -> set[bool]:
    """Whether what the bucket sends for an object, a stream and a list is signed."""
    s3.signed.clear()
    assert bucket.get(KEY, MD5) == DATA
    assert bucket.stream(KEY).read() == DATA
    assert bucket.folders("") == ["PMC1.1"]
    assert len(s3.signed) == 3
    return set(s3.signed)


def test_a_bucket_that_does_not_exist_is_an_error_that_names_the_uri(s3: S3) -> None:
    with pytest.raises(SourceError, match="source.uri=s3://no-such-bucket"):
        inventory_dates(open_bucket("s3://no-such-bucket", QUICK))


def test_an_endpoint_that_is_down_is_an_error_that_names_the_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match="source.uri=s3://down cannot be reached"):
        inventory_dates(open_bucket("s3://down", SourceResources(retries=0, deadline_s=1)))


def test_a_bucket_without_inventory_is_an_error(s3: S3, uri: str) -> None:
    with pytest.raises(SourceError, match="no inventory below"):
        inventory_dates(open_bucket(uri, QUICK))


def test_hive_and_data_beside_the_dates_are_no_dates(s3: S3, corpus: Path) -> None:
    uri = s3.upload(corpus / "bucket", keep=lambda key: key.startswith("inventory-reports/"))
    assert inventory_dates(open_bucket(uri, QUICK)) == ["2026-11-19T01-00Z", "2026-11-20T01-00Z"]


def test_a_folder_is_read_like_a_bucket(tmp_path: Path) -> None:
    (tmp_path / "PMC1.1").mkdir()
    (tmp_path / KEY).write_bytes(DATA)
    bucket = open_bucket(str(tmp_path), QUICK)
    assert bucket.get(KEY, MD5) == DATA
    assert bucket.folders("") == ["PMC1.1"]
    for key, reason in {"PMC1.1/x": Reason.MISSING_OBJECT, "PMC1.1": Reason.MISSING_OBJECT}.items():
        with pytest.raises(ObjectError) as caught:
            bucket.get(key)
        assert caught.value.reason is reason
    with pytest.raises(ObjectError) as caught:
        bucket.get(KEY, "0" * 32)
    assert caught.value.reason is Reason.MD5_MISMATCH


def test_a_folder_that_is_not_there_is_an_error_that_names_key_and_path(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=f"source.uri={tmp_path}/none: no such folder"):
        open_bucket(f"{tmp_path}/none", QUICK)
    with pytest.raises(SourceError, match="source.uri=ftp://x: expected s3://BUCKET or a folder"):
        open_bucket("ftp://x", QUICK)
