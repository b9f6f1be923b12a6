"""Arrow schemas of every product, ids, and the reasons for which a row is not kept.

Others read the products with pandas, DuckDB or `datasets`: the names here are part of the public interface. Every file
is cast to its schema, because a block whose column is all null would otherwise change the column's type.
"""

from __future__ import annotations

import re
from enum import StrEnum

import pyarrow as pa
import xxhash

_STRINGS = pa.list_(pa.string())

CATALOG = pa.schema(
    {
        "article_id": pa.string(),
        "pmcid": pa.string(),
        "version": pa.int32(),
        "part": pa.int32(),
        "license": pa.string(),
        "is_retracted": pa.bool_(),
        "is_manuscript": pa.bool_(),
        "is_historical_ocr": pa.bool_(),
        "title": pa.string(),
        "citation": pa.string(),
        "doi": pa.string(),
        "pmid": pa.string(),
        "etag": pa.string(),
        "last_modified": pa.string(),
        "json_key": pa.string(),
        "xml_key": pa.string(),
        "xml_md5": pa.string(),
        "media": pa.list_(pa.struct({"key": pa.string(), "md5": pa.string()})),
    }
)

MENTION = pa.struct({"sentence": pa.string(), "in_body": pa.bool_()})

# `graphic` numbers the pictures of a figure; entries that share a number are alternatives, best first.
FIGURE_MEDIA = pa.struct(
    {"name": pa.string(), "key": pa.string(), "md5": pa.string(), "found": pa.bool_(), "graphic": pa.int16()}
)

FIGURE = pa.struct(
    {
        "figure_id": pa.string(),
        "label": pa.string(),
        "is_table": pa.bool_(),  # what the article numbers among its tables; false unless ingest.tables is set
        "caption": pa.string(),
        "spoken": pa.string(),  # the plain caption: in one language, 10^4, no superscript citations
        "mentions": pa.list_(MENTION),
        "license": pa.string(),
        "adapted": pa.bool_(),
        "media": pa.list_(FIGURE_MEDIA),
    }
)

ARTICLES = pa.schema(
    {
        "article_id": pa.string(),
        "pmcid": pa.string(),
        "part": pa.int32(),
        "title": pa.string(),
        "journal": pa.string(),
        "year": pa.int32(),
        "article_type": pa.string(),
        "keywords": _STRINGS,
        "doi": pa.string(),
        "pmid": pa.string(),
        "license": pa.string(),
        "license_source": pa.string(),
        "figures": pa.list_(FIGURE),
    }
)

PAIRS = pa.schema(
    {
        "pair_id": pa.string(),
        "article_id": pa.string(),
        "pmcid": pa.string(),
        "part": pa.int32(),
        "figure_id": pa.string(),
        "panel": pa.int16(),
        "panel_label": pa.string(),
        "box": pa.list_(pa.float32()),
        "label": pa.string(),
        "is_table": pa.bool_(),
        "caption": pa.string(),
        "text": pa.string(),
        "mentions": _STRINGS,
        "language": pa.string(),
        "adapted": pa.bool_(),
        "image": pa.binary(),
        "width": pa.int32(),
        "height": pa.int32(),
        "original_width": pa.int32(),
        "original_height": pa.int32(),
        "original_format": pa.string(),
        "image_note": pa.string(),  # how the image was taken from its file where that is not plain: page, window, channels
        "media_name": pa.string(),
        "media_md5": pa.string(),
        "sha256": pa.string(),
        "text_sha256": pa.string(),
        "phash": pa.uint64(),
        "figure_kind": pa.string(),
        "figure_kind_score": pa.float32(),
        "license": pa.string(),
        "title": pa.string(),
        "journal": pa.string(),
        "year": pa.int32(),
        "article_type": pa.string(),
        "keywords": _STRINGS,
        "doi": pa.string(),
        "pmid": pa.string(),
        "source_split": pa.string(),  # own data may say it; null: by hash of the PMCID
    }
)

CORPUS = pa.schema(
    {
        "pair_id": pa.string(),
        "split": pa.string(),
        "group": pa.int64(),
        "kept": pa.bool_(),
        "reason": pa.string(),
    }
)

LEDGER = pa.schema(
    {
        "stage": pa.string(),
        "unit": pa.string(),
        "id": pa.string(),
        "reason": pa.string(),
        "transient": pa.bool_(),
        "detail": pa.string(),
    }
)


def index_schema(dimensions: int) -> pa.Schema:
    """The index's columns; vectors are fixed-size lists of float32, the only type that Lance searches."""
    vector = pa.list_(pa.float32(), dimensions)
    return pa.schema(
        {
            "pair_id": pa.string(),
            "article_id": pa.string(),
            "image_vector": vector,
            "text_vector": vector,
            "caption": pa.string(),
            "title": pa.string(),
            "journal": pa.string(),
            "year": pa.int32(),
            "license": pa.string(),
            "doi": pa.string(),
            "figure_kind": pa.string(),
            "split": pa.string(),
            "thumbnail": pa.binary(),
            "x": pa.float32(),
            "y": pa.float32(),
            "bundle": pa.string(),
        }
    )


# What figure_kind says; `figures/kinds.py` has the reasons for these.
KINDS: tuple[str, ...] = (
    "micrograph",
    "fluorescence",
    "histology",
    "electron_micrograph",
    "radiology",
    "gel",
    "chart",
    "heat_map",
    "signal",
    "diagram",
    "chemical_structure",
    "sequence",
    "table",
    "map",
    "photograph",
    "equation",
)


class Reason(StrEnum):
    """Why a unit was not kept. Each has a sentence, and is final or transient (network, disk: worth another try)."""

    # catalog: listed PMCID
    UNKNOWN_PMCID = "unknown_pmcid"
    LISTED_AGAIN = "listed_again"
    # catalog: article version
    SUPERSEDED = "superseded"
    LICENSE = "license"
    RETRACTED = "retracted"
    MANUSCRIPT = "manuscript"
    HISTORICAL_OCR = "historical_ocr"
    BAD_METADATA = "bad_metadata"
    BAD_PACKAGE = "bad_package"
    # ingest: article
    EMPTY_XML = "empty_xml"
    BAD_XML = "bad_xml"
    YEAR = "year"
    JOURNAL = "journal"
    ARTICLE_TYPE = "article_type"
    NO_FIGURES = "no_figures"
    # ingest: figure
    NO_CAPTION = "no_caption"
    NO_GRAPHIC = "no_graphic"
    NO_MEDIA = "no_media"
    # fetching: any unit
    MISSING_OBJECT = "missing_object"
    MD5_MISMATCH = "md5_mismatch"
    FETCH_FAILED = "fetch_failed"
    DEADLINE = "deadline"
    # preprocess: picture
    TEXT_FILTER = "text_filter"
    TEXT_CLASSIFIER = "text_classifier"
    UNKNOWN_FORMAT = "unknown_format"
    NOT_SUPPORTED = "not_supported"
    TRUNCATED_IMAGE = "truncated_image"
    BROKEN_IMAGE = "broken_image"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_SMALL = "too_small"
    BAD_ASPECT = "bad_aspect"
    BLANK = "blank"
    # own data: picture
    BROKEN_FILE = "broken_file"
    TOO_LARGE = "too_large"
    MASK = "mask"
    BAD_SPLIT = "bad_split"
    # curate: pair
    DUPLICATE = "duplicate"
    SPLIT_CONFLICT = "split_conflict"
    GROUP_TOO_LARGE = "group_too_large"
    SHORT_TEXT = "short_text"
    CURATE_LICENSE = "curate_license"
    CURATE_KIND = "curate_kind"
    CURATE_PANEL = "curate_panel"
    BALANCE = "balance"
    # evaluate: held-out pair
    NOT_WHOLE_FIGURE = "not_whole_figure"
    SECOND_PICTURE = "second_picture"
    # embed: pair
    NOT_IN_CORPUS = "not_in_corpus"
    SPLIT_NOT_EMBEDDED = "split_not_embedded"

    @property
    def sentence(self) -> str:
        return _SENTENCES[self]

    @property
    def transient(self) -> bool:
        return self in _TRANSIENT


_TRANSIENT = frozenset({Reason.FETCH_FAILED, Reason.DEADLINE})

_SENTENCES = {
    Reason.UNKNOWN_PMCID: "source.select.pmcids names an article that the inventory does not have",
    Reason.LISTED_AGAIN: "source.select.pmcids names the article more than once",
    Reason.SUPERSEDED: "a newer version of the article exists",
    Reason.LICENSE: "source.select.licenses does not allow the licence of the article or of the figure",
    Reason.RETRACTED: "the article was retracted",
    Reason.MANUSCRIPT: "an author manuscript (text mining only)",
    Reason.HISTORICAL_OCR: "the text is OCR of a scan",
    Reason.BAD_METADATA: "the metadata JSON cannot be read",
    Reason.BAD_PACKAGE: "the legacy package, or this file of it, is broken, unsafe or too large",
    Reason.EMPTY_XML: "the XML file is empty",
    Reason.BAD_XML: "the XML cannot be parsed",
    Reason.YEAR: "ingest.select.years does not hold the article's year",
    Reason.JOURNAL: "ingest.select.journals does not name the article's journal",
    Reason.ARTICLE_TYPE: "ingest.select.article_types does not name the article's type",
    Reason.NO_FIGURES: "the article has no figure",
    Reason.NO_CAPTION: "the figure has no caption",
    Reason.NO_GRAPHIC: "the figure names no graphic",
    Reason.NO_MEDIA: "no file of the article matches the graphic's name",
    Reason.MISSING_OBJECT: "the object is listed but not there (404)",
    Reason.MD5_MISMATCH: "the bytes do not have the md5 that the metadata gives",
    Reason.FETCH_FAILED: "network or storage failed after all retries",
    Reason.DEADLINE: "the object did not arrive before source.resources.deadline_s",
    Reason.TEXT_FILTER: "neither caption nor mentions match preprocess.select.text",
    Reason.TEXT_CLASSIFIER: "the text's probability is below preprocess.select.classifier.threshold",
    Reason.UNKNOWN_FORMAT: "the bytes are no image of a known format",
    Reason.NOT_SUPPORTED: "an image of a form that is not read; the detail says the way out",
    Reason.TRUNCATED_IMAGE: "the picture ends early",
    Reason.BROKEN_IMAGE: "the picture cannot be decoded",
    Reason.TOO_MANY_PIXELS: "the picture claims more than preprocess.max_pixels",
    Reason.TOO_SMALL: "a side is shorter than preprocess.min_side",
    Reason.BAD_ASPECT: "the sides' ratio is above preprocess.max_aspect",
    Reason.BLANK: "the picture is one colour",
    Reason.BROKEN_FILE: "the file that holds the pair cannot be read to its end",
    Reason.TOO_LARGE: "the image's file is larger than a task can hold",
    Reason.MASK: "a mask or segmentation that lies beside its image",
    Reason.BAD_SPLIT: "the split is none of train, validation (val, valid, dev) and test",
    Reason.DUPLICATE: "the same picture with the same text is kept once already",
    Reason.SPLIT_CONFLICT: "the same picture is in a higher split (test > validation > train)",
    Reason.GROUP_TOO_LARGE: "over curate.max_group pairs share this picture: blank plots, not one figure",
    Reason.SHORT_TEXT: "the text is shorter than curate.select.min_text_chars",
    Reason.CURATE_LICENSE: "curate.select.licenses does not allow the pair's licence",
    Reason.CURATE_KIND: "curate.select.kinds does not name the figure's kind",
    Reason.CURATE_PANEL: "curate.select.panels is off",
    Reason.BALANCE: "curate.balance keeps a part of this figure kind only",
    Reason.NOT_WHOLE_FIGURE: "a panel: the retrieval pool holds whole figures",
    Reason.SECOND_PICTURE: "the retrieval pool holds one picture of each figure",
    Reason.NOT_IN_CORPUS: "curate did not keep the pair",
    Reason.SPLIT_NOT_EMBEDDED: "embed.splits does not name the pair's split",
}

_ARTICLE_ID = re.compile(r"(PMC\d+)\.(\d+)")
_XML_ID = re.compile(r"[A-Za-z0-9._-]+")


def split_article_id(article_id: str) -> tuple[str, int]:
    """`"PMC10009416.12"` -> `("PMC10009416", 12)`. Raises ValueError for anything else."""
    match = _ARTICLE_ID.fullmatch(article_id)
    if not match:
        raise ValueError(f"{article_id!r} is no article id; expected PMC<number>.<version>")
    return match[1], int(match[2])


def hash64(text: str) -> int:
    """The 64-bit xxh3 hash that parts, samples and splits are drawn by: uniform, the same on every machine."""
    return xxhash.xxh3_64_intdigest(text.encode())


def part_of(pmcid: str, parts: int) -> int:
    """The part an article belongs to, 0 <= part < parts."""
    return hash64(pmcid) * parts >> 64


def figure_ids(article_id: str, xml_ids: list[str | None]) -> list[str]:
    """Ids of an article's figures in document order.

    The XML id where it is unique and made of `[A-Za-z0-9._-]`, else `fig-<n>` with n counted from 1; a made-up name that
    some other figure bears gets `_` appended until it is free.
    """
    counts: dict[str | None, int] = {}
    for xml_id in xml_ids:
        counts[xml_id] = counts.get(xml_id, 0) + 1
    names = [x if x and counts[x] == 1 and _XML_ID.fullmatch(x) else None for x in xml_ids]
    taken = {name for name in names if name}
    ids = []
    for n, name in enumerate(names, start=1):
        if name is None:
            name = f"fig-{n}"
            while name in taken:
                name += "_"
        ids.append(f"{article_id}/{name}")
    return ids


def pair_id(figure_id: str, stem: str | None, panel: int) -> str:
    """`PMC1.1/F2#0`; with the file's stem where the figure has several graphics: `PMC1.1/F2/file-a#0`."""
    return f"{figure_id}/{stem}#{panel}" if stem else f"{figure_id}#{panel}"
