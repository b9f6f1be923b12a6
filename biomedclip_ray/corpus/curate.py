"""Stage curate: pairs without their images -> which of them are trained on, in which split and group.

Runs over the whole corpus at once, because a duplicate can lie anywhere. It reads ids and hashes; images are read only
where the hashes of two are near, in which case their pixels decide (`looks.py`).

All of it are tasks, of which none holds more than 4 GB at 25 million pairs (benchmarks/curate.py): a column of hashes
becomes a column of numbers by itself, each choice of bands of the search for near hashes is a task, and only numbers
come together where groups, splits and duplicates are decided. The driver sees counts.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from biomedclip_ray.config import Config, Curate, SourceSelect
from biomedclip_ray.corpus import looks
from biomedclip_ray.corpus.groups import (
    NO_EDGES,
    REASONS,
    SPLITS,
    Edges,
    Numbers,
    PairFacts,
    Verdict,
    decide,
    drawn_by,
    leaks,
    numbered,
    shared_texts,
    split_of,
)
from biomedclip_ray.corpus.near import (
    Found,
    Hashes,
    SortedHashes,
    assemble,
    layouts,
    search,
    sort_hashes,
)
from biomedclip_ray.run.capacity import Capacity
from biomedclip_ray.run.memory import peak_rss
from biomedclip_ray.run.stage import Made, RunParts, Stage
from biomedclip_ray.run.tasks import Tasks
from biomedclip_ray.schema import CORPUS, Reason, hash64
from biomedclip_ray.store.attempt import Attempt
from biomedclip_ray.store.ledger import Ledger
from biomedclip_ray.store.product import Product

log = logging.getLogger(__name__)

VERSION = 8
UNIT = "pair"
_COLUMNS = (
    "pair_id pmcid doi preprint source_split figure_id panel text sha256 text_sha256 phash license figure_kind".split()
)
_CHUNK = 64  # parts of one task: twice its threads, so that some work while others wait
_THREADS = 32  # of a task: a read behind an object store waits for four answers in turn
_HASHES = ("pair_id", "pmcid", "figure_id", "sha256", "text_sha256")


def _content(config: Config, pairs: Product) -> dict[str, Any]:
    return config.curate.content()


def _work(attempt: Attempt, run_parts: RunParts, config: Config, pairs: Product) -> Made:
    """The manifest's `near` says how many near pairs were looked at and confirmed, `leakage` what spans splits among
    the kept, `shared_texts` how many texts do so under different images.

    Raises:
        RuntimeError: something spans splits, which no data can bring about.
    """
    attempt.parts = pairs.parts
    section = config.curate
    tasks = run_parts.tasks
    submit = partial(tasks.submit, section.resources)
    source = tasks.put(pairs)
    chunks = [range(at, min(at + _CHUNK, pairs.parts)) for at in range(0, max(1, pairs.parts), _CHUNK)]
    read = [submit(_read, source, chunk, section, outputs=9) for chunk in chunks]
    ids, sizes, pair, article, figure, image, text, phash, marks = zip(*read, strict=True)
    numbers, first = submit(_number, *image, outputs=2)
    others = [submit(_number, *column, outputs=2)[0] for column in (article, figure, text)]
    near, search = NO_EDGES, {"bits": section.near_bits}
    if section.near_bits is not None:
        near, search = _near(tasks, submit, source, section.near_bits, first, phash, sizes)
    found, *verdicts = submit(
        _decide, section, len(chunks), near, search, numbers, *others, *sizes, *pair, *marks, outputs=len(chunks) + 1
    )
    missing = set(attempt.missing_parts())
    tasks.get(
        [
            submit(_write, attempt, chunk, names, verdict)[0]
            for chunk, names, verdict in zip(chunks, ids, verdicts, strict=True)
            if missing.intersection(chunk)
        ]
    )
    [facts] = tasks.get([found])
    log.info("near duplicates: %s", facts["near"])
    return Made(facts)


def _fit(config: Config, capacity: Capacity, *_: Any) -> list[str]:
    return capacity.lacks("curate.resources", config.curate.resources)


curate = Stage("curate", VERSION, _content, _work, fit=_fit)
"""Reads the pairs, without their images. Each file of the corpus has the rows of the pairs file of the same name."""


def _near(
    tasks: Tasks, submit: Callable[..., list[Any]], source: Any, bits: int, first: Any, phash: Any, sizes: Any
) -> tuple[Any, Any]:
    """Handles of the rows that show the same image in other bytes, by hash and then by pixels; and of what the search
    did.
    """
    table = submit(_sort, bits, first, *phash)[0]
    many = layouts(bits)
    together = -(-many // min(many, len(phash))) if many else 1
    searched = [submit(_search, table, bits, range(at, min(at + together, many)))[0] for at in range(0, many, together)]
    left, right, crowded = submit(_assemble, first, table, *searched, outputs=3)
    plan, asked = submit(looks.plan, left, right, *sizes, outputs=2)
    [(shards, ranges)] = tasks.get([asked])
    pieces = [submit(looks.look_at, source, plan, parts, outputs=max(1, shards)) for parts in ranges]
    same = [submit(looks.compare, plan, n, *(one[n] for one in pieces))[0] for n in range(shards)]
    near, search = submit(_confirm, bits, first, plan, crowded, *same, outputs=2)
    return near, search


def _read(pairs: Product, parts: range, config: Curate) -> tuple[Any, ...]:
    """What is decided on: the ids of each part, its number of rows, and the chunk's columns: hashes of the ids of pair,
    article and figure, of image and text, perceptual hashes, and kind, split and reason, int8 (3, n).
    """

    def columns(part: int) -> tuple[pa.ChunkedArray, list[NDArray[Any]]]:
        table = pairs.read(part, _COLUMNS)
        hashes = [
            np.fromiter((hash64(value) for value in table[name].to_pylist()), np.uint64, table.num_rows)
            for name in _HASHES
        ]
        return table["pair_id"], [*hashes, table["phash"].to_numpy().astype(np.uint64), _marks(table, config)]

    with ThreadPoolExecutor(_THREADS) as threads:
        ids, found = (
            zip(*threads.map(columns, parts), strict=True) if parts else ((), ([_NO_HASHES] * 6 + [_NO_MARKS],))
        )
    whole = [np.concatenate(column, axis=-1) for column in zip(*found, strict=True)]
    return list(ids), [len(one) for one in ids], *whole


def _number(*hashes: Hashes) -> tuple[Numbers, Numbers]:
    return numbered(np.concatenate(hashes))


def _sort(bits: int, first: Numbers, *phash: Hashes) -> SortedHashes:
    return sort_hashes(np.concatenate(phash)[first], bits)


def _search(table: SortedHashes, bits: int, which: range) -> Found:
    return search(table.values, bits, which)


def _assemble(first: Numbers, table: SortedHashes, *searched: Found) -> tuple[Numbers, Numbers, int]:
    """Rows whose hashes are near, and how many are in a crowd."""
    found = assemble(table, searched)
    return first[found.left], first[found.right], len(found.crowded)


def _confirm(
    bits: int, first: Numbers, plan: looks.Plan, crowded: int, *same: NDArray[np.bool_]
) -> tuple[Edges, dict[str, Any]]:
    """Rows that show the same image, and what the search did."""
    confirmed = np.concatenate([np.zeros(0, bool), *same])
    told = {
        "bits": bits,
        "pictures": len(first),
        "near_hashes": len(plan.left),
        "pictures_read": plan.images,
        "confirmed": int(confirmed.sum()),
        "crowded": crowded,
    }
    return (plan.left[confirmed], plan.right[confirmed]), told


def _decide(
    config: Curate,
    chunks: int,
    near: Edges,
    search: dict[str, Any],
    image: Numbers,
    article: Numbers,
    figure: Numbers,
    text: Numbers,
    *columns: Any,
) -> tuple[Any, ...]:
    """What the manifest says of the decision, and then the verdicts of each chunk, one a part.

    Args:
        columns: of every chunk its parts' sizes, then of every one the hashes of its pairs, then its marks.
    """
    sizes, pair, marks = (columns[at * chunks : (at + 1) * chunks] for at in range(3))
    facts = PairFacts(np.concatenate(pair), article, figure, image, text, *np.concatenate(marks, axis=1))
    verdict = decide(facts, config, near)
    leakage = leaks(facts, verdict, near)
    if any(leakage.values()):
        raise RuntimeError(f"curate: kept in more than one split: {leakage}")
    bounds = np.cumsum([0, *itertools.chain(*sizes)])
    slices = iter([verdict.slice(first, last) for first, last in itertools.pairwise(bounds)])
    told = {"near": search, "leakage": leakage, "shared_texts": shared_texts(facts, verdict)}
    return told, *([next(slices) for _ in chunk] for chunk in sizes)


def _write(attempt: Attempt, parts: range, ids: list[pa.ChunkedArray], verdicts: list[Verdict]) -> None:
    def write(part: int, names: pa.ChunkedArray, verdict: Verdict) -> None:
        rows, ledger = _corpus_rows(names, verdict)
        attempt.write_part(part, rows, ledger.table(), ledger.counts, peak_rss())

    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(write, parts, ids, verdicts))


_NO_HASHES: Hashes = np.zeros(0, np.uint64)
_NO_MARKS = np.zeros((3, 0), np.int8)


def _marks(table: pa.Table, config: Curate) -> NDArray[np.int8]:
    """Kind, split and reason of each pair, as `PairFacts` has them: (3, n)."""
    allowed = SourceSelect(licenses=config.select.licenses).allowed()
    places = {kind: number for number, kind in enumerate(config.balance)}
    kinds = table["figure_kind"].to_pylist()
    split = [
        split_of(drawn_by(pmcid, doi, preprint), config.splits) if said is None else SPLITS.index(said)
        for pmcid, doi, preprint, said in zip(
            *(table[name].to_pylist() for name in ("pmcid", "doi", "preprint", "source_split")), strict=True
        )
    ]
    reason = [
        -1 if found is None else REASONS.index(found)
        for found in (
            _unwanted(panel, text, license_code, kind, config, allowed)
            for panel, text, license_code, kind in zip(
                table["panel"].to_pylist(),
                table["text"].to_pylist(),
                table["license"].to_pylist(),
                kinds,
                strict=True,
            )
        )
    ]
    return np.array([[places.get(kind, -1) for kind in kinds], split, reason], np.int8).reshape(3, len(kinds))


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


def _corpus_rows(ids: pa.ChunkedArray, verdict: Verdict) -> tuple[pa.Table, Ledger]:
    reasons = [None if r < 0 else REASONS[r] for r in verdict.reason]
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
