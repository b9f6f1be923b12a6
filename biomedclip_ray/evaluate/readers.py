"""The forms that labelled sets come in. Each reader gives the rows of one split, and a way to fetch its images by place.

dataset.json says `layout` (Parquet where it does not); everything else has a usual place that dataset.json may change:

- parquet: SPLIT.parquet with image (bytes, or Hugging Face's struct of bytes and path), label, and optionally id and group
- csv: SPLIT.csv with image (a path from the folder), label, id, group; every cell is text ("NA" and "007" stay what they are)
- image_folder: SPLIT/CLASS/any name
- medmnist: NAME.npz with SPLIT_images and SPLIT_labels ("val" for validation)
- h5: SPLIT.h5 with the arrays x and y
- webdataset: SPLIT*.tar, KEY.jpg or .png beside KEY.cls (a number or a name), KEY.txt or KEY.json
- coco: SPLIT.json with images, annotations and categories, files below SPLIT/
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from biomedclip_ray.store.place import Place

QUESTIONS = ("question_id", "image_id", "question", "answer", "answer_type")
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".tif", ".tiff", ".webp", ".bmp")


class SetError(ValueError):
    """What is wrong with a set: file, row and what to do; the caller adds the set."""


Fetch = Callable[[int, int], list[bytes | None]]


@dataclass(frozen=True)
class Images:
    """The images of one table, read where they are wanted."""

    count: int
    fetch: Fetch
    """(start, stop) -> the files' bytes; None where a row has none."""

    def parts(self, size: int) -> Iterator[tuple[int, list[bytes | None]]]:
        """The images in order, `size` at a time, each with the number of its first."""
        for start in range(0, self.count, size):
            yield start, self.fetch(start, min(start + size, self.count))


@dataclass(frozen=True)
class Raw:
    """One split as its files hold it."""

    file: str
    ids: list[str]
    values: list[Any]
    groups: list[str | None]
    images: Images
    options: list[list[str]] = field(default_factory=list)


def read_split(
    place: Place, about: dict[str, Any], split: str, files: dict[str, str], value: str | None = None
) -> Raw | None:
    """The rows of a split; None where the set has none.

    Args:
        about: dataset.json.
        files: takes the hash of each file read.
        value: the column that holds the answer (usual: what the task asks for).

    Raises:
        SetError: a layout that is not known, or a file that is not what it should be.
    """
    layout = about.get("layout", "parquet")
    if layout not in _LAYOUTS:
        raise SetError(f"dataset.json: layout {layout!r}; known: {', '.join(_LAYOUTS)}")
    column = value or {"classification": "label", "multilabel": "labels", "options": "answer"}[about["task"]]
    return _LAYOUTS[layout](place, about, split, files, column)


def read_table(place: Place, name: str, files: dict[str, str], id_column: str = "id", value: str | None = None) -> Raw:
    """A Parquet file with an image column. Raises SetError."""
    try:
        data = place.read(name)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SetError(f"holds no {name}") from error
    files[name] = hashlib.sha256(data).hexdigest()
    del data
    try:
        source = pq.ParquetFile(place.open(name))
    except pa.ArrowInvalid as error:
        raise SetError(f"{name} is no Parquet file: {error}") from error
    columns = source.schema_arrow.names
    wanted = [column for column in ("image", value) if column]
    for column in wanted:
        if column not in columns:
            raise SetError(f"{name} has no column {column}; it has {', '.join(columns)}")
    others = [column for column in (value, id_column, "group", "options") if column and column in columns]
    table = source.read(columns=others) if others else None
    rows = source.metadata.num_rows

    def column_of(name: str) -> list[Any] | None:
        return table[name].to_pylist() if table is not None and name in others else None

    ids = column_of(id_column)
    if ids is not None and any(one is None for one in ids):
        raise SetError(f"{name}, row {ids.index(None)}: {id_column} is null; give each row one")
    if value is not None and None in (found := column_of(value) or []):
        raise SetError(f"{name}, row {found.index(None)}: {value} is null; leave the row out or fill it")
    return Raw(
        name,
        [str(one) for one in ids] if ids is not None else [str(row) for row in range(rows)],
        (column_of(value) if value else None) or [None] * rows,
        [None if one is None else str(one) for one in column_of("group") or [None] * rows],
        Images(rows, _parquet_images(place, name)),
        column_of("options") or [],
    )


def questions(place: Place, name: str, files: dict[str, str], images: set[str]) -> pa.Table:
    """A table of questions, as VQA-RAD and SLAKE are passed around: answer_type in any case and padding, a group or none.

    Raises:
        SetError: a column is missing, an answer type is neither open nor closed, or an image is not in the set.
    """
    try:
        data = place.read(name)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SetError(f"holds no {name}") from error
    files[name] = hashlib.sha256(data).hexdigest()
    table = pq.read_table(io.BytesIO(data))
    missing = [column for column in QUESTIONS if column not in table.column_names]
    if missing:
        raise SetError(f"{name} has no column {missing[0]}")
    columns = {column: table[column].to_pylist() for column in QUESTIONS}
    for column, values in columns.items():
        if None in values:
            raise SetError(f"{name}, row {values.index(None)}: {column} is null; fill it or leave the row out")
    columns = {column: [str(value) for value in values] for column, values in columns.items()}
    columns["answer_type"] = [value.strip().lower() for value in columns["answer_type"]]
    for row, (kind, image) in enumerate(zip(columns["answer_type"], columns["image_id"], strict=True)):
        if kind not in ("open", "closed"):
            raise SetError(f"{name}, row {row}: answer_type {kind!r}; known: open, closed")
        if image not in images:
            raise SetError(
                f"{name}, row {row}: image_id {image!r} is not among the images; add it or leave the row out"
            )
    groups = table["group"].to_pylist() if "group" in table.column_names else [None] * table.num_rows
    # the questions of one image depend on each other, whoever the patient is
    columns["group"] = [
        f"image {image}" if group is None else f"group {group}"
        for group, image in zip(groups, columns["image_id"], strict=True)
    ]
    kinds = table["question_type"].to_pylist() if "question_type" in table.column_names else []
    columns["question_type"] = [str(kind).strip().lower() if kind else "unknown" for kind in kinds or groups]
    return pa.table(columns)


def _parquet(place: Place, about: dict[str, Any], split: str, files: dict[str, str], column: str) -> Raw | None:
    name = about.get("files", {}).get(split, f"{split}.parquet")
    return read_table(place, name, files, value=column) if place.exists(name) else None


def _csv(place: Place, about: dict[str, Any], split: str, files: dict[str, str], column: str) -> Raw | None:
    name = about.get("files", {}).get(split, f"{split}.csv")
    if not place.exists(name):
        return None
    text = _text(place, name, files)
    rows = list(csv.reader(io.StringIO(text, newline="")))
    header = rows[0] if rows else []
    for wanted in ("image", column):
        if wanted not in header:
            raise SetError(f"{name} has no column {wanted}; its first line is {', '.join(header)!r}")
    cells: dict[str, list[str]] = {key: [] for key in header}
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise SetError(
                f"{name}, line {number}: {len(row)} cells where the first line has {len(header)}; quote commas"
            )
        for key, cell in zip(header, row, strict=True):
            cells[key].append(cell)
    values: list[Any] = cells[column]
    if column == "labels":
        values = [[label for label in cell.split("|") if label] for cell in values]
    if about.get("labels") == "numbers":
        values = [int(cell) if cell.strip().lstrip("-").isdigit() else cell for cell in values]
    options = [cell.split("|") for cell in cells["options"]] if "options" in cells else []
    groups = [cell or None for cell in cells.get("group", [""] * len(values))]
    paths = cells["image"]
    return Raw(name, cells.get("id") or _numbered(len(values)), values, groups, _files(place, paths), options)


def _image_folder(place: Place, about: dict[str, Any], split: str, files: dict[str, str], column: str) -> Raw | None:
    if column != "label":
        raise SetError(f"dataset.json: an image_folder names one class an image, and the task needs {column}")
    paths = [name for name in place.list(split) if name.lower().endswith(IMAGE_ENDINGS)]
    if not paths:
        return None
    values = []
    for path in paths:
        parts = PurePosixPath(path).parts
        if len(parts) < 3:
            raise SetError(f"{path} lies in no class folder; move it to {split}/CLASS/")
        values.append(parts[-2])
    files[f"{split}/"] = hashlib.sha256("\n".join(paths).encode()).hexdigest()
    return Raw(f"{split}/", paths, values, [None] * len(paths), _files(place, paths))


def _medmnist(place: Place, about: dict[str, Any], split: str, files: dict[str, str], column: str) -> Raw | None:
    names = [name for name in place.list() if name.endswith(".npz") and "/" not in name]
    name = about.get("files", {}).get("all") or (names[0] if len(names) == 1 else "")
    if not name:
        raise SetError(f"holds {len(names)} .npz files; name the one in dataset.json as files.all")
    data = _bytes(place, name, files)
    short = "val" if split == "validation" else split
    try:
        with np.load(io.BytesIO(data)) as arrays:
            if f"{short}_images" not in arrays:
                return None
            pixels, labels = arrays[f"{short}_images"], arrays[f"{short}_labels"]
    except (ValueError, OSError) as error:
        raise SetError(f"{name} is no .npz file: {error}") from error
    return _of_arrays(name, about, pixels, labels, column)


def _h5(place: Place, about: dict[str, Any], split: str, files: dict[str, str], column: str) -> Raw | None:
    name = about.get("files", {}).get(split, f"{split}.h5")
    if not place.exists(name):
        return None
    try:
        import h5py
    except ImportError as error:
        raise SetError(f"{name}: reading h5 needs h5py: pip install 'biomedclip-ray[sets]'") from error
    data = _bytes(place, name, files)
    keys = about.get("columns", {})
    try:
        with h5py.File(io.BytesIO(data)) as file:
            pixels, labels = file[keys.get("image", "x")][:], file[keys.get("label", "y")][:]
    except (OSError, KeyError) as error:
        raise SetError(f"{name}: {error}; it needs the arrays x and y, or columns in dataset.json") from error
    return _of_arrays(name, about, pixels, labels, column)


def _of_arrays(name: str, about: dict[str, Any], pixels: Any, labels: Any, column: str) -> Raw:
    """Rows of uint8 arrays (n, h, w) or (n, h, w, 3) and labels that count the classes."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4):
        raise SetError(f"{name}: images of {pixels.dtype} {pixels.shape}; uint8 (n, h, w) or (n, h, w, 3) is wanted")
    if len(pixels) != len(labels):
        raise SetError(f"{name}: {len(pixels)} images and {len(labels)} labels")
    classes = about.get("classes", [])
    table = np.asarray(labels).reshape(len(labels), -1)
    values: list[Any]
    if column == "labels":
        values = [[classes[c] for c in np.flatnonzero(row)] for row in table]
    else:
        outside = np.flatnonzero((table[:, 0] < 0) | (table[:, 0] >= len(classes)))
        if len(outside):
            raise SetError(f"{name}, row {outside[0]}: label {table[outside[0], 0]} of {len(classes)} classes")
        values = [classes[int(number)] for number in table[:, 0]]

    def fetch(start: int, stop: int) -> list[bytes | None]:
        return [_png(array) for array in pixels[start:stop]]

    return Raw(name, _numbered(len(values)), values, [None] * len(values), Images(len(values), fetch))


def _webdataset(place: Place, about: dict[str, Any], split: str, files: dict[str, str], column: str) -> Raw | None:
    names = [name for name in place.list() if name.startswith(split) and name.endswith(".tar")]
    if not names:
        return None
    samples: dict[str, dict[str, tuple[str, int, int]]] = {}
    for name in names:
        _hash(place, name, files)
        with place.open(name) as stream, tarfile.open(fileobj=stream) as archive:
            for member in archive:
                if member.isfile():
                    key, _, ending = PurePosixPath(member.name).name.partition(".")
                    samples.setdefault(f"{name}/{key}", {})[ending.lower()] = (name, member.offset_data, member.size)

    def content(where: tuple[str, int, int]) -> bytes:
        with place.open(where[0]) as stream:
            stream.seek(where[1])
            data: bytes = stream.read(where[2])
            return data

    values, groups, images = [], [], []
    classes = about.get("classes", [])
    for key, own in samples.items():
        group = None
        if "json" in own:
            fields = json.loads(content(own["json"]))
            if column not in fields:
                raise SetError(f"{key}.json has no {column}; add it")
            value, group = fields[column], fields.get("group")
        elif "cls" in own or "txt" in own:
            value = content(own.get("cls") or own["txt"]).decode().strip()
            value = classes[int(value)] if value.isdigit() and int(value) < len(classes) and "cls" in own else value
        else:
            raise SetError(f"{key}: no .cls, .txt or .json beside the image; add one")
        values.append(value)
        groups.append(None if group is None else str(group))
        images.append(next((own[end] for end in own if f".{end}" in IMAGE_ENDINGS), None))

    def fetch(start: int, stop: int) -> list[bytes | None]:
        return [None if where is None else content(where) for where in images[start:stop]]

    return Raw(names[0], list(samples), values, groups, Images(len(values), fetch))


def _coco(place: Place, about: dict[str, Any], split: str, files: dict[str, str], column: str) -> Raw | None:
    name = about.get("files", {}).get(split, f"{split}.json")
    if not place.exists(name):
        return None
    try:
        found = json.loads(_text(place, name, files))
        categories = {item["id"]: item["name"] for item in found.get("categories", [])}
        by_image: dict[Any, list[Any]] = {item["id"]: [] for item in found["images"]}
        for item in found["annotations"]:
            by_image[item["image_id"]].append(item["caption"] if column == "text" else categories[item["category_id"]])
        paths = [f"{split}/{item['file_name']}" for item in found["images"]]
    except (ValueError, KeyError, TypeError) as error:
        raise SetError(f"{name} is no COCO file (images, annotations, categories): {error!r}") from error
    values: list[Any] = []
    for image, own in by_image.items():
        if column == "label" and len(set(own)) != 1:
            raise SetError(f"{name}: image {image!r} has {len(set(own))} categories; one is wanted, or task multilabel")
        values.append(own[0] if column == "label" else sorted(set(own)) if column == "labels" else own)
    ids = [str(image) for image in by_image]
    return Raw(name, ids, values, [None] * len(ids), _files(place, paths))


_LAYOUTS: dict[str, Callable[[Place, dict[str, Any], str, dict[str, str], str], Raw | None]] = {
    "parquet": _parquet,
    "csv": _csv,
    "image_folder": _image_folder,
    "medmnist": _medmnist,
    "h5": _h5,
    "webdataset": _webdataset,
    "coco": _coco,
}


def _parquet_images(place: Place, name: str) -> Fetch:
    """The image column of a Parquet file, a few row groups at a time."""

    def fetch(start: int, stop: int) -> list[bytes | None]:
        with pq.ParquetFile(place.open(name)) as source:
            sizes = [source.metadata.row_group(i).num_rows for i in range(source.num_row_groups)]
            edges = [0, *np.cumsum(sizes).tolist()]
            groups = [i for i, (low, high) in enumerate(pairwise(edges)) if low < stop and high > start]
            if not groups:
                return []
            column = source.read_row_groups(groups, columns=["image"])["image"]
            found = column.slice(start - edges[groups[0]], stop - start).to_pylist()
        return [_image_bytes(place, one) for one in found]

    return fetch


def _image_bytes(place: Place, value: Any) -> bytes | None:
    """A cell of an image column: bytes, or Hugging Face's {bytes, path}."""
    if isinstance(value, dict):
        if value.get("bytes"):
            return bytes(value["bytes"])
        return _file(place, value["path"]) if value.get("path") else None
    return bytes(value) if value else None


def _files(place: Place, paths: list[str]) -> Images:
    return Images(len(paths), lambda start, stop: [_file(place, path) for path in paths[start:stop]])


def _file(place: Place, path: str) -> bytes | None:
    try:
        return place.read(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def _png(pixels: Any) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", compress_level=1)
    return sink.getvalue()


def _numbered(rows: int) -> list[str]:
    return [str(row) for row in range(rows)]


def _bytes(place: Place, name: str, files: dict[str, str]) -> bytes:
    data = place.read(name)
    files[name] = hashlib.sha256(data).hexdigest()
    return data


def _hash(place: Place, name: str, files: dict[str, str]) -> None:
    """Hash a large file without holding it."""
    digest = hashlib.sha256()
    with place.open(name) as stream:
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
    files[name] = digest.hexdigest()


def _text(place: Place, name: str, files: dict[str, str]) -> str:
    try:
        return _bytes(place, name, files).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SetError(f"{name} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
