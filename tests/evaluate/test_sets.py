"""Reading labelled sets: every layout gives the same rows, and every mistake is one line with set, file,
row and fix.
"""

import csv
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from biomedclip_ray.clip.encoder import Encoder
from biomedclip_ray.config import ConfigError, Evaluate
from biomedclip_ray.evaluate import readers
from biomedclip_ray.evaluate.bundles import Asked
from biomedclip_ray.evaluate.registry import KNOWN
from biomedclip_ray.evaluate.sets import LabelledSet, load_set, load_sets
from biomedclip_ray.images.image import as_pillow


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(as_pillow(data).convert("RGB"))


def content(found: LabelledSet, table: str) -> list[tuple[int, bytes]]:
    """Labels and pixels of a table, in an order that does not depend on the layout."""
    samples = found.tables[table]
    images = samples.images.fetch(0, len(samples.ids))
    return sorted((int(label), decoded(data).tobytes()) for label, data in zip(samples.labels, images, strict=True))


def as_csv(folder, about, splits) -> None:
    for split, rows in splits.items():
        (folder / split).mkdir()
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "label", "group"])
            for number, (image, label, group) in enumerate(rows):
                (folder / split / f"{number}.png").write_bytes(image)
                writer.writerow([f"{split}/{number}.png", label, group or ""])


def as_image_folder(folder, about, splits) -> None:
    for split, rows in splits.items():
        for number, (image, label, _) in enumerate(rows):
            place = folder / split / label
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number:04}.png").write_bytes(image)


def as_dicom_folder(folder, about, splits) -> None:
    """As hospitals have them: uncompressed DICOM files, a folder a class."""
    for split, rows in splits.items():
        for number, (image, label, _) in enumerate(rows):
            place = folder / split / label
            place.mkdir(parents=True, exist_ok=True)
            write_dicom(place / f"{number:04}.dcm", decoded(image))


def write_dicom(path, pixels) -> None:
    pydicom = pytest.importorskip("pydicom")
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    file.Rows, file.Columns = pixels.shape[:2]
    file.SamplesPerPixel, file.PhotometricInterpretation, file.PlanarConfiguration = 3, "RGB", 0
    file.BitsAllocated = file.BitsStored = 8
    file.HighBit, file.PixelRepresentation = 7, 0
    file.PixelData = pixels.tobytes()
    file.save_as(path, enforce_file_format=True)


def as_struct(folder, about, splits) -> None:
    for split, rows in splits.items():
        images, labels, groups = zip(*rows, strict=True)
        table = {"image": [{"bytes": image, "path": None} for image in images], "label": labels, "group": groups}
        pq.write_table(pa.table(table), folder / f"{split}.parquet", row_group_size=7)


def as_arrays(rows, classes):
    return np.stack([decoded(image) for image, *_ in rows]), np.array([[classes.index(label)] for _, label, _ in rows])


def as_medmnist(folder, about, splits) -> None:
    arrays = {}
    for split, rows in splits.items():
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = as_arrays(rows, about["classes"])
    np.savez(folder / "tiny.npz", **arrays)


def as_h5(folder, about, splits) -> None:
    h5py = pytest.importorskip("h5py")
    for split, rows in splits.items():
        with h5py.File(folder / f"{split}.h5", "w") as file:
            file["x"], file["y"] = as_arrays(rows, about["classes"])


def as_webdataset(folder, about, splits) -> None:
    for split, rows in splits.items():
        with tarfile.open(folder / f"{split}-000.tar", "w") as archive:
            for number, (image, label, _) in enumerate(rows):
                for ending, data in (("png", image), ("cls", str(about["classes"].index(label)).encode())):
                    member = tarfile.TarInfo(f"{number:04}.{ending}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


def as_coco(folder, about, splits) -> None:
    for split, rows in splits.items():
        (folder / split).mkdir()
        images, annotations = [], []
        for number, (image, label, _) in enumerate(rows):
            (folder / split / f"{number}.png").write_bytes(image)
            images.append({"id": number, "file_name": f"{number}.png"})
            annotations.append({"image_id": number, "category_id": about["classes"].index(label)})
        categories = [{"id": number, "name": name} for number, name in enumerate(about["classes"])]
        whole = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(whole))


LAYOUTS = {
    "csv": as_csv,
    "image_folder": as_image_folder,
    "dicom": as_dicom_folder,
    "parquet": as_struct,
    "medmnist": as_medmnist,
    "h5": as_h5,
    "webdataset": as_webdataset,
    "coco": as_coco,
}


LAYOUT_OF = {"dicom": "image_folder"}
FORMS = [name for name in LAYOUTS if name not in ("medmnist", "h5")]  # whose images may differ in size


def rows_of(folder, splits=("train", "test")):
    tables = {split: pq.read_table(folder / f"{split}.parquet").to_pylist() for split in splits}
    return {split: [(row["image"], row["label"], row["group"]) for row in rows] for split, rows in tables.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_holds_the_same_labels_and_pixels(layout, make_set, about, tmp_path):
    source = make_set()
    other = tmp_path / layout
    other.mkdir()
    LAYOUTS[layout](other, about, rows_of(source))
    (other / "dataset.json").write_text(json.dumps(about | {"layout": LAYOUT_OF.get(layout, layout)}))
    found, expected = load_set(str(other)), load_set(str(source))
    for table in ("train", "test"):
        assert content(found, table) == content(expected, table)
    assert found.files.keys() - {"dataset.json"}


@pytest.mark.parametrize(
    ("name", "layout"),
    [*(("bccd_cells", layout) for layout in FORMS), *(("pneumonia_mnist", layout) for layout in LAYOUTS)],
)
def test_the_real_sets_in_every_form(name, layout, eval_sets, tmp_path):
    about = json.loads((eval_sets / name / "dataset.json").read_text())
    LAYOUTS[layout](tmp_path, about, rows_of(eval_sets / name, ("test",)))
    (tmp_path / "dataset.json").write_text(json.dumps(about | {"layout": LAYOUT_OF.get(layout, layout)}))
    assert content(load_set(str(tmp_path)), "test") == content(load_set(str(eval_sets / name)), "test")


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "csv"])
def test_a_real_set_in_every_form_gives_the_same_figures(layout, eval_sets, bundles, tmp_path):
    source = eval_sets / "pneumonia_mnist"
    about = json.loads((source / "dataset.json").read_text()) | {"rows": {}}
    rows = {split: found[::12] for split, found in rows_of(source).items()}
    found = []
    for form in ("csv", layout):
        folder = tmp_path / f"as {form}"
        folder.mkdir(exist_ok=True)
        LAYOUTS[form](folder, about, rows)
        (folder / "dataset.json").write_text(json.dumps(about | {"layout": LAYOUT_OF.get(form, form)}))
        asked = Asked(Encoder.load(bundles[0]), [load_set(str(folder))], str(tmp_path / form), Evaluate(bootstraps=20))
        found.append(asked.first()["pneumonia_mnist"]["zero_shot"])
    assert found[0]["accuracy"]["value"] == found[1]["accuracy"]["value"]
    assert found[0]["auroc"]["value"] == pytest.approx(found[1]["auroc"]["value"], abs=1e-12)


def test_the_readings_of_the_real_sets(eval_sets):
    cells, questions = load_set(str(eval_sets / "bccd_cells")), load_set(str(eval_sets / "vqa_rad"))
    assert (len(cells.tables["train"].ids), len(cells.tables["test"].ids)) == (360, 180)
    assert cells.tables["test"].grouped
    assert questions.questions["test"].num_rows == 451
    assert set(questions.questions["test"]["answer_type"].to_pylist()) == {"open", "closed"}


def vqa_set(folder, image: bytes, rows: list[dict]) -> LabelledSet:
    folder.mkdir(exist_ok=True)
    about = {"name": "q", "task": "vqa", "images": "images.parquet", "splits": {"one": {"test": "test.parquet"}}}
    (folder / "dataset.json").write_text(json.dumps(about))
    pq.write_table(pa.table({"image_id": ["a", "b"], "image": [image, image]}), folder / "images.parquet")
    pq.write_table(pa.Table.from_pylist(rows), folder / "test.parquet")
    return load_set(str(folder))


def asked(number: int, image: str, kind: str, **more) -> dict:
    row = {"question_id": f"q{number}", "image_id": image, "question": "is it?", "answer": "Yes", "answer_type": kind}
    return row | {"group": None, "question_type": " PRES"} | more


def test_questions_are_read_as_vqa_rad_and_slake_are_passed_around(make_set, tmp_path):
    image = rows_of(make_set())["test"][0][0]
    rows = [asked(0, "a", "CLOSED"), asked(1, "a", "OPEN "), asked(2, "b", "closed", group="patient 1", answer="no ")]
    found = vqa_set(tmp_path / "q", image, rows).questions["test"]
    assert found["answer_type"].to_pylist() == ["closed", "open", "closed"]
    assert found["group"].to_pylist() == ["image a", "image a", "group patient 1"]
    assert set(found["question_type"].to_pylist()) == {"pres"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (asked(1, "a", "yes/no"), r"test\.parquet, row 1: answer_type 'yes/no'; known: open, closed"),
        (asked(1, "c", "open"), r"row 1: image_id 'c' is not among the images; add it or leave the row out"),
        (asked(1, "a", "open", answer=None), r"test\.parquet, row 1: answer is null; fill it or leave the row out"),
    ],
)
def test_a_question_that_cannot_be_asked_names_its_row(row, message, make_set, tmp_path):
    image = rows_of(make_set())["test"][0][0]
    with pytest.raises(ConfigError, match=message):
        vqa_set(tmp_path / "q", image, [asked(0, "a", "closed"), row])


def test_text_in_a_csv_stays_what_it_is(make_set, about, tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    image = rows_of(make_set())["test"][0][0]
    prompts = {"templates": ["{}"], "class_names": {"NA": ["none"], "007": ["seven"]}}
    changed = {"classes": ["NA", "007"], "prompts": prompts, "layout": "csv"}
    (folder / "dataset.json").write_text(json.dumps(about | changed))
    (folder / "a.png").write_bytes(image)
    (folder / "test.csv").write_text("image,label\na.png,NA\na.png,007\n")
    assert load_set(str(folder)).tables["test"].labels.tolist() == [0, 1]


def test_train_may_be_absent_and_test_may_not(make_set):
    folder = make_set()
    (folder / "train.parquet").unlink()
    assert list(load_set(str(folder)).tables) == ["test"]
    (folder / "test.parquet").unlink()
    with pytest.raises(ConfigError, match=r"tiny: has no test table"):
        load_set(str(folder))


def prompts(**changed):
    names = {"cell": ["cell"], "gel": ["gel"], "chart": ["chart"]}
    return {"prompts": {"templates": ["a {}"], "class_names": names} | changed}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"task": "segmentation"}, r"dataset\.json: task 'segmentation'; known: classification"),
        ({"classes": ["cell", "gel"]}, r"label 'chart' is no class; add it to classes or mend the row"),
        ({"classes": ["cell", "gel", "chart", "gel"]}, r"class 'gel' stands twice"),
        (prompts(class_names={"cell": ["a"], "gel": ["b"]}), r"class 'chart' has no name in prompts\.class_names"),
        (
            prompts(class_names={"cell": "cell", "gel": ["b"], "chart": ["c"]}),
            r'is the text \'cell\'; write \["cell"\]',
        ),
        (prompts(class_names={"cell": [], "gel": ["b"], "chart": ["c"]}), r"cell must be a list of texts"),
        (prompts(templates=["a photo"]), r"'a photo' has no \{\} where the class name goes"),
        (prompts(templates="a {}"), r"templates must be a list"),
        ({"prompts": None}, r"no prompts; add"),
        ({"layout": "zip"}, r"layout 'zip'; known: parquet, csv"),
    ],
)
def test_a_mistake_in_dataset_json_is_a_line_with_the_fix(changed, message, make_set):
    with pytest.raises(ConfigError, match=message) as error:
        load_set(str(make_set(**changed)))
    assert "\n" not in str(error.value) and "tiny" in str(error.value)


def test_broken_json_names_the_file_and_the_place(make_set):
    folder = make_set()
    (folder / "dataset.json").write_text('{"name": ')
    with pytest.raises(ConfigError, match=r"tiny: dataset\.json is not JSON: .*char 9"):
        load_set(str(folder))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([["cell"], ["gel"]], r"test\.parquet, row 0 \(0\): label \['cell'\] is a list"),
        ([0, 1], r'test\.parquet, row 0 \(0\): label 0 is no text; .*"labels": "numbers"'),
        (["cell", None], r"test\.parquet, row 1: label is null"),
        ([], r"test\.parquet: the test table is empty"),
    ],
)
def test_labels_that_are_no_classes_name_the_row(labels, message, make_set):
    folder = make_set()
    image = pq.read_table(folder / "test.parquet")["image"][0].as_py()
    kind = pa.string() if not labels else None
    table = pa.table({"image": pa.array([image] * len(labels), pa.binary()), "label": pa.array(labels, kind)})
    pq.write_table(table, folder / "test.parquet")
    with pytest.raises(ConfigError, match=message):
        load_set(str(folder))


def test_numbers_are_labels_where_dataset_json_says_so(make_set):
    folder = make_set(labels="numbers")
    table = pq.read_table(folder / "test.parquet")
    numbered = table.set_column(1, "label", pa.array([i % 3 for i in range(table.num_rows)]))
    pq.write_table(numbered, folder / "test.parquet")
    (folder / "train.parquet").unlink()
    assert load_set(str(folder)).tables["test"].labels.tolist() == [i % 3 for i in range(30)]


def test_a_row_group_that_no_worker_can_hold_says_how_to_write_it(make_set, monkeypatch):
    folder = make_set()
    monkeypatch.setattr(readers, "MOST_OF_A_GROUP", 20_000)
    with pytest.raises(ConfigError, match=r"train\.parquet: row group 0 holds .* GB of images, .*row_group_size=1000"):
        load_set(str(folder))
    for name in ("train.parquet", "test.parquet"):
        pq.write_table(pq.read_table(folder / name), folder / name, row_group_size=5)
    assert len(load_set(str(folder)).tables["test"].ids) == 30


def test_two_sets_of_one_name_are_refused(make_set):
    folders = [make_set(), make_set("again")]
    with pytest.raises(ConfigError, match=r"2 sets are named 'tiny' \(.*tiny, .*again\); give each a name of its own"):
        load_sets([str(folder) for folder in folders])


def test_a_missing_file_of_a_known_set_says_what_to_put_there(tmp_path):
    folder = tmp_path / "PCAM"
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"holds no dataset\.json; get it from .*pcam and put test\.h5"):
        load_set(str(folder))


def test_another_count_than_stated_is_a_warning(make_set, about):
    folder = make_set()
    (folder / "dataset.json").write_text(json.dumps(about | {"rows": {"train": 30, "test": 600}}))
    assert load_set(str(folder)).warnings == ["test holds 30 rows, 600 are stated"]


def test_whose_prompts_and_images_they_are_stands_beside_the_figures(make_set, about):
    folder = make_set()
    said = {"specialty": "cytology", "source": "a paper", "licence": "CC BY 4.0"}
    prompts = about["prompts"] | {"source": "another"}
    (folder / "dataset.json").write_text(json.dumps(about | said | {"prompts": prompts}))
    assert said | {"prompts_from": "another"} == load_set(str(folder)).stated
    assert (load_set(str(folder)).about().items()) >= said.items()


def test_another_count_of_a_class_is_a_warning_that_names_it(make_set, about):
    folder = make_set()
    stated = {"test": {"cell": 10, "gel": 12, "chart": 10, "total": 32}, "train": {"cell": 10, "gel": 10, "chart": 10}}
    (folder / "dataset.json").write_text(json.dumps(about | {"counts": stated}))
    found = load_set(str(folder))
    assert found.warnings == ["test holds 30 rows, 32 are stated", "test holds 10 rows of gel, 12 are stated"]
    assert found.about()["warnings"] == found.warnings
    (folder / "dataset.json").write_text(json.dumps(about | {"name": "LC25000_Lung"}))
    assert "test holds classes of 10, 10, 10 rows, 5000, 5000, 5000 are stated" in load_set(str(folder)).warnings


def test_the_registry_adds_up():
    for name, known in KNOWN.items():
        for split, sizes in known.each.items():
            assert len(sizes) == known.classes, name
            assert sum(sizes) == known.rows.get(split, sum(sizes)), name
        if "medpmc-clip-eval" in known.lists or "UniMed-CLIP" in known.lists:
            assert known.prompts, name


def test_another_number_of_classes_than_a_set_is_known_for_is_a_warning(make_set, about):
    folder = make_set()
    (folder / "dataset.json").write_text(json.dumps(about | {"name": "BACH"}))
    assert load_set(str(folder)).warnings == ["3 classes, 4 are stated"]


def test_the_lists_of_papers_are_whole():
    assert sum("UniMed-CLIP" in known.lists for known in KNOWN.values()) == 23
    assert sum("medpmc-clip-eval" in known.lists for known in KNOWN.values()) == 26
    assert sum("BiomedCLIP" in known.lists for known in KNOWN.values()) == 5
