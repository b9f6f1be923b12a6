"""Own pairs in the forms that people have: no image is lost unnamed, and every usual way to name one leads to it."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from biomedclip_ray.config import ConfigError
from biomedclip_ray.schema import Reason
from biomedclip_ray.sources.own_files import find_files
from tests.sources.own_tools import all_records, outcomes, pairs, shard


def _files(folder: Path, *names: str) -> None:
    """Files that hold their own names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


# Several images -------------------------------------------------------------------------------------------------------


def test_every_image_of_a_sample_is_a_pair_with_its_text_and_one_group(tmp_path: Path) -> None:
    members = [("7.0.png", b"0"), ("7.1.png", b"1"), ("7.left.jpg", b"left"), ("7.txt", b"two views and a side")]
    members += [("x.JPG", b"X"), ("x.jpg", b"x"), ("x.json", b'{"caption": "in two capitals", "patient": 4}')]
    shard(tmp_path / "a.tar", members)
    found = all_records(find_files(str(tmp_path), 9))
    assert [(record.where, record.image, record.text, record.group) for record in found] == [
        ("a.tar:7.0.png", b"0", "two views and a side", "a.tar:7"),
        ("a.tar:7.1.png", b"1", "two views and a side", "a.tar:7"),
        ("a.tar:7.left.jpg", b"left", "two views and a side", "a.tar:7"),
        ("a.tar:x.JPG", b"X", "in two capitals", "4"),
        ("a.tar:x.jpg", b"x", "in two capitals", "4"),
    ]
    assert {record.id for record in found} == {"a.tar-7", "a.tar-x"}


def test_keys_with_dots_keep_each_image_with_its_own_text(tmp_path: Path) -> None:
    members = [(f"PMC1.{n}.{kind}", f"{kind} {n}".encode()) for n in (1, 2) for kind in ("jpg", "txt")]
    members += [("PMC1.3.txt", b"lost its image"), ("1.2.840.7.dcm", b"a"), ("1.2.840.7.json", b'{"text": "A"}')]
    members += [("1.2.840.8.dcm", b"b"), ("1.2.840.8.json", b'{"text": "B"}')]
    shard(tmp_path / "a.tar", members)
    found = all_records(find_files(str(tmp_path), 9))
    assert [(record.where, record.image, record.text, record.group) for record in found] == [
        ("a.tar:PMC1.1", b"jpg 1", "txt 1", "a.tar:PMC1"),
        ("a.tar:PMC1.2", b"jpg 2", "txt 2", "a.tar:PMC1"),
        ("a.tar:PMC1.3", None, "", None),
        ("a.tar:1.2.840.7", b"a", "A", None),  # numbers of a kind that are no views: each is its own
        ("a.tar:1.2.840.8", b"b", "B", None),
    ]
    assert found[2].fault == (Reason.MISSING_OBJECT, "a text without image")


def test_a_mask_beside_its_image_is_a_ledger_row_and_alone_an_image(tmp_path: Path) -> None:
    members = [("1.png", b"1"), ("1.seg.png", b"seg"), ("1.txt", b"one"), ("2.seg.png", b"2"), ("2.txt", b"two")]
    members += [("3.npy", b"array"), ("3.txt", b"three")]
    shard(tmp_path / "a.tar", members)
    found = all_records(find_files(str(tmp_path), 9))
    assert [(record.where, record.image, record.fault) for record in found] == [
        ("a.tar:1.seg.png", None, (Reason.MASK, "1.seg.png")),
        ("a.tar:1", b"1", None),
        ("a.tar:2", b"2", None),
        ("a.tar:3", None, (Reason.MISSING_OBJECT, "no image stands beside npy")),
    ]


def test_a_member_too_large_for_a_task_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from biomedclip_ray.sources.own import shards

    monkeypatch.setattr(shards, "_MAX_MEMBER_BYTES", 1 << 20)
    shard(
        tmp_path / "a.tar", [("1.svs", b"z" * ((1 << 20) + 1)), ("1.txt", b"a slide"), ("2.png", b"2"), ("2.txt", b"b")]
    )
    first, second = all_records(find_files(str(tmp_path), 9))
    assert first.fault == (Reason.TOO_LARGE, "more than 1 MB in one member of a shard; give it as a file")
    assert second.image == b"2"


def test_a_shard_that_is_one_sample_by_its_dots_is_not_held_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from biomedclip_ray.sources.own import shards

    monkeypatch.setattr(shards, "_MAX_HELD_BYTES", 1000)
    members = [(f"1.2.{n}.{kind}", f"{n}".encode() * 100) for n in range(10, 60) for kind in ("jpg", "txt")]
    shard(tmp_path / "a.tar", members)
    held = []
    let_go = shards._let_go
    monkeypatch.setattr(shards, "_let_go", lambda *a: (held.append(a[1].held), let_go(*a))[1])
    found = all_records(find_files(str(tmp_path), 9))
    assert [record.where for record in found] == [f"a.tar:1.2.{n}" for n in range(10, 60)]
    assert max(held) <= 1400


def test_lists_of_images_in_a_parquet_cell_are_so_many_pairs(tmp_path: Path) -> None:
    images = [
        [{"bytes": b"a0", "path": "a0.png"}, {"bytes": b"a1", "path": None}],
        [{"bytes": b"b", "path": None}],
        [],
        None,
    ]
    pq.write_table(pa.table({"images": images, "Caption": ["two", "one", "empty", "no list"]}), tmp_path / "a.parquet")
    found = all_records(find_files(str(tmp_path), 9))
    assert [(record.where, record.image, record.text, record.group) for record in found] == [
        ("a.parquet:0[0]", b"a0", "two", "a.parquet:0"),
        ("a.parquet:0[1]", b"a1", "two", "a.parquet:0"),
        ("a.parquet:1", b"b", "one", None),
        ("a.parquet:2", None, "empty", None),
        ("a.parquet:3", None, "no list", None),
    ]
    assert {record.fault for record in found[3:]} == {(Reason.MISSING_OBJECT, "the record has no image")}


@pytest.mark.parametrize("columns", [("image", "image2"), ("image_1", "image_2"), ("Img1 Path", "Img2 Path")])
def test_numbered_columns_of_images_are_so_many_pairs_of_one_group(tmp_path: Path, columns: tuple[str, str]) -> None:
    _files(tmp_path, "a.png", "b.png")
    (tmp_path / "m.csv").write_text(f"{columns[0]},{columns[1]},caption\na.png,b.png,Two views\n")
    assert pairs(tmp_path) == [(b"a.png", "Two views"), (b"b.png", "Two views")]
    assert {record.group for record in all_records(find_files(str(tmp_path), 9))} == {"m.csv:0"}


def test_as_many_texts_as_images_are_one_of_each_and_other_numbers_all_of_all(tmp_path: Path) -> None:
    images = [[b"a", b"b"], [b"c", b"d"], [b"e"]]
    texts = [["A", "B"], ["C"], ["E", "F"]]
    pq.write_table(pa.table({"images": images, "captions": texts}), tmp_path / "a.parquet")
    assert pairs(tmp_path) == [(b"a", "A"), (b"b", "B"), (b"c", "C"), (b"d", "C"), (b"e", "E"), (b"e", "F")]


def test_a_patient_has_one_group_whether_a_file_holds_a_number_a_float_or_a_text(tmp_path: Path) -> None:
    for name, patients in {"a": [1, 12], "b": [1.0, None], "c": ["001", " 12 "], "d": [b"1.0", b"nan"]}.items():
        columns = {"image": [b"x", b"y"], "text": ["x", "y"], "Patient ID": patients}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    found = all_records(find_files(str(tmp_path), 9))
    assert [record.group for record in found] == ["1", "12", "1", None, "1", "12", "1", None]


# Lists ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_datasets_imagefolder_with_its_metadata(tmp_path: Path, form: str) -> None:
    """https://huggingface.co/docs/datasets/image_dataset: one list in each folder, names seen from there."""
    rows = {
        "train": [
            {"file_name": "1.png", "text": "one", "id": "0012"},
            {"file_name": "deep/2.PNG", "text": "two", "id": "1e3"},
        ],
        "test": [{"file_name": "3.png", "text": "three", "id": "007"}],
    }
    _files(tmp_path, "train/1.png", "train/deep/2.PNG", "test/3.png")
    for split, lines in rows.items():
        path = tmp_path / split / f"metadata.{form}"
        if form == "jsonl":
            path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
        elif form == "csv":
            path.write_text("\n".join(",".join(map(str, line)) for line in [list(lines[0]), *map(dict.values, lines)]))
        else:
            pq.write_table(pa.Table.from_pylist(lines), path)
    files = find_files(str(tmp_path), 1)
    assert outcomes(files) == [b"test/3.png", b"train/1.png", b"train/deep/2.PNG"]
    found = all_records(files)
    assert [(record.text, record.id, record.split) for record in found] == [
        ("three", "007", "test"),
        ("one", "0012", "train"),
        ("two", "1e3", "train"),
    ]


def test_imagefolder_lists_several_images_in_three_ways(tmp_path: Path) -> None:
    _files(tmp_path, *(f"{n}.png" for n in range(6)))
    lines: list[dict[str, object]] = [
        {"file_names": ["0.png", "1.png"], "text": "a"},
        {"image_file_names": ["2.png", "3.png"], "text": "b"},
        {"left_file_name": "4.png", "right_file_name": "5.png", "text": "c"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    expected = [(f"{n}.png".encode(), "aabbcc"[n]) for n in range(6)]
    assert pairs(tmp_path) == expected
    assert [record.group for record in all_records(find_files(str(tmp_path), 9))] == [
        f"metadata.jsonl:{n // 2}" for n in range(6)
    ]


@pytest.mark.parametrize("delimiter", ["\t", ",", ";", "|"])
def test_open_clips_csv_with_absolute_paths(tmp_path: Path, delimiter: str) -> None:
    _files(tmp_path, "img/1.jpg", "img/2.jpg")
    rows = [("filepath", "title"), (f"{tmp_path}/img/1.jpg", "A lung"), (f"file://{tmp_path}/img/2.jpg", "NA")]
    rows += [("/elsewhere/3.jpg", "A liver")]
    (tmp_path / "train.csv").write_text("\n".join(delimiter.join(row) for row in rows))
    first, second, third = pairs(tmp_path)
    assert (first, second) == ((b"img/1.jpg", "A lung"), (b"img/2.jpg", ""))  # a word for nothing is no text
    assert "/elsewhere/3.jpg lies outside own.uri" in str(third[0])


def test_rocov2_names_images_by_ids_without_folder_and_ending(tmp_path: Path) -> None:
    for split, n in (("train", 1), ("valid", 2), ("test", 3)):
        _files(tmp_path, f"{split}/ROCOv2_2023_{split}_{n:06}.jpg")
        (tmp_path / f"{split}_captions.csv").write_text(f'ID,Caption\nROCOv2_2023_{split}_{n:06},"CT, of {split}"\n')
    files = find_files(str(tmp_path), 9)
    assert outcomes(files) == [
        f"{s}/ROCOv2_2023_{s}_{n:06}.jpg".encode() for s, n in (("test", 3), ("train", 1), ("valid", 2))
    ]
    assert [(r.text, r.split, r.id) for r in all_records(files)][2] == (
        "CT, of valid",
        "valid",
        "ROCOv2_2023_valid_000002",
    )


def test_an_image_is_found_by_what_people_leave_out_of_its_name(tmp_path: Path) -> None:
    composed = "Müller 1.png"
    _files(
        tmp_path,
        "a/1.PNG",
        "a/b/2.tif",
        "b/c.d.jpg",
        unicodedata.normalize("NFD", composed),
        "x/my fig.jpg",
        "x/9.jpg",
        "y/9.jpg",
    )
    names = ["A/1.png", "a\\b\\2.tif", "c.d", composed, "x/my%20fig.jpg", "2.TIF", "./b/c.d.jpg"]
    wrong = {"9": "9 may be any of x/9.jpg, y/9.jpg", "b/1.png": "b/1.png", "c": "c", "d.jpg": "d.jpg"}
    lines = [json.dumps({"image": name, "text": name}) for name in (*names, *wrong)]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    found = [image for image, _ in pairs(tmp_path)]
    right = [
        "a/1.PNG",
        "a/b/2.tif",
        "b/c.d.jpg",
        unicodedata.normalize("NFD", composed),
        "x/my fig.jpg",
        "a/b/2.tif",
        "b/c.d.jpg",
    ]
    assert found[:7] == [name.encode() for name in right]
    assert found[7:] == list(wrong.values())


@pytest.mark.parametrize(
    ("header", "texts"),
    [("Image_Path,CAPTION,Patient-ID", "p"), ("imgPath,Title,subject_id", "p"), ("FILE NAME,Report,group", "p")],
)
def test_names_of_columns_are_compared_without_case_and_signs(tmp_path: Path, header: str, texts: str) -> None:
    (tmp_path / "a.csv").write_text(f"\ufeff{header}\n1.png,words,p\n", encoding="utf-8")
    [record] = all_records(find_files(str(tmp_path), 9))
    assert (record.image, record.text, record.group) == ("1.png", "words", texts)


def test_own_columns_names_what_no_list_knows(tmp_path: Path) -> None:
    _files(tmp_path, "1.png")
    (tmp_path / "a.csv").write_text("bild;befund;text\n1.png;Lunge frei;unused\n")
    assert pairs(tmp_path, image="bild", text="befund") == [(b"1.png", "Lunge frei")]
    with pytest.raises(
        ConfigError, match=r"own.columns.text=report: a.csv has no such column; it has bild, befund, text"
    ):
        find_files(str(tmp_path), 9, {"image": "bild", "text": "report"})
    with pytest.raises(
        ConfigError, match=r"no column of images .* it has bild, befund, text; name one by own.columns.image"
    ):
        find_files(str(tmp_path), 9)


def test_titles_that_begin_with_a_quote_swallow_no_rows_of_a_file_without_quotes(tmp_path: Path) -> None:
    lines = ["filepath\ttitle", '1.png\t"Ground glass" in the lung', "2.png\tplain", '3.png\t"Open', '4.png\t5" wide']
    (tmp_path / "a.tsv").write_text("\n".join(lines) + "\n")
    files = find_files(str(tmp_path), 3)
    assert [(r.image, r.text) for r in all_records(files)] == [tuple(line.split("\t")) for line in lines[1:]]
    assert [(piece.first, piece.last) for piece in files.pieces] == [(0, 3), (3, 4)]
    (tmp_path / "a.tsv").write_text('filepath\ttitle\n1.png\t"two\nlines ""here"""\n2.png\tplain\n')
    assert [r.text for r in all_records(find_files(str(tmp_path), 1))] == ['two\nlines "here"', "plain"]


def test_each_piece_of_a_list_begins_where_the_last_one_ended(tmp_path: Path) -> None:
    rows = [f'{n}.png,"Zeile {n}\nmit ü, und ""so"""\r\n' for n in range(50)]
    (tmp_path / "a.csv").write_text("image,text\r\n" + "\r\n".join(rows), encoding="utf-8-sig", newline="")
    files = find_files(str(tmp_path), 7)
    assert len(files.pieces) == 8
    assert [r.text for r in all_records(files)] == [f'Zeile {n}\nmit ü, und "so"' for n in range(50)]
    assert [r.where for r in all_records(files)] == [f"a.csv:{n}" for n in range(50)]


def test_a_broken_line_of_json_is_one_ledger_row(tmp_path: Path) -> None:
    lines = [b'{"image": "1.png", "text": "one"}', b'{"image": ', b"[1]", b'{"text": "\xff"}', b'{"text": "no image"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*lines, b'{"image": "2.png", "text": "two", "mask_x": 1}']))
    found = all_records(find_files(str(tmp_path), 2))
    assert [(r.where, r.image) for r in found if r.fault is None] == [("a.jsonl:0", "1.png"), ("a.jsonl:5", "2.png")]
    assert [r.fault[0] for r in found if r.fault] == [Reason.BROKEN_FILE] * 3 + [Reason.MISSING_OBJECT]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("normal/1.png", "pneumonia/2.jpeg"),
            "holds images in folders (normal, pneumonia), and a folder's name is no text: write",
        ),
        (("1.png", "2.png"), "holds images without a list, and a folder's name is no text: write metadata.csv"),
        (("1.jpg", "1.txt"), "pack them as one shard: tar --sort=name -cf pairs.tar *"),
        (
            ("data.arrow", "state.json"),
            "holds none of .parquet, .tar, .tar.gz, .tgz, .csv, .tsv, .jsonl, .ndjson; .arrow: write the",
        ),
        (("pairs.zip",), ".zip: unpack it"),
    ],
)
def test_what_is_no_form_is_refused_with_the_way_out(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    _files(tmp_path, *names)
    with pytest.raises(ConfigError) as error:
        find_files(str(tmp_path), 9)
    assert message in str(error.value)


def test_a_file_called_test_is_no_split_by_itself(tmp_path: Path) -> None:
    (tmp_path / "test-scans.csv").write_text("image,text\n1.png,a\n")
    assert [r.split for r in all_records(find_files(str(tmp_path), 9))] == [None]
    (tmp_path / "train-scans.csv").write_text("image,text,split\n1.png,a,\n2.png,b,val\n")
    assert [r.split for r in all_records(find_files(str(tmp_path), 9))] == ["test", "train", "val"]
