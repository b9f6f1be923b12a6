"""Stage: a CLIP and one's own images or texts -> their vectors, for people who have a model and a million images and
nothing else.

A folder or bucket of image files, a column of Parquet files, or text files with a text a line. Inputs are cut into
parts in the order of their names; which files there are, with size and time of change, decides the product, so the same
command goes on where it stopped and a changed folder makes a new product. The work is the embed stage's: the same
encoder, threads, ledger.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from biomedclip_ray.config import Config, ConfigError, Embed
from biomedclip_ray.images.errors import UNREADABLE, ImageError
from biomedclip_ray.images.formats import has_extension
from biomedclip_ray.run.capacity import Capacity
from biomedclip_ray.run.stage import Made, RunParts, Stage
from biomedclip_ray.schema import Reason, column
from biomedclip_ray.search.embed import NonFiniteError, drop_non_finite
from biomedclip_ray.store.ahead import fetch_ahead
from biomedclip_ray.store.attempt import Attempt
from biomedclip_ray.store.ledger import Ledger, PartResult
from biomedclip_ray.store.place import Place

VERSION = 1

FILES_PER_PART = 1000
"""Image files of one part: minutes of a CPU, seconds of a GPU."""

Unit = Literal["image", "text"]


@dataclass(frozen=True)
class Inputs:
    """What is embedded: the parts, each a list of files, or of (file, row group) for columns."""

    uri: str
    unit: Unit
    column: str | None
    parts: tuple[tuple[tuple[str, int], ...], ...]
    digest: str
    """Of all names, sizes and times of change."""


def find(uri: str, unit: Unit, column: str | None = None) -> Inputs:
    """List what `uri` holds; reads names and Parquet footers only.

    Args:
        uri: a folder, bucket or single file.
        column: of Parquet files: image bytes (or {bytes, path}, as Hugging Face stores them), or texts.

    Raises:
        ConfigError: nothing there that can be embedded, or a file without the column.
    """
    place, files = _listed(uri)
    wanted = (".parquet",) if column else (".txt",)
    chosen = [
        name for name in files if (has_extension(name) if unit == "image" and not column else name.endswith(wanted))
    ]
    if not chosen:
        what = "Parquet file" if column else "image file" if unit == "image" else ".txt file (a text a line)"
        hint = "" if column else "; of Parquet files name the column"
        raise ConfigError(f"{uri}: no {what} there{hint}")
    parts: list[tuple[tuple[str, int], ...]]
    if column:
        with ThreadPoolExecutor(16) as threads:
            groups = list(threads.map(lambda name: _row_groups(place, name, column), chosen))
        parts = [((name, n),) for name, count in zip(chosen, groups, strict=True) for n in range(count)]
    elif unit == "image":
        parts = [
            tuple((name, 0) for name in chosen[at : at + FILES_PER_PART])
            for at in range(0, len(chosen), FILES_PER_PART)
        ]
    else:
        parts = [((name, 0),) for name in chosen]
    stamps = json.dumps([[name, *files[name]] for name in chosen])
    return Inputs(place.uri, unit, column, tuple(parts), hashlib.sha256(stamps.encode()).hexdigest()[:16])


def _listed(uri: str) -> tuple[Place, dict[str, tuple[int, int]]]:
    """The files of a folder; where `uri` is a file, that one in its folder."""
    try:
        files = Place(uri).stamps()
    except NotADirectoryError:
        files = {}
    if files:
        return Place(uri), files
    folder, _, name = uri.rpartition("/")
    place = Place(folder or ".")
    return place, {found: stamp for found, stamp in place.stamps().items() if found == name}


def vectors_schema(dimensions: int) -> pa.Schema:
    """The rows of data/."""
    return pa.schema(
        [
            column("id", pa.string(), "the file's name, with #row or #line of a table or text file"),
            column("vector", pa.list_(pa.float32(), dimensions), "of unit length"),
            column("bundle", pa.string(), "id of the bundle that made the vector"),
        ]
    )


def _content(config: Config, bundle: str, inputs: Inputs) -> dict[str, Any]:
    return {"bundle": _identity(bundle), "unit": inputs.unit, "column": inputs.column, "inputs": inputs.digest}


def _work(attempt: Attempt, run_parts: RunParts, config: Config, bundle: str, inputs: Inputs) -> Made:
    """Raises NonFiniteError where the bundle gives too many non-finite vectors."""
    section = config.embed
    attempt.parts = len(inputs.parts)
    run_parts(_Worker, section.resources, (bundle, inputs, section))
    counts = attempt.balance().counts
    rows = sum(count.kept for count in counts)
    lost = sum(count.dropped.get(Reason.NON_FINITE.value, 0) for count in counts)
    if lost > section.non_finite_limit * (rows + lost):
        raise NonFiniteError(f"{bundle}: {lost} of {rows + lost} {inputs.unit}s have a non-finite vector; it is broken")
    return Made({"inputs": {"uri": inputs.uri, "rows": rows}}, section.transient_limit)


def _fit(config: Config, capacity: Capacity, *_: Any) -> list[str]:
    return capacity.lacks("embed.resources", config.embed.resources)


vectors = Stage("vectors", VERSION, _content, _work, fit=_fit)
"""Reads a bundle's URI (or any CLIP that Encoder.load takes) and `Inputs`."""


def _identity(bundle: str) -> str:
    """What tells one CLIP from another without loading it: our bundle's id, else the files and their times."""
    if bundle.startswith("hf-hub:"):
        return bundle
    place = Place(bundle.removeprefix("local-dir:"))
    try:
        return str(json.loads(place.read("bundle.json"))["bundle_id"])
    except (FileNotFoundError, KeyError):
        files = place.stamps()
    if not files:
        raise ConfigError(f"{bundle}: no model there; name a bundle's folder, local-dir:PATH or hf-hub:NAME")
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]


def _row_groups(place: Place, name: str, wanted: str | None) -> int:
    with place.open(name) as file:
        parquet = pq.ParquetFile(file)
        if wanted not in parquet.schema_arrow.names:
            names = ", ".join(parquet.schema_arrow.names)
            raise ConfigError(f"{place.uri}/{name} has no column {wanted!r}; it has {names}")
        return int(parquet.num_row_groups)


class _Worker:
    """Makes the vectors of one part; holds the model, so one is made per process."""

    def __init__(self, bundle: str, inputs: Inputs, section: Embed) -> None:
        from biomedclip_ray.clip.encoder import Encoder

        self.encoder = Encoder.load(bundle)
        self.encoder.batch = section.batch
        self.inputs, self.place = inputs, Place(inputs.uri)
        self.threads = max(1, math.ceil(section.resources.num_cpus))

    def __call__(self, part: int) -> PartResult:
        ledger = Ledger("vectors")
        unit = self.inputs.unit
        if unit == "text":
            ids, texts = self._texts(part, ledger)
            matrix = self.encoder.encode_text(texts)
        else:
            ids, matrix = self._images(part, ledger)
        ledger.count(unit, len(ids), len(ids))
        for dropped in ledger.rows:
            ledger.count(dropped["unit"], 1, 0)
        sound = drop_non_finite(ledger, ids, {unit: matrix}, unit)
        schema = vectors_schema(self.encoder.dimensions)
        column = pa.FixedSizeListArray.from_arrays(pa.array(matrix[sound].ravel()), self.encoder.dimensions)
        kept = [name for name, good in zip(ids, sound, strict=True) if good]
        bundle = pa.array([self.encoder.bundle_id] * len(kept), pa.string())
        return PartResult(pa.table([pa.array(kept, pa.string()), column, bundle], schema=schema), ledger)

    def _texts(self, part: int, ledger: Ledger) -> tuple[list[str], list[str]]:
        ids, texts = [], []
        for name, text in self._values(part):
            if isinstance(text, str) and text.strip():
                ids.append(name)
                texts.append(text)
            else:
                ledger.drop("text", name, Reason.SHORT_TEXT, "empty")
        return ids, texts

    def _images(self, part: int, ledger: Ledger) -> tuple[list[str], NDArray[np.float32]]:
        """Images are fetched and decoded by threads while the model works on those before them."""

        def pixels(item: tuple[str, Any]) -> Any:
            """uint8 (1, 3, size, size), or why there are none."""
            try:
                data = self._bytes(*item)
            except FileNotFoundError:
                return Reason.MISSING_OBJECT, ""
            except ImageError as error:
                return error.reason, error.detail
            try:
                return self.encoder.pixels([data])
            except ImageError as error:
                return error.reason, error.detail
            except UNREADABLE as error:
                return Reason.BROKEN_IMAGE, str(error)

        import torch

        ids: list[str] = []
        made = [np.empty((0, self.encoder.dimensions), np.float32)]
        waiting: list[Any] = []

        def encode() -> None:
            if waiting:
                made.append(self.encoder.encode_pixels(torch.cat(waiting)))
                waiting.clear()

        with ThreadPoolExecutor(max(4, self.threads)) as threads:
            for (name, _), found in fetch_ahead(threads, pixels, self._values(part), 2 * self.encoder.batch):
                if isinstance(found, tuple):
                    ledger.drop("image", name, *found)
                    continue
                ids.append(name)
                waiting.append(found)
                if len(waiting) == self.encoder.batch:
                    encode()
        encode()
        return ids, np.concatenate(made)

    def _values(self, part: int) -> list[tuple[str, Any]]:
        """(id, value) of a part: a column's values, lines of a text file, or None for image files, which are fetched
        one by one.
        """
        found: list[tuple[str, Any]] = []
        for name, group in self.inputs.parts[part]:
            if self.inputs.column:
                with self.place.open(name) as file:
                    parquet = pq.ParquetFile(file)
                    first = sum(parquet.metadata.row_group(n).num_rows for n in range(group))
                    values = parquet.read_row_group(group, columns=[self.inputs.column])[self.inputs.column].to_pylist()
                found += [(f"{name}#{first + n}", value) for n, value in enumerate(values)]
            elif self.inputs.unit == "text":
                lines = io.StringIO(self.place.read(name).decode("utf-8", "replace")).read().splitlines()
                found += [(f"{name}#{n}", line) for n, line in enumerate(lines)]
            else:
                found.append((name, None))
        return found

    def _bytes(self, name: str, value: Any) -> bytes:
        if self.inputs.column is None:
            return self.place.read(name)
        if isinstance(value, dict):
            value = value.get("bytes")
        if not isinstance(value, bytes):
            raise ImageError(Reason.BROKEN_IMAGE, "the column holds no bytes")
        return value
