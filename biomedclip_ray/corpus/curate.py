"""Stage curate: pairs without their images -> which of them are trained on, in which split and group.

Runs over the whole corpus at once, because a duplicate can lie anywhere; it reads ids and hashes, never pictures. Each
pair costs 50 bytes here and a node in one sparse graph: 25 million pairs fit into the memory of one machine.
"""

from __future__ import annotations

import resource
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from biomedclip_ray.config import Config, Curate, SourceSelect, Splits
from biomedclip_ray.product import Ledger, Product
from biomedclip_ray.schema import CORPUS, Reason, hash64

VERSION = 1
UNIT = "pair"
SPLITS = ("train", "validation", "test")  # a higher index wins where a group spans splits
_COLUMNS = "pair_id pmcid source_split figure_id panel text sha256 text_sha256 license figure_kind".split()


def plan(config: Config, pairs: Product) -> Product:
    """The corpus that a set of pairs leads to."""
    return Product.plan(config.root, "curate", VERSION, config.curate.model_dump(mode="json"), [pairs])


def curate(config: Config, pairs: Product) -> Product:
    """Decide on every pair, or find that done. Each corpus file has the rows of the pairs file of the same name."""
    product = plan(config, pairs)
    if product.finished:
        product.state = "skipped"
        return product
    with product.running(parts=pairs.parts):
        with ThreadPoolExecutor(8) as threads:
            facts = list(
                threads.map(lambda part: _facts(pairs.read(part, _COLUMNS), config.curate), range(pairs.parts))
            )
        verdict = decide(Facts.join(facts), config.curate)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        first = 0
        for part in range(pairs.parts):
            ids = pairs.read(part, ["pair_id"])["pair_id"]
            rows, ledger = _corpus_rows(ids, verdict.slice(first, first + len(ids)))
            product.write_part(part, rows, ledger.table(), ledger.counts, peak)
            first += len(ids)
        product.finish_parts(transient_limit=0.0)
    return product


def split_of(pmcid: str, splits: Splits) -> int:
    """The split of an article as an index of SPLITS; all its figures and versions share it, and it never changes."""
    place = hash64(f"split {pmcid}") / 2**64
    if place < splits.test:
        return 2
    return 1 if place < splits.test + splits.validation else 0


@dataclass(frozen=True)
class Facts:
    """What is decided on, one entry a pair: 64-bit hashes of ids and contents, split, and why it is not selected."""

    pair: np.ndarray  # uint64
    article: np.ndarray  # uint64
    figure: np.ndarray  # uint64
    picture: np.ndarray  # uint64
    text: np.ndarray  # uint64
    split: np.ndarray  # int8, index of SPLITS
    reason: np.ndarray  # int8, index of _REASONS, or -1

    @staticmethod
    def join(parts: list[Facts]) -> Facts:
        names = ("pair", "article", "figure", "picture", "text", "split", "reason")
        return Facts(*(np.concatenate([part.__dict__[name] for part in parts]) for name in names))


@dataclass(frozen=True)
class Verdict:
    """The decision on each pair."""

    split: np.ndarray  # int8, index of SPLITS
    group: np.ndarray  # int64
    reason: np.ndarray  # int8, index of _REASONS, or -1 where the pair is kept

    def slice(self, first: int, last: int) -> Verdict:
        return Verdict(self.split[first:last], self.group[first:last], self.reason[first:last])


_REASONS = (
    Reason.CURATE_PANEL,
    Reason.SHORT_TEXT,
    Reason.CURATE_LICENSE,
    Reason.CURATE_KIND,
    Reason.GROUP_TOO_LARGE,
    Reason.SPLIT_CONFLICT,
    Reason.DUPLICATE,
)


def _facts(table: pa.Table, config: Curate) -> Facts:
    def hashes(name: str) -> np.ndarray:
        return np.fromiter((hash64(value) for value in table[name].to_pylist()), np.uint64, table.num_rows)

    allowed = SourceSelect(licenses=config.select.licenses).allowed()
    split = [
        split_of(pmcid, config.splits) if said is None else SPLITS.index(said)
        for pmcid, said in zip(table["pmcid"].to_pylist(), table["source_split"].to_pylist(), strict=True)
    ]
    reason = [
        -1 if found is None else _REASONS.index(found)
        for found in (
            _unwanted(panel, text, license_code, kind, config, allowed)
            for panel, text, license_code, kind in zip(
                table["panel"].to_pylist(),
                table["text"].to_pylist(),
                table["license"].to_pylist(),
                table["figure_kind"].to_pylist(),
                strict=True,
            )
        )
    ]
    return Facts(
        hashes("pair_id"),
        hashes("pmcid"),
        hashes("figure_id"),
        hashes("sha256"),
        hashes("text_sha256"),
        np.array(split, np.int8),
        np.array(reason, np.int8),
    )


def _unwanted(
    panel: int, text: str, license_code: str, kind: str, config: Curate, allowed: frozenset[str]
) -> Reason | None:
    if panel and not config.select.panels:
        return Reason.CURATE_PANEL
    if len(text) < config.select.min_text_chars:
        return Reason.SHORT_TEXT
    if license_code not in allowed:
        return Reason.CURATE_LICENSE
    if config.select.kinds is not None and kind not in config.select.kinds:
        return Reason.CURATE_KIND
    return None


def decide(facts: Facts, config: Curate) -> Verdict:
    """Groups, splits and what is kept, for the whole corpus.

    An article has one split: where own data say several of a patient, only the highest is kept. A group is a connected
    component of pairs that share a picture or a figure. Inside it only the highest split that holds a selected pair is kept
    (test > validation > train), and of the same picture with the same text only one.
    """
    n = len(facts.pair)
    reason = facts.reason.copy()
    if n == 0:
        return Verdict(facts.split, np.zeros(0, np.int64), reason)
    articles, article = np.unique(facts.article, return_inverse=True)
    _drop_lower_splits(reason, facts.split, article, len(articles))
    component = _components(facts)
    # named by its smallest hash, so that a group keeps its name when the corpus grows
    smallest = np.full(component.max() + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, component, facts.pair)
    group = (smallest >> np.uint64(1)).astype(np.int64)[component]
    _drop(reason, np.bincount(component)[component] > config.max_group, Reason.GROUP_TOO_LARGE)
    _drop_lower_splits(reason, facts.split, component, len(smallest))
    left = np.flatnonzero(reason < 0)
    order = left[np.lexsort((facts.pair[left], facts.text[left], facts.picture[left]))]
    same = (facts.picture[order][1:] == facts.picture[order][:-1]) & (facts.text[order][1:] == facts.text[order][:-1])
    duplicate = np.zeros(n, bool)
    duplicate[order[1:][same]] = True
    _drop(reason, duplicate, Reason.DUPLICATE)
    return Verdict(facts.split, group, reason)


def _components(facts: Facts) -> np.ndarray:
    """The connected component of each pair; pictures and figures are the other nodes of the graph."""
    n = len(facts.pair)
    pictures, picture = np.unique(facts.picture, return_inverse=True)
    figures, figure = np.unique(facts.figure, return_inverse=True)
    rows = np.concatenate([np.arange(n), np.arange(n)])
    columns = np.concatenate([n + picture, n + len(pictures) + figure])
    size = n + len(pictures) + len(figures)
    graph = coo_array((np.ones(2 * n, np.int8), (rows, columns)), shape=(size, size))
    labels: np.ndarray = connected_components(graph, directed=False)[1][:n]
    return np.unique(labels, return_inverse=True)[1]


def _drop_lower_splits(reason: np.ndarray, split: np.ndarray, member_of: np.ndarray, n: int) -> None:
    """Keep each set of pairs (numbered 0..n-1) only in the highest split that holds a selected one."""
    highest = np.full(n, -1, np.int8)
    selected = reason < 0
    np.maximum.at(highest, member_of[selected], split[selected])
    _drop(reason, split < highest[member_of], Reason.SPLIT_CONFLICT)


def _drop(reason: np.ndarray, where: np.ndarray, why: Reason) -> None:
    reason[where & (reason < 0)] = _REASONS.index(why)


def _corpus_rows(ids: pa.ChunkedArray, verdict: Verdict) -> tuple[pa.Table, Ledger]:
    reasons = [None if r < 0 else _REASONS[r] for r in verdict.reason]
    ledger = Ledger("curate")
    for pair, reason in zip(ids.to_pylist(), reasons, strict=True):
        if reason is not None:
            ledger.drop(UNIT, pair, reason)
    ledger.count(UNIT, len(ids), reasons.count(None))
    rows = pa.table(
        {
            "pair_id": ids,
            "split": [SPLITS[s] for s in verdict.split],
            "group": verdict.group,
            "kept": verdict.reason < 0,
            "reason": [None if reason is None else reason.value for reason in reasons],
        },
        schema=CORPUS,
    )
    return rows, ledger
