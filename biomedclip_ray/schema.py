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


def column(name: str, type_: pa.DataType, sentence: str, unit: str = "") -> pa.Field:
    """A public column: its type, its unit, and what it says in one sentence. The two last travel as Arrow field
    metadata.
    """
    return pa.field(name, type_, metadata={"sentence": sentence, **({"unit": unit} if unit else {})})


def sentence_of(field: pa.Field) -> str:
    """What a public column says, with its unit."""
    told = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
    return told["sentence"] + (f" ({told['unit']})" if "unit" in told else "")


_ARTICLE_ID = column("article_id", pa.string(), "article and version, PMC10009416.1")
_PMCID = column("pmcid", pa.string(), "article without its version; own pairs: what they are split by")
_PART = column("part", pa.int32(), "number of the file that holds the row")
_TITLE = column("title", pa.string(), "title of the article")
_JOURNAL = column("journal", pa.string(), "whole name of the journal; own pairs: own.name")
_YEAR = column("year", pa.int32(), "of the earliest publication date")
_ARTICLE_TYPE = column(
    "article_type", pa.string(), "JATS article type: research-article, review-article, case-report, ..."
)
_KEYWORDS = column("keywords", _STRINGS, "of the article")
_DOI = column("doi", pa.string(), "of the article: whom to credit")
_PMID = column("pmid", pa.string(), "of the article in PubMed")
_PREPRINT = column("preprint", pa.string(), "DOI of the preprint that the article names as its own; they share a split")
_LICENSE = column(
    "license", pa.string(), "licence code of the figure, else of its article; unknown: none could be read"
)
_LABEL = column("label", pa.string(), "of the figure as printed: Figure 2")
_IS_TABLE = column("is_table", pa.bool_(), "the image of a table, taken where ingest.tables is set")
_CAPTION = column("caption", pa.string(), "the caption as published, lossless")
_ADAPTED = column("adapted", pa.bool_(), "the caption says that the figure is from elsewhere")
_FIGURE_ID = column("figure_id", pa.string(), "article and figure: PMC10009416.1/F2")
_PAIR_ID = column("pair_id", pa.string(), "figure and panel, unique: PMC10009416.1/F2#0")
_KIND = column("figure_kind", pa.string(), "what the image is, guessed from pixels and words")

CATALOG = pa.schema(
    [
        _ARTICLE_ID,
        _PMCID,
        column("version", pa.int32(), "of the article, from 1"),
        _PART,
        column("license", pa.string(), "licence code that the metadata give"),
        column("is_retracted", pa.bool_(), "the article was retracted"),
        column("is_manuscript", pa.bool_(), "an author manuscript: text mining only"),
        column("is_historical_ocr", pa.bool_(), "the text is OCR of a scan"),
        _TITLE,
        column("citation", pa.string(), "as the metadata write it"),
        _DOI,
        _PMID,
        column("etag", pa.string(), "of the metadata JSON in the bucket"),
        column("last_modified", pa.string(), "of the metadata JSON in the bucket; says nothing of the article", "UTC"),
        column("json_key", pa.string(), "where the metadata JSON lies in the bucket"),
        column("xml_key", pa.string(), "where the XML lies in the bucket"),
        column("xml_md5", pa.string(), "of the XML"),
        column(
            "media", pa.list_(pa.struct({"key": pa.string(), "md5": pa.string()})), "every other file of the article"
        ),
    ]
)

MENTION = pa.struct(
    [
        column("sentence", pa.string(), "a sentence that cites the figure"),
        column("in_body", pa.bool_(), "it stands in the body, not in another caption or table"),
    ]
)

FIGURE_MEDIA = pa.struct(
    [
        column("name", pa.string(), "the file as the XML names it"),
        column("key", pa.string(), "where it lies in the bucket"),
        column("md5", pa.string(), "of the file"),
        column("found", pa.bool_(), "the article lists such a file"),
        column(
            "graphic", pa.int16(), "number of the image within the figure; the same number: alternatives, best first"
        ),
    ]
)

FIGURE = pa.struct(
    [
        _FIGURE_ID,
        _LABEL,
        _IS_TABLE,
        _CAPTION,
        column("plain_caption", pa.string(), "the plain caption: one language, 10^4, no superscript citations"),
        column("mentions", pa.list_(MENTION), "sentences of the article that cite the figure"),
        _LICENSE,
        _ADAPTED,
        column("media", pa.list_(FIGURE_MEDIA), "the files that the figure names"),
    ]
)

ARTICLES = pa.schema(
    [
        _ARTICLE_ID,
        _PMCID,
        _PART,
        _TITLE,
        _JOURNAL,
        _YEAR,
        _ARTICLE_TYPE,
        _KEYWORDS,
        _DOI,
        _PMID,
        _PREPRINT,
        column("license", pa.string(), "licence code of the article"),
        column("license_source", pa.string(), "where the licence is stated: metadata, or a place in the XML"),
        column("figures", pa.list_(FIGURE), "in document order"),
    ]
)

PAIRS = pa.schema(
    [
        _PAIR_ID,
        _ARTICLE_ID,
        _PMCID,
        _PART,
        _FIGURE_ID,
        column("panel", pa.int16(), "0: the whole figure; 1..: a panel of it, cut at box"),
        column("panel_label", pa.string(), "the panel's letter or number"),
        column("box", pa.list_(pa.float32()), "left, top, right, bottom of the panel", "share of the figure's sides"),
        _LABEL,
        _IS_TABLE,
        _CAPTION,
        column("text", pa.string(), "what trains: the plain caption, or a panel's sub-caption"),
        column("mentions", _STRINGS, "sentences of the article that cite the figure"),
        column("language", pa.string(), "of the text, ISO 639-1; null: it cannot be told"),
        _ADAPTED,
        column("image", pa.binary(), "JPEG, upright, short side at most preprocess.short_side pixels"),
        column("width", pa.int32(), "of the stored image", "pixels"),
        column("height", pa.int32(), "of the stored image", "pixels"),
        column("original_width", pa.int32(), "of the original", "pixels"),
        column("original_height", pa.int32(), "of the original", "pixels"),
        column("original_format", pa.string(), "of the original file: JPEG, TIFF, ..."),
        column(
            "image_note",
            pa.string(),
            "how the image was taken from its file, where not plainly: page, window, channels",
        ),
        column("media_name", pa.string(), "the original file"),
        column("media_md5", pa.string(), "of the original file, as the source gives it"),
        column("sha256", pa.string(), "of the original file; a panel: of its pixels"),
        column("text_sha256", pa.string(), "of the text without case and white space"),
        column("phash", pa.uint64(), "perceptual hash of the image, 64 bits"),
        _KIND,
        column("figure_kind_score", pa.float32(), "how sure the kind is, 0 to 1"),
        _LICENSE,
        _TITLE,
        _JOURNAL,
        _YEAR,
        _ARTICLE_TYPE,
        _KEYWORDS,
        _DOI,
        _PMID,
        _PREPRINT,
        column("source_split", pa.string(), "own pairs may name their split; null: by hash of the PMCID"),
    ]
)

CORPUS = pa.schema(
    [
        _PAIR_ID,
        column("split", pa.string(), "train, validation or test"),
        column("group", pa.int64(), "the same number: the same image or figure, never in two splits"),
        column("kept", pa.bool_(), "the pair is trained on or measured with"),
        column("reason", pa.string(), "why it is not kept"),
    ]
)

LEDGER = pa.schema(
    [
        column("stage", pa.string(), "which stage dropped it"),
        column("unit", pa.string(), "what was dropped: article, figure, picture, pair, ..."),
        column("id", pa.string(), "of the unit"),
        column("reason", pa.string(), "one of schema.Reason"),
        column("transient", pa.bool_(), "lost to network or disk: the same command tries it again"),
        column("detail", pa.string(), "what the reason leaves open"),
    ]
)


def index_schema(dimensions: int) -> pa.Schema:
    """The index's columns; vectors are fixed-size lists of float32, the only type that Lance searches."""
    vector = pa.list_(pa.float32(), dimensions)
    return pa.schema(
        [
            _PAIR_ID,
            _ARTICLE_ID,
            _PMCID,
            _FIGURE_ID,
            column("panel", pa.int16(), "0: the whole figure; 1 and more: a panel"),
            _LABEL,
            column("image_vector", vector, "of the image, unit length"),
            column("text_vector", vector, "of the text, unit length"),
            _CAPTION,
            column(
                "words", pa.string(), "the caption's pieces and the article's numbers, as search/folding.py folds them"
            ),
            _TITLE,
            _JOURNAL,
            _YEAR,
            _LICENSE,
            _DOI,
            _PMID,
            _KIND,
            column("split", pa.string(), "train, validation or test"),
            column("thumbnail", pa.binary(), "JPEG, long side at most embed.thumbnail pixels"),
            column("x", pa.float32(), "place on the map of all images, -1 to 1"),
            column("y", pa.float32(), "place on the map of all images, -1 to 1"),
            column("bundle", pa.string(), "id of the bundle that made the vectors"),
        ]
    )


COLUMNS = {
    "catalog": CATALOG,
    "ingest": ARTICLES,
    "figures of ingest": pa.schema(list(FIGURE)),
    "preprocess": PAIRS,
    "curate": CORPUS,
    "embed": index_schema(512),
    "ledger of every stage": LEDGER,
}
"""What REFERENCE.md shows, stage by stage."""


ACKNOWLEDGEMENT = (
    "Articles and figures come from PubMed Central, courtesy of the U.S. National Library of Medicine (NLM). This is "
    "a copy "
    "made on a certain day: it does not show the most current and accurate data available from NLM, and NLM has "
    "neither "
    "reviewed nor endorsed it. Each article and figure stays under its own licence."
)
"""What NLM asks of whoever shows or passes on what PubMed Central holds."""

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

    sentence: str
    transient: bool

    def __new__(cls, value: str, sentence: str = "", transient: bool = False) -> Reason:
        reason = str.__new__(cls, value)
        reason._value_, reason.sentence, reason.transient = value, sentence, transient
        return reason

    # catalog: listed PMCID
    UNKNOWN_PMCID = "unknown_pmcid", "source.select.pmcids names an article that the inventory does not have"
    LISTED_AGAIN = "listed_again", "source.select.pmcids names the article more than once"
    # catalog: article version
    SUPERSEDED = "superseded", "a newer version of the article exists"
    LICENSE = "license", "source.select.licenses does not allow the licence of the article or of the figure"
    RETRACTED = "retracted", "the article was retracted"
    MANUSCRIPT = "manuscript", "an author manuscript (text mining only)"
    HISTORICAL_OCR = "historical_ocr", "the text is OCR of a scan"
    BAD_METADATA = "bad_metadata", "the metadata JSON cannot be read"
    BAD_PACKAGE = "bad_package", "the legacy package, or this file of it, is broken, unsafe or too large"
    # ingest: article
    EMPTY_XML = "empty_xml", "the XML file is empty"
    BAD_XML = "bad_xml", "the XML cannot be parsed"
    YEAR = "year", "ingest.select.years does not hold the article's year"
    JOURNAL = "journal", "ingest.select.journals does not name the article's journal"
    ARTICLE_TYPE = "article_type", "ingest.select.article_types does not name the article's type"
    NO_FIGURES = "no_figures", "the article has no figure"
    # ingest: figure
    NO_CAPTION = "no_caption", "the figure has no caption"
    NO_GRAPHIC = "no_graphic", "the figure names no graphic"
    NO_MEDIA = "no_media", "no file of the article matches the graphic's name"
    # fetching: any unit
    MISSING_OBJECT = "missing_object", "the object is listed but not there (404)"
    MD5_MISMATCH = "md5_mismatch", "the bytes do not have the md5 that the metadata gives"
    FETCH_FAILED = "fetch_failed", "network or storage failed after all retries", True
    DEADLINE = "deadline", "the object did not arrive before source.resources.deadline_s", True
    # preprocess: image
    TEXT_FILTER = "text_filter", "neither caption nor mentions match preprocess.select.text"
    TEXT_CLASSIFIER = "text_classifier", "the text's probability is below preprocess.select.classifier.threshold"
    UNKNOWN_FORMAT = "unknown_format", "the bytes are no image of a known format"
    NOT_SUPPORTED = "not_supported", "an image of a form that is not read; the detail says the way out"
    TRUNCATED_IMAGE = "truncated_image", "the image ends early"
    BROKEN_IMAGE = "broken_image", "the image cannot be decoded"
    TOO_MANY_PIXELS = "too_many_pixels", "the image claims more than preprocess.max_pixels"
    TOO_SMALL = "too_small", "a side is shorter than preprocess.min_side"
    BAD_ASPECT = "bad_aspect", "the sides' ratio is above preprocess.max_aspect"
    BLANK = "blank", "the image is one colour"
    NO_IMAGE = "no_image", "the file holds no image for a caption: a segmentation, a report, a plan"
    BURNED_IN = "burned_in", "the DICOM file says that a name may stand in its pixels (BurnedInAnnotation)"
    # own data: image
    BROKEN_FILE = "broken_file", "the file that holds the pair cannot be read to its end"
    TOO_LARGE = "too_large", "the image's file is larger than a task can hold"
    MASK = "mask", "a mask or segmentation that lies beside its image"
    ERASED = "erased", "it was erased from this root"
    BAD_SPLIT = "bad_split", "the split is none of train, validation (val, valid, dev) and test"
    # curate: pair
    DUPLICATE = "duplicate", "the same image with the same text is kept once already"
    SPLIT_CONFLICT = "split_conflict", "the same image is in a higher split (test > validation > train)"
    GROUP_TOO_LARGE = "group_too_large", "over curate.max_group pairs share this image: blank plots, not one figure"
    SHORT_TEXT = "short_text", "the text is shorter than curate.select.min_text_chars"
    CURATE_LICENSE = "curate_license", "curate.select.licenses does not allow the pair's licence"
    CURATE_KIND = "curate_kind", "curate.select.kinds does not name the figure's kind"
    CURATE_PANEL = "curate_panel", "curate.select.panels is off"
    BALANCE = "balance", "curate.balance keeps a part of this figure kind only"
    # evaluate: held-out pair
    SECOND_IMAGE = "second_picture", "the retrieval pool holds one image of each figure"
    # embed: pair
    NOT_IN_CORPUS = "not_in_corpus", "curate did not keep the pair"
    SPLIT_NOT_EMBEDDED = "split_not_embedded", "embed.splits does not name the pair's split"
    NON_FINITE = "non_finite", "the bundle gives a vector that is non-finite or has no direction"


_XML_ID = re.compile(r"[A-Za-z0-9._-]+")


def hash64(text: str) -> int:
    """The 64-bit xxh3 hash that parts, samples and splits are drawn by: uniform, the same on every machine."""
    return xxhash.xxh3_64_intdigest(text.encode())


def part_of(pmcid: str, parts: int) -> int:
    """The part an article belongs to, 0 <= part < parts."""
    return hash64(pmcid) * parts >> 64


def figure_ids(article_id: str, xml_ids: list[str | None]) -> list[str]:
    """Ids of an article's figures in document order.

    The XML id where it is unique and made of `[A-Za-z0-9._-]`, else `fig-<n>` with n counted from 1; a made-up name
    that some other figure bears gets `_` appended until it is free.
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
