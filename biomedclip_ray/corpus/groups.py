"""Which pairs are kept, in which split and group: arithmetic on arrays over the whole corpus, without Arrow, files or
Ray.

A pair is 27 bytes here when its hashes are numbered (`numbered`), and only what several figures show is an edge of a
graph, so that 25 million are decided on in less than 4 GB. `leaks` looks for what must not be with other means than
`decide` avoids it with.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from biomedclip_ray.config import Curate, Splits
from biomedclip_ray.schema import Reason, hash64
from biomedclip_ray.sources.meca import preprint_id

SPLITS = ("train", "validation", "test")  # a higher index wins where a group spans splits

REASONS = (
    Reason.CURATE_PANEL,
    Reason.SHORT_TEXT,
    Reason.CURATE_LICENSE,
    Reason.CURATE_KIND,
    Reason.GROUP_TOO_LARGE,
    Reason.SPLIT_CONFLICT,
    Reason.DUPLICATE,
    Reason.BALANCE,
)

Numbers = NDArray[np.int32]
Edges = tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]]]
NO_EDGES: Edges = (np.zeros(0, np.int32), np.zeros(0, np.int32))


@dataclass(frozen=True)
class PairFacts:
    """What is decided on, one entry a pair: the 64-bit hash of its id; of article, figure, image and text the hash or a
    number (int32, from 0), which says as well who has the same; split, and why it is not selected.
    """

    pair: NDArray[np.uint64]
    article: NDArray[np.uint64] | Numbers
    figure: NDArray[np.uint64] | Numbers
    image: NDArray[np.uint64] | Numbers
    text: NDArray[np.uint64] | Numbers
    kind: NDArray[np.int8]  # place in curate.balance, or -1
    split: NDArray[np.int8]  # index of SPLITS
    reason: NDArray[np.int8]  # index of REASONS, or -1


@dataclass(frozen=True)
class Verdict:
    """The decision on each pair."""

    split: NDArray[np.int8]  # index of SPLITS
    group: NDArray[np.int64]
    reason: NDArray[np.int8]  # index of REASONS, or -1 where the pair is kept

    def slice(self, first: int, last: int) -> Verdict:
        return Verdict(self.split[first:last], self.group[first:last], self.reason[first:last])


# Cold Spring Harbor's journals have the prefix too, and letters behind it
_PREPRINT = re.compile(r"10\.(?:1101|64898)/\d[\d.]*")


def drawn_by(pmcid: str, doi: str | None, preprint: str | None = None) -> str:
    """What an article's split is drawn by: its PMCID, or the id of its DOI for a preprint, or of the preprint that it
    names as its own. PubMed Central's copy of a preprint, bioRxiv's own and the article that came of it then share a
    split, in one corpus or in two.
    """
    return next((preprint_id(each) for each in (doi, preprint) if each and _PREPRINT.fullmatch(each)), pmcid)


def split_of(pmcid: str, splits: Splits) -> int:
    """The split of an article as an index of SPLITS; all its figures and versions share it, and it never changes."""
    place = hash64(f"split {pmcid}") / 2**64
    if place < splits.test:
        return 2
    return 1 if place < splits.test + splits.validation else 0


def numbered(values: NDArray[np.generic]) -> tuple[Numbers, Numbers]:
    """Each value's number from 0, and the first row of each; of 25 million hashes in 1.2 GB, with what is given."""
    order = np.argsort(values, kind="stable").astype(np.int32)
    ordered = values[order]
    new = np.ones(len(values), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    del ordered
    numbers = np.empty(len(values), np.int32)
    numbers[order] = np.cumsum(new, dtype=np.int32) - np.int32(1)
    return numbers, order[new]


def decide(facts: PairFacts, config: Curate, near: Edges = NO_EDGES) -> Verdict:
    """Groups, splits and what is kept, for the whole corpus.

    An article has one split: where own data say several of a patient, only the highest is kept. A group is a connected
    component of pairs that share an image or a figure. Inside it only the highest split that holds a selected pair is
    kept (test > validation > train), and of the same image with the same text only one. What is left is thinned by kind
    as curate.balance asks.

    Args:
        near: rows whose images are the same although their bytes are not.
    """
    n = len(facts.pair)
    reason = facts.reason.copy()
    if n == 0:
        return Verdict(facts.split, np.zeros(0, np.int64), reason)
    _drop_lower_splits(reason, facts.split, _numbers(facts.article))
    image = _numbers(facts.image)
    if len(near[0]):
        image = components(int(image.max()) + 1, image[near[0]], image[near[1]])[image]
    component = _linked(_numbers(facts.figure), image)
    # named by its smallest hash, so that a group keeps its name when the corpus grows
    smallest = np.full(component.max() + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, component, facts.pair)
    group = (smallest >> np.uint64(1)).astype(np.int64)[component]
    _drop(reason, np.bincount(component)[component] > config.max_group, Reason.GROUP_TOO_LARGE)
    _drop_lower_splits(reason, facts.split, component)
    left = np.flatnonzero(reason < 0)
    left = left[np.bincount(image[left])[image[left]] > 1]  # what one pair alone shows is no duplicate
    order = left[np.lexsort((facts.pair[left], facts.text[left], image[left]))]
    same = (image[order][1:] == image[order][:-1]) & (facts.text[order][1:] == facts.text[order][:-1])
    duplicate = np.zeros(n, bool)
    duplicate[order[1:][same]] = True
    _drop(reason, duplicate, Reason.DUPLICATE)
    for number, amount in enumerate(config.balance.values()):
        _thin(reason, np.flatnonzero((reason < 0) & (facts.kind == number)), facts.pair, amount)
    return Verdict(facts.split, group, reason)


def leaks(facts: PairFacts, verdict: Verdict, near: Edges) -> dict[str, int]:
    """How many articles, groups, images (by their bytes) and near pairs have kept rows in more than one split: all must
    be 0.
    """
    kept = verdict.reason < 0
    found = {
        name: _in_several_splits(values[kept], verdict.split[kept])
        for name, values in (("articles", facts.article), ("groups", verdict.group), ("pictures", facts.image))
    }
    left, right = near
    both = kept[left] & kept[right]
    return found | {"near_pairs": int((verdict.split[left[both]] != verdict.split[right[both]]).sum())}


def shared_texts(facts: PairFacts, verdict: Verdict) -> int:
    """How many texts are kept, word for word, in more than one split: stock phrases under different images."""
    kept = verdict.reason < 0
    return _in_several_splits(facts.text[kept], verdict.split[kept])


def _in_several_splits(values: NDArray[np.generic], split: NDArray[np.int8]) -> int:
    order = np.lexsort((split, values))
    values, split = values[order], split[order]
    changes = (values[1:] == values[:-1]) & (split[1:] != split[:-1])
    return len(np.unique(values[1:][changes]))


def _numbers(values: NDArray[Any]) -> Numbers:
    return values if values.dtype == np.int32 else numbered(values)[0]


def components(nodes: int, left: NDArray[np.integer[Any]], right: NDArray[np.integer[Any]]) -> Numbers:
    """The number of each node's connected component, from 0."""
    graph = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(nodes, nodes))
    labels: Numbers = connected_components(graph, directed=False)[1]
    return labels


def _linked(figure: Numbers, image: Numbers) -> Numbers:
    """Connected components of rows that share a figure or an image: of figures, which shared images link."""
    order = np.argsort(image, kind="stable").astype(np.int32)
    shown, of = image[order], figure[order]
    link = (shown[1:] == shown[:-1]) & (of[1:] != of[:-1])
    left, right = of[:-1][link], of[1:][link]
    del order, shown, of
    return components(int(figure.max()) + 1, left, right)[figure]


def _thin(reason: NDArray[np.int8], rows: NDArray[np.int64], pair: NDArray[np.uint64], amount: float) -> None:
    """Keep a share (up to 1) or a number of rows: those with the smallest hash, so that more is always a superset."""
    drawn = pair[rows] * np.uint64(0x9E3779B97F4A7C15)  # another order than the one in which duplicates are kept
    if amount <= 1:
        lost = rows[drawn >= np.uint64(int(amount * (2**64 - 1)))] if amount < 1 else rows[:0]
    else:
        lost = rows[np.lexsort((pair[rows], drawn))[int(amount) :]]
    reason[lost] = REASONS.index(Reason.BALANCE)


def _drop_lower_splits(reason: NDArray[np.int8], split: NDArray[np.int8], member_of: Numbers) -> None:
    """Keep each set of pairs (numbered from 0) only in the highest split that holds a selected one."""
    highest = np.full(member_of.max() + 1, -1, np.int8)
    selected = reason < 0
    np.maximum.at(highest, member_of[selected], split[selected])
    _drop(reason, split < highest[member_of], Reason.SPLIT_CONFLICT)


def _drop(reason: NDArray[np.int8], where: NDArray[np.bool_], why: Reason) -> None:
    reason[where & (reason < 0)] = REASONS.index(why)
