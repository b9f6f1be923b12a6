"""How many partitions must be probed, and rows ranked again, so that a search finds what exact search finds.

Measured when the index is built, with and without filters, because nothing else tells: the probes that serve no filter
found 0.63 of the neighbours where one row in a thousand passed. True neighbours come from one scan of the table by
tasks; they serve every question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from biomedclip_ray.search.filters import quoted
from biomedclip_ray.search.index import TIERS, Index
from biomedclip_ray.search.table import VECTORS, Settings, nearest_rows, open_table
from biomedclip_ray.store.place import Place

WANTED_RECALL = 0.95
SHARES = (1.0, 0.1, 0.01, 0.001)
"""Shares of the rows that pass a filter, at each of which recall is measured."""
EXACT_ROWS = 1_000
"""A filter that so few rows pass is searched exactly: 12 ms, as long as probing every partition takes."""

_REFINE = (1, 2, 5)  # of TIERS[0] rows
_FIRST_PROBES = 4
_QUERIES = 100
_FILTERED_QUERIES = 30
_SAMPLE = 20_000  # rows whose quantiles make the filters
_GROUP_ROWS = 500_000  # rows of one task: a gigabyte of vectors of width 512


class Tasks(Protocol):
    """Runs calls, each a function and its arguments, and gives their results in order."""

    def __call__(self, calls: list[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[Any]: ...


class Question(NamedTuple):
    """Queries of one column and a filter, with their true neighbours: (queries, 10) row ids."""

    name: str
    column: str
    share: float
    where: str | None
    queries: NDArray[np.float32]
    truth: NDArray[np.uint64]


def calibrate(place: Place, settings: Settings, tasks: Tasks, seed: int) -> Settings:
    """The fewest probes, and rows ranked again, that reach the wanted recall at every share of the rows that a filter
    may pass.

    Queries are rows of the table, by the searched column's own vectors and by the other's, and each of these must reach
    it alone: captions lie apart from images (the modality gap), and a probe count that serves images fails text
    queries. Filters are a range of pair ids, which knows nothing of the vectors, and the end of the map, whose rows lie
    together.
    """
    dataset = open_table(place)
    ((queries, filters),) = tasks([(_draw, (place, seed))])
    groups = fragment_groups(dataset)
    found = tasks(
        [(true_neighbours, (place, column, queries, filters, group)) for column in VECTORS for group in groups]
    )
    calls = []
    for n, column in enumerate(VECTORS):
        truths = _merged(found[n * len(groups) : (n + 1) * len(groups)])
        questions = [
            Question(f"{name} in {column}{label}@10", column, share, where, queries[name][: len(ids)], ids)
            for (name, label, share, where), ids in zip(_asked(queries, filters), truths, strict=True)
        ]
        calls.append((_fewest_probes, (place, questions)))
    kind = "IVF_RQ" if Index(dataset, settings).dimensions % 8 == 0 else "IVF_PQ"
    measured: list[Settings] = tasks(calls)
    return replace(
        settings,
        kind=kind,
        exact_rows=EXACT_ROWS,
        partitions=max(each.partitions for each in measured),
        refine_factor=max(each.refine_factor for each in measured),
        probes={share: max(each.probes.get(share, 0) for each in measured) for share in measured[0].probes},
        recall={name: value for each in measured for name, value in each.recall.items()},
    )


def _draw(place: Place, seed: int) -> tuple[dict[str, NDArray[np.float32]], list[tuple[str, float, str | None]]]:
    """Vectors of rows drawn by chance, (queries, d) for each column, and the filters."""
    dataset = open_table(place)
    rows = dataset.count_rows()
    chosen = np.random.default_rng(seed).choice(rows, min(_SAMPLE, rows), replace=False)
    sample = dataset.take(np.sort(chosen).tolist(), columns=["pair_id", "x"])
    picked = dataset.take(np.sort(chosen[:_QUERIES]).tolist(), columns=list(VECTORS))
    return {name: np.array(picked[name].to_pylist(), np.float32) for name in VECTORS}, _filters(sample, rows)


def true_neighbours(
    place: Place,
    column: str,
    queries: dict[str, NDArray[np.float32]],
    filters: Sequence[tuple[str, float, str | None]],
    fragments: list[int],
) -> list[tuple[NDArray[np.float32], NDArray[np.uint64]]]:
    """Scores and row ids of the ten nearest rows in these fragments for each set of queries and each filter; one scan
    serves all.

    A search for each query alone would read the column hundreds of times: hours at fifteen million rows.
    """
    dataset = open_table(place)
    parts = [dataset.get_fragment(n) for n in fragments]
    asked = _asked(queries, filters)
    every = np.concatenate(list(queries.values()))
    at = np.cumsum([0, *(len(each) for each in queries.values())])
    starts = dict(zip(queries, at.tolist(), strict=False))
    best = [np.full((len(_part(queries[name], where)), 10), -np.inf, np.float32) for name, _, _, where in asked]
    ids = [np.zeros(scores.shape, np.uint64) for scores in best]
    columns = {column: column, **{f"f{n}": where for n, (_, _, where) in enumerate(filters) if where}}
    scanner = dataset.scanner(columns=columns, with_row_id=True, batch_size=8192, fragments=parts)
    for batch in scanner.to_batches():
        vectors = batch[column].flatten().to_numpy(zero_copy_only=False).reshape(batch.num_rows, -1)
        scores = every @ vectors.T
        row_ids = batch["_rowid"].to_numpy(zero_copy_only=False)
        passing = {
            where: np.flatnonzero(pc.fill_null(batch[f"f{n}"], False).to_numpy(zero_copy_only=False))
            for n, (_, _, where) in enumerate(filters)
            if where
        }
        for n, (name, _, _, where) in enumerate(asked):
            mine = scores[starts[name] : starts[name] + len(best[n])]
            rows = row_ids
            if where:
                mine, rows = mine[:, passing[where]], row_ids[passing[where]]
            if len(rows):
                best[n], ids[n] = _top((best[n], ids[n]), (mine, np.broadcast_to(rows, mine.shape)))
    return list(zip(best, ids, strict=True))


def _fewest_probes(place: Place, questions: list[Question]) -> Settings:
    """The settings of one column: refine_factor by the questions without a filter, then probes for every share."""
    dataset = open_table(place)
    partitions = num_partitions(dataset, questions[0].column)
    rows = dataset.count_rows()
    plain = [question for question in questions if question.where is None]
    recall: dict[str, float] = {}
    for refine in _REFINE:
        probes = _probes(dataset, plain, min(_FIRST_PROBES, partitions), partitions, refine, recall)
        if min(recall.values()) >= WANTED_RECALL:
            break
    table = {"1": probes}
    for share in SHARES[1:]:
        asked = [question for question in questions if question.where and question.share == share]
        if share * rows <= EXACT_ROWS:
            recall |= {question.name: _recall(dataset, question, 0, 0) for question in asked}
        else:
            probes = _probes(dataset, asked, probes, partitions, refine, recall)
            table[f"{share:g}"] = probes
    return Settings(refine_factor=refine, probes=table, partitions=partitions, recall=recall)


def _probes(
    dataset: lance.LanceDataset,
    questions: list[Question],
    probes: int,
    partitions: int,
    refine: int,
    recall: dict[str, float],
) -> int:
    """Of probes, 2 probes, 4 probes ... the first that reaches the wanted recall for each question, or three quarters
    of it where those do; `recall` takes what it gave.
    """

    def measured(probes: int) -> dict[str, float]:
        return {question.name: _recall(dataset, question, probes, refine) for question in questions}

    found = measured(probes)
    while min(found.values()) < WANTED_RECALL and probes < partitions:
        probes = min(2 * probes, partitions)
        found = measured(probes)
    fewer = max(1, 3 * probes // 4)
    nearly = measured(fewer)
    if min(nearly.values()) >= WANTED_RECALL:
        probes, found = fewer, nearly
    recall |= found
    return probes


def _recall(dataset: lance.LanceDataset, question: Question, probes: int, refine: int) -> float:
    """Share of the true neighbours that a search finds, over all queries; what is not there cannot be missed."""

    def found(n: int) -> int:
        nearest = nearest_rows(dataset, question.queries[n], TIERS[0], question.column, question.where, probes, refine)
        best = nearest.ids[np.argsort(-nearest.scores, kind="stable")][:10]
        return len(set(best.tolist()) & set(question.truth[n].tolist()))

    with ThreadPoolExecutor(4) as threads:
        hits = sum(threads.map(found, range(len(question.queries))))
    return round(hits / max(1, question.truth.size), 4)


def num_partitions(dataset: lance.LanceDataset, column: str) -> int:
    """Partitions that the column's index has: Lance makes fewer than asked for where there are few rows."""
    statistics = dataset.stats.index_stats(f"{column}_idx")["indices"]
    return max(int(index["num_partitions"]) for index in statistics)


def _filters(sample: pa.Table, rows: int) -> list[tuple[str, float, str | None]]:
    """(label, share, condition): none, and for each smaller share a range of pair ids and the end of the map."""
    names = sorted(sample["pair_id"].to_pylist())
    x = np.sort(sample["x"].drop_null().to_numpy())
    found: list[tuple[str, float, str | None]] = [("", 1.0, None)]
    for share in SHARES[1:]:
        count = max(1, round(share * len(names)))
        if share * rows < 20:
            continue
        low = names[len(names) // 2]
        high = names[min(len(names) - 1, len(names) // 2 + count)]
        found.append((f", {share:.1%} by id", share, f"pair_id >= {quoted(low)} AND pair_id < {quoted(high)}"))
        if len(x) >= count:
            found.append((f", {share:.1%} by map", share, f"x >= {float(x[-count])!r}"))
    return found


def _asked(
    queries: dict[str, NDArray[np.float32]], filters: Sequence[tuple[str, float, str | None]]
) -> list[tuple[str, str, float, str | None]]:
    return [(name, label, share, where) for name in queries for label, share, where in filters]


def _part(queries: NDArray[np.float32], where: str | None) -> NDArray[np.float32]:
    return queries[:_FILTERED_QUERIES] if where else queries


def _top(
    a: tuple[NDArray[np.float32], NDArray[np.uint64]], b: tuple[NDArray[np.float32], NDArray[np.uint64]]
) -> tuple[NDArray[np.float32], NDArray[np.uint64]]:
    """The ten best of each line of two tables of scores and ids."""
    if b[0].shape[1] > 10:
        keep = np.argpartition(-b[0], 9, axis=1)[:, :10]
        b = np.take_along_axis(b[0], keep, axis=1), np.take_along_axis(b[1], keep, axis=1)
    scores, ids = np.concatenate([a[0], b[0]], axis=1), np.concatenate([a[1], b[1]], axis=1)
    keep = np.argpartition(-scores, 9, axis=1)[:, :10]
    return np.take_along_axis(scores, keep, axis=1), np.take_along_axis(ids, keep, axis=1)


def _merged(groups: list[list[tuple[NDArray[np.float32], NDArray[np.uint64]]]]) -> list[NDArray[np.uint64]]:
    """The ids of the ten best over all groups, for each question."""
    merged = []
    for parts in zip(*groups, strict=True):
        best = parts[0]
        for part in parts[1:]:
            best = _top(best, part)
        merged.append(best[1])
    return merged


def fragment_groups(dataset: lance.LanceDataset) -> list[list[int]]:
    """Fragments in groups of about `_GROUP_ROWS` rows."""
    groups: list[list[int]] = [[]]
    rows = 0
    for fragment in dataset.get_fragments():
        if groups[-1] and rows >= _GROUP_ROWS:
            groups.append([])
            rows = 0
        groups[-1].append(fragment.fragment_id)
        rows += fragment.count_rows()
    return groups
