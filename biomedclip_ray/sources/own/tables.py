"""Lists of pairs: CSV and its kin, JSON lines, Parquet. Each is cut into pieces by rows, and a piece is read by itself.

A piece of a text file begins at a byte, which planning finds as it counts the rows: with a row's number alone each of n
parts would read the file from its start.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from biomedclip_ray.config import ConfigError
from biomedclip_ray.schema import Reason
from biomedclip_ray.sources.own.record import OwnFiles, Piece, Record, columns_of, facts_of, pairs_of
from biomedclip_ray.store.place import Place

# pyarrow fails on a larger row group of bytes, and a part must fit into a task's memory
_MAX_ROW_GROUP_BYTES = 2 << 30
_MAX_FIELD = 64 << 20
_DELIMITERS = "\t,;|"


# -- Parquet ----------------------------------------------------------------------------------------------------------


def plan_parquet(place: Place, name: str, size: int, given: Mapping[str, str]) -> list[Piece]:
    with place.open(name) as file:
        footer = pq.ParquetFile(file).metadata
        columns_of(footer.schema.to_arrow_schema().names, name, given)
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
    return pieces if footer.num_rows else []


def read_parquet(files: OwnFiles, piece: Piece) -> Iterator[Record]:
    with files.place.open(piece.file) as file:
        parquet = pq.ParquetFile(file)
        columns = columns_of(parquet.schema_arrow.names, piece.file, files.columns)
        row = piece.row
        groups = list(range(piece.first, piece.last))
        wanted = list(dict.fromkeys(name for names in columns.values() for name in names))
        for batch in parquet.iter_batches(batch_size=64, row_groups=groups, columns=wanted):
            for values in batch.to_pylist():
                yield from pairs_of(f"{piece.file}:{row}", piece.file, _fields(columns, values))
                row += 1


def _fields(columns: dict[str, list[str]], values: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {key: values.get(names[0]) for key, names in columns.items()}
    if "image" in columns:
        fields["image"] = [values.get(name) for name in columns["image"]]
    return fields


# -- CSV --------------------------------------------------------------------------------------------------------------


class _Lines:
    """The lines of a text file, and how many bytes were taken so far."""

    def __init__(self, raw: pa.NativeFile) -> None:
        self._file = io.BufferedReader(raw)
        self.at = 0

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline():
            self.at += len(line)
            yield line.decode("utf-8-sig" if self.at == len(line) else "utf-8")

    def seek(self, at: int) -> _Lines:
        self._file.seek(at)
        self.at = at
        return self


def plan_csv(place: Place, name: str, size: int, given: Mapping[str, str]) -> list[Piece]:
    try:
        with place.open(name) as raw:
            header, delimiter = _header(_Lines(raw), name, given)
        quoted: list[Piece] = []
        fault: csv.Error | None = None
        try:
            quoted = _cut(place, name, size, delimiter)
        except csv.Error as error:
            fault = error
        # A title that begins with a quote, written by a program that quotes nothing, would take the rows behind it for
        # its own.
        plain = _cut_plain(place, name, size, len(header)) if delimiter == "\t" else []
        if plain and (fault is not None or plain[-1].last > quoted[-1].last):
            return plain
        if fault is not None:
            raise fault
        return quoted
    except UnicodeDecodeError as error:
        raise csv.Error(f"{name} is not in UTF-8 ({error.reason}); save it as UTF-8") from error


def read_csv(files: OwnFiles, piece: Piece) -> Iterator[Record]:
    with files.place.open(piece.file) as raw:
        lines = _Lines(raw)
        header, delimiter = _header(lines, piece.file, files.columns)
        columns = columns_of(header, piece.file, files.columns)
        rows = _rows(lines.seek(piece.offset), delimiter, piece.quoted)
        for row, values in zip(range(piece.first, piece.last), rows, strict=False):
            named = dict(zip(header, values, strict=False))  # a short row says nothing of the rest
            yield from pairs_of(f"{piece.file}:{row}", piece.file, _fields(columns, named))


def _header(lines: _Lines, name: str, given: Mapping[str, str]) -> tuple[list[str], str]:
    """The names of the columns, and what separates them: what leaves a column of images and one of texts."""
    first = next(iter(lines), "")
    if "\r" in first.rstrip("\r\n"):
        raise csv.Error(f"{name} ends its lines with CR alone; save it with LF or CRLF")
    choices = sorted(_DELIMITERS, key=first.count, reverse=True)
    for delimiter in choices:
        header = [column.strip() for column in next(csv.reader([first], delimiter=delimiter), [])]
        if {"image", "text"} <= facts_of(header, given).keys():
            return header, delimiter
    header = [column.strip() for column in next(csv.reader([first], delimiter=choices[0]), [])]
    columns_of(header, name, given)
    raise AssertionError("unreachable: a header with both columns was returned")


def _reader(lines: _Lines, delimiter: str) -> Any:
    """csv's reader, which says at which line it is. Its limit is one for the process, and 131,072 characters by itself:
    less than an image in base64.
    """
    csv.field_size_limit(_MAX_FIELD)
    return csv.reader(iter(lines), delimiter=delimiter, strict=True)


def _rows(lines: _Lines, delimiter: str, quoted: bool) -> Iterator[list[str]]:
    """Rows that hold something."""
    if quoted:
        rows: Iterator[list[str]] = _reader(lines, delimiter)
    else:
        rows = (line.rstrip("\r\n").split(delimiter) for line in lines)
    return (row for row in rows if row and row != [""])


def _cut(place: Place, name: str, size: int, delimiter: str) -> list[Piece]:
    """The pieces of a file from its second row on. Raises csv.Error that names the line."""
    with place.open(name) as raw:
        lines = _Lines(raw)
        next(iter(lines))
        pieces: list[Piece] = []
        before, rows, at = lines.at, 0, 0
        reader = _reader(lines, delimiter)
        try:
            for values in reader:
                if values:
                    if rows % size == 0:
                        pieces.append(Piece(name, rows, rows, rows, before))
                    rows += 1
                before, at = lines.at, reader.line_num
        except csv.Error as error:
            where = f"{name}, line {at + 2}"  # of the header, and the row that was not read
            raise csv.Error(f"{where}: {error}; a quote in a text is written twice, and the text in quotes") from error
    return _closed(pieces, rows)


def _cut_plain(place: Place, name: str, size: int, columns: int) -> list[Piece]:
    """As `_cut`, of a tab-separated file without quotes; none where a line has another number of columns."""
    pieces: list[Piece] = []
    rows = 0
    with place.open(name) as raw:
        lines = _Lines(raw)
        before = 0
        for number, line in enumerate(lines):
            if line.strip():
                if line.count("\t") != columns - 1:
                    return []
                if number:
                    if rows % size == 0:
                        pieces.append(Piece(name, rows, rows, rows, before, quoted=False))
                    rows += 1
            before = lines.at
    return _closed(pieces, rows)


def _closed(pieces: list[Piece], rows: int) -> list[Piece]:
    """Each piece up to where the next begins."""
    ends = [*(piece.first for piece in pieces[1:]), *([rows] if rows else [])]
    return [Piece(p.file, p.first, end, p.row, p.offset, p.quoted) for p, end in zip(pieces, ends, strict=True)]


# -- JSON lines -------------------------------------------------------------------------------------------------------


def plan_jsonl(place: Place, name: str, size: int, given: Mapping[str, str]) -> list[Piece]:
    """Raises ConfigError where no line has image and text."""
    pieces: list[Piece] = []
    rows, before, good = 0, 0, False
    first: list[str] | None = None
    with place.open(name) as raw:
        file = io.BufferedReader(raw)
        for line in file:
            if line.strip():
                if rows % size == 0:
                    pieces.append(Piece(name, rows, rows, rows, before))
                rows += 1
                if not good:
                    keys = list(_object(line))
                    first = first or keys
                    good = {"image", "text"} <= facts_of(keys, given).keys()
            before += len(line)
    if rows and not first:
        raise ConfigError(f"own.uri: {name} holds no JSON objects, one a line")
    if rows and not good:
        columns_of(first or [], name, given)
    return _closed(pieces, rows)


def read_jsonl(files: OwnFiles, piece: Piece) -> Iterator[Record]:
    with files.place.open(piece.file) as raw:
        raw.seek(piece.offset)
        lines = (line for line in io.BufferedReader(raw) if line.strip())
        for row, line in zip(range(piece.first, piece.last), lines, strict=False):
            where, values = f"{piece.file}:{row}", _object(line)
            if not values:
                yield Record(where, fault=(Reason.BROKEN_FILE, f"line is no JSON object: {line[:80]!r}"))
                continue
            fields = _fields(facts_of(list(values), files.columns), values)
            yield from pairs_of(where, piece.file, fields)


def _object(line: bytes) -> dict[str, Any]:
    """A line's JSON object; empty where it is none."""
    try:
        loaded = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):  # UnicodeDecodeError among them; brackets by the thousand
        return {}
    return loaded if isinstance(loaded, dict) else {}
