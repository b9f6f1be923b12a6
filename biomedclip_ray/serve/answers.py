"""What the engine answers the ingress with: plain values that travel between processes.

A bad picture is a value here, not an exception: in a batch of strangers an exception would be everybody's.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from biomedclip_ray.serve.inputs import Refusal

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """Why one item has no answer."""

    message: str
    code: str
    param: str | None = None

    def refusal(self, param: str | None = None) -> Refusal:
        """As the error of the request that it came with."""
        where = param or self.param
        return Refusal(f"{where}: {self.message}" if where else self.message, param=where, code=self.code)


@dataclass(frozen=True)
class Vector:
    """A unit vector (d,) float32; tokens that the model read (0 for a picture); whether the text was cut to them."""

    values: np.ndarray
    tokens: int = 0
    truncated: bool = False


@dataclass(frozen=True)
class Answers(Generic[T]):
    """One answer or problem an item, in the order of the items, and the bundle that gave them."""

    bundle: str
    items: list[T | Problem]

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
    @property
    def tokens(self) -> int:
        return sum(item.tokens for item in self.items if isinstance(item, Vector))


@dataclass(frozen=True)
class Classified(Answers[np.ndarray]):
    """Each answer: probabilities (labels,) float32 that sum to 1."""


@dataclass(frozen=True)
class Figure:
    """One search result; score is the cosine of query and figure."""

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

    def body(self) -> dict[str, Any]:
        """As JSON: links lead to the article, never to an image host, whose addresses change."""
        pmcid = self.article_id.partition(".")[0]
        picture = None
        if self.thumbnail:
            picture = "data:image/jpeg;base64," + base64.b64encode(self.thumbnail).decode()
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
            # own data has no article to link to
            "article_url": f"https://pmc.ncbi.nlm.nih.gov/articles/{pmcid}/" if pmcid.startswith("PMC") else None,
            "thumbnail": picture,
        }


@dataclass(frozen=True)
class Found:
    bundle: str
    hits: list[Figure]
    tokens: int = 0
    truncated: bool = False


@dataclass(frozen=True)
class Facts:
    """What is loaded: the bundle, its index, and what its figures can be filtered by."""

    bundle: str
    name: str
    dimensions: int
    context_length: int
    figures: int
    kinds: dict[str, int] = field(default_factory=dict)
    licenses: dict[str, int] = field(default_factory=dict)
    years: tuple[int, int] | None = None
