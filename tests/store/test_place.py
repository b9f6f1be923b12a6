"""Places on a disk and on a real S3 endpoint: whole files or none, and who was first."""

from __future__ import annotations

import gzip
import os
import threading
from pathlib import Path

import pytest

from biomedclip_ray.store.place import Place, StorageError, check_writable


@pytest.fixture(params=["disk", "s3", "elsewhere", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "disk":
        return Place(str(tmp_path / "root"))
    if request.param == "memory":
        return Place(f"memory://{tmp_path.name}")
    server = request.getfixturevalue("s3")
    (tmp_path / "empty").mkdir()
    bucket = server.upload(tmp_path / "empty")
    if request.param == "elsewhere":  # than the environment says, where nobody answers
        request.getfixturevalue("monkeypatch").setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        return Place(f"{bucket}/root/?endpoint_override={server.url}")
    return Place(f"{bucket}/root")


def test_what_is_written_is_read_listed_and_deleted(place: Place) -> None:
    assert place.list() == {}
    place.write("data/part-00000.parquet", b"abc")
    place.at("data").write("b.parquet", b"\0" * 10)
    place.write("top", b"")
    assert place.read("data/part-00000.parquet") == b"abc"
    assert place.list() == {"data/b.parquet": 10, "data/part-00000.parquet": 3, "top": 0}
    assert place.list("data") == {"data/b.parquet": 10, "data/part-00000.parquet": 3}
    assert place.exists("top")
    assert not place.exists("nothing")
    place.delete("top")
    place.delete("top")
    assert not place.exists("top")
    with pytest.raises(FileNotFoundError):
        place.read("top")
    with place.open("data/b.parquet") as file:
        file.seek(8)
        assert file.read() == b"\0\0"


def test_a_second_write_replaces_the_first(place: Place) -> None:
    place.write("x", b"first")
    place.write("x", b"second")
    assert place.read("x") == b"second"


def test_bytes_are_kept_whatever_the_name_ends_in(place: Place) -> None:
    packed = gzip.compress(b"PMC1.1")
    place.write("a.csv.gz", packed)
    assert place.read("a.csv.gz") == packed
    assert place.list() == {"a.csv.gz": len(packed)}


def test_a_file_is_taken_over_from_another_place(place: Place, tmp_path: Path) -> None:
    packed = gzip.compress(b"PMC1.1" * 100_000)
    disk = Place(str(tmp_path / "disk"))
    place.at("old").write("data/a.gz", packed)
    place.at("new").copy_from(place.at("old"), "data/a.gz")
    disk.copy_from(place.at("new"), "data/a.gz")
    place.at("back").copy_from(disk, "data/a.gz")
    assert place.at("back").read("data/a.gz") == place.at("new").read("data/a.gz") == packed
    assert place.at("new").list() == {"data/a.gz": len(packed)}
    with pytest.raises(FileNotFoundError):
        place.copy_from(disk, "nothing")


def test_create_succeeds_once(place: Place) -> None:
    assert place.create("lease", b"a")
    assert not place.create("lease", b"b")
    assert place.read("lease") == b"a"


def test_a_drive_without_links_knows_the_first_creator_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    place = Place(str(tmp_path))
    assert [place.create("lease", data) for data in (b"a", b"b")] == [True, False]
    assert place.read("lease") == b"a"
    assert place.list() == {"lease": 1}


def test_of_many_creators_one_is_first(tmp_path: Path) -> None:
    place, won = Place(str(tmp_path)), []
    threads = [threading.Thread(target=lambda n=n: won.append(place.create("x", str(n).encode()))) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won.count(True) == 1


def test_folders_travel_both_ways(place: Place, tmp_path: Path) -> None:
    source, target = tmp_path / "from", tmp_path / "to"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "ä b.txt").write_bytes(b"1")
    (source / "c").write_bytes(b"2")
    place.upload(source)
    place.download(target)
    assert {p.relative_to(target).as_posix(): p.read_bytes() for p in target.rglob("*") if p.is_file()} == {
        "sub/ä b.txt": b"1",
        "c": b"2",
    }


def test_no_temporary_file_is_left_or_listed(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    place.write("a", b"1")
    place.create("a", b"2")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    (tmp_path / ".b.123.tmp").write_bytes(b"torn")
    assert place.list() == {"a": 1}


def test_a_root_that_is_a_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file/root cannot be written"):
        check_writable(str(tmp_path / "file" / "root"))


def test_an_unknown_kind_of_uri_is_an_error_that_names_it() -> None:
    with pytest.raises(StorageError, match="nonsense://somewhere"):
        Place("nonsense://somewhere").list()


def test_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Place("a/b/").uri == str(tmp_path / "a" / "b")
    assert Place(f"file://{tmp_path}/x").local == tmp_path / "x"


def test_an_endpoint_in_the_uri_stays_with_every_folder_and_is_no_part_of_a_name() -> None:
    place = Place("s3://bucket/run/?endpoint_override=minio:9000&scheme=http").at("ingest/0123")
    assert place.uri == "s3://bucket/run/ingest/0123?endpoint_override=minio:9000&scheme=http"
    assert (place.plain, place.endpoint) == ("s3://bucket/run/ingest/0123", "http://minio:9000")
    assert Place("s3://bucket/run?endpoint_override=https://minio").endpoint == "https://minio"
    assert Place("s3://bucket/run").endpoint is None
    assert Place("/mnt/what?/run").at("a").uri == "/mnt/what?/run/a"
