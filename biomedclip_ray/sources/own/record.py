"""What a record of own pairs is, and which column, or key of a JSON, holds which of its facts.

People name columns as the sets do that they learnt from: `Image Path`, `file_name`, `ID`, `Patient-ID`. Names are
compared without case, spaces and signs, in an order of preference; `own.columns` names what this list does not know.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from biomedclip_ray.config import ConfigError
from biomedclip_ray.schema import Reason
from biomedclip_ray.store.place import Place

FIELDS = ("image", "text", "id", "group", "split", "license")
# best first; as `_plain` writes them
_NAMES = {
    "image": """image images jpg jpeg png tif tiff webp bmp img imgs picture pictures filename filenames imagefilename
        imagefilenames filepath filepaths imagepath imagepaths imgpath figurepath path file imagefile imagename imgname
        imagebytes imagedata imgfile dicom dicompath scan scanpath photo src localpath relativepath relpath
        fullpath""".split(),
    "text": """text caption captions texts txt title description captiontext rawcaption alttext report findings
    impression sentence sentences imagecaption figurecaption figcaption captionen longcaption shortcaption
    enhancedcaption textdescription clinicaldescription""".split(),
    "id": "id key imageid uid pairid sampleid figureid".split(),
    "group": """group groupid patient patientid patientname subjectid caseid studyid articleid pmcid pmid""".split(),
    "split": "split datasetsplit".split(),
    "license": "license licence licensename".split(),
}
# a table without a column of images names them by their ids, as ROCOv2's does
_IDS_OF_IMAGES = ("imageid", "id", "key", "uid")
# what pandas, R and databases write for a value that is not there
_NOTHING = {"", "nan", "na", "n/a", "<na>", "none", "null", "nat"}
# "data:image/png;base64,...", and base64 alone where it is too long for a name
_BASE64 = re.compile(r"(?:data:[^,]{0,100};base64,|(?=\S{400}))([A-Za-z0-9+/]+={0,2})\s*")
_HALF_CHARACTERS = re.compile("[\ud800-\udfff]")  # of names that are no UTF-8, and of JSON
_NUMBERED = re.compile(r"(?:image|img|picture|photo)\d{1,2}(?:path|file|filename|name)?")
_NUMBER = re.compile(r"0*(\d+)(?:\.0*)?")


@dataclass(frozen=True)
class Piece:
    """What one part reads: rows first..last of a table, row groups first..last of a Parquet file, or a whole shard."""

    file: str
    first: int
    last: int
    row: int
    """The number of its first row within the file."""
    offset: int = 0
    """Of a table's first row: the bytes before it."""
    quoted: bool = True
    """Whether the table's texts may stand in quotes; a tab-separated file may have plain ones."""
    split: str | None = None
    """What the file's name says, where the files are named by their splits."""


@dataclass(frozen=True)
class OwnFiles:
    """What lies at own.uri: one piece for each part, and a checksum of names, sizes and times of change."""

    place: Place
    form: str
    pieces: tuple[Piece, ...]
    checksum: str
    columns: Mapping[str, str] = field(default_factory=dict)
    """Field -> the column that own.columns names."""


@dataclass(frozen=True, slots=True)
class Record:
    """One pair as its file has it. `image` is the image's bytes, or the name of a file below the place."""

    where: str
    image: bytes | str | None = None
    text: str = ""
    id: str | None = None
    group: str | None = None
    split: str | None = None
    license: str | None = None
    fault: tuple[Reason, str] | None = None
    """Why this is no pair: it has no image, or its file ends early and those behind it are lost."""
    named: str = field(default="", compare=False)
    """The image's name as the record has it, before it is seen from the record's folder."""


def columns_of(there: Iterable[str], file: str, given: Mapping[str, str]) -> dict[str, list[str]]:
    """Field -> the columns that hold it; only images may stand in several. Raises ConfigError without image or text."""
    names = list(there)
    for key, name in given.items():
        if name not in names:
            raise ConfigError(f"own.columns.{key}={name}: {file} has no such column; it has {', '.join(names)}")
    found = facts_of(names, given)
    if not any(names):
        raise ConfigError(f"own.uri: {file} is empty; its first row must name its columns")
    for key in ("image", "text"):
        if key not in found:
            raise ConfigError(
                f"own.uri: {file} has no column of "
                f"{'images (image, file_name, filepath)' if key == 'image' else 'texts (text, caption, title)'}; "
                f"it has {', '.join(names)}; name one by own.columns.{key}"
            )
    return found


def facts_of(names: list[str], given: Mapping[str, str]) -> dict[str, list[str]]:
    """As `columns_of`, without what is not there."""
    plain: dict[str, str] = {}
    for name in names:
        plain.setdefault(_plain(name), name)
    found = {key: [given[key]] for key in FIELDS if given.get(key) in names}
    for key in FIELDS:
        if key not in given and (column := next((plain[n] for n in _NAMES[key] if n in plain), None)) is not None:
            found[key] = [column]
    # views of one thing: image_1 and image_2, or image and image2
    views = [name for known, name in plain.items() if _NUMBERED.fullmatch(known)]
    if views and "image" not in given:
        found["image"] = [name for name in found.get("image", []) if name not in views] + views
    if "image" not in found and "image" not in given:
        # datasets' imagefolder: left_file_name and right_file_names are images too
        sides = [name for known, name in plain.items() if re.fullmatch(r".+filenames?", known)]
        ids = [plain[known] for known in _IDS_OF_IMAGES if known in plain][:1]
        if sides or ids:
            found["image"] = sides or ids
    return found


def pairs_of(where: str, file: str, values: dict[str, Any]) -> Iterator[Record]:
    """The records of a row: one for each image, or for each text. As many texts as images: one of each.

    Args:
        values: what the row says by field; `image` a list of images.
    """
    images = [image for given in values.pop("image", None) or [None] for image in _flat(given)] or [None]
    given = values.pop("text", None)
    texts = [said(text) or "" for text in given] if isinstance(given, list) and given else [said(given) or ""]
    facts: dict[str, str | None] = {
        key: (group_name if key == "group" else said)(value) for key, value in values.items()
    }
    several = len(images) > 1
    if several and not facts.get("id") and not facts.get("group"):
        facts["group"] = said(where)  # views of one thing
    for n, image in enumerate(images):
        at = f"{where}[{n}]" if several else where
        for text in [texts[n]] if several and len(texts) == len(images) else texts:
            yield Record(said(at) or "", text=text, **_image(image, file), **facts)  # type: ignore[arg-type]


def said(value: Any) -> str | None:
    """A value as text that UTF-8 can hold; None where it says nothing: no value, a word for none, or a
    list of things.
    """
    if isinstance(value, bytes):  # Parquet by Hive and Impala, which do not mark their strings; files of text
        wide = value.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        value = value.decode("utf-16" if wide else "utf-8-sig", errors="replace")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or isinstance(value, list | dict | tuple):
        return None
    if isinstance(value, float) and value.is_integer():  # numbers with a gap among them became floats
        value = int(value)
    text = _HALF_CHARACTERS.sub("\ufffd", str(value))
    return None if text.strip().casefold() in _NOTHING else text


def group_name(value: Any) -> str | None:
    """One name for a patient, whether a file holds it as 7, 7.0, "007" or " 7": one too many would stand
    in two splits.
    """
    text = said(value)
    if text is None:
        return None
    number = _NUMBER.fullmatch(text.strip())
    return number[1] if number else text.strip()


def _flat(image: Any) -> list[Any]:
    """The images of a cell; a list of numbers is one, its bytes (numpy arrays of uint8 that pandas wrote)."""
    if not isinstance(image, list):
        return [image]
    if len(image) > 32 and all(isinstance(byte, int) and 0 <= byte < 256 for byte in image):
        return [bytes(image)]
    return [one for inner in image for one in _flat(inner)]


def _image(image: Any, file: str) -> dict[str, Any]:
    """`image` and what belongs to it of a Record; a name is seen from the folder of the file that says it."""
    if isinstance(image, dict):  # as Hugging Face stores images
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes) and image:
        return {"image": image}
    name = said(image) if not isinstance(image, list | tuple) else None
    if name is not None and (encoded := _BASE64.fullmatch(name)):
        try:
            return {"image": base64.b64decode(encoded[1], validate=True)}
        except binascii.Error as error:
            return {"fault": (Reason.BROKEN_IMAGE, f"base64 of {len(name):,} characters: {error}")}
    if name is None or isinstance(image, bytes):
        what = f"the cell holds {type(image).__name__}" if image else "the record has no image"
        return {"fault": (Reason.MISSING_OBJECT, what)}
    if re.match(r"(https?|ftp)://", name, re.IGNORECASE):
        detail = (
            f"{name} is an address: download the images first (img2dataset writes shards that are read as they are)"
        )
        return {"fault": (Reason.MISSING_OBJECT, detail)}
    named = name.strip().removeprefix("file://").replace("\\", "/")
    return {"image": posixpath.normpath(posixpath.join(posixpath.dirname(file), named)), "named": named}


def _plain(name: str) -> str:
    """`Image_Path`, `image path` and `imagePath` are one name."""
    return re.sub(r"[\W_]+", "", name).casefold()
