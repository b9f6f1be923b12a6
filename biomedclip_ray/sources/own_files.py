"""A hospital's or laboratory's own image-caption pairs as files: Parquet, WebDataset shards, or CSV with pictures beside it.

| form | picture | text and facts |
|---|---|---|
| `*.parquet` | column `image`: bytes, {bytes, path}, or the name of a file | columns |
| `*.csv`, `*.tsv` | column `image` (or `file_name`): name of a file, seen from the CSV's folder | columns |
| `*.tar` (`.tar.gz`) | `KEY.jpg`, `.png`, `.tif`, ... | `KEY.txt` and/or `KEY.json` |

Columns, and keys of the JSON: `text` or `caption` (several in a list are so many pairs); if there: `id`, `group` or `patient` (pairs
that must share a split), `split`, `license`. Files are told apart by name, size and time of change, as rsync does: reading a terabyte to know that nothing
changed costs more than making a touched folder's pairs once again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import posixpath
import re
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from biomedclip_ray.config import ConfigError
from biomedclip_ray.schema import Reason
from biomedclip_ray.store.place import Place, StorageError

_SUFFIXES = {".parquet": "parquet", ".tar": "webdataset", ".tar.gz": "webdataset", ".tgz": "webdataset"}
_SUFFIXES |= {".csv": "csv", ".tsv": "csv"}
_PICTURES = ("jpg", "jpeg", "png", "gif", "tif", "tiff", "webp")
_NAMES = {"image": ("image", "file_name"), "text": ("text", "caption"), "id": ("id",), "group": ("group", "patient")}
_NAMES |= {"split": ("split",), "license": ("license",)}
# pyarrow fails on a larger row group of bytes, and a part must fit into a task's memory
_MAX_ROW_GROUP_BYTES = 2 << 30
_MAX_MEMBER_BYTES = 512 << 20
_HALF_CHARACTERS = re.compile("[\ud800-\udfff]")  # of names that are no UTF-8, and of JSON
_CORRUPT = (tarfile.TarError, pa.ArrowException, csv.Error, zlib.error, EOFError, UnicodeDecodeError)


@dataclass(frozen=True)
class Piece:
    """What one part reads: rows first..last of a CSV, row groups first..last of a Parquet file, or a whole shard."""

    file: str
    first: int
    last: int
    row: int
    """The number of its first row within the file."""


@dataclass(frozen=True)
class OwnFiles:
    """What lies at own.uri: one piece for each part, and a checksum of names, sizes and times of change."""

    place: Place
    form: str
    pieces: tuple[Piece, ...]
    checksum: str


@dataclass(frozen=True, slots=True)
class Record:
    """One pair as its file has it. `image` is the picture's bytes, or the name of a file below the place."""

    where: str
    image: bytes | str | None = None
    text: str = ""
    id: str | None = None
    group: str | None = None
    split: str | None = None
    license: str | None = None
    broken: tuple[Reason, str] | None = None
    """Set where the file ends early: this is no pair, and those behind it are lost."""


def find_files(uri: str, pairs_per_part: int) -> OwnFiles:
    """Look at the folder (or single file) that own.uri names; reads footers and CSVs, no picture.

    Raises:
        ConfigError: nothing there, nothing readable, several forms at once, or a column is missing.
    """
    place, stamps = _look(uri)
    by_form: dict[str, list[str]] = {}
    for name in stamps:
        form = next((form for suffix, form in _SUFFIXES.items() if name.lower().endswith(suffix)), None)
        if form is not None:
            by_form.setdefault(form, []).append(name)
    if len(by_form) != 1:
        found = " and ".join(by_form) or f"none of {', '.join(_SUFFIXES)}"
        raise ConfigError(f"own.uri={uri} holds {found}; give a folder with pairs in one form, or name one file")
    form, names = next(iter(by_form.items()))
    read = stamps if form == "csv" else {name: stamps[name] for name in names}
    checksum = hashlib.sha256(json.dumps(read).encode()).hexdigest()[:16]
    try:
        with ThreadPoolExecutor(16) as threads:
            pieces = threads.map(lambda name: _PLANNERS[form](place, name, pairs_per_part), names)
            files = OwnFiles(place, form, tuple(piece for file in pieces for piece in file), checksum)
    except (*_CORRUPT, OSError) as error:
        raise ConfigError(f"own.uri={uri}: {error}".splitlines()[0]) from error
    if not files.pieces:
        raise ConfigError(f"own.uri={uri}: there is no row in {', '.join(names)}")
    return files


def records(files: OwnFiles, piece: Piece) -> Iterator[Record]:
    """The pairs of one piece in order. A file that breaks off ends with a record that says so."""
    try:
        yield from _READERS[files.form](files.place, piece)
    except _CORRUPT as error:
        yield Record(piece.file, broken=(Reason.BROKEN_FILE, str(error)))
    except OSError as error:
        # pyarrow says OSError for a damaged Parquet page and for a lost connection; a local disk has only the first
        reason = Reason.BROKEN_FILE if files.place.local is not None else Reason.FETCH_FAILED
        yield Record(piece.file, broken=(reason, str(error)))


def _look(uri: str) -> tuple[Place, dict[str, tuple[int, int]]]:
    try:
        if uri.lower().endswith(tuple(_SUFFIXES)):
            parent, _, name = Place(uri).uri.rpartition("/")
            stamps = Place(parent).stamps()
            if name not in stamps:
                raise ConfigError(f"own.uri={uri}: there is no such file")
            others = {n: s for n, s in stamps.items() if not n.lower().endswith(tuple(_SUFFIXES))}
            return Place(parent), {**others, name: stamps[name]}
        stamps = Place(uri).stamps()
    except (StorageError, OSError, pa.ArrowException) as error:
        raise ConfigError(f"own.uri={uri} cannot be read: {error}".splitlines()[0]) from error
    if not stamps:
        raise ConfigError(f"own.uri={uri}: no such folder, or nothing in it")
    return Place(uri), stamps


def _columns(there: list[str], file: str) -> dict[str, str]:
    """Field -> the column that holds it. Raises ConfigError without picture or text."""
    found = {field: next((n for n in names if n in there), None) for field, names in _NAMES.items()}
    for field in ("image", "text"):
        if found[field] is None:
            raise ConfigError(f"own.uri: {file} has no column {' or '.join(_NAMES[field])}; it has {', '.join(there)}")
    return {field: name for field, name in found.items() if name is not None}


def _records(where: str, file: str, values: dict[str, Any]) -> Iterator[Record]:
    """`values` by field; a picture's name is seen from the folder of the file that names it."""
    image = values.pop("image", None)
    if isinstance(image, dict):  # as Hugging Face stores pictures
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str):
        name = posixpath.normpath(posixpath.join(posixpath.dirname(file), _said(image) or ""))
        image = None if name.startswith(("..", "/")) or "://" in image else name
    if not isinstance(image, bytes | str):
        image = None
    texts = values.pop("text", None)
    facts = {field: _said(value) for field, value in values.items()}
    for text in texts if isinstance(texts, list) and texts else [texts]:
        yield Record(_said(where) or "", image, _said(text) or "", **facts)  # type: ignore[arg-type]


def _said(value: Any) -> str | None:
    """A value as text that UTF-8 can hold; None where it says nothing: no value, nothing in it, or a list of things."""
    if isinstance(value, bytes):  # Parquet by Hive and Impala, which do not mark their strings
        value = value.decode("utf-8", errors="replace")
    if value is None or value == "" or isinstance(value, list | dict):
        return None
    return _HALF_CHARACTERS.sub("\ufffd", str(value))


# -- Parquet ----------------------------------------------------------------------------------------------------------


def _plan_parquet(place: Place, name: str, size: int) -> list[Piece]:
    with place.open(name) as file:
        footer = pq.ParquetFile(file).metadata
        _columns(footer.schema.to_arrow_schema().names, name)
    pieces, first, row, rows = [], 0, 0, 0
    for group in range(footer.num_row_groups):
        facts = footer.row_group(group)
        if facts.total_byte_size > _MAX_ROW_GROUP_BYTES:
            raise ConfigError(
                f"own.uri: {name} has a row group of {facts.total_byte_size / 1e9:.1f} GB, more than a task can hold; "
                "write it with row groups of some hundred MB (pyarrow: row_group_size)"
            )
        rows += facts.num_rows
        if rows >= size or group == footer.num_row_groups - 1:
            pieces.append(Piece(name, first, group + 1, row))
            first, row, rows = group + 1, row + rows, 0
    return pieces


def _read_parquet(place: Place, piece: Piece) -> Iterator[Record]:
    with place.open(piece.file) as file:
        parquet = pq.ParquetFile(file)
        columns = _columns(parquet.schema_arrow.names, piece.file)
        row = piece.row
        groups = list(range(piece.first, piece.last))
        for batch in parquet.iter_batches(batch_size=64, row_groups=groups, columns=list(columns.values())):
            for values in batch.to_pylist():
                fields = {field: values[name] for field, name in columns.items()}
                yield from _records(f"{piece.file}:{row}", piece.file, fields)
                row += 1


# -- CSV --------------------------------------------------------------------------------------------------------------


@contextmanager
def _table(place: Place, name: str) -> Iterator[csv.DictReader[str]]:
    with place.open(name) as raw, io.TextIOWrapper(io.BufferedReader(raw), encoding="utf-8-sig", newline="") as text:
        try:
            header = text.readline()
            delimiter = max("\t,;", key=header.count)
            columns = next(csv.reader([header], delimiter=delimiter), [])
            table = csv.DictReader(text, columns, delimiter=delimiter, strict=True)
            yield table
        except UnicodeDecodeError as error:
            raise csv.Error(f"{name} is not in UTF-8 ({error.reason}); save it as UTF-8") from error
        except csv.Error as error:
            at = f"{name}, line {table.line_num + 2}"  # of the header, and the row that was not read
            raise csv.Error(f"{at}: {error}; a quote in a text is written twice, and the text in quotes") from error


def _plan_csv(place: Place, name: str, size: int) -> list[Piece]:
    with _table(place, name) as table:
        _columns(list(table.fieldnames or []), name)
        rows = sum(1 for _ in table)
    return [Piece(name, first, min(first + size, rows), first) for first in range(0, rows, size)]


def _read_csv(place: Place, piece: Piece) -> Iterator[Record]:
    with _table(place, piece.file) as table:
        columns = _columns(list(table.fieldnames or []), piece.file)
        for row, values in enumerate(table):
            if row >= piece.last:
                return
            if row >= piece.first:
                fields = {field: values[name] for field, name in columns.items()}
                yield from _records(f"{piece.file}:{row}", piece.file, fields)


# -- WebDataset -------------------------------------------------------------------------------------------------------


class _Strict(tarfile.TarInfo):
    """A header that cannot be read is an error: tarfile itself takes it for the end, and what follows is lost quietly."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Strict:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the proper end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"the shard breaks off: {error}") from error


class _Ends(io.RawIOBase):
    """A file that ends: tarfile skips a member by reading as far as its header claims, and a claim of terabytes takes hours."""

    def __init__(self, file: pa.NativeFile) -> None:
        self._file = file
        self._left = 100  # reads behind the end; a whole shard ends with one or two

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._file.read(size)
        if not data:
            self._left -= 1
            if not self._left:
                raise tarfile.ReadError("the shard ends within a member")
        return data


def _plan_shard(place: Place, name: str, size: int) -> list[Piece]:
    return [Piece(name, 0, 1, 0)]


def _read_shard(place: Place, piece: Piece) -> Iterator[Record]:
    """Members that stand together and share the name up to its first dot are one sample (WebDataset's rule)."""
    key = ""
    sample: dict[str, bytes] = {}
    with place.open(piece.file) as raw:
        for tar, member in _members(raw):
            file = tar.extractfile(member) if member.isfile() and member.size <= _MAX_MEMBER_BYTES else None
            if file is None:
                continue
            folder, _, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            if not stem or not extension:  # "._1.png" of macOS, "README"
                continue
            if f"{folder}/{stem}" != key:
                if sample:
                    yield from _sample(piece.file, key, sample)
                key, sample = f"{folder}/{stem}", {}
            sample[extension.lower()] = file.read()
    if sample:
        yield from _sample(piece.file, key, sample)


def _members(raw: pa.NativeFile) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The archive with each of its members in order. Raises tarfile.TarError for every header that cannot be read."""
    try:
        with tarfile.open(fileobj=_Ends(raw), mode="r|*", tarinfo=_Strict) as tar:
            for member in tar:
                yield tar, member
    except (
        ValueError,
        IndexError,
        OverflowError,
        RecursionError,
    ) as error:  # of headers that hold no number, text or end
        raise tarfile.ReadError(f"{type(error).__name__}: {error}") from error


def _sample(file: str, key: str, sample: dict[str, bytes]) -> Iterator[Record]:
    try:
        loaded = json.loads(sample.get("json", b"{}"))
    except ValueError:
        loaded = {}
    facts = loaded if isinstance(loaded, dict) else {}
    values = {field: next((facts[n] for n in names if n in facts), None) for field, names in _NAMES.items()}
    for name in ("txt", "text", "caption"):
        values["text"] = sample.get(name) or values["text"]
    where = f"{file}:{key.lstrip('/')}"
    pictures = [extension for extension in sample if extension.rpartition(".")[2] in _PICTURES]
    # "png" before "mask.png"
    values["image"] = sample[min(pictures, key=lambda extension: extension.count("."))] if pictures else None
    values["id"] = values["id"] or re.sub("[/:]", "-", where)  # keys may begin anew in each shard
    yield from _records(where, file, values)


_PLANNERS = {"parquet": _plan_parquet, "csv": _plan_csv, "webdataset": _plan_shard}
_READERS = {"parquet": _read_parquet, "csv": _read_csv, "webdataset": _read_shard}
