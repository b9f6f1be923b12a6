"""Questions of several parts: vectors and words fused, "but not", figures like one, grouped by article, counted, page
after page.

What is asked becomes one or more ranked lists. Vectors of a column are one list: their weighted sum, less those of
`without` (Rocchio). Each text is a list by its words (BM25). Several lists are fused by reciprocal rank (Cormack et al.
2009: the sum of weight / (60 + rank)), which needs no common scale of cosine and BM25. A list is the same however far
it is read, so pages neither repeat nor miss a hit.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from biomedclip_ray.search import words
from biomedclip_ray.search.filters import Filters
from biomedclip_ray.search.index import Hit, Index
from biomedclip_ray.search.table import Column, Found

RECIPROCAL_K = 60
FUSED_DEPTH = 120
"""Rows of each list that are fused, as many as two cheap looks into the index give; what comes after them follows in
the order of one list.
"""
GROUP_HITS = 5
FACETS = {"kinds": "figure_kind", "licenses": "license", "years": "year", "journals": "journal", "splits": "split"}
FACET_VALUES = 100


@dataclass(frozen=True)
class Vector:
    """A vector (d,) of any length but zero, and the vectors that it is compared with."""

    values: NDArray[np.floating[Any]]
    column: Column = "image_vector"
    weight: float = 1.0


@dataclass(frozen=True)
class Words:
    """Words of captions, as `words.py` reads them."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class Like:
    """A figure of the index by its pair_id; it is not among the hits itself."""

    pair_id: str
    column: Column = "image_vector"
    weight: float = 1.0


Part = Vector | Words | Like


@dataclass(frozen=True)
class Query:
    """What is asked for, what must not be there, and among which rows."""

    asked: tuple[Part, ...]
    without: tuple[Part, ...] = ()
    filters: Filters = field(default_factory=Filters)
    group: Literal["article"] | None = None


@dataclass(frozen=True)
class Result:
    """A hit, where the asked words stand in its caption, and in a grouped search the article's next hits."""

    hit: Hit
    highlights: list[tuple[int, int]] = field(default_factory=list)
    more: list[Hit] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """Results in order, and the cursor of the next page, None at the last hit."""

    results: list[Result]
    cursor: str | None


def find(index: Index, query: Query, k: int = 20, cursor: str | None = None, thumbnails: bool = False) -> Page:
    """The next k results of a query.

    Raises:
        ValueError: nothing is asked for; a vector or pair_id that the index cannot take; a cursor of another query or
            index.
    """
    if k < 1:
        raise ValueError(f"k={k}: at least one result must be asked for")
    ranking = _ranking(index, query)
    digest = _digest(index, query)
    at = _position(cursor, digest)
    readings = [words.read(part.text) for part in query.asked if isinstance(part, Words)]
    if query.group:
        heads, more = _grouped(index, query, ranking, at, k, thumbnails)
    else:
        found = ranking(at + k + 1)
        heads = index.hits(Found(found.ids[at : at + k + 1], found.scores[at : at + k + 1]), thumbnails)
        more = [[] for _ in heads]
    results = [Result(hit, _spans(hit, readings), others) for hit, others in zip(heads[:k], more[:k], strict=True)]
    following = _cursor(at + k, digest) if len(heads) > k else None
    return Page(results, following)


def facets(index: Index, query: Query) -> dict[str, dict[str | int, int]]:
    """How many hits have each value, of those that pass the filters of all other fields; the most frequent values
    first.

    A query with words alone counts the captions that match; with a vector every row that passes is a hit.
    """
    texts = [part for part in query.asked if isinstance(part, Words)]
    by_words = len(texts) == len(query.asked)
    without = tuple(words.read(part.text) for part in query.without if isinstance(part, Words))
    counts = {}
    for name, column in FACETS.items():
        fields = ("year_from", "year_to") if name == "years" else (name,)
        filters = query.filters.model_copy(update=dict.fromkeys(fields))
        found: dict[str | int, int] = {}
        for batch in index.column(
            column, filters, [words.read(part.text) for part in texts] if by_words else None, without
        ):
            for entry in batch.value_counts().to_pylist():
                if entry["values"] is not None:
                    found[entry["values"]] = found.get(entry["values"], 0) + entry["counts"]
        ordered = sorted(found.items(), key=lambda item: (-item[1], str(item[0])))
        counts[name] = dict(ordered[:FACET_VALUES])
    return counts


Ranking = Callable[[int], Found]
"""The first n rows of a list; fewer where it ends. The first n are the same in every longer one."""


def _ranking(index: Index, query: Query) -> Ranking:
    vectors, own = _vectors(index, query)
    without = tuple(words.read(part.text) for part in query.without if isinstance(part, Words))
    excluded = set(own)
    if vectors and any(reading.required for reading in without):
        excluded |= set(index.holding(without).tolist())
    lists: list[tuple[float, Ranking]] = []
    for column, (weight, vector) in vectors.items():
        lists.append((weight, _skipping(_by_vector(index, vector, column, query.filters), excluded)))
    for part in query.asked:
        if isinstance(part, Words):
            reading = words.read(part.text)
            lists.append((part.weight, _skipping(_by_words(index, reading, query.filters, without), set(own))))
    if not lists:
        raise ValueError("nothing is asked for: give a vector, words or a figure's pair_id")
    return lists[0][1] if len(lists) == 1 else _fused(index, lists)


def _by_vector(index: Index, vector: NDArray[np.float32], column: Column, filters: Filters) -> Ranking:
    return lambda n: index.nearest(vector, n, column, filters)


def _by_words(index: Index, reading: words.Reading, filters: Filters, without: tuple[words.Reading, ...]) -> Ranking:
    return lambda n: index.matching(reading, n, filters, without)


def _vectors(index: Index, query: Query) -> tuple[dict[Column, tuple[float, NDArray[np.float32]]], list[int]]:
    """The sum of weights and of weighted unit vectors for each column, and the row ids of figures that
    were asked by.
    """
    sums: dict[Column, NDArray[np.float32]] = {}
    weights: dict[Column, float] = {}
    own: list[int] = []
    for parts, sign in ((query.asked, 1.0), (query.without, -1.0)):
        for part in parts:
            if isinstance(part, Words):
                continue
            if not (np.isfinite(part.weight) and part.weight > 0):
                raise ValueError(f"weight={part.weight}: a weight is a positive number")
            if isinstance(part, Like):
                row_id, values = index.vector_of(part.pair_id, part.column)
                own.append(row_id)
            else:
                values = np.asarray(part.values, np.float32)
            unit = index.unit(values)
            column = part.column
            if sign > 0:
                weights[column] = weights.get(column, 0.0) + part.weight
            elif column not in sums:
                continue  # nothing of this column is asked for, so there is nothing to take it from
            sums[column] = sums.get(column, np.zeros_like(unit)) + np.float32(sign * part.weight) * unit
    return {column: (weights[column], vector) for column, vector in sums.items()}, own


def _skipping(ranking: Ranking, excluded: set[int]) -> Ranking:
    if not excluded:
        return ranking
    gone = np.fromiter(excluded, np.uint64, len(excluded))

    def first(n: int) -> Found:
        depth = n
        while True:
            found = ranking(depth)
            keep = ~np.isin(found.ids, gone)
            if keep.sum() >= n or len(found.ids) < depth:
                return Found(found.ids[keep][:n], found.scores[keep][:n])
            depth = max(depth * 2, depth + min(len(excluded), FUSED_DEPTH))

    return first


def _fused(index: Index, lists: list[tuple[float, Ranking]]) -> Ranking:
    heads = [ranking(FUSED_DEPTH) for _, ranking in lists]
    scores: dict[int, float] = {}
    for (weight, _), head in zip(lists, heads, strict=True):
        for rank, row_id in enumerate(head.ids.tolist(), 1):
            scores[row_id] = scores.get(row_id, 0.0) + weight / (RECIPROCAL_K + rank)
    ids = np.fromiter(scores, np.uint64, len(scores))
    values = np.fromiter(scores.values(), np.float64, len(scores))
    names = [row["pair_id"] for row in index.take(ids, ["pair_id"])]
    order = sorted(range(len(ids)), key=lambda n: (-values[n], names[n]))
    head = Found(ids[order], values[order].astype(np.float32))
    weight, longest = lists[0]

    def first(n: int) -> Found:
        if n <= len(head.ids) or len(heads[0].ids) < FUSED_DEPTH:
            return Found(head.ids[:n], head.scores[:n])
        tail = longest(n + len(head.ids))
        new = np.flatnonzero(~np.isin(tail.ids, head.ids))
        tail_scores = (weight / (RECIPROCAL_K + 1 + new)).astype(np.float32)
        tail_scores = np.minimum(tail_scores, head.scores[-1])
        all_ids, all_scores = np.concatenate([head.ids, tail.ids[new]]), np.concatenate([head.scores, tail_scores])
        return Found(all_ids[:n], all_scores[:n])

    return first


def _grouped(
    index: Index, query: Query, ranking: Ranking, at: int, k: int, thumbnails: bool
) -> tuple[list[Hit], list[list[Hit]]]:
    """The best hits of the next k + 1 articles, and each article's next hits."""
    for doubling in count():
        depth = (at + k + 1) * 4 << doubling
        found = ranking(depth)
        articles = [row["article_id"] for row in index.take(found.ids, ["article_id"])]
        best: dict[str, int] = {}
        for n, article in enumerate(articles):
            best.setdefault(article, n)
        if len(best) > at + k or len(found.ids) < depth:
            break
    shown = list(best.items())[at : at + k + 1]
    rows = np.array([n for _, n in shown], np.int64)
    heads = index.hits(Found(found.ids[rows], found.scores[rows]), thumbnails)
    names = tuple(article for article, _ in shown)
    if query.filters.articles is not None or not names:
        inside = query.filters
    else:
        inside = query.filters.model_copy(update={"articles": names})
    members = _ranking(index, Query(query.asked, query.without, inside))(GROUP_HITS * 20 * max(1, len(names)))
    more: dict[str, list[Hit]] = {name: [] for name in names}
    first = {hit.pair_id for hit in heads}
    for hit in index.hits(members, thumbnails):
        others = more.get(hit.row["article_id"])
        if others is not None and hit.pair_id not in first and len(others) < GROUP_HITS:
            others.append(hit)
    return heads, [more[name] for name in names]


def _spans(hit: Hit, readings: list[words.Reading]) -> list[tuple[int, int]]:
    caption = hit.row["caption"] or ""
    return sorted({span for reading in readings for span in words.highlights(caption, reading)})


def _digest(index: Index, query: Query) -> str:
    """Of everything that the order of the results depends on."""

    def told(part: Part) -> list[Any]:
        if isinstance(part, Vector):
            values = np.asarray(part.values, np.float32).tobytes().hex()
            return ["vector", values, part.column, part.weight]
        if isinstance(part, Like):
            return ["like", part.pair_id, part.column, part.weight]
        return ["words", part.text, part.weight]

    whole = [
        [told(part) for part in query.asked],
        [told(part) for part in query.without],
        query.filters.model_dump(),
        query.group,
        index.dataset.uri,
        index.dataset.version,
    ]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:16]


def _cursor(at: int, digest: str) -> str:
    return base64.urlsafe_b64encode(f"{at}.{digest}".encode()).decode().rstrip("=")


def _position(cursor: str | None, digest: str) -> int:
    """Raises ValueError for a text that is no cursor of this query."""
    if cursor is None:
        return 0
    try:
        at, _, of = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii").partition(".")
    except ValueError:  # of base64 and of ASCII alike
        at, of = "", ""
    if not (at.isdecimal() and len(at) < 10 and of == digest):
        raise ValueError("the cursor belongs to another query, other filters or another index: ask without one")
    return int(at)
