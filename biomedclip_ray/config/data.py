"""The sections of the data side: which articles, which images, which pairs."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from biomedclip_ray.config.section import (
    KnownKinds,
    Later,
    PartResources,
    Percent,
    Positive,
    Section,
    Share,
    StageSection,
    known,
)

Side = Annotated[int, Field(ge=8)]
"""Pixels of which fewer have no kind, no panels and no hash worth the name."""
COMMERCIAL = ("CC0", "CC BY", "CC BY-SA", "CC BY-ND")
NON_COMMERCIAL = ("CC BY-NC", "CC BY-NC-SA", "CC BY-NC-ND")
LICENSES = (*COMMERCIAL, *NON_COMMERCIAL, "TDM", "unknown")
# JATS suggests most of these; the rest is what publishers add
ARTICLE_TYPES = tuple(
    """abstract addendum announcement article article-commentary book-review books-received brief-report calendar
    case-report case-study collection correction data-paper discussion dissertation editorial expression-of-
    concern guidelines in-brief index interview introduction letter meeting-report methods-article news obituary
    oration other partial-retraction preprint product-review protocol rapid-communication reply report reprint
    research-article retraction review-article systematic-review technical-report translation""".split()
)


class SourceResources(Section):
    threads: Positive = 16
    """Objects fetched at once inside a task: a small object costs a round trip, not a core."""
    retries: Annotated[int, Field(ge=0)] = 5
    """Tries after the first for 5xx, time-outs, and a 403 on a key that the inventory names; four for each where the
    source says that it has no time (429, 503), and then as late as it says.
    """
    deadline_s: Annotated[float, Field(gt=0)] = 120.0
    """Seconds one object may take, retries included; a read that never ends becomes a ledger row."""
    max_connections: Positive = 64
    """Connections kept open per process."""
    requester_pays: bool = False
    """Tell S3 that this account pays for requests and bytes; bioRxiv's and medRxiv's buckets are told without it."""


class SourceSelect(Section):
    """Which article versions are fetched. The newest version is chosen first and then judged."""

    licenses: tuple[str, ...] | Literal["commercial", "non_commercial", "all"] = "commercial"
    """Allow-list of licence codes (null in the metadata counts as "unknown"), or the name of a preset."""
    retracted: bool = False
    """Keep retracted articles."""
    manuscripts: bool = False
    """Keep author manuscripts (licence TDM: text mining only)."""
    historical_ocr: bool = False
    """Keep scanned articles whose text is OCR."""
    articles: Positive | None = None
    """Only this many articles, those with the smallest hash of their PMCID: a fair sample that another run repeats."""
    percent: Percent = 100.0
    """Only this share of all articles, by the same hash."""
    pmcids: str | None = None
    """URI of a text file with one PMCID a line: nothing else is looked at."""

    @field_validator("licenses")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if isinstance(value, tuple):
            for code in value:
                if code not in LICENSES:
                    raise ValueError(f"{code!r} is no licence code; known: {', '.join(LICENSES)}")
        return value

    def allowed(self) -> frozenset[str]:
        """The licence codes that pass."""
        presets = {"commercial": COMMERCIAL, "non_commercial": (*COMMERCIAL, *NON_COMMERCIAL), "all": LICENSES}
        return frozenset(presets[self.licenses] if isinstance(self.licenses, str) else self.licenses)


class Source(Section):
    uri: str = "s3://pmc-oa-opendata"
    """A bucket or folder in the layout of the PMC Cloud Service; or a folder of legacy oa_package tarballs, known by
    the oa_file_list.csv in it (packages lie where the list says, with or without the leading oa_package/).
    """
    inventory: str = "newest"
    """Date of the inventory ("2026-11-20T01-00Z") or "newest", resolved once per root."""
    select: SourceSelect = SourceSelect()
    articles_per_part: Positive = 450
    """Articles in one part, the unit of work, retry and resume: minutes of work, a few hundred MB of images."""
    resources: SourceResources = SourceResources()


class Catalog(StageSection):
    pass


class IngestSelect(Section):
    """Which articles' figures are taken, by what their XML says; judged before a byte of media is fetched.

    Not in source.select: the metadata JSON has only a citation, which names the journal in short and no type. So a
    change here leaves the catalog as it is. An article that does not say what is asked for is left out.
    """

    years: tuple[int | None, int | None] | None = None
    """[first, last] year of the earliest publication date, both included; null at one end: open."""
    journals: tuple[str, ...] = ()
    """Whole names of journals as the XML has them, case ignored; none: all."""
    article_types: tuple[str, ...] = ()
    """JATS article types (research-article, review-article, case-report, ...); none: all."""

    @field_validator("years")
    @classmethod
    def _range(cls, value: Any) -> Any:
        if value is not None and None not in value and value[0] > value[1]:
            raise ValueError(f"must be [first, last], and {value[0]} is after {value[1]}")
        return value

    @field_validator("journals")
    @classmethod
    def _named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(name.strip() for name in value):
            raise ValueError("holds an empty name, which no journal has")
        return value

    @field_validator("article_types")
    @classmethod
    def _types(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(known(name, ARTICLE_TYPES, "article type") for name in value)


class Ingest(StageSection):
    select: IngestSelect = IngestSelect()
    tables: bool = False
    """Take tables as figures where they have an image of themselves: images of text, of which there are many. The
    column `is_table` of the pairs tells them from figures.
    """


class TextClassifier(Section):
    uri: str
    """An ONNX file that every node can read: texts in, the probability that each is wanted out; `figures/select.py`
    says what it must look like and how to export one. Its bytes enter the fingerprint, not its place.
    """
    threshold: Share = 0.5
    """Least probability of a figure that is taken."""


class PreprocessSelect(Section):
    """Which figures are taken, by text (the pair's) and mentions; judged before a byte of media is fetched."""

    text: tuple[str, ...] = ()
    """Patterns (regular expressions, case ignored), one of which text or mentions must match."""
    classifier: TextClassifier | None = None
    """Asked about what the patterns let through; needs `pip install 'biomedclip-ray[classifier]'`. null: nobody is
    asked.
    """

    @field_validator("text")
    @classmethod
    def _patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return value


class Kinds(Section):
    bundle: str | None = None
    """A CLIP that names each image's kind by zero-shot, own pairs' too: as model.bundle, and every node must reach it.
    With resources.num_gpus it runs there. null: the cheap guess by pixels and words, which needs no model.
    """


class Preprocess(StageSection):
    select: PreprocessSelect = PreprocessSelect()
    kinds: Kinds = Kinds()
    mentions: Annotated[int, Field(ge=0)] = 0
    """Sentences that cite the figure, put behind the caption in a whole figure's `text`; those of the body first.
    `caption` stays the caption, and a panel's text its subcaption: a sentence seldom says which panel it means.
    """
    short_side: Side = 384
    """Pixels of the stored image's short side; a smaller original is never enlarged."""
    quality: Annotated[int, Field(ge=1, le=100)] = 90
    """JPEG quality of the stored image."""
    min_side: Positive = 32
    """Pixels; smaller images are icons and equations."""
    max_pixels: Positive = 178_956_970
    """Pixels an original may claim before it is decoded (Pillow's own decompression-bomb limit)."""
    max_aspect: Annotated[float, Field(gt=1)] = 12.0
    """Long side / short side; beyond it lie rules and banners."""
    panels: bool = False
    """Also cut compound figures into panels (a derivative work: never done under a no-derivatives licence, or where
    none is known).
    """


class Own(StageSection):
    """Image-caption pairs of a hospital or laboratory, taken in at curate like PMC's."""

    uri: str | None = None
    """A folder (or one file) of Parquet, WebDataset shards, CSV or JSON lines with images beside it;
    `sources/own_files.py` names the forms and the columns. null: PubMed Central only.
    """
    columns: dict[Literal["image", "text", "id", "group", "split", "license"], str] = Field(default_factory=dict)
    """What a column (or key) is where its name is not one of the usual: own.columns.text=befund."""
    alone: bool = False
    """Train on these pairs only; PubMed Central is not read."""
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")] = "own"
    """What ids begin with, and what stands where PMC's pairs name their journal."""
    license: str = "unknown"
    """Licence of pairs that name none; curate.select.licenses judges it like any other."""
    pairs_per_part: Positive = 2000
    """Rows in one part, the unit of work, retry and resume (a WebDataset shard is a part of its own)."""
    frames: Annotated[Literal["middle", "all"], Later()] = "middle"
    """Of a DICOM file of many frames: the middle one, or a pair for each."""
    tiles: Annotated[int, Field(ge=0), Later()] = 0
    """Tiles of tissue beside the thumbnail of a whole slide, a pair for each."""
    burned_in: Annotated[bool, Later()] = False
    """Take DICOM files that say that a name may stand in their pixels (BurnedInAnnotation)."""
    patient_key: str | None = None
    """URI of a file whose bytes key the hash of DICOM's PatientID, the group; null: made once, and kept as
    own_patient.key in the root. Who has key and products can test a guessed id: keep it, and do not publish it.
    """

    @field_validator("license")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in LICENSES:
            raise ValueError(f"{value!r} is no licence code; known: {', '.join(LICENSES)}")
        return value

    @model_validator(mode="after")
    def _has_pairs(self) -> Own:
        if self.alone and self.uri is None:
            raise ValueError("own.alone=true needs own.uri: the pairs to train on")
        return self


class CurateSelect(Section):
    licenses: tuple[str, ...] | Literal["commercial", "non_commercial", "all"] = "all"
    """Licences trained on; source.select says which are fetched."""
    kinds: Annotated[tuple[str, ...], KnownKinds] | None = None
    """Figure kinds trained on; null: all."""
    panels: bool = True
    """Train on panels too, where preprocess cut them."""
    min_text_chars: Annotated[int, Field(ge=0)] = 5
    """Characters; a shorter text tells nothing about its image."""


class Splits(Section):
    validation: Share = 0.05
    """Share of articles, by hash of the PMCID."""
    test: Share = 0.05
    """Share of articles, by hash of the PMCID."""

    @model_validator(mode="after")
    def _sum(self) -> Splits:
        if self.validation + self.test >= 1:
            raise ValueError("curate.splits: validation + test must leave something to train on")
        return self


class Curate(Section):
    resources: PartResources = PartResources()
    """Of its tasks: those that read and write parts, and the one that decides, which holds 80 bytes a pair and more
    where near duplicates are looked for.
    """
    select: CurateSelect = CurateSelect()
    splits: Splits = Splits()
    max_group: Positive = 1000
    """Pairs; a larger component of equal images is blank plots chained, and is dropped."""
    near_bits: Annotated[int, Field(ge=0, le=8)] | None = 4
    """Bits of 64 in which the perceptual hashes of two copies of an image may differ (recompressed or shrunk to a
    third: 97% of figures at 4); such pairs are then compared pixel by pixel. null: equal bytes only.
    """
    balance: Annotated[dict[str, Annotated[float, Field(ge=0)]], KnownKinds] = Field(default_factory=dict)
    """Figure kind -> share (up to 1) or number (above 1) of its pairs that is kept, drawn by hash; other kinds stay
    whole.
    """
