"""Slips in the files of a set: each is one line with set, file, row and fix, before anything is encoded."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from biomedclip_ray.config import ConfigError
from biomedclip_ray.evaluate.sets import LabelledSet, load_set
from tests.evaluate.conftest import CLASSES, pixels, png

IMAGES = [png(pixels(i % 3, i)) for i in range(6)]
NAMES = [CLASSES[i % 3] for i in range(6)]
PIXELS, NUMBERS = np.stack([pixels(i % 3, i) for i in range(6)]), np.array([[i % 3] for i in range(6)])


@pytest.fixture
def write(tmp_path: Path, about: dict[str, Any]) -> Callable[..., Path]:
    """A folder named `bad` with dataset.json; keywords change it."""

    def folder(**changed: Any) -> Path:
        out = tmp_path / "bad"
        out.mkdir()
        (out / "dataset.json").write_text(json.dumps(about | changed))
        return out

    return folder


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        load_set(str(folder))
    assert "\n" not in str(error.value) and f"{folder}:" in str(error.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"layout": ["csv"]}, r'dataset\.json: layout is \["csv"\]; a text is wanted'),
        ({"files": ["test.parquet"]}, r'files is \["test\.parquet"\]; \{SPLIT: FILE\} is wanted'),
        ({"files": {"test": "other.parquet"}}, r"holds no other\.parquet, which dataset\.json names in files\.test"),
        ({"counts": [30]}, r"counts is \[30\]; \{SPLIT: NUMBER\} or"),
        ({"counts": {"test": {"cell": "10"}}}, r'counts is .*"10".*; \{SPLIT: NUMBER\} or'),
        ({"labels": "number"}, r'labels is "number"; "numbers", or nothing'),
        ({"classes": None, "layout": "medmnist"}, r"classes must be a list of texts"),
    ],
)
def test_a_key_of_another_kind(changed, message, write):
    refused(write(**changed), message)


def test_a_missing_set_names_what_is_missing_and_no_json_error(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere: holds no dataset\.json; write one, or mend the path"):
        load_set(str(tmp_path / "nowhere"))


def test_a_missing_table_of_a_known_set_says_what_to_put_there(write):
    refused(write(name="PCAM", layout="h5"), r"has no test table; get it from .*pcam and put test\.h5")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([3] * 6, r"test\.parquet: column image holds int64; write each image's encoded bytes, its path"),
        ([[image] for image in IMAGES], r"column image holds list"),
        ([{"data": image} for image in IMAGES], r"column image holds struct"),
    ],
)
def test_an_image_column_without_images(column, message, write):
    folder = write()
    pq.write_table(pa.table({"image": column, "label": NAMES}), folder / "test.parquet")
    refused(folder, message)


def test_an_image_column_may_hold_paths(write):
    folder = write()
    for number, image in enumerate(IMAGES):
        (folder / f"{number}.png").write_bytes(image)
    paths = ["0.png", "1.png", "none.png", "", ".", "5.png"]
    pq.write_table(pa.table({"image": paths, "label": NAMES}), folder / "test.parquet")
    found = load_set(str(folder)).tables["test"].images.fetch(0, 6)
    assert found == [IMAGES[0], IMAGES[1], None, None, None, IMAGES[5]]


OPTIONS = {"image": IMAGES, "options": [CLASSES] * 6, "answer": NAMES}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"options": None}, r"test\.parquet has no column options; a list of texts"),
        ({"options": [None, *[CLASSES] * 5]}, r"test\.parquet, row 0 \(0\): options None must be a list of texts"),
        ({"options": ["cell|gel|chart"] * 6}, r"row 0 \(0\): options 'cell\|gel\|chart' must be a list of texts"),
        ({"options": [[1, 2]] * 6}, r"options \[1, 2\] must be a list of texts"),
        ({"options": [[name] for name in NAMES]}, r"options \['cell'\] must be two or more"),
        ({"options": [["cell", *CLASSES]] * 6}, r"none of them twice"),
        ({"answer": [*NAMES[:5], "x"]}, r"row 5 \(5\): answer 'x' is none of its options"),
    ],
)
def test_options_that_cannot_be_asked(changed, message, write):
    folder = write(task="options")
    columns = {key: value for key, value in (OPTIONS | changed).items() if value is not None}
    pq.write_table(pa.table(columns), folder / "test.parquet")
    refused(folder, message)


LINES = "image,label\n" + "".join(f"{number}.png,{name}\n" for number, name in enumerate(NAMES))


def as_csv(folder: Path, text: str) -> Path:
    (folder / "test.csv").write_text(text)
    return folder


def test_blank_lines_of_a_csv_are_no_rows(write):
    folder = as_csv(write(layout="csv"), LINES.replace("\n", "\n\n"))
    assert len(load_set(str(folder)).tables["test"].ids) == 6


def test_a_line_of_a_csv_is_counted_as_an_editor_counts_it(write):
    text = LINES.replace("0.png", '"0\n.png"') + "7.png\n"
    refused(as_csv(write(layout="csv"), text), r"test\.csv, line 9: 1 cells where the first line has 2")


def samples(*changed: tuple[str, bytes]) -> list[tuple[str, bytes]]:
    out = [(f"a/{n}.{end}", data) for n in range(5) for end, data in (("png", IMAGES[n]), ("cls", b"%d" % (n % 3)))]
    return [*out, ("b/0.png", IMAGES[5]), ("b/._0.png", b"mac"), *changed]


def as_tar(folder: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(folder / "test-0.tar", "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return folder


def test_samples_of_a_webdataset_may_share_a_name_in_two_folders(write):
    found = load_set(str(as_tar(write(layout="webdataset"), samples(("b/0.cls", b"2"))))).tables["test"]
    assert found.ids == [*(f"test-0.tar/a/{n}" for n in range(5)), "test-0.tar/b/0"]
    assert found.images.fetch(5, 6) == [IMAGES[5]]


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (("b/0.json", b"{"), r"test-0\.tar/b/0\.json is not JSON: .*; mend it there"),
        (("b/0.json", b"[1]"), r"test-0\.tar/b/0\.json: a JSON object is wanted, not \[1\]"),
        (("b/0.txt", b"\xe9"), r"test-0\.tar/b/0\.txt is not UTF-8 \(byte 0\); save it as UTF-8"),
        (("b/0.json", b'{"label": null}'), r"test-0\.tar, row 5 \(test-0\.tar/b/0\): label None is no text"),
    ],
)
def test_a_sample_of_a_webdataset_that_cannot_be_read(member, message, write):
    refused(as_tar(write(layout="webdataset"), samples(member)), message)


@pytest.mark.parametrize("data", [b"junk" * 1000, None])
def test_a_tar_file_that_is_none_or_cut_short(data, write):
    file = as_tar(write(layout="webdataset"), samples(("b/0.cls", b"2"))) / "test-0.tar"
    file.write_bytes(data or file.read_bytes()[: 3 * 512 + 100])
    refused(file.parent, r"test-0\.tar is no plain tar file, or cut short \(.*\); write it again")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (PIXELS, np.where(NUMBERS == 2, np.nan, NUMBERS), r"tiny\.npz, row 2: label nan of 3 classes"),
        (PIXELS, NUMBERS + 0.5, r"row 0: label 0\.5 of 3 classes, which count from 0"),
        (PIXELS, NUMBERS + 1, r"row 2: label 3 of 3 classes"),
        (PIXELS, np.array([NAMES]).T, r"row 0: label cell of 3 classes"),
        (PIXELS, np.eye(3, dtype=int)[NUMBERS[:, 0]], r"labels of \(6, 3\); the number of one class is wanted"),
        (PIXELS.transpose(0, 3, 1, 2), NUMBERS, r"images of uint8 \(6, 3, 24, 24\); uint8 \(n, h, w\) or"),
        (PIXELS[:0], NUMBERS[:0], r"tiny\.npz: the test table is empty"),
    ],
)
def test_arrays_that_are_no_images_and_classes(images, labels, message, write):
    folder = write(layout="medmnist")
    np.savez(folder / "tiny.npz", test_images=images, test_labels=labels)
    refused(folder, message)


def test_many_labels_of_an_array_are_one_for_each_class(write, about):
    prompts = about["prompts"] | {"negative_names": {name: [f"no {name}"] for name in CLASSES}}
    folder = write(layout="medmnist", task="multilabel", prompts=prompts)
    np.savez(folder / "tiny.npz", test_images=PIXELS, test_labels=np.eye(4, dtype=int)[NUMBERS[:, 0]])
    refused(folder, r"tiny\.npz: labels of \(6, 4\); a 0 or 1 for each of 3 classes is wanted in a row")


COCO: dict[str, list[Any]] = {
    "images": [{"id": n, "file_name": f"{n}.png"} for n in range(6)],
    "annotations": [{"image_id": n, "category_id": n % 3} for n in range(6)],
    "categories": [{"id": n, "name": name} for n, name in enumerate(CLASSES)],
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ([1], r"test\.json: a JSON object is wanted"),
        ({"annotations": [{"image_id": 9, "category_id": 1}]}, r"annotation 0: image id 9 is none of the file's"),
        ({"annotations": [{"image_id": 1, "category_id": 9}]}, r"annotation 0: category id 9 is none of the file's"),
        ({"images": [*COCO["images"], COCO["images"][2]]}, r"image id 2 stands twice in images"),
        ({"annotations": [7]}, r"is no COCO file \(images, annotations, categories\)"),
    ],
)
def test_a_coco_file_that_does_not_fit_together(changed, message, write):
    folder = write(layout="coco")
    (folder / "test.json").write_text(json.dumps(COCO | changed if isinstance(changed, dict) else changed))
    refused(folder, message)


def vqa(folder: Path, **changed: Any) -> Path:
    asked = {
        "question_id": list("abcdef"),
        "image_id": list("abcdef"),
        "question": ["is it?"] * 6,
        "answer": ["no"] * 6,
    }
    for name in ("train", "test"):
        table = pa.table(asked | {"answer_type": ["closed"] * 6} | (changed if name == "test" else {}))
        pq.write_table(table, folder / f"{name}.parquet")
    pq.write_table(pa.table({"image_id": list("abcdef"), "image": IMAGES}), folder / "images.parquet")
    return folder


VQA = {"task": "vqa", "images": "images.parquet", "splits": {"one": {"train": "train.parquet", "test": "test.parquet"}}}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"splits": ["one"]}, r'splits is \["one"\]; \{SPLIT: \{train: FILE, test: FILE\}\} is wanted'),
        ({"splits": {"one": "test.parquet"}}, r"\{SPLIT: \{train: FILE, test: FILE\}\} is wanted"),
        ({"splits": {}}, r"splits is \{\}; "),
        ({"images": None}, r"a vqa set needs images: FILE"),
        ({"images": "train.parquet"}, r"train\.parquet has no column image; it has question_id"),
        ({"splits": {"one": {"test": "dataset.json"}}}, r"dataset\.json is no Parquet file, or cut short"),
        ({"splits": {"one": {"test": "no.parquet"}}}, r"holds no no\.parquet; put it there"),
    ],
)
def test_splits_of_questions_that_cannot_be_read(changed, message, write):
    refused(vqa(write(**(VQA | changed))), message)


def test_two_questions_of_one_id_name_their_rows(write):
    refused(vqa(write(**VQA), question_id=list("abcdea")), r"test\.parquet, row 5: question_id 'a' stands in row 0 too")


def test_images_of_questions_bear_ids(write):
    folder = vqa(write(**VQA))
    pq.write_table(pa.table({"image": IMAGES}), folder / "images.parquet")
    refused(folder, r"images\.parquet has no column image_id; it has image")


def test_another_count_of_questions_is_a_warning(write):
    found: LabelledSet = load_set(str(vqa(write(**VQA, counts={"test": {"questions": 7}, "images": 6}))))
    assert found.warnings == ["test holds 6 questions, 7 are stated"]


def test_a_caption_that_is_a_number_names_its_row(write):
    folder = write(task="retrieval")
    pq.write_table(pa.table({"image": IMAGES, "text": list(range(5, 11))}), folder / "test.parquet")
    refused(folder, r"test\.parquet, row 0: text 5 must be a text or a list of texts, not empty")
