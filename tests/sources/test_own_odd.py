"""Own pairs as nobody means to write them: each is a pair, a ledger row or a sentence, never a traceback or a loss."""

from __future__ import annotations

import base64
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from biomedclip_ray.config import ConfigError
from biomedclip_ray.images.errors import ImageError
from biomedclip_ray.schema import Reason
from biomedclip_ray.sources.own.images import read_image
from biomedclip_ray.sources.own_files import find_files
from tests.sources.own_tools import all_records, pairs, shard

IMAGE = bytes(range(256)) * 4  # what decodes it is not asked here
GOOD = (IMAGE, "A lung")


def lists(folder: Path, name: str) -> Path:
    """A folder with an image and a list whose second row names `name`."""
    (folder / "good.png").write_bytes(IMAGE)
    rows = [{"file_name": "good.png", "text": "A lung"}, {"file_name": name, "text": "A kidney"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a\0.png", "'a\\x00.png' is no name of a file"),
        ("g_" * 2500, "g_... (5,000 characters)"),
        ("a/" * 3000 + "b.png", "(6,005 characters)"),
        ("folder", "folder"),
        (".", "."),
        ("good.png/x.png", "good.png/x.png"),
        ("ring.png", "ring.png"),
    ],
)
def test_a_name_that_leads_to_no_file_is_one_final_ledger_row(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "ring.png").symlink_to("ring.png")
    files = find_files(str(lists(tmp_path, name)), 9)
    good, bad = all_records(files)
    assert read_image(files, good) == IMAGE
    with pytest.raises(ImageError) as error:
        read_image(files, bad)
    assert error.value.reason is Reason.MISSING_OBJECT and told in error.value.detail
    assert len(error.value.detail) < 400


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_a_final_ledger_row(tmp_path: Path) -> None:
    files = find_files(str(lists(tmp_path, "shut.png")), 9)
    (tmp_path / "shut.png").write_bytes(IMAGE)
    (tmp_path / "shut.png").chmod(0)
    with pytest.raises(ImageError, match="Permission denied") as error:
        read_image(files, all_records(files)[1])
    assert error.value.reason is Reason.MISSING_OBJECT


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_an_image_in_base64_is_its_bytes(tmp_path: Path, form: str, prefix: str) -> None:
    row = {"image": prefix + base64.b64encode(IMAGE * 200).decode(), "text": "A lung"}
    if form == "csv":
        (tmp_path / "a.csv").write_text(f'image,text\n"{row["image"]}",A lung\n')
    elif form == "jsonl":
        (tmp_path / "a.jsonl").write_text(json.dumps(row))
    else:
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert pairs(tmp_path) == [(IMAGE * 200, "A lung")]


def test_base64_that_is_cut_is_a_ledger_row(tmp_path: Path) -> None:
    rows = [{"image": base64.b64encode(IMAGE).decode()[:-3], "text": "A lung"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    [(image, _)] = pairs(tmp_path)
    assert isinstance(image, str) and image.startswith("base64 of 1,365 characters: ")


@pytest.mark.parametrize(
    "cell",
    [
        pa.array([list(IMAGE)], pa.list_(pa.uint8())),
        pa.array([list(IMAGE)], pa.list_(pa.int64())),
        pa.array([[[IMAGE]]]),
        pa.array([[{"bytes": IMAGE, "path": None}]]),
    ],
    ids=["numbers of 8 bits", "numbers", "a list in a list", "a list of structs"],
)
def test_bytes_as_numbers_and_in_lists_are_one_image(tmp_path: Path, cell: pa.Array) -> None:
    pq.write_table(pa.table({"image": cell, "text": ["A lung"]}), tmp_path / "a.parquet")
    assert pairs(tmp_path) == [GOOD]


def test_a_text_of_pairs_is_none_and_facts_in_lists_of_one_count(tmp_path: Path) -> None:
    map_ = pa.array([[("en", "A lung")]], pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({"image": [IMAGE], "text": map_}), tmp_path / "a.parquet")
    assert pairs(tmp_path) == [(IMAGE, "")]
    (tmp_path / "a.parquet").unlink()
    (tmp_path / "a.jsonl").write_text('{"image": "a.png", "text": "A lung", "patient": [7], "split": ["test"]}')
    [record] = all_records(find_files(str(tmp_path), 9))
    assert (record.group, record.split) == ("7", "test")


def test_a_csv_takes_texts_of_any_length(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(IMAGE)
    text = "lung, " * 50_000
    (tmp_path / "a.csv").write_text(f'image,text\ngood.png,A lung\ngood.png,"{text}"\n')
    assert pairs(tmp_path) == [GOOD, (IMAGE, text)]


@pytest.mark.parametrize("kind", ["jsonl", "tar"])
def test_json_of_endless_brackets_is_a_ledger_row(tmp_path: Path, kind: str) -> None:
    if kind == "tar":
        members = [("a.png", IMAGE), ("a.txt", b"A lung"), ("b.png", IMAGE), ("b.json", b"[" * 100_000)]
        assert pairs(shard(tmp_path / "a.tar", members).parent) == [GOOD, (IMAGE, "")]
        return
    (tmp_path / "good.png").write_bytes(IMAGE)
    (tmp_path / "a.jsonl").write_text('{"image": "good.png", "text": "A lung"}\n' + "[" * 100_000)
    good, bad = pairs(tmp_path)
    assert good == GOOD and str(bad[0]).startswith("line is no JSON object")


def test_links_and_devices_in_a_shard_are_ledger_rows(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("a.png", IMAGE), ("a.txt", b"A lung")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name, kind in (("b.png", tarfile.SYMTYPE), ("c.png", tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a.png"
            tar.addfile(member)
    good, *others = pairs(tmp_path)
    assert good == GOOD
    assert [why for why, _ in others] == ["no image stands beside png, which is a link or a device"] * 2


def test_a_text_of_windows_notepad_is_read(tmp_path: Path) -> None:
    members = [("a.png", IMAGE), ("a.txt", "A röntgen".encode("utf-16")), ("b.png", IMAGE), ("b.txt", b"\xef\xbb\xbfA")]
    assert [text for _, text in pairs(shard(tmp_path / "a.tar", members).parent)] == ["A röntgen", "A"]


def _parquet_without_rows(folder: Path) -> Path:
    pq.write_table(
        pa.table({"image": pa.array([], pa.binary()), "text": pa.array([], pa.string())}), folder / "a.parquet"
    )
    return folder


def _written(name: str, text: str) -> Any:
    def write(folder: Path) -> Path:
        (folder / name).write_text(text, newline="")
        return folder

    return write


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (_parquet_without_rows, "there is no row in a.parquet"),
        (_written("a.csv", ""), "a.csv is empty; its first row must name its columns"),
        (_written("a.csv", "image,text\ra.png,A lung\r"), "a.csv ends its lines with CR alone; save it with LF"),
        (
            lambda folder: _written("a.png", "x")(folder) / "a.png",
            r"a.png is a file; give its folder, or a list of pairs",
        ),
    ],
    ids=["Parquet without rows", "empty CSV", "lines of an old Mac", "an image"],
)
def test_what_holds_no_pairs_says_so(tmp_path: Path, make: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        find_files(str(make(tmp_path)), 9)
