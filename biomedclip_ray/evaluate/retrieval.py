"""Cross-modal retrieval figures: recall at k and median rank, with intervals, chance level and a shuffled control.

Pure numpy. Scores are made block by block (64 MiB), so memory grows with n and never with n x n; strict ranks, ranks
under groups and the control read the same block, because the matrix product is nearly all of the cost. Ties count at
their expectation under random order: a collapsed model that gives every pair one vector gets exactly the chance level,
where counting "greater than" only would give it 100%.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biomedclip_ray.clip.vectors import check_unit
from biomedclip_ray.evaluate.intervals import bootstrap

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

KS = (1, 5, 10)
DIRECTIONS = ("text_to_image", "image_to_text")

# Two scores nearer than this are a tie: float32 products of unit vectors carry about 1e-7 of rounding, and which of two
# equal pictures a BLAS kernel puts first must not decide a recall.
TIE = 1e-6

# Shuffled queries behind a control, over at most 20 permutations: with one alone, recall@10 of 200 pairs is off by a
# third of itself, while a pool of 20,000 needs no second one.
_CONTROL_QUERIES = 20_000

_BLOCK = 64 << 20


@dataclass(frozen=True)
class Ranks:
    """Where the best right answer of each query stands, ties kept apart. Arrays are int64 of shape (n,)."""

    above: Ints
    """Wrong candidates that score higher than the best right one."""
    tied: Ints
    """Wrong candidates that score the same."""
    right: Ints
    """Right candidates that share the best score (at least 1)."""

    def hits(self, k: int) -> NDArray[np.float64]:
        """Probability that a right candidate is among the first k when ties are broken at random, (n,).

        With r places left for `right + tied` equal candidates: 1 - C(tied, r) / C(right + tied, r).
        """
        places = np.clip(k - self.above, 0, self.right + self.tied)
        missed = np.ones(len(places))
        for i in range(int(self.right.max(initial=0))):
            counts = i < self.right
            left = np.maximum(self.right + self.tied - places - i, 0)
            missed = np.where(counts, missed * left / np.where(counts, self.right + self.tied - i, 1), missed)
        return 1.0 - missed

    def expected(self) -> NDArray[np.float64]:
        """Expected rank of the first right candidate, from 1, (n,)."""
        return self.above + (self.right + self.tied + 1) / (self.right + 1)


@dataclass(frozen=True)
class DirectionRanks:
    """Ranks of one direction."""

    strict: Ranks
    """Right is the query's own partner only."""
    grouped: Ranks
    """Right is every candidate of the query's group (the same picture)."""
    controls: tuple[Ranks, ...]
    """Strict ranks after partners were permuted; what a model that knows nothing would get."""


def rank(
    queries: Floats,
    candidates: Floats,
    groups: Ints,
    permutations: Sequence[Ints] = (),
    block_bytes: int = _BLOCK,
) -> DirectionRanks:
    """Rank all candidates for each query; query i and candidate i are partners.

    Args:
        queries, candidates: (n, d) unit vectors, float32.
        groups: (n,) the group of each pair.
        permutations: each an (n,) permutation p; under it candidate p[i] is taken for query i's partner.
        block_bytes: bytes of scores held at once.
    """
    n = len(queries)
    if len(candidates) != n or len(groups) != n:
        raise ValueError(f"{n} queries, {len(candidates)} candidates and {len(groups)} groups: one of each per pair")
    members = _members(groups)
    targets = [np.arange(n), *permutations]
    above = np.zeros((len(targets), n), np.int64)
    tied = np.zeros((len(targets), n), np.int64)
    grouped_above, grouped_tied, grouped_right = (np.zeros(n, np.int64) for _ in range(3))
    step = max(1, block_bytes // (4 * max(n, 1)))
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        scores = queries[rows] @ candidates.T
        within = np.arange(scores.shape[0])
        for t, target in enumerate(targets):
            own = scores[within, target[rows]][:, None]
            above[t, rows] = np.count_nonzero(scores > own + TIE, axis=1)
            tied[t, rows] = np.count_nonzero(scores >= own - TIE, axis=1) - above[t, rows] - 1
        grouped_above[rows], grouped_tied[rows], grouped_right[rows] = above[0, rows], tied[0, rows], 1
        for row in within:
            same = members.get(int(groups[start + row]))
            if same is not None:
                best = scores[row, same].max()
                over, right = (scores[row] > best + TIE).sum(), (scores[row, same] >= best - TIE).sum()
                grouped_above[start + row], grouped_right[start + row] = over, right
                grouped_tied[start + row] = (scores[row] >= best - TIE).sum() - over - right
    ones = np.ones(n, np.int64)
    strict, *controls = (Ranks(a, t, ones) for a, t in zip(above, tied, strict=True))
    return DirectionRanks(strict, Ranks(grouped_above, grouped_tied, grouped_right), tuple(controls))


def _members(groups: Ints) -> dict[int, Ints]:
    """Positions of the members of each group that has more than one."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=groups[order][:1] - 1)) if len(groups) else np.array([], int)
    runs = np.split(order, starts[1:])
    return {int(groups[run[0]]): run for run in runs if len(run) > 1}


def chance_recall(k: int, n: int, groups: Ints | None = None) -> float:
    """Recall at k of random order among n candidates: k / n; with groups, the mean of 1 - C(n - m, k) / C(n, k)."""
    if groups is None:
        return min(1.0, k / n)
    _, place, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    m = sizes[place]
    return float(Ranks(np.zeros(n, np.int64), n - m, m).hits(k).mean())


def figures(
    ranks: Ranks, clusters: Ints, draws: int, seed: int, groups: Ints | None = None, ks: Sequence[int] = KS
) -> dict[str, Any]:
    """The published shape of one direction: recall@k and median_rank, each {value, low, high, chance}.

    `groups`: given, the chance level is the group-aware one.
    """
    n = len(ranks.above)
    hits, expected = np.stack([ranks.hits(k) for k in ks], axis=1), ranks.expected()
    intervals, median = bootstrap(hits, expected, clusters, draws, seed)
    out: dict[str, Any] = {}
    for k, value, (low, high) in zip(ks, hits.mean(axis=0), intervals, strict=True):
        chance = chance_recall(k, n, groups)
        out[f"recall@{k}"] = {"value": float(value), "low": float(low), "high": float(high), "chance": chance}
    out["median_rank"] = {
        "value": float(np.median(expected)),
        "low": float(median[0]),
        "high": float(median[1]),
        "chance": (n + 1) / 2 if groups is None else _chance_median(n, groups),
    }
    return out


def _chance_median(n: int, groups: Ints) -> float:
    """Median over queries of the expected rank that random order gives the first of m right ones: (n + 1) / (m + 1)."""
    _, place, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    return float(np.median((n + 1) / (sizes[place] + 1)))


def retrieval(
    text: Floats, image: Floats, groups: Ints, clusters: Ints, draws: int, seed: int, block_bytes: int = _BLOCK
) -> tuple[dict[str, Any], dict[str, Ranks]]:
    """Everything of one pool: strict figures, group-aware ones, and the control in which texts were shuffled.

    Args:
        text, image: (n, d) float32 unit vectors; row i of both is one pair.
        groups: (n,) pairs that show the same picture share one.
        clusters: (n,) what the bootstrap draws, the article.

    Returns:
        The published figures, and the strict ranks of both directions.

    Raises:
        ValueError: no pairs, or vectors that are not of unit length.
    """
    if not len(text):
        raise ValueError("no pairs to evaluate")
    check_unit(text, "text vectors")
    check_unit(image, "image vectors")
    n, random = len(text), np.random.default_rng(seed)
    permutations = [random.permutation(n) for _ in range(max(1, min(20, _CONTROL_QUERIES // n)))]
    out: dict[str, Any] = {"n": n, "articles": len(np.unique(clusters))}
    grouped: dict[str, Any] = {"n": n, "groups": len(np.unique(groups))}
    control: dict[str, Any] = {"n": n, "permutations": len(permutations)}
    strict = {}
    for direction, queries, candidates in zip(DIRECTIONS, (text, image), (image, text), strict=True):
        ranks = rank(queries, candidates, groups, permutations, block_bytes)
        strict[direction] = ranks.strict
        out[direction] = figures(ranks.strict, clusters, draws, seed)
        grouped[direction] = figures(ranks.grouped, clusters, draws, seed, groups)
        control[direction] = _control(ranks.controls, clusters, draws, seed)
    return out | {"group_aware": grouped, "control_shuffled": control}, strict


def by_kind(
    text: Floats, image: Floats, kinds: Sequence[str], clusters: Ints, draws: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Strict recall@10 within the pool of each kind alone: what tells figures apart when the kind does not.

    Args:
        kinds: (n,) the kind of each pair; the others as for `retrieval`.
    """
    out: dict[str, dict[str, Any]] = {}
    names = np.asarray(kinds, dtype=object)
    for kind in sorted(set(kinds)):
        own = np.flatnonzero(names == kind)
        part: dict[str, Any] = {"n": len(own)}
        for direction, queries, candidates in zip(DIRECTIONS, (text, image), (image, text), strict=True):
            strict = rank(queries[own], candidates[own], np.arange(len(own))).strict
            part[direction] = {"recall@10": figures(strict, clusters[own], draws, seed)["recall@10"]}
        out[kind] = part
    return out


def _control(permuted: tuple[Ranks, ...], clusters: Ints, draws: int, seed: int) -> dict[str, Any]:
    """Figures over all permutations together; the chance level is that of one pool."""
    n = len(clusters)
    together = Ranks(
        np.concatenate([ranks.above for ranks in permuted]),
        np.concatenate([ranks.tied for ranks in permuted]),
        np.concatenate([ranks.right for ranks in permuted]),
    )
    out = figures(together, np.tile(clusters, len(permuted)), draws, seed)
    for k in KS:
        out[f"recall@{k}"]["chance"] = chance_recall(k, n)
    out["median_rank"]["chance"] = (n + 1) / 2
    return out
