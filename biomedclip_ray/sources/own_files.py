"""A hospital's or laboratory's own image-caption pairs as files, in the forms that people have.

| form | image | text and facts |
|---|---|---|
| `*.parquet` | bytes, {bytes, path} as Hugging Face has them, base64, a file's name, or a list of these | columns |
| `*.csv`, `*.tsv` (comma, semicolon, tab, bar) | name of a file | columns |
| `*.jsonl` | name of a file, or a list of names | keys |
| `*.tar` (`.tar.gz`) | `KEY.jpg`, `KEY.0.png`, `KEY.left.tif`, ... | `KEY.txt` and/or `KEY.json` |

`sources/own/record.py` lists the names of columns, `sources/own/images.py` says how a file is found by its name. A text
in a list is a pair each, an image in a list too; `own.columns` names columns that no list knows. Files are told apart
by name, size and time of change, as rsync does: reading a terabyte to know that nothing changed costs more than making
a touched folder's pairs once again.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pyarrow as pa

from biomedclip_ray.config import ConfigError
from biomedclip_ray.schema import Reason
from biomedclip_ray.sources.own.images import without_ending
from biomedclip_ray.sources.own.record import OwnFiles, Piece, Record
from biomedclip_ray.sources.own.shards import plan_shard, read_shard
from biomedclip_ray.sources.own.tables import plan_csv, plan_jsonl, plan_parquet, read_csv, read_jsonl, read_parquet
from biomedclip_ray.store.place import Place, StorageError

_FORMS = {".parquet": "parquet", ".tar": "webdataset", ".tar.gz": "webdataset", ".tgz": "webdataset"}
_FORMS |= {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_PLANNERS = {"parquet": plan_parquet, "csv": plan_csv, "jsonl": plan_jsonl, "webdataset": plan_shard}
_READERS = {"parquet": read_parquet, "csv": read_csv, "jsonl": read_jsonl, "webdataset": read_shard}
_CORRUPT = (tarfile.TarError, pa.ArrowException, csv.Error, zlib.error, EOFError, UnicodeDecodeError)
_OTHERS = {
    ".arrow": "write the dataset with to_parquet",
    ".json": "write one object a line (.jsonl)",
    ".xlsx": "save the sheet as CSV in UTF-8",
    ".zip": "unpack it",
}
_SPLIT = re.compile(r"(?:^|[/_.-])(train|training|test|validation|valid|val|dev)(?=[/_.-])", re.IGNORECASE)


def find_files(uri: str, pairs_per_part: int, columns: Mapping[Any, str] | None = None) -> OwnFiles:
    """Look at the folder (or single file) that own.uri names; reads footers and lists, no image.

    Args:
        columns: field -> the column that holds it, for names that are not known.

    Raises:
        ConfigError: nothing there, nothing readable, several forms at once, or a column is missing.
    """
    place, stamps = _look(uri)
    given = dict(columns or {})
    by_form: dict[str, list[str]] = {}
    for name in stamps:
        form = next((form for suffix, form in _FORMS.items() if name.lower().endswith(suffix)), None)
        if form is not None:
            by_form.setdefault(form, []).append(name)
    if not by_form:
        raise ConfigError(f"own.uri={uri} {_what_else(list(stamps))}")
    if len(by_form) > 1:
        found = " and ".join(by_form)
        raise ConfigError(f"own.uri={uri} holds {found}; give a folder with pairs in one form, or name one file")
    form, names = next(iter(by_form.items()))
    named = () if form == "webdataset" else tuple(name for name in stamps if without_ending(name) != name)
    seen = {name: stamps[name] for name in sorted({*names, *named})}
    checksum = hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]
    try:
        with ThreadPoolExecutor(16) as threads:
            planned = list(threads.map(lambda name: _PLANNERS[form](place, name, pairs_per_part, given), names))
    except (*_CORRUPT, OSError) as error:
        raise ConfigError(f"own.uri={uri}: {error}".splitlines()[0]) from error
    splits = _splits(names)
    pieces = tuple(replace(piece, split=splits.get(piece.file)) for file in planned for piece in file)
    if not pieces:
        raise ConfigError(f"own.uri={uri}: there is no row in {', '.join(names)}")
    return OwnFiles(place, form, pieces, checksum, given)


def records(files: OwnFiles, piece: Piece) -> Iterator[Record]:
    """The pairs of one piece in order. A file that breaks off ends with a record that says so."""
    try:
        for record in _READERS[files.form](files, piece):
            yield record if record.split or not piece.split else replace(record, split=piece.split)
    except _CORRUPT as error:
        yield Record(piece.file, fault=(Reason.BROKEN_FILE, str(error)))
    except OSError as error:
        # pyarrow says OSError for a damaged Parquet page and for a lost connection; a local disk has only the first
        reason = Reason.BROKEN_FILE if files.place.local is not None else Reason.FETCH_FAILED
        yield Record(piece.file, fault=(reason, str(error)))


def _look(uri: str) -> tuple[Place, dict[str, tuple[int, int]]]:
    try:
        if uri.lower().endswith(tuple(_FORMS)):
            parent, _, name = Place(uri).uri.rpartition("/")
            stamps = Place(parent).stamps()
            if name not in stamps:
                raise ConfigError(f"own.uri={uri}: there is no such file")
            others = {n: s for n, s in stamps.items() if not n.lower().endswith(tuple(_FORMS))}
            return Place(parent), {**others, name: stamps[name]}
        stamps = Place(uri).stamps()
    except NotADirectoryError as error:
        raise ConfigError(
            f"own.uri={uri} is a file; give its folder, or a list of pairs ({', '.join(_FORMS)})"
        ) from error
    except (StorageError, OSError, pa.ArrowException) as error:
        raise ConfigError(f"own.uri={uri} cannot be read: {error}".splitlines()[0]) from error
    if not stamps:
        raise ConfigError(f"own.uri={uri}: no such folder, or nothing in it")
    return Place(uri), stamps


def _what_else(names: list[str]) -> str:
    """What a folder holds that is no form of pairs, and the way out."""
    images = [name for name in names if without_ending(name) != name]
    texts = {name.rpartition(".")[0] for name in names if name.lower().endswith(".txt")}
    if images and any(without_ending(name) in texts for name in images):
        return "holds images with texts beside them; pack them as one shard: tar --sort=name -cf pairs.tar *"
    if images:
        folders = sorted({name.partition("/")[0] for name in images if "/" in name})
        where = f"in folders ({', '.join(folders[:4])})" if folders else "without a list"
        return (
            f"holds images {where}, and a folder's name is no text: write metadata.csv with the columns file_name "
            "and text; "
            "a labelled set is measured by evaluate.sets"
        )
    others = {ending: way for ending, way in _OTHERS.items() if any(name.lower().endswith(ending) for name in names)}
    ways = "".join(f"; {ending}: {way}" for ending, way in others.items())
    return f"holds none of {', '.join(_FORMS)}{ways}"


def _splits(names: list[str]) -> dict[str, str]:
    """File -> the split in its name, where files are named by their splits (train.csv and test.csv); else nothing.

    One file that is called test is no test split: there must be others.
    """
    said = {name: {match.lower() for match in _SPLIT.findall(name)} for name in names}
    splits = {name: next(iter(found)) for name, found in said.items() if len(found) == 1}
    return splits if len(set(splits.values())) > 1 and len(splits) == len(names) else {}
