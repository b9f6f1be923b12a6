"""WebDataset shards: members that stand together and share the name up to its first dot are one sample.

A sample may have several images: `KEY.0.png`, `KEY.left.jpg`, `x.jpg` beside `x.JPG`. Each is a pair with the sample's
text. And a key may itself have dots (`PMC1.1.jpg` with `PMC1.1.txt`), which WebDataset takes for one sample too: an
image whose own name has a text gets that one. A mask beside its image is no pair, and says so in the ledger.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from biomedclip_ray.images.formats import IMAGE_ENDINGS
from biomedclip_ray.schema import Reason
from biomedclip_ray.sources.own.record import FIELDS, OwnFiles, Piece, Record, facts_of, pairs_of, said
from biomedclip_ray.store.place import Place

_MAX_MEMBER_BYTES = 512 << 20
# of one sample; keys of numbers and dots (DICOM's UIDs) make a whole shard one sample
_MAX_HELD_BYTES = 256 << 20
_TEXTS = ("caption", "text", "txt")  # best first
_MASKS = {"mask", "masks", "seg", "segmentation", "label", "labels", "annotation", "annotations", "depth"}
# "0", "left": what numbers or names the views of one thing, unlike the rest of a key with dots
_VIEW = re.compile(r"\d{1,3}|[A-Za-z_]+")


@dataclass
class _Sample:
    key: str
    images: list[tuple[str, str, bytes | None]] = field(default_factory=list)
    """(what stands between key and ending, the member's name, its bytes or None where they are too many)."""
    texts: dict[tuple[str, str], list[bytes]] = field(default_factory=dict)
    """(between, ending) -> the texts."""
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """between -> its JSON."""
    others: list[str] = field(default_factory=list)
    """Endings of members that are none of these."""

    def text_of(self, between: str) -> list[str]:
        """The texts that stand in files of their own."""
        for kind in _TEXTS:
            if data := self.texts.get((between, kind)):
                return [text for one in data if (text := said(one))]
        return []

    @property
    def held(self) -> int:
        return sum(len(data or b"") for _, _, data in self.images)


def plan_shard(place: Place, name: str, size: int, given: Mapping[str, str]) -> list[Piece]:
    return [Piece(name, 0, 1, 0)]


def read_shard(files: OwnFiles, piece: Piece) -> Iterator[Record]:
    sample = _Sample("")
    with files.place.open(piece.file) as raw:
        for tar, member in _members(raw):
            folder, _, name = member.name.rpartition("/")
            stem, _, rest = name.partition(".")
            if member.isdir() or not stem or not rest:  # "._1.png" of macOS, "README"
                continue
            if f"{folder}/{stem}" != sample.key:
                yield from _records(piece.file, sample, files.columns)
                sample = _Sample(f"{folder}/{stem}")
            elif sample.held > _MAX_HELD_BYTES:
                yield from _let_go(piece.file, sample, files.columns)
            if not member.isfile():
                sample.others.append(f"{rest}, which is a link or a device")
                continue
            file = tar.extractfile(member) if member.size <= _MAX_MEMBER_BYTES else None
            _add(sample, name, rest, None if file is None else file.read())
    yield from _records(piece.file, sample, files.columns)


def _add(sample: _Sample, name: str, rest: str, data: bytes | None) -> None:
    lower = rest.lower()
    image = max((e[1:] for e in IMAGE_ENDINGS if f".{lower}".endswith(e)), key=len, default="")
    kind = image or lower.rpartition(".")[2]
    between = rest[: len(rest) - len(kind)].rstrip(".")
    if image:
        sample.images.append((between, name, data))
    elif kind in _TEXTS and data is not None:
        sample.texts.setdefault((between, kind), []).append(data)
    elif kind == "json" and data is not None:
        try:
            loaded = json.loads(data)
        except (ValueError, RecursionError):
            loaded = {}
        sample.facts[between] = loaded if isinstance(loaded, dict) else {}
    else:
        sample.others.append(rest)


def _records(file: str, sample: _Sample, given: Mapping[str, str]) -> Iterator[Record]:
    """The pairs of a sample that is whole, and what of it is none."""
    if not sample.key:
        return
    whole = len(sample.images)
    yield from _let_go(file, sample, given)
    where = f"{file}:{sample.key.lstrip('/')}"
    folder = where.removesuffix(where.rpartition("/")[2]) if "/" in sample.key.lstrip("/") else f"{file}:"
    lone = {between for between, _ in sample.texts} | {at for at, one in sample.facts.items() if _says_text(one, given)}
    for between in sorted(lone - {"", *(between for between, _, _ in sample.images)}):
        yield Record(said(f"{where}.{between}") or "", fault=(Reason.MISSING_OBJECT, "a text without image"))
    masks = [name for between, name, _ in sample.images if between.rpartition(".")[2].lower() in _MASKS]
    if len(masks) < len(sample.images):
        for name in masks:
            yield Record(said(f"{folder}{name}") or "", fault=(Reason.MASK, name))
        sample.images = [image for image in sample.images if image[1] not in masks]
    if not sample.images and not whole and not lone - {""}:
        beside = ", ".join(sample.others) or "its text or JSON"
        yield Record(said(where) or "", fault=(Reason.MISSING_OBJECT, f"no image stands beside {beside}"))
    values = _values(sample, "", given)
    values["id"] = values.get("id") or _id(where)
    several = len(sample.images) > 1
    for _, name, data in sample.images:
        at = f"{folder}{name}" if several else where
        yield from _pairs(at, file, dict(values), data, where if several else None)


def _let_go(file: str, sample: _Sample, given: Mapping[str, str]) -> Iterator[Record]:
    """The images that have a text of their own, with it; they are taken out of the sample."""
    kept = []
    for between, name, data in sample.images:
        values = _values(sample, between, given) if between else {}
        if not between or not (sample.text_of(between) or _says_text(sample.facts.get(between, {}), given)):
            kept.append((between, name, data))
            continue
        where = f"{file}:{sample.key.lstrip('/')}.{between}"
        values["id"] = values.get("id") or _id(where)
        view = f"{file}:{sample.key.lstrip('/')}" if _VIEW.fullmatch(between) else None
        yield from _pairs(where, file, values, data, view)
    gone = {between for between, _, _ in sample.images} - {between for between, _, _ in kept}
    sample.images = kept
    sample.texts = {at: texts for at, texts in sample.texts.items() if at[0] not in gone}
    sample.facts = {at: facts for at, facts in sample.facts.items() if at not in gone}


def _pairs(where: str, file: str, values: dict[str, Any], data: bytes | None, group: str | None) -> Iterator[Record]:
    if group is not None and not said(values.get("group")):
        values["group"] = group
    if data is None:
        detail = f"more than {_MAX_MEMBER_BYTES >> 20} MB in one member of a shard; give it as a file"
        yield Record(said(where) or "", fault=(Reason.TOO_LARGE, detail))
        return
    yield from pairs_of(where, file, values | {"image": [data]})


def _values(sample: _Sample, between: str, given: Mapping[str, str]) -> dict[str, Any]:
    """What a sample says by field: its JSON, and above that the JSON and the text of one image."""
    values: dict[str, Any] = {}
    for at in dict.fromkeys(("", between)):
        facts = sample.facts.get(at, {})
        columns = facts_of(list(facts), given)
        values |= {key: facts[columns[key][0]] for key in FIELDS[1:] if key in columns}
        if texts := sample.text_of(at):
            values["text"] = texts
    return values


def _says_text(facts: dict[str, Any], given: Mapping[str, str]) -> bool:
    return "text" in facts_of(list(facts), given)


def _id(where: str) -> str:
    return re.sub("[/:]", "-", where)  # keys may begin anew in each shard


class _Strict(tarfile.TarInfo):
    """A header that cannot be read is an error: tarfile itself takes it for the end, and what follows is
    lost quietly.
    """

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Strict:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the proper end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"the shard breaks off: {error}") from error


class _Ends(io.RawIOBase):
    """A file that ends: tarfile skips a member by reading as far as its header claims, and a claim of terabytes takes
    hours.
    """

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
