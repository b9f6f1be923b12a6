"""Stage curate: pairs without their images -> which of them are trained on, in which split and group.

Runs over the whole corpus at once, because a duplicate can lie anywhere. It reads ids and hashes; images are read only
where the hashes of two are near, in which case their pixels decide.
"""

from __future__ import annotations

import itertools
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from biomedclip_ray.config import Config, Curate, SourceSelect
from biomedclip_ray.corpus.groups import (
    NO_EDGES,
    REASONS,
    SPLITS,
    Edges,
    PairFacts,
    Verdict,
    decide,
    drawn_by,
    leaks,
    shared_texts,
    split_of,
)
from biomedclip_ray.corpus.near import SHAPE_LIMIT, SIGNATURE_SIDE, look_alike, near_pairs, signature
from biomedclip_ray.images.image import decode
from biomedclip_ray.run.capacity import Capacity
from biomedclip_ray.run.memory import peak_rss
from biomedclip_ray.run.stage import Made, RunParts, Stage
from biomedclip_ray.schema import CORPUS, Reason, hash64
from biomedclip_ray.store.attempt import Attempt
from biomedclip_ray.store.ledger import Ledger
from biomedclip_ray.store.product import Product

log = logging.getLogger(__name__)

VERSION = 6
UNIT = "pair"
_COLUMNS = "pair_id pmcid doi source_split figure_id panel text sha256 text_sha256 phash license figure_kind".split()
_CHUNK = 32  # parts of one task
_THREADS = 16  # of a task: a read behind an object store waits for four answers in turn, and decoding needs no lock
_PAIRS_AT_ONCE = 1 << 11  # in the second look: 0.3 GB at its peak


def _content(config: Config, pairs: Product) -> dict[str, Any]:
    return config.curate.content()


def _work(attempt: Attempt, run_parts: RunParts, config: Config, pairs: Product) -> Made:
    """The manifest's `near` says how many near pairs were looked at and confirmed, `leakage` what spans splits among
    the kept, `shared_texts` how many texts do so under different images.

    Raises:
        RuntimeError: something spans splits, which no data can bring about.
    """
    attempt.parts = pairs.parts
    tasks, section = run_parts.tasks, config.curate
    source = tasks.put(pairs)
    chunks = [range(at, min(at + _CHUNK, pairs.parts)) for at in range(0, max(1, pairs.parts), _CHUNK)]
    read = [tasks.submit(section.resources, _read, source, chunk, section)[0] for chunk in chunks]
    found, *verdicts = tasks.submit(section.resources, _decide, source, section, *read, outputs=len(chunks) + 1)
    missing = set(attempt.missing_parts())
    tasks.get(
        [
            tasks.submit(section.resources, _write, attempt, source, chunk, verdict)[0]
            for chunk, verdict in zip(chunks, verdicts, strict=True)
            if missing.intersection(chunk)
        ]
    )
    return Made(tasks.get([found])[0])


def _fit(config: Config, capacity: Capacity, *_: Any) -> list[str]:
    return capacity.lacks("curate.resources", config.curate.resources)


curate = Stage("curate", VERSION, _content, _work, fit=_fit)
"""Reads the pairs, without their images. Each file of the corpus has the rows of the pairs file of the same name."""


def _read(pairs: Product, parts: range, config: Curate) -> list[PairFacts]:
    """What is decided on, part by part; the requests of several parts overlap."""
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(lambda part: _facts(pairs.read(part, _COLUMNS), config), parts))


def _decide(pairs: Product, config: Curate, *read: list[PairFacts]) -> tuple[Any, ...]:
    """What the manifest says of the decision, and then the verdicts of each chunk, one a part."""
    parts = [part for chunk in read for part in chunk]
    facts = PairFacts.join(parts)
    near, search = _near(pairs, facts, [len(part.pair) for part in parts], config.near_bits)
    verdict = decide(facts, config, near)
    leakage = leaks(facts, verdict, near)
    if any(leakage.values()):
        raise RuntimeError(f"curate: kept in more than one split: {leakage}")
    bounds = np.cumsum([0, *(len(part.pair) for part in parts)])
    slices = iter([verdict.slice(first, last) for first, last in itertools.pairwise(bounds)])
    told = {"near": search, "leakage": leakage, "shared_texts": shared_texts(facts, verdict)}
    return told, *([next(slices) for _ in chunk] for chunk in read)


def _write(attempt: Attempt, pairs: Product, parts: range, verdicts: list[Verdict]) -> None:
    def write(part: int, verdict: Verdict) -> None:
        rows, ledger = _corpus_rows(pairs.read(part, ["pair_id"])["pair_id"], verdict)
        attempt.write_part(part, rows, ledger.table(), ledger.counts, peak_rss())

    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(write, parts, verdicts))


def _facts(table: pa.Table, config: Curate) -> PairFacts:
    def hashes(name: str) -> NDArray[np.uint64]:
        return np.fromiter((hash64(value) for value in table[name].to_pylist()), np.uint64, table.num_rows)

    allowed = SourceSelect(licenses=config.select.licenses).allowed()
    places = {kind: number for number, kind in enumerate(config.balance)}
    kinds = table["figure_kind"].to_pylist()
    split = [
        split_of(drawn_by(pmcid, doi), config.splits) if said is None else SPLITS.index(said)
        for pmcid, doi, said in zip(
            *(table[name].to_pylist() for name in ("pmcid", "doi", "source_split")), strict=True
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
    return PairFacts(
        pair=hashes("pair_id"),
        article=hashes("pmcid"),
        figure=hashes("figure_id"),
        picture=hashes("sha256"),
        text=hashes("text_sha256"),
        phash=table["phash"].to_numpy(),
        kind=np.array([places.get(kind, -1) for kind in kinds], np.int8),
        split=np.array(split, np.int8),
        reason=np.array(reason, np.int8),
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


def _near(pairs: Product, facts: PairFacts, sizes: list[int], bits: int | None) -> tuple[Edges, dict[str, Any]]:
    """Rows that show the same image in other bytes, by hash and then by pixels; and what the search did."""
    if bits is None:
        return NO_EDGES, {"bits": None}
    _, row = np.unique(facts.picture, return_index=True)  # one row for each image
    found = near_pairs(facts.phash[row], bits)
    left, right = row[found.left], row[found.right]
    candidates = np.unique(np.concatenate([left, right]))
    signatures, shapes = _signatures(pairs, sizes, candidates)
    first, second = np.searchsorted(candidates, left), np.searchsorted(candidates, right)
    same = np.zeros(len(left), bool)
    for at in range(0, len(left), _PAIRS_AT_ONCE):
        here = slice(at, at + _PAIRS_AT_ONCE)
        same[here] = look_alike(signatures[first[here]], signatures[second[here]])
    same &= np.abs(np.log(shapes[first] / shapes[second])) <= SHAPE_LIMIT
    search = {
        "bits": bits,
        "pictures": len(row),
        "near_hashes": len(left),
        "pictures_read": len(candidates),
        "confirmed": int(same.sum()),
        "crowded": len(found.crowded),
    }
    log.info("near duplicates: %s", search)
    return (left[same], right[same]), search


def _signatures(
    pairs: Product, sizes: list[int], rows: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The (len(rows), 6912) uint8 signatures of some rows' images, and their height over width.

    Reads the row groups that hold them and no others.
    """
    result = np.zeros((len(rows), 3 * SIGNATURE_SIDE**2), np.uint8)
    shapes = np.ones(len(rows))
    bounds = np.cumsum([0, *sizes])

    def read(part: int) -> None:
        first, last = np.searchsorted(rows, bounds[part : part + 2])
        if first == last:
            return
        wanted = rows[first:last] - bounds[part]
        with pairs.open_data(part) as source:
            file = pq.ParquetFile(source)
            start = 0
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                low, high = np.searchsorted(wanted, [start, stop])
                if low < high:
                    images = file.read_row_group(group, columns=["image"])["image"].take(
                        pa.array(wanted[low:high] - start)
                    )
                    for number, image in enumerate(images, start=first + low):
                        pixels = decode(image.as_py())
                        result[number], shapes[number] = signature(pixels), pixels.shape[0] / pixels.shape[1]
                start = stop

    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(read, range(pairs.parts)))
    return result, shapes


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
