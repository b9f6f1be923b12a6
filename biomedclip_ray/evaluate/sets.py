"""Labelled sets from outside: a folder with dataset.json, read and checked before anything starts.

Zero-shot figures that nobody could repeat had other prompts, other class names or another subset behind them. So
whatever is measured on a set carries what decides it: prompts, class order, row counts and the sha256 of each file.
Labels are held in memory, images are not: they are read where they are encoded.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from biomedclip_ray.config import ConfigError
from biomedclip_ray.evaluate.dataset_json import classes_of, names_of, parse, prompts_of, stated_of, templates_of
from biomedclip_ray.evaluate.layouts import read_split
from biomedclip_ray.evaluate.readers import Images, Raw, SetError, questions, read_table
from biomedclip_ray.evaluate.registry import KNOWN
from biomedclip_ray.store.place import Place

TASKS = ("classification", "multilabel", "options", "vqa", "retrieval")
SPLITS = ("train", "validation", "test")
"""Of which a set must hold the last."""
CLOSED = "closed"


@dataclass(frozen=True)
class Samples:
    """One table of a set, without its images' bytes."""

    ids: list[str]
    clusters: list[str]
    """What the intervals draw: the row's group, or the row itself where it has none."""
    values: list[Any]
    """As the file gives them: label, list of labels, answer, or caption."""
    labels: NDArray[np.int64]
    """Number of the label in the order of the classes (classification), else empty."""
    images: Images
    options: list[list[str]] = field(default_factory=list)
    file: str = ""
    """That the rows stand in, for messages."""

    @property
    def grouped(self) -> bool:
        """Whether any two rows share a cluster."""
        return len(set(self.clusters)) < len(self.clusters)


@dataclass(frozen=True)
class LabelledSet:
    """One set. `task` says which fields are filled."""

    uri: str
    name: str
    task: str
    tables: dict[str, Samples]
    """"train", "validation" (both may be missing) and "test"; of VQA and retrieval "images"."""
    files: dict[str, str]
    """File name -> sha256."""
    classes: list[str] = field(default_factory=list)
    class_names: dict[str, list[str]] = field(default_factory=dict)
    """Class -> its natural names, in the order of `classes`."""
    templates: list[str] = field(default_factory=list)
    negative_names: dict[str, list[str]] = field(default_factory=dict)
    """Multi-label: class -> how its absence is said."""
    questions: dict[str, pa.Table] = field(default_factory=dict)
    """VQA: table -> questions. Retrieval: "test" -> text_id, image_id, text."""
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    """VQA: split -> {train, test: names of tables}."""
    warnings: list[str] = field(default_factory=list)
    stated: dict[str, str] = field(default_factory=dict)
    """specialty, source, licence, prompts_from: as dataset.json or the registry names them, else ""."""

    def about(self) -> dict[str, Any]:
        """What goes beside every figure measured here."""
        rows = {name: len(table.ids) for name, table in self.tables.items()}
        rows |= {name: table.num_rows for name, table in self.questions.items()}
        return {
            "name": self.name,
            "task": self.task,
            "uri": self.uri,
            "rows": rows,
            "files": self.files,
            "warnings": self.warnings,
            **self.stated,
        }


def load_sets(uris: Sequence[str]) -> list[LabelledSet]:
    """All sets, each checked. Raises ConfigError; two sets of one name too, of which one would vanish
    from the figures.
    """
    found = [load_set(uri) for uri in uris]
    names = Counter(labelled.name for labelled in found)
    for name, count in names.items():
        if count > 1:
            where = ", ".join(labelled.uri for labelled in found if labelled.name == name)
            raise ConfigError(f"evaluate.sets: {count} sets are named {name!r} ({where}); give each a name of its own")
    return found


def load_set(uri: str) -> LabelledSet:
    """Read a set.

    Raises:
        ConfigError: one line with the set, the file, the row and what to do.
    """
    place = Place(uri)
    loader = _Loader(place)
    try:
        found = loader.load()
        return replace(found, stated=stated_of(found.name, loader.about))
    except SetError as error:
        raise ConfigError(f"evaluate.sets: {place.uri}: {error}") from error


class _Loader:
    """Reads one folder; keeps the hashes of what it reads."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.files: dict[str, str] = {}
        self.about: dict[str, Any] = {}

    def load(self) -> LabelledSet:
        self.about = parse(self._read("dataset.json"))
        task = self.about.get("task")
        if task not in TASKS:
            raise SetError(f"dataset.json: task {task!r}; known: {', '.join(TASKS)}")
        name = self.about.get("name")
        if name is None:
            raise SetError("dataset.json: no name; add one")
        if task == "vqa":
            return self._vqa(name)
        if task == "retrieval":
            return self._retrieval(name)
        classes = classes_of(self.about) if task != "options" else []
        tables = {}
        for split in SPLITS:
            found = self._split(split, required=split == "test")
            if found is not None:
                tables[split] = found
        if task == "classification":
            tables = {split: self._numbered(table, classes) for split, table in tables.items()}
        names, negative, templates = {}, {}, []
        if task == "options":
            _check_options(tables)
        else:
            prompts = prompts_of(self.about)
            names = names_of(prompts, "class_names", classes)
            templates = templates_of(prompts)
            if task == "multilabel":
                negative = names_of(prompts, "negative_names", classes)
                _check_labels(tables, classes)
        return LabelledSet(
            self.place.uri,
            name,
            str(task),
            tables,
            self.files,
            classes,
            names,
            templates,
            negative,
            warnings=self._counts(name, tables),
        )

    def _read(self, name: str) -> bytes:
        try:
            data = self.place.read(name)
        except (FileNotFoundError, NotADirectoryError) as error:
            fix = self._fetch("write one, or mend the path (biomedclip_ray/evaluate/layouts.py tells the layouts)")
            raise SetError(f"holds no {name}; {fix}") from error
        self.files[name] = hashlib.sha256(data).hexdigest()
        return data

    def _fetch(self, otherwise: str) -> str:
        """What to put where, of a set that the registry knows by its name or its folder's."""
        known = KNOWN.get(self.about.get("name", "")) or KNOWN.get(self.place.uri.rstrip("/").rpartition("/")[2])
        return known.fetch if known else otherwise

    def _split(self, split: str, required: bool) -> Samples | None:
        raw = read_split(self.place, self.about, split, self.files)
        if raw is None:
            if required:
                layout = self.about.get("layout", "parquet")
                fix = self._fetch(f"evaluation needs one (layout: {layout}); train and validation may be absent")
                raise SetError(f"has no {split} table; {fix}")
            return None
        if required and not raw.values:
            raise SetError(f"{raw.file}: the {split} table is empty; put its rows there")
        return _samples(raw)

    def _numbered(self, table: Samples, classes: list[str]) -> Samples:
        place = {label: number for number, label in enumerate(classes)}
        by_number = self.about.get("labels") == "numbers"
        numbers = np.empty(len(table.values), np.int64)
        for row, value in enumerate(table.values):
            where = f"{table.file}, row {row} ({table.ids[row]})"
            if by_number and isinstance(value, int) and not isinstance(value, bool):
                if not 0 <= value < len(classes):
                    raise SetError(f"{where}: label {value} of {len(classes)} classes")
                numbers[row] = value
                continue
            if isinstance(value, list | tuple):
                raise SetError(f'{where}: label {value!r} is a list; one class a row, or task "multilabel"')
            if not isinstance(value, str):
                raise SetError(
                    f'{where}: label {value!r} is no text; write the class, or "labels": "numbers" in dataset.json '
                    "where it counts the classes from 0"
                )
            if value not in place:
                raise SetError(f"{where}: label {value!r} is no class; add it to classes or mend the row")
            numbers[row] = place[value]
        return replace(table, labels=numbers)

    def _counts(self, name: str, tables: dict[str, Samples]) -> list[str]:
        """What differs from the counts that dataset.json (rows or counts) or the registry states; a warning, not an
        error.
        """
        known, classes = KNOWN.get(name), self.about.get("classes", [])
        expected = self.about.get("rows") or self.about.get("counts") or (known.rows if known else {})
        out = []
        if known and known.classes and classes and len(classes) != known.classes:
            out.append(f"{len(classes)} classes, {known.classes} are stated")
        for split, table in tables.items():
            held = _by_class(table, classes)
            stated: Any = expected.get(split) or {}
            by_class = stated if isinstance(stated, dict) else {}
            wanted = by_class.get("total", sum(by_class.values())) if by_class else stated
            if isinstance(wanted, int) and len(table.ids) != wanted:
                out.append(f"{split} holds {len(table.ids)} rows, {wanted} are stated")
            for label, count in by_class.items():
                if label in classes and held[label] != count:
                    out.append(f"{split} holds {held[label]} rows of {label}, {count} are stated")
            sizes = known.each.get(split) if known else None
            if sizes and sorted(held.values()) != sorted(sizes):
                shown = [", ".join(map(str, sorted(counts))) for counts in (held.values(), sizes)]
                out.append(f"{split} holds classes of {shown[0]} rows, {shown[1]} are stated")
            absent = sorted(label for label, count in held.items() if not count)
            if absent and self.about["task"] == "classification":
                out.append(f"{split} holds no row of {', '.join(absent)}")
        return out

    def _vqa(self, name: str) -> LabelledSet:
        for key, wanted in (("images", "FILE"), ("splits", "{SPLIT: {train: FILE, test: FILE}}")):
            if key not in self.about:
                raise SetError(f"dataset.json: a vqa set needs {key}: {wanted}")
        images = _samples(read_table(self.place, self.about["images"], self.files, id_column="image_id"))
        tables, splits = {}, {}
        for split, parts in self.about["splits"].items():
            splits[split] = {key: value for key, value in parts.items() if key not in ("train", "test")}
            for part in ("train", "test"):
                if part not in parts:
                    continue
                table = parts[part].removesuffix(".parquet")
                tables[table] = questions(self.place, parts[part], self.files, set(images.ids))
                splits[split][part] = table
            if "test" not in splits[split] or not tables[splits[split]["test"]].num_rows:
                raise SetError(f"dataset.json: splits.{split}: the test table is missing or empty")
        stated = {table: counts for table, counts in self.about.get("counts", {}).items() if isinstance(counts, dict)}
        warnings = [
            f"{table} holds {rows.num_rows} questions, {stated[table]['questions']} are stated"
            for table, rows in tables.items()
            if rows.num_rows != stated.get(table, {}).get("questions", rows.num_rows)
        ]
        return LabelledSet(
            self.place.uri,
            name,
            "vqa",
            {"images": images},
            self.files,
            questions=tables,
            splits=splits,
            warnings=warnings,
        )

    def _retrieval(self, name: str) -> LabelledSet:
        """One row an image with its captions: text, or a list of texts."""
        raw = read_split(self.place, self.about, "test", self.files, value="text")
        if raw is None or not raw.values:
            raise SetError("has no test table with rows; a retrieval set needs columns image and text")
        images = _samples(raw)
        texts = []
        for row, value in enumerate(raw.values):
            own = [value] if isinstance(value, str) else value
            if not isinstance(own, list) or not own or not all(isinstance(one, str) and one.strip() for one in own):
                raise SetError(f"{raw.file}, row {row}: text {value!r} must be a text or a list of texts, not empty")
            texts += [(f"{images.ids[row]}/{n}", images.ids[row], text) for n, text in enumerate(own)]
        columns = dict(zip(("text_id", "image_id", "text"), map(list, zip(*texts, strict=True)), strict=True))
        return LabelledSet(
            self.place.uri, name, "retrieval", {"images": images}, self.files, questions={"test": pa.table(columns)}
        )


def _check_labels(tables: dict[str, Samples], classes: list[str]) -> None:
    for table in tables.values():
        for row, value in enumerate(table.values):
            where = f"{table.file}, row {row} ({table.ids[row]})"
            if not isinstance(value, list | tuple):
                raise SetError(f"{where}: labels {value!r} must be a list of classes (empty for none)")
            strange = [label for label in value if label not in classes]
            if strange:
                raise SetError(f"{where}: label {strange[0]!r} is no class; add it to classes")


def _check_options(tables: dict[str, Samples]) -> None:
    """Each question offers two texts or more, none twice, and its answer among them."""
    for table in tables.values():
        if not table.options:
            raise SetError(f"{table.file} has no column options; a list of texts is wanted beside each answer")
        for row, (offered, answer) in enumerate(zip(table.options, table.values, strict=True)):
            where = f"{table.file}, row {row} ({table.ids[row]})"
            if not isinstance(offered, list) or not all(isinstance(one, str) for one in offered):
                raise SetError(f"{where}: options {offered!r} must be a list of texts")
            if len(set(offered)) < max(2, len(offered)):
                raise SetError(f"{where}: options {offered!r} must be two or more, none of them twice")
            if answer not in offered:
                raise SetError(f"{where}: answer {answer!r} is none of its options {offered!r}; mend the row")


def _by_class(table: Samples, classes: list[str]) -> dict[str, int]:
    """Rows of each class, of one label or of many."""
    if len(table.labels):
        return dict(zip(classes, np.bincount(table.labels, minlength=len(classes)).tolist(), strict=True))
    many = Counter(label for value in table.values if isinstance(value, list | tuple) for label in value)
    return {label: many[label] for label in classes}


def _samples(raw: Raw) -> Samples:
    clusters = [f"row {row}" if group is None else f"group {group}" for row, group in enumerate(raw.groups)]
    twice = [name for name, count in Counter(raw.ids).items() if count > 1]
    if twice:
        raise SetError(f"{raw.file}: id {twice[0]!r} stands twice")
    return Samples(raw.ids, clusters, raw.values, np.empty(0, np.int64), raw.images, raw.options, raw.file)
