"""Retrieval as a task: one row a query and direction, with where its right answer stands; figures come from the rows.

Three readings of what is right: strict (its own partner), the same image, and the same text (another pair that says
word for word the same is no mistake). The control asks the same product with partners drawn at random: what a model
that knows nothing gets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from biomedclip_ray.evaluate.intervals import Clusters, Figure, means, median
from biomedclip_ray.evaluate.metrics import Estimate, mean_estimates
from biomedclip_ray.evaluate.ranks import (
    DIRECTIONS,
    Floats,
    Ints,
    Keys,
    Ranks,
    Thresholds,
    count_tile,
    rank,
)

KS = (1, 5, 10, 50, 200)
STRICT, SAME_IMAGE, SAME_TEXT = READINGS = ("strict", "same_image", "same_text")
PERMUTATIONS = 20
CONTROL_QUERIES = 20_000
"""Of a direction over all permutations together: with 1,000 each, a recall@10 of 0.001 is known to a
third of itself.
"""

Found = dict[str, dict[str, Ranks]]


def readings(groups: Ints, texts: NDArray[Any]) -> dict[str, Keys]:
    """The three readings of a pool of pairs.

    Args:
        groups: (n,) pairs that show the same image share one.
        texts: (n,) pairs with the same value say the same.
    """
    own = np.arange(len(groups))
    words = np.unique(texts, return_inverse=True)[1].astype(np.int64)
    return {STRICT: Keys(own, own), SAME_IMAGE: Keys(groups, groups), SAME_TEXT: Keys(words, words)}


def rows_of(ids: Mapping[str, Sequence[str]], clusters: Mapping[str, Sequence[Any]], found: Found) -> pa.Table:
    """One row a query: sample_id, direction, cluster, and above, tied and right of each reading.

    Args:
        ids, clusters: direction -> those of its queries (texts for text_to_image).
    """
    parts = []
    for direction in DIRECTIONS:
        columns: dict[str, Any] = {
            "sample_id": pa.array(ids[direction], pa.string()),
            "direction": pa.array([direction] * len(ids[direction])),
            "cluster": pa.array([str(name) for name in clusters[direction]]),
        }
        for reading, ways in found.items():
            ranks = ways[direction]
            for name, values in (("above", ranks.above), ("tied", ranks.tied), ("right", ranks.right)):
                columns[f"{reading}.{name}"] = pa.array(values, pa.int64())
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)


def ranks_of(rows: pa.Table, reading: str = STRICT) -> Ranks:
    """The ranks that rows of one direction hold."""
    return Ranks(*(rows[f"{reading}.{name}"].to_numpy() for name in ("above", "tied", "right")))


def hits(ranks: Ranks, candidates: int) -> dict[str, NDArray[np.float64]]:
    """recall@k, mrr and mean_rank as columns with one value a query; a k that takes in all candidates says nothing."""
    columns = {f"recall@{k}": ranks.hits(k) for k in KS if k < candidates or k <= 10}
    return columns | {"mrr": ranks.reciprocal(), "mean_rank": ranks.expected() - 1.0}


def estimates(rows: pa.Table, candidates: int, draws: int, seed: int) -> dict[str, Estimate]:
    """ "DIRECTION METRIC" -> what a comparison pairs (the strict reading; no median)."""
    out: dict[str, Estimate] = {}
    for direction, mine in _directions(rows):
        clusters = Clusters.number(np.array(mine["cluster"].to_pylist()))
        columns = hits(ranks_of(mine), candidates)
        most = {"mean_rank": float(max(candidates - 1, 1))}
        found = mean_estimates(columns, clusters, draws, seed, most=most)
        out |= {f"{direction} {name}": value for name, value in found.items()}
    return out


def figures(
    ranks: Ranks, clusters: Clusters, candidates: int, draws: int, seed: int, right: NDArray[Any] | None = None
) -> dict[str, Figure]:
    """The published shape of one direction: recall@k, mrr, median_rank and mean_rank, each {value, low, high, chance,
    draws}.

    Args:
        right: (n,) how many candidates are right for each query (1 where not given): the chance level's.
    """
    one = np.ones(len(ranks.above), np.int64) if right is None else right
    blind = Ranks(np.zeros_like(one), candidates - one, one)
    columns, chance = hits(ranks, candidates), hits(blind, candidates)
    out = means(columns, clusters, draws, seed, {"mean_rank": float(max(candidates - 1, 1))})
    for name, figure in out.items():
        figure["chance"] = float(chance[name].mean())
    for key in ("value", "low", "high", "chance"):
        out["mean_rank"][key] += 1.0
    middle = median(ranks.expected(), clusters) | {"chance": float(np.median(blind.expected()))}
    mean = out.pop("mean_rank")
    return out | {"median_rank": middle, "mean_rank": mean}


def measure_rows(rows: pa.Table, keys: Mapping[str, Keys], draws: int, seed: int) -> dict[str, Any]:
    """What evaluation.json says of a pool's rows: the strict figures of both directions, and those of the other
    readings.
    """
    out: dict[str, Any] = {}
    for direction, mine in _directions(rows):
        clusters = Clusters.number(np.array(mine["cluster"].to_pylist()))
        for reading, key in keys.items():
            queries, candidates = key if direction == DIRECTIONS[0] else key[::-1]
            ranks = ranks_of(mine, reading)
            right = None if reading == STRICT and _alone(candidates) else _rightful(queries, candidates)
            found = figures(ranks, clusters, len(candidates), draws, seed, right)
            (out if reading == STRICT else out.setdefault(reading, {}))[direction] = found
    return out


def slices(
    rows: pa.Table, candidates: int, columns: Sequence[str], draws: int, seed: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Strict recall@10 of the queries with each value of each column, among all candidates: column -> value -> {n,
    of (candidates), direction: figure}.
    """
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for direction, mine in _directions(rows):
        found = ranks_of(mine).hits(10)
        clusters = np.array(mine["cluster"].to_pylist())
        for column in columns:
            values = np.array([str(value) for value in mine[column].to_pylist()])
            for value in sorted(set(values.tolist()), key=_by_number):
                own = values == value
                figure = means({"recall@10": found[own]}, Clusters.number(clusters[own]), draws, seed)["recall@10"]
                figure["chance"] = min(1.0, 10 / candidates)
                entry = out.setdefault(column, {}).setdefault(value, {"n": int(own.sum()), "of": candidates})
                entry[direction] = {"recall@10": figure}
    return out


def _by_number(value: str) -> tuple[float, str]:
    """Years and ranges of words by their numbers, after one another; what has none comes last, by name."""
    number = re.match(r"(?:over )?(\d+)", value)
    return (float(number[1]) if number else math.inf), value


def by_kind(
    text: Floats, image: Floats, kinds: Sequence[str], clusters: NDArray[Any], draws: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Strict recall@10 within the pool of each kind alone: what tells figures apart when the kind does not.

    Args:
        kinds: (n,) the kind of each pair; clusters: (n,) what the draws draw.
    """
    out: dict[str, dict[str, Any]] = {}
    names = np.asarray(kinds, dtype=object)
    for kind in sorted(set(kinds)):
        own = np.flatnonzero(names == kind)
        every = np.arange(len(own))
        found = rank(text[own], image[own], {STRICT: Keys(every, every)})[STRICT]
        part: dict[str, Any] = {"n": len(own)}
        for direction in DIRECTIONS:
            shown = means({"recall@10": found[direction].hits(10)}, Clusters.number(clusters[own]), draws, seed)
            part[direction] = {"recall@10": shown["recall@10"] | {"chance": min(1.0, 10 / len(own))}}
        out[kind] = part
    return out


Blocks = Callable[[], Iterable[Floats]]
"""The vectors of one side in order, in pieces; called again for each pass."""


def control(text: Blocks, image: Blocks, n: int, seed: int) -> dict[str, dict[str, Any]]:
    """The strict figures with partners drawn at random, over PERMUTATIONS permutations of at most CONTROL_QUERIES
    queries in all.

    Each figure is `{value, low, high, chance}`; low and high are the range of 95% of the permutations.

    Args:
        n: pairs; both sides have a vector of each.
    """
    out: dict[str, dict[str, Any]] = {}
    random = np.random.default_rng(seed)
    for direction, queries, candidates in zip(DIRECTIONS, (text, image), (image, text), strict=True):
        asked = np.sort(random.permutation(n)[: max(1, CONTROL_QUERIES // PERMUTATIONS)])
        partners = np.stack([random.permutation(n)[: len(asked)] for _ in range(PERMUTATIONS)])
        found = against(picked(queries(), asked), candidates, partners)
        chance = hits(Ranks(np.zeros(1, np.int64), np.array([n - 1]), np.ones(1, np.int64)), n)
        columns = {name: values.reshape(PERMUTATIONS, -1) for name, values in hits(found, n).items()}
        columns["mean_rank"] = columns["mean_rank"] + 1
        columns["median_rank"] = found.expected().reshape(PERMUTATIONS, -1)
        out[direction] = {}
        for name, values in columns.items():
            level = (n + 1) / 2 if name.endswith("_rank") else float(chance[name][0])
            each = np.median(values, axis=1) if name == "median_rank" else values.mean(axis=1)
            low, high = np.quantile(each, [0.025, 0.975])
            figure = {"value": float(each.mean()), "low": float(low), "high": float(high), "chance": level}
            out[direction][name] = figure
    return out


def against(queries: Floats, candidates: Blocks, partners: Ints) -> Ranks:
    """Ranks of the candidates `partners` (permutations, queries) for each query, in that order; candidates are read
    twice.
    """
    rows = np.tile(np.arange(len(queries)), len(partners))
    wanted, place = np.unique(partners, return_inverse=True)
    right = picked(candidates(), wanted).astype(np.float64)
    left = queries.astype(np.float64)
    scores = np.concatenate(
        [np.einsum("ij,ij->i", left, right[mine]) for mine in place.reshape(partners.shape)]  # a permutation at a time
    )
    nobody = Thresholds(np.empty(0, np.int64), np.empty(0), 0)
    above, tied = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    for block in candidates():
        counted = count_tile(queries, np.ascontiguousarray(block), (Thresholds(rows, scores, 0), nobody))[0]
        above += counted.above
        tied += counted.tied
    return Ranks(above, tied - 1, np.ones(len(rows), np.int64))


def picked(blocks: Iterable[Floats], rows: Ints) -> Floats:
    """The rows (ascending numbers) of vectors that come in pieces."""
    start, out = 0, []
    for block in blocks:
        mine = rows[(rows >= start) & (rows < start + len(block))] - start
        out.append(block[mine])
        start += len(block)
    return np.concatenate(out)


def _directions(rows: pa.Table) -> Iterable[tuple[str, pa.Table]]:
    for direction in DIRECTIONS:
        yield direction, rows.filter(pc.equal(rows["direction"], direction))


def _alone(keys: Ints) -> bool:
    return len(np.unique(keys)) == len(keys)


def _rightful(queries: Ints, candidates: Ints) -> Ints:
    """(n,) how many candidates are right for each query."""
    values, counts = np.unique(candidates, return_counts=True)
    return counts[np.searchsorted(values, queries)]
