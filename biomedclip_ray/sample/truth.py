"""The truth about a sample bucket: which cases are planted, how often, and what must become of every one of them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from biomedclip_ray.schema import Reason

ARTICLE_CASES: dict[str, float] = {
    "retracted": 0.01,
    "no_derivatives": 0.02,
    "non_commercial": 0.02,
    "manuscript_superseded": 0.01,
    "manuscript_alone": 0.01,
    "numeric_versions": 0.01,
    "historical_ocr": 0.005,
    "bad_metadata": 0.005,
    "empty_xml": 0.005,
    "bad_xml": 0.005,
    "no_figures": 0.01,
}
"""Share of articles of each kind; of each at least one."""

ARTICLE_FATES: dict[str, Reason] = {
    "retracted": Reason.RETRACTED,
    "non_commercial": Reason.LICENSE,
    "manuscript_alone": Reason.MANUSCRIPT,
    "historical_ocr": Reason.HISTORICAL_OCR,
    "bad_metadata": Reason.BAD_METADATA,
    "empty_xml": Reason.EMPTY_XML,
    "bad_xml": Reason.BAD_XML,
    "no_figures": Reason.NO_FIGURES,
}
"""Why an article is dropped under the default selection (the commercial preset); the others are kept."""

FIGURE_CASES: dict[str, float] = {
    "missing_object": 0.008,
    "no_media": 0.005,
    "md5_mismatch": 0.005,
    "truncated_image": 0.008,
    "no_caption": 0.008,
    "no_graphic": 0.004,
    "no_id": 0.01,
    "duplicate_same_caption": 0.005,
    "duplicate_other_caption": 0.005,
    "png": 0.04,
    "tiff": 0.01,
    "gif": 0.01,
    "webp": 0.01,
    "thumbnail": 0.08,
    "alternatives": 0.05,
    "with_extension": 0.1,
    "two_graphics": 0.01,
}
"""Share of the kept articles' figures of each kind; of each at least one. The first six are dropped for that reason."""

FIGURE_FATES = {str(r): r for r in (
    Reason.MISSING_OBJECT, Reason.NO_MEDIA, Reason.MD5_MISMATCH, Reason.TRUNCATED_IMAGE, Reason.NO_CAPTION,
    Reason.NO_GRAPHIC,
)}  # fmt: skip
INGEST_FIGURE_REASONS = frozenset({Reason.NO_CAPTION, Reason.NO_GRAPHIC, Reason.NO_MEDIA})


@dataclass
class PanelTruth:
    """A panel: its letter, box ([x0, y0, x1, y1] in fractions, letter included), subcaption and kind."""

    label: str
    box: list[float]
    subcaption: str
    kind: str


@dataclass
class FigureTruth:
    """A figure. `fate` is "kept" or the ledger reason it gets in ingest or preprocess, if its article is taken.

    `graphics` are the names of the files to be chosen, in order (empty where there is none to be had); `kind` is a key
    of `drawing_plots.KINDS`, or "compound" where the panels differ; `case` is a key of FIGURE_CASES or "".
    """

    figure_id: str
    label: str
    caption: str
    kind: str
    fate: str
    case: str
    graphics: list[str]
    mentions: list[str]
    panels: list[PanelTruth] = field(default_factory=list)


@dataclass
class ArticleTruth:
    """An article version. `fate` is "kept" or the reason it gets in catalog or ingest; `media` are the names listed."""

    article_id: str
    fate: str
    case: str
    license: str
    doi: str
    media: list[str]
    figures: list[FigureTruth]


@dataclass
class Truth:
    """What a bucket holds and what must become of it; `duplicates` are {first, second, same_caption} by figure id."""

    n_articles: int
    seed: int
    sparse_first_half: bool
    articles: list[ArticleTruth]
    duplicates: list[dict[str, str | bool]]

    @classmethod
    def load(cls, folder: Path | str) -> Truth:
        """Read `truth.json` of a bucket that `make_bucket` wrote. Raises FileNotFoundError where there is none."""
        raw = json.loads((Path(folder) / "truth.json").read_text())
        for article in raw["articles"]:
            for figure in article["figures"]:
                figure["panels"] = [PanelTruth(**panel) for panel in figure["panels"]]
            article["figures"] = [FigureTruth(**figure) for figure in article["figures"]]
        raw["articles"] = [ArticleTruth(**article) for article in raw["articles"]]
        return cls(**raw)

    def figures(self) -> list[FigureTruth]:
        """The figures of the articles that are kept."""
        return [figure for article in self.articles if article.fate == "kept" for figure in article.figures]

    def fates(self) -> dict[str, Counter[str]]:
        """Per unit, how many have which fate: versions (catalog), articles and figures (ingest), images
        (preprocess).
        """
        later = {Reason.EMPTY_XML, Reason.BAD_XML, Reason.NO_FIGURES}
        taken = [a for a in self.articles if a.fate == "kept" or a.fate in later]
        found = [f for f in self.figures() if f.fate not in INGEST_FIGURE_REASONS]
        return {
            "versions": Counter("kept" if a.fate in later else a.fate for a in self.articles),
            "articles": Counter(a.fate for a in taken),
            "figures": Counter(f.fate if f.fate in INGEST_FIGURE_REASONS else "kept" for f in self.figures()),
            "pictures": Counter(f.fate for f in found for _ in f.graphics),
        }
