"""One's own pairs as files: what each form gives, how it is cut into parts, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biomedclip_ray.config import ConfigError
from biomedclip_ray.schema import Reason
from biomedclip_ray.sources.own.record import Record
from biomedclip_ray.sources.own_files import find_files
from tests.sources.own_tools import all_records, outcomes, shard


def test_parquet_gives_bytes_hugging_face_pictures_and_names_of_files(tmp_path: Path) -> None:
    facts = {"caption": ["one", "two"], "id": ["a", "b"], "patient": [7, 7], "split": ["val", None]}
    pq.write_table(pa.table({"image": [b"x", b"y"], **facts}), tmp_path / "bytes.parquet")
    pictures = [{"bytes": b"x", "path": None}, {"bytes": None, "path": "scans/y.png"}]
    pq.write_table(pa.table({"image": pictures, **facts}), tmp_path / "struct.parquet")
    found = all_records(find_files(str(tmp_path), 100))
    assert [record.image for record in found] == [b"x", b"y", b"x", "scans/y.png"]
    assert found[0] == Record("bytes.parquet:0", b"x", "one", "a", "7", "val", None)
    assert found[3].split is None


def test_a_part_holds_whole_row_groups_and_every_row_comes_once(tmp_path: Path) -> None:
    table = pa.table({"image": [b"x"] * 100, "text": [str(n) for n in range(100)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=8)
    files = find_files(str(tmp_path), 20)
    assert [(p.first, p.last, p.row) for p in files.pieces] == [
        (0, 3, 0),
        (3, 6, 24),
        (6, 9, 48),
        (9, 12, 72),
        (12, 13, 96),
    ]
    assert [record.text for record in all_records(files)] == [str(n) for n in range(100)]
    assert [record.where for record in all_records(files)] == [f"a.parquet:{n}" for n in range(100)]


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("csv", ";"), ("tsv", "\t")])
def test_a_csv_names_pictures_from_its_own_folder(tmp_path: Path, suffix: str, delimiter: str) -> None:
    (tmp_path / "lab").mkdir()
    rows = [["file_name", "text", "patient"], ["s/1.png", '"two\nlines, quoted; yes"', "p1"], ["../2.png", "short", ""]]
    text = "\ufeff" + "".join(delimiter.join(row) + "\r\n" for row in rows)
    (tmp_path / "lab" / f"pairs.{suffix}").write_text(text, encoding="utf-8", newline="")
    first, second = all_records(find_files(str(tmp_path), 1))
    assert first == Record(f"lab/pairs.{suffix}:0", "lab/s/1.png", "two\nlines, quoted; yes", None, "p1")
    assert (second.image, second.text, second.group) == ("2.png", "short", None)


def test_a_picture_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    lines = [
        "image,text",
        "../../etc/passwd,a",
        "/etc/passwd,b",
        "s3://other/c.png,c",
        "C:\\scans\\d.png,d",
        "in.png,e",
    ]
    lines += [f"{tmp_path}/../x.png,f", "http://other/g.png,g"]
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    (tmp_path / "in.png").write_bytes(b"e")
    found = outcomes(find_files(str(tmp_path), 10))
    assert found[4] == b"e"
    for n, said in enumerate(
        ("lies outside own.uri",) * 4 + ("",) + ("lies outside own.uri", "is an address: download")
    ):
        assert n == 4 or said in str(found[n])


def test_a_short_or_long_row_of_a_csv_is_still_one_record(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("image,text,patient\na.png\nb.png,words,p,extra,more\nc.png,last,q\n")
    found = all_records(find_files(str(tmp_path), 2))
    assert [(r.image, r.text, r.group) for r in found] == [
        ("a.png", "", None),
        ("b.png", "words", "p"),
        ("c.png", "last", "q"),
    ]


def test_a_shard_gives_one_record_for_each_key_and_json_may_hold_the_facts(tmp_path: Path) -> None:
    facts = {"caption": "in json", "patient": 3, "id": "scan-9", "split": "test"}
    members = [("x/001.jpg", b"1"), ("x/001.txt", "Mü".encode()), ("x/002.json", json.dumps(facts).encode())]
    members += [("x/002.seg.png", b"2"), ("y/001.PNG", b"3"), ("y/001.json", b"[broken"), ("y/001.caption", b"by file")]
    shard(tmp_path / "a.tar", members)
    found = all_records(find_files(str(tmp_path), 10))
    assert found[0] == Record("a.tar:x/001", b"1", "Mü", "a.tar-x-001")
    assert found[1] == Record("a.tar:x/002", b"2", "in json", "scan-9", "3", "test")
    assert found[2] == Record("a.tar:y/001", b"3", "by file", "a.tar-y-001")


def test_members_of_a_shard_that_belong_to_no_sample_are_passed_over(tmp_path: Path) -> None:
    """As the webdataset library does: what macOS adds, and files without a name or a kind."""
    members = [("._1.png", b"mac"), ("1.mask.png", b"mask"), ("1.png", b"1"), ("README", b"x"), ("._1.txt", b"mac")]
    members += [("1.txt", b""), ("1.json", b'{"caption": "in json"}')]
    shard(tmp_path / "a.tar", members)
    mask, image = all_records(find_files(str(tmp_path), 10))
    assert image == Record("a.tar:1", b"1", "in json", "a.tar-1")
    assert mask == Record("a.tar:1.mask.png", fault=(Reason.MASK, "1.mask.png"))


def test_several_texts_of_a_picture_are_so_many_pairs_and_bytes_are_text(tmp_path: Path) -> None:
    texts = pa.array([["a liver", "a mouse's liver"], [], None], pa.list_(pa.string()))
    pq.write_table(pa.table({"image": [b"x", b"y", b"z"], "caption": texts}), tmp_path / "a.parquet")
    found = all_records(find_files(str(tmp_path), 10))
    assert [(record.where, record.image, record.text) for record in found] == [
        ("a.parquet:0", b"x", "a liver"),
        ("a.parquet:0", b"x", "a mouse's liver"),
        ("a.parquet:1", b"y", ""),
        ("a.parquet:2", b"z", ""),
    ]
    unmarked = pa.array(["TNF-α".encode(), b"\xff", None], pa.binary())
    pq.write_table(pa.table({"image": [b"x", b"y", b"z"], "caption": unmarked}), tmp_path / "a.parquet")
    assert [record.text for record in all_records(find_files(str(tmp_path), 10))] == ["TNF-α", "\ufffd", ""]


def test_what_utf_8_cannot_hold_is_replaced(tmp_path: Path) -> None:
    name = b"M\xfcller".decode("utf-8", "surrogateescape")
    shard(
        tmp_path / "a.tar",
        [(f"{name}.png", b"1"), (f"{name}.json", b'{"caption": "a \\ud83d liver", "split": "\\udc00"}')],
    )
    [record] = all_records(find_files(str(tmp_path), 10))
    assert record == Record("a.tar:M\ufffdller", b"1", "a \ufffd liver", "a.tar-M\ufffdller", None, "\ufffd")
    str(record).encode()


@pytest.mark.parametrize("damage", ["cut", "header"])
def test_a_damaged_shard_gives_what_stands_before_the_damage_and_says_so(tmp_path: Path, damage: str) -> None:
    path = shard(tmp_path / "a.tar", [(f"{n}.{e}", b"z" * 600) for n in range(4) for e in ("jpg", "txt")])
    data = bytearray(path.read_bytes())
    third = 4 * (512 + 1024)
    if damage == "cut":
        path.write_bytes(data[: third + 700])
    else:
        data[third + 148 : third + 156] = b"\xff" * 8
        path.write_bytes(data)
    *whole, last = all_records(find_files(str(tmp_path), 10))
    assert last.fault is not None
    assert last.fault[0] is Reason.BROKEN_FILE
    # a sample is whole when the next one's header was read
    assert [record.where for record in whole] == (["a.tar:0", "a.tar:1"] if damage == "cut" else ["a.tar:0"])


@settings(max_examples=300, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 10_239), st.integers(0, 255)), max_size=6), cut=st.integers(0, 10_240))
def test_a_mutated_shard_never_raises(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]], cut: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "mutated"
    folder.mkdir(exist_ok=True)
    path = shard(folder / "a.tar", [(f"{n}.{e}", b"z" * 600) for n in range(3) for e in ("jpg", "txt")])
    data = bytearray(path.read_bytes())
    for at, value in flips:
        data[at] = value
    path.write_bytes(data[:cut])
    found = all_records(find_files(str(path), 10))
    assert len(found) <= 7
    assert all(isinstance(record, Record) for record in found)


def test_a_touched_folder_is_another_source_and_a_moved_one_is_the_same(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    (old / "pairs.csv").write_text("image,text\na.png,b\n")
    (old / "a.png").write_bytes(b"1")
    first = find_files(str(old), 10).checksum
    old.rename(new)
    assert find_files(str(new), 10).checksum == first
    os.utime(new / "a.png", ns=(1, 1))
    assert find_files(str(new), 10).checksum != first


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no such folder, or nothing in it"),
        ({"a.docx": b""}, "holds none of .parquet"),
        ({"a.csv": b"image,text\n", "b.tar": b""}, "holds csv and webdataset; give a folder with pairs in one form"),
        (
            {"a.csv": b"pixels,text\n"},
            "a.csv has no column of images (image, file_name, filepath); it has pixels, text; name",
        ),
        (
            {"a.csv": b"image,befund\n"},
            "a.csv has no column of texts (text, caption, title); it has image, befund; name one by ",
        ),
        ({"a.parquet": b"no parquet"}, "own.uri="),
        ({"a.csv": b"image,text\n"}, "there is no row in a.csv"),
        ({"a.csv": "image,text\na.png,Müller\n".encode("cp1252")}, "a.csv is not in UTF-8 (invalid start byte)"),
        ({"a.csv": "image,text\na.png,x\n".encode("utf-16")}, "a.csv is not in UTF-8"),
        ({"a.csv": b'image,text\na.png,x\nb.png,"5 inch\nc.png,y\n'}, "a.csv, line 3: unexpected end of data; a quote"),
        ({"a.csv": b'image,text\na.png,"5" wide"\n'}, "a.csv, line 2: ',' expected after '\"'"),
    ],
)
def test_what_cannot_be_read_is_one_line_that_names_the_key(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match="own.uri") as error:
        find_files(str(tmp_path), 10)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_one_file_may_be_named_where_a_folder_holds_more(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,text\na.png,one\n")
    (tmp_path / "b.csv").write_text("image,text\na.png,two\n")
    assert [record.text for record in all_records(find_files(str(tmp_path / "b.csv"), 10))] == ["two"]
    with pytest.raises(ConfigError, match="there is no such file"):
        find_files(str(tmp_path / "c.csv"), 10)
