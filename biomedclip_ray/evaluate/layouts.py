"""The forms that labelled sets come in. Each reader gives the rows of one split, and a way to fetch its images by
place.

dataset.json says `layout` (Parquet where it does not); everything else has a usual place that dataset.json may change:

- parquet: SPLIT.parquet with image (bytes, or Hugging Face's struct of bytes and path), label, and optionally id and
  group
- csv: SPLIT.csv with image (a path from the folder), label, id, group; every cell is text ("NA" and "007" stay what
  they are)
- image_folder: SPLIT/CLASS/any name; DICOM files too
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
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from biomedclip_ray.evaluate.readers import (
    Images,
    Raw,
    SetError,
    bytes_of,
    files_of,
    hash_of,
    numbered,
    png_of,
    read_table,
    text_of,
    utf8,
)
from biomedclip_ray.images.formats import EXTENSIONS, has_extension
from biomedclip_ray.store.place import Place


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


def _named(place: Place, about: dict[str, Any], split: str, ending: str) -> str | None:
    """The file of a split, as dataset.json names it or by its usual name; None where there is none of that name."""
    named = about.get("files", {}).get(split)
    name = named or f"{split}.{ending}"
    if place.exists(name):
        return str(name)
    if named:
        raise SetError(f"holds no {named}, which dataset.json names in files.{split}; put it there or name another")
    return None


def _parquet(place: Place, about: dict[str, Any], split: str, files: dict[str, str], column: str) -> Raw | None:
    name = _named(place, about, split, "parquet")
    return None if name is None else read_table(place, name, files, value=column)


def _csv(place: Place, about: dict[str, Any], split: str, files: dict[str, str], column: str) -> Raw | None:
    name = _named(place, about, split, "csv")
    if name is None:
        return None
    reader = csv.reader(io.StringIO(text_of(place, name, files), newline=""))
    try:
        rows = [(reader.line_num, row) for row in reader if row]  # a blank line is no row
    except csv.Error as error:
        raise SetError(f"{name}, line {reader.line_num}: {error}; mend it there") from error
    header = rows[0][1] if rows else []
    for wanted in ("image", column):
        if wanted not in header:
            raise SetError(f"{name} has no column {wanted}; its first line is {', '.join(header)!r}")
    cells: dict[str, list[str]] = {key: [] for key in header}
    for number, row in rows[1:]:
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
        values = [int(cell) if re.fullmatch(r"\s*-?[0-9]+\s*", cell) else cell for cell in values]
    options = [cell.split("|") for cell in cells["options"]] if "options" in cells else []
    groups = [cell or None for cell in cells.get("group", [""] * len(values))]
    paths = cells["image"]
    return Raw(name, cells.get("id") or numbered(len(values)), values, groups, files_of(place, paths), options)


def _image_folder(place: Place, about: dict[str, Any], split: str, files: dict[str, str], column: str) -> Raw | None:
    if column != "label":
        raise SetError(f"dataset.json: an image_folder names one class an image, and the task needs {column}")
    paths = [name for name in place.list(split) if has_extension(name)]
    if not paths:
        return None
    values = []
    for path in paths:
        parts = PurePosixPath(path).parts
        if len(parts) < 3:
            raise SetError(f"{path} lies in no class folder; move it to {split}/CLASS/")
        values.append(parts[-2])
    files[f"{split}/"] = hashlib.sha256("\n".join(paths).encode()).hexdigest()
    return Raw(f"{split}/", paths, values, [None] * len(paths), files_of(place, paths))


def _medmnist(place: Place, about: dict[str, Any], split: str, files: dict[str, str], column: str) -> Raw | None:
    names = [name for name in place.list() if name.endswith(".npz") and "/" not in name]
    name = about.get("files", {}).get("all") or (names[0] if len(names) == 1 else "")
    if not name:
        raise SetError(f"holds {len(names)} .npz files; name the one in dataset.json as files.all")
    hash_of(place, name, files)
    short = "val" if split == "validation" else split
    try:
        with place.open(name) as stream, zipfile.ZipFile(stream) as archive:
            if f"{short}_images.npy" not in archive.namelist():
                return None
            pixels, labels = (_on_disk(archive, f"{short}_{what}.npy") for what in ("images", "labels"))
    except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise SetError(f"{name} is no .npz file of images and labels: {error}") from error
    return _of_arrays(name, about, pixels, labels, column)


def _on_disk(archive: zipfile.ZipFile, member: str) -> Any:
    """An array of an .npz, unpacked beside memory: at 224 pixels PathMNIST is 13 GB. Its file goes with the array."""
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        with archive.open(member) as packed:
            shutil.copyfileobj(packed, file, 1 << 20)
        file.flush()
        return np.load(file.name, mmap_mode="r")


def _h5(place: Place, about: dict[str, Any], split: str, files: dict[str, str], column: str) -> Raw | None:
    name = _named(place, about, split, "h5")
    if name is None:
        return None
    try:
        import h5py
    except ImportError as error:
        raise SetError(f"{name}: reading h5 needs h5py: pip install 'biomedclip-ray[sets]'") from error
    hash_of(place, name, files)
    keys = about.get("columns", {})
    pixels, labels = keys.get("image", "x"), keys.get("label", "y")
    try:
        with place.open(name) as stream, h5py.File(stream) as file:
            file[pixels]
            return _of_arrays(name, about, _H5Array(place, name, pixels), file[labels][:], column)
    except (OSError, KeyError) as error:
        raise SetError(f"{name}: {error}; it needs the arrays x and y, or columns in dataset.json") from error


class _H5Array:
    """An array of an h5 file, of which only the rows asked for are read."""

    def __init__(self, place: Place, name: str, key: str) -> None:
        self.place, self.name, self.key = place, name, key
        with self._open() as array:
            self.dtype, self.shape, self.ndim = array.dtype, array.shape, array.ndim

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: slice) -> Any:
        with self._open() as array:
            return array[rows]

    @contextmanager
    def _open(self) -> Iterator[Any]:
        import h5py

        with self.place.open(self.name) as stream, h5py.File(stream) as file:
            yield file[self.key]


def _of_arrays(name: str, about: dict[str, Any], pixels: Any, labels: Any, column: str) -> Raw:
    """Rows of uint8 arrays (n, h, w) or (n, h, w, 3), and their labels: numbers of classes, or with many labels a 0 or
    1 for each class."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[3] != 3):
        raise SetError(f"{name}: images of {pixels.dtype} {pixels.shape}; uint8 (n, h, w) or (n, h, w, 3) is wanted")
    if len(pixels) != len(labels):
        raise SetError(f"{name}: {len(pixels)} images and {len(labels)} labels")
    classes, table = about.get("classes", []), np.asarray(labels)
    table = table.reshape(len(table), int(np.prod(table.shape[1:])))
    many = column == "labels"
    if table.shape[1] != (len(classes) if many else 1):
        told = f"a 0 or 1 for each of {len(classes)} classes" if many else "the number of one class"
        raise SetError(f"{name}: labels of {labels.shape}; {told} is wanted in a row")
    fits = np.isin(table, range(2 if many else len(classes))) if table.dtype.kind in "iufb" else np.zeros(table.shape)
    strange = np.argwhere(~fits.astype(bool))
    if len(strange):
        row, at = strange[0]
        raise SetError(f"{name}, row {row}: label {table[row, at]} of {len(classes)} classes, which count from 0")
    values: list[Any]
    if many:
        values = [[classes[c] for c in np.flatnonzero(row)] for row in table]
    else:
        values = [classes[int(number)] for number in table[:, 0]]

    def fetch(start: int, stop: int) -> list[bytes | None]:
        return [png_of(array) for array in pixels[start:stop]]

    return Raw(name, numbered(len(values)), values, [None] * len(values), Images(len(values), fetch))


def _webdataset(place: Place, about: dict[str, Any], split: str, files: dict[str, str], column: str) -> Raw | None:
    names = [name for name in place.list() if name.startswith(split) and name.endswith(".tar")]
    if not names:
        return None
    samples: dict[str, dict[str, tuple[str, int, int]]] = {}
    for name in names:
        hash_of(place, name, files)
        try:
            with place.open(name) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
                for member in archive:
                    folder, _, file = member.name.removeprefix("./").rpartition("/")
                    key, _, ending = file.partition(".")
                    if member.isfile() and key:  # macOS adds files whose name begins with a dot
                        where = (name, member.offset_data, member.size)
                        samples.setdefault("/".join(filter(None, (name, folder, key))), {})[ending.lower()] = where
        except tarfile.TarError as error:
            raise SetError(f"{name} is no plain tar file, or cut short ({error}); write it again") from error

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
            fields = _json_of(f"{key}.json", content(own["json"]))
            if column not in fields:
                raise SetError(f"{key}.json has no {column}; add it")
            value, group = fields[column], fields.get("group")
        elif "cls" in own or "txt" in own:
            value = utf8(f"{key}.{'cls' if 'cls' in own else 'txt'}", content(own.get("cls") or own["txt"])).strip()
            value = classes[int(value)] if value.isdigit() and int(value) < len(classes) and "cls" in own else value
        else:
            raise SetError(f"{key}: no .cls, .txt or .json beside the image; add one")
        values.append(value)
        groups.append(None if group is None else str(group))
        images.append(next((own[end] for end in own if end in EXTENSIONS), None))

    def fetch(start: int, stop: int) -> list[bytes | None]:
        return [None if where is None else content(where) for where in images[start:stop]]

    return Raw(names[0], list(samples), values, groups, Images(len(values), fetch))


def _coco(place: Place, about: dict[str, Any], split: str, files: dict[str, str], column: str) -> Raw | None:
    name = _named(place, about, split, "json")
    if name is None:
        return None
    found = _json_of(name, bytes_of(place, name, files))
    try:
        categories = {item["id"]: item["name"] for item in found.get("categories", [])}
        images = [(item["id"], item["file_name"]) for item in found["images"]]
        told = [
            (item["image_id"], item["caption"] if column == "text" else item["category_id"])
            for item in found["annotations"]
        ]
    except (KeyError, TypeError) as error:
        raise SetError(f"{name} is no COCO file (images, annotations, categories): {error!r}; mend it there") from error
    by_image: dict[Any, list[Any]] = {image: [] for image, _ in images}
    if len(by_image) < len(images):
        twice = Counter(image for image, _ in images).most_common(1)[0][0]
        raise SetError(f"{name}: image id {twice!r} stands twice in images; give each one of its own")
    for row, (image, value) in enumerate(told):
        if image not in by_image or (column != "text" and value not in categories):
            kind, lost = ("image", image) if image not in by_image else ("category", value)
            raise SetError(f"{name}, annotation {row}: {kind} id {lost!r} is none of the file's; mend the row")
        by_image[image].append(value if column == "text" else categories[value])
    paths = [f"{split}/{file}" for _, file in images]
    values: list[Any] = []
    for image, own in by_image.items():
        if column == "label" and len(set(own)) != 1:
            raise SetError(f"{name}: image {image!r} has {len(set(own))} categories; one is wanted, or task multilabel")
        values.append(own[0] if column == "label" else sorted(set(own)) if column == "labels" else own)
    ids = [str(image) for image in by_image]
    return Raw(name, ids, values, [None] * len(ids), files_of(place, paths))


def _json_of(name: str, data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise SetError(f"{name} is not JSON: {error}; mend it there") from error
    if not isinstance(found, dict):
        raise SetError(f"{name}: a JSON object is wanted, not {str(found)[:40]}")
    return found


_LAYOUTS: dict[str, Callable[[Place, dict[str, Any], str, dict[str, str], str], Raw | None]] = {
    "parquet": _parquet,
    "csv": _csv,
    "image_folder": _image_folder,
    "medmnist": _medmnist,
    "h5": _h5,
    "webdataset": _webdataset,
    "coco": _coco,
}
