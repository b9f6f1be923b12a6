"""The bytes of a record's image: by its name as it stands, or by what people leave out of names.

A list made elsewhere names images by absolute paths, with backslashes, without folder (ROCOv2: train/ and valid/ beside
the lists) or without ending, in other capitals, or with letters composed otherwise (a Mac's umlauts). Where the name as
it stands leads to nothing, the folder is listed, once per process, and the one file that fits is taken; where two fit,
none is.
"""

from __future__ import annotations

import errno
import os
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from biomedclip_ray.images.errors import ImageError
from biomedclip_ray.images.formats import FORMATS, IMAGE_ENDINGS, Decoder, has_extension
from biomedclip_ray.schema import Reason
from biomedclip_ray.sources.own.record import OwnFiles, Record
from biomedclip_ray.store.place import Place

LARGE = 64 << 20
"""Bytes from which a TIFF or slide is not read whole before it is known what it is."""
_PIECE = 8 << 20
_SHOWN = 200  # characters of a name in a ledger row
_NO_FILE = (errno.EISDIR, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EINVAL)
"""What a disk says of names that lead to no file that can be read."""
_OF_SLIDES = tuple(e for row in FORMATS if row.decoder in (Decoder.TIFF, Decoder.SLIDE) for e in row.extensions)


@dataclass(frozen=True)
class LargeFile:
    """A file that may be a slide of gigabytes: read where it lies, or from a copy on disk."""

    place: Place
    name: str

    @contextmanager
    def on_disk(self) -> Iterator[Path]:
        """Its path, a temporary one where the place is a bucket."""
        if self.place.local is not None:
            yield self.place.local / self.name
            return
        with tempfile.NamedTemporaryFile(suffix=".tif") as copy, self.place.open(self.name) as file:
            while piece := file.read(_PIECE):
                copy.write(piece)
            copy.flush()
            yield Path(copy.name)


def read_image(files: OwnFiles, record: Record) -> bytes | LargeFile:
    """The image's bytes; of a large TIFF or slide only where it is. Raises ImageError that says why there are none."""
    if record.fault is not None:
        raise ImageError(*record.fault)
    if isinstance(record.image, bytes):
        return record.image
    assert record.image is not None  # a record without image has a fault
    name = _below(files.place, record.image, record.named)
    try:
        try:
            return _read(files.place, name)
        except OSError as error:
            if not _leads_nowhere(error, files.place):
                raise
            return _read(files.place, _fitting(files, name, record.named))
    except OSError as error:
        final = _leads_nowhere(error, files.place)
        why = "" if isinstance(error, FileNotFoundError) else f": {os.strerror(error.errno) if error.errno else error}"
        raise ImageError(Reason.MISSING_OBJECT if final else Reason.FETCH_FAILED, _short(name) + why) from error


def _leads_nowhere(error: OSError, place: Place) -> bool:
    """Whether no file of that name can be read, however often it is asked for. Of a folder Arrow has no number."""
    return isinstance(error, FileNotFoundError) or (place.local is not None and error.errno in (None, *_NO_FILE))


def _short(name: str) -> str:
    return name if len(name) <= _SHOWN else f"{name[:_SHOWN]}... ({len(name):,} characters)"


def _read(place: Place, name: str) -> bytes | LargeFile:
    if not has_extension(name, _OF_SLIDES):
        return place.read(name)
    with place.open(name) as file:
        return LargeFile(place, name) if file.size() > LARGE else bytes(file.read())


def without_ending(name: str) -> str:
    """`a/b.1.JPG` -> `a/b.1`; what is no ending of images stays."""
    lower = name.lower()
    ending = max((e for e in IMAGE_ENDINGS if lower.endswith(e)), key=len, default="")
    return name[: len(name) - len(ending)]


def _below(place: Place, name: str, named: str) -> str:
    """The name relative to the place. Raises ImageError for a file outside it: a list must not fetch what is not the
    pairs'.
    """
    for base in (place.uri, str(place.local.resolve()) if place.local is not None else place.uri):
        if named.startswith(f"{base}/") and "/../" not in named:
            return named.removeprefix(f"{base}/")
    if name.startswith(("../", "/")) or name == ".." or "://" in named or named[1:3] == ":/":
        detail = (
            f"{named} lies outside own.uri={place.uri}: give the folder above the images, or names relative to the list"
        )
        raise ImageError(Reason.MISSING_OBJECT, detail)
    if "\0" in name:
        raise ImageError(Reason.MISSING_OBJECT, f"{_short(named)!r} is no name of a file")
    return name


def _fitting(files: OwnFiles, name: str, named: str) -> str:
    """The one file whose path ends as the name does. Raises ImageError where there is none, or more than one."""
    index = _index(files.place, files.checksum)
    for wanted in dict.fromkeys(map(_same, (named.removeprefix("./"), unquote(named)))):
        bare = without_ending(wanted)
        same = index.get(bare.rpartition("/")[2], ())
        if bare != wanted:
            fits = [path for path in same if f"/{_same(path)}".endswith(f"/{wanted}")]
        else:
            fits = [path for path in same if f"/{without_ending(_same(path))}".endswith(f"/{wanted}")]
        folder = _same(name.rpartition("/")[0])
        fits = [path for path in fits if _same(path).rpartition("/")[0] == folder] or fits
        if len(fits) > 1:
            raise ImageError(Reason.MISSING_OBJECT, f"{_short(named)} may be any of {', '.join(fits[:3])}")
        if fits:
            return fits[0]
    raise ImageError(Reason.MISSING_OBJECT, _short(name))


@lru_cache(maxsize=2)
def _index(place: Place, checksum: str) -> dict[str, tuple[str, ...]]:
    """Last part of a path without its ending -> the images' paths that end so."""
    found: dict[str, tuple[str, ...]] = {}
    for path in place.list():
        bare = without_ending(path)
        if bare != path:
            last = _same(bare).rpartition("/")[2]
            found[last] = (*found.get(last, ()), path)
    return found


def _same(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
