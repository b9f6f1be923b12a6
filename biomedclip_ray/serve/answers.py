"""What the engine answers the ingress with: plain values that travel between processes.

A bad image is a value here, not an exception: in a batch of strangers an exception would be everybody's.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from biomedclip_ray.search.filters import Filters
from biomedclip_ray.serve.errors import RETRY_AFTER_S, Refusal
from biomedclip_ray.serve.inputs import Item
from biomedclip_ray.serve.pulse import Address

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """Why one item has no answer."""

    message: str
    code: str
    param: str | None = None
    status: int = 400

    def refusal(self, param: str | None = None) -> Refusal:
        """As the error of the request that it came with."""
        where = param or self.param
        named = where is not None and self.message.startswith(where)
        message = f"{where}: {self.message}" if where and not named else self.message
        later = RETRY_AFTER_S if self.status == 503 else None
        return Refusal(message, param=where, code=self.code, status=self.status, retry_after=later)


@dataclass(frozen=True)
class Vector:
    """A unit vector (d,) float32; tokens that the model read (0 for an image); whether the text was cut to them."""

    values: np.ndarray
    tokens: int = 0
    truncated: bool = False


@dataclass(frozen=True)
class Answers(Generic[T]):
    """One answer or problem an item, in the order of the items, the bundle that gave them, and where its
    engine beats.
    """

    bundle: str
    items: list[T | Problem]
    engine: Address | None = None

    def checked(self, param: str, *, alone: bool) -> list[T]:
        """The answers, if all are; raises the first problem as a Refusal that names its item."""
        answers: list[T] = []
        for n, item in enumerate(self.items):
            if isinstance(item, Problem):
                raise item.refusal(param if alone else f"{param}[{n}]")
            answers.append(item)
        return answers


@dataclass(frozen=True)
class Embedded(Answers[Vector]):
    int8_scale: float = 127.0
    """What the index has floats multiplied by to become int8."""

    @property
    def tokens(self) -> int:
        return sum(item.tokens for item in self.items if isinstance(item, Vector))


@dataclass(frozen=True)
class Classified(Answers[np.ndarray]):
    """Each answer: probabilities (labels,) float32 that sum to 1."""

    tokens: int = 0


@dataclass(frozen=True)
class FoundFigure:
    """One search result; spans of `highlights` are of the caption, `more` is of the same article."""

    pair_id: str
    article_id: str
    score: float
    caption: str
    title: str | None
    journal: str | None
    year: int | None
    license: str | None
    doi: str | None
    figure_kind: str | None
    thumbnail: bytes | None
    withheld: bool = False
    """Whether there is a thumbnail that the figure's licence does not allow to be shown."""

    highlights: tuple[tuple[int, int], ...] = ()
    more: tuple[FoundFigure, ...] = ()

    def body(self) -> dict[str, Any]:
        """As JSON (`schemas.Hit`): links lead to the article, never to an image host, whose addresses change."""
        pmcid = self.article_id.partition(".")[0]
        thumbnail = None
        if self.thumbnail:
            thumbnail = "data:image/jpeg;base64," + base64.b64encode(self.thumbnail).decode()
        # own data has no article to link to
        article_url = f"https://pmc.ncbi.nlm.nih.gov/articles/{pmcid}/" if pmcid.startswith("PMC") else None
        source = ", ".join(str(part) for part in (self.journal, self.year) if part)
        told = (self.title, source, f"Licence: {self.license or 'unknown'}", article_url or self.article_id)
        return {
            "pair_id": self.pair_id,
            "score": round(self.score, 6),
            "caption": self.caption,
            "title": self.title,
            "journal": self.journal,
            "year": self.year,
            "license": self.license,
            "doi": self.doi,
            "figure_kind": self.figure_kind,
            "article_id": self.article_id,
            "article_url": article_url,
            "attribution": ". ".join(part.rstrip(".") for part in told if part),
            "thumbnail": thumbnail,
            "withheld": self.withheld,
            "highlights": [list(span) for span in self.highlights],
            "more": [figure.body() for figure in self.more],
        }


@dataclass(frozen=True)
class Part:
    """What a search asks for: a text, an image, or a figure of the index by its pair_id, and how much it counts."""

    item: Item | None
    figure: str | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Question:
    """A search, as the engine takes it."""

    asked: tuple[Part, ...]
    k: int
    by: str = "image"
    without: tuple[Part, ...] = ()
    filters: Filters = field(default_factory=Filters)
    group: Literal["article"] | None = None
    cursor: str | None = None
    facets: bool = False


@dataclass(frozen=True)
class Searched:
    bundle: str
    hits: list[FoundFigure]
    tokens: int = 0
    truncated: bool = False
    engine: Address | None = None
    cursor: str | None = None
    """Of the next page."""
    facets: dict[str, dict[str, int]] | None = None


@dataclass(frozen=True)
class MapPoints:
    """Figures on the map (`search/points.py` says what the columns are)."""

    x: np.ndarray
    y: np.ndarray
    kind: np.ndarray
    kinds: list[str]
    ids: list[str]
    engine: Address | None = None


@dataclass(frozen=True)
class ModelFacts:
    """What is loaded: the bundle, its index, and what its figures can be filtered by, as the engine says of itself."""

    bundle: str
    name: str
    dimensions: int
    context_length: int
    figures: int
    kinds: dict[str, int] = field(default_factory=dict)
    licenses: dict[str, int] = field(default_factory=dict)
    years: tuple[int, int] | None = None
    recall: dict[str, float] = field(default_factory=dict)
    output_recall: dict[str, float] = field(default_factory=dict)
    int8_scale: float = 127.0
    application: str = ""
    """Fingerprint of the arguments that the engine was started with."""
    device: str = "cpu"
    precision: str = "float32"
    precision_note: str = ""
    threads: int = 1
    engine: Address | None = None
