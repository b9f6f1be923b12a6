"""Tables of a labelled set: the rows, and a way to fetch the images by place. The forms that sets come in are in
layouts.py.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from biomedclip_ray.store.place import Place

QUESTIONS = ("question_id", "image_id", "question", "answer", "answer_type")

MOST_OF_A_GROUP = 1 << 30
"""Bytes of images in one row group of Parquet."""


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


def read_table(place: Place, name: str, files: dict[str, str], id_column: str = "id", value: str | None = None) -> Raw:
    """A Parquet file with an image column. Raises SetError."""
    source = _opened(place, name, files)
    columns = source.schema_arrow.names
    wanted = [column for column in ("image", value) if column]
    for column in wanted:
        if column not in columns:
            raise SetError(f"{name} has no column {column}; it has {', '.join(columns)}")
    if id_column != "id" and id_column not in columns:
        raise SetError(f"{name} has no column {id_column}; it has {', '.join(columns)}")
    _check_images(name, source.schema_arrow.field("image").type)
    _check_row_groups(name, source.metadata)
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


def _opened(place: Place, name: str, files: dict[str, str]) -> pq.ParquetFile:
    try:
        hash_of(place, name, files)
        return pq.ParquetFile(place.open(name))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SetError(f"holds no {name}; put it there, or name another in dataset.json") from error
    except pa.ArrowInvalid as error:
        raise SetError(f"{name} is no Parquet file, or cut short ({error}); write it again") from error


def _check_images(name: str, kind: pa.DataType) -> None:
    of = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)} if pa.types.is_struct(kind) else {}
    content, path = of.get("bytes", kind), of.get("path", kind)
    bytes_fit = pa.types.is_binary(content) or pa.types.is_large_binary(content) or pa.types.is_null(content)
    path_fits = pa.types.is_string(path) or pa.types.is_large_string(path) or pa.types.is_null(path)
    if not bytes_fit and not path_fits:
        raise SetError(
            f"{name}: column image holds {kind}; write each image's encoded bytes, its path from the set's folder, "
            "or a struct of bytes and path"
        )


def _check_row_groups(name: str, metadata: Any) -> None:
    """A row group is read whole: pandas and pyarrow write a million rows into one unless they are told otherwise."""
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = [group.column(i) for i in range(group.num_columns)]
        size = sum(one.total_uncompressed_size for one in columns if one.path_in_schema.partition(".")[0] == "image")
        if size > MOST_OF_A_GROUP:
            raise SetError(
                f"{name}: row group {number} holds {size / 1e9:.1f} GB of images, and a worker reads a group at once; "
                "write the file with row_group_size=1000"
            )


def questions(place: Place, name: str, files: dict[str, str], images: set[str]) -> pa.Table:
    """A table of questions, as VQA-RAD and SLAKE are passed around: answer_type in any case and padding, a group or
    none.

    Raises:
        SetError: a column is missing, an answer type is neither open nor closed, or an image is not in the set.
    """
    table = _opened(place, name, files).read()
    missing = [column for column in QUESTIONS if column not in table.column_names]
    if missing:
        raise SetError(f"{name} has no column {missing[0]}; it has {', '.join(table.column_names)}")
    columns = {column: table[column].to_pylist() for column in QUESTIONS}
    for column, values in columns.items():
        if None in values:
            raise SetError(f"{name}, row {values.index(None)}: {column} is null; fill it or leave the row out")
    columns = {column: [str(value) for value in values] for column, values in columns.items()}
    first: dict[str, int] = {}
    for row, asked in enumerate(columns["question_id"]):
        if first.setdefault(asked, row) != row:
            raise SetError(
                f"{name}, row {row}: question_id {asked!r} stands in row {first[asked]} too; number them anew"
            )
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
    """A cell of an image column: bytes, a path, or Hugging Face's {bytes, path}."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        return file_of(place, value)
    return bytes(value) if value else None


def files_of(place: Place, paths: list[str]) -> Images:
    return Images(len(paths), lambda start, stop: [file_of(place, path) for path in paths[start:stop]])


def file_of(place: Place, path: str) -> bytes | None:
    """The bytes of a file of the set; None where there is none."""
    if not path or (place.local and (place.local / path).is_dir()):
        return None
    try:
        return place.read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def png_of(pixels: Any) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", compress_level=1)
    return sink.getvalue()


def numbered(rows: int) -> list[str]:
    return [str(row) for row in range(rows)]


def bytes_of(place: Place, name: str, files: dict[str, str]) -> bytes:
    data = place.read(name)
    files[name] = hashlib.sha256(data).hexdigest()
    return data


def hash_of(place: Place, name: str, files: dict[str, str]) -> None:
    """Hash a large file without holding it."""
    digest = hashlib.sha256()
    with place.open(name) as stream:
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
    files[name] = digest.hexdigest()


def text_of(place: Place, name: str, files: dict[str, str]) -> str:
    return utf8(name, bytes_of(place, name, files))


def utf8(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SetError(f"{name} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
