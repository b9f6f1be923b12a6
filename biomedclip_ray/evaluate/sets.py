"""Labelled sets from outside: a folder with dataset.json and Parquet files, read whole and hashed.

Zero-shot figures that nobody could repeat had other prompts, other class names or another subset behind them. So whatever
is measured on a set carries what decides it: prompts, class order, row counts and the sha256 of each file.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from biomedclip_ray.config import ConfigError
from biomedclip_ray.store.place import Place

CLASSIFICATION = ("image", "label", "group")
QUESTIONS = ("question_id", "image_id", "question", "answer", "answer_type", "group")


@dataclass(frozen=True)
class LabelledSet:
    """One set. `task` is "classification" (tables train, test) or "vqa" (tables images and those `splits` names)."""

    uri: str
    name: str
    task: str
    tables: dict[str, pa.Table]
    files: dict[str, str]
    """File name -> sha256."""
    classes: list[str] = field(default_factory=list)
    class_names: dict[str, list[str]] = field(default_factory=dict)
    """Class -> its natural names, in the order of `classes`."""
    templates: list[str] = field(default_factory=list)
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    """VQA: split -> {train, test: names of tables; images_shared}."""

    def about(self) -> dict[str, Any]:
        """What goes beside every figure measured here."""
        return {"name": self.name, "task": self.task, "uri": self.uri, "files": self.files}


def load_set(uri: str) -> LabelledSet:
    """Read a set.

    Raises:
        ConfigError: no dataset.json at `uri`, an unknown task, a missing file or column, or labels that are no class.
    """
    place = Place(uri)
    files: dict[str, str] = {}

    def read(name: str) -> bytes:
        try:
            data = place.read(name)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ConfigError(f"evaluate.sets: {place.uri} holds no {name}") from error
        files[name] = hashlib.sha256(data).hexdigest()
        return data

    def table(name: str, columns: tuple[str, ...]) -> pa.Table:
        found = pq.read_table(io.BytesIO(read(name)))
        missing = [column for column in columns if column not in found.column_names]
        if missing:
            raise ConfigError(f"evaluate.sets: {place.uri}/{name} has no column {missing[0]}")
        return found.select(list(columns))

    about = json.loads(read("dataset.json"))
    if about["task"] == "classification":
        tables = {name: table(f"{name}.parquet", CLASSIFICATION) for name in ("train", "test")}
        names = about["prompts"]["class_names"]
        for name, rows in tables.items():
            strange = sorted(set(rows["label"].to_pylist()) - set(about["classes"]))
            if strange:
                raise ConfigError(f"evaluate.sets: {place.uri}/{name}.parquet: label {strange[0]!r} is no class")
        return LabelledSet(
            place.uri,
            about["name"],
            "classification",
            tables,
            files,
            about["classes"],
            {label: names[label] for label in about["classes"]},
            about["prompts"]["templates"],
        )
    if about["task"] == "vqa":
        tables = {"images": table(about["images"], ("image_id", "image"))}
        splits = {}
        for split, parts in about["splits"].items():
            splits[split] = {"images_shared": parts["images_shared"]}
            for part in ("train", "test"):
                name = parts[part].removesuffix(".parquet")
                tables[name] = table(parts[part], QUESTIONS)
                splits[split][part] = name
        return LabelledSet(place.uri, about["name"], "vqa", tables, files, splits=splits)
    raise ConfigError(f"evaluate.sets: {place.uri}: task {about['task']!r}; known: classification, vqa")
