"""Stage: a bundle, the held-out pairs and labelled sets -> evaluation.json, rows, plots, and the pool's vectors.

The pool is one whole figure per figure of the held-out split; panels stand beside it for the slice that tells them
apart. Vectors stay in data/ as parts: an interrupted run encodes nothing twice, and whoever doubts a figure recomputes
it from there, or from rows/, with ten lines of numpy. Before anything is encoded, a bundle that was trained on today's
held-out articles or images is refused.
"""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from biomedclip_ray.clip.vectors import encode_pairs, to_column
from biomedclip_ray.config import Config, ConfigError, Evaluate
from biomedclip_ray.corpus.aligned import check_aligned
from biomedclip_ray.evaluate import plots
from biomedclip_ray.evaluate.bundles import Asked, Written, encode_on_cluster, gather
from biomedclip_ray.evaluate.compare import comparison, table
from biomedclip_ray.evaluate.features import Encoded, Job, features_of, recalled
from biomedclip_ray.evaluate.held_out import measure_pool
from biomedclip_ray.evaluate.leakage import check_leakage, near_copies
from biomedclip_ray.evaluate.ranks import DIRECTIONS
from biomedclip_ray.evaluate.sets import LabelledSet, load_sets
from biomedclip_ray.run.capacity import Capacity, known
from biomedclip_ray.run.nodes import wait_for_nodes
from biomedclip_ray.run.placement import place
from biomedclip_ray.run.stage import Made, RunParts, Stage
from biomedclip_ray.schema import Reason
from biomedclip_ray.store.attempt import Attempt
from biomedclip_ray.store.ledger import Ledger, PartResult
from biomedclip_ray.store.parquet import conform, some_rows
from biomedclip_ray.store.place import Place
from biomedclip_ray.store.product import Product

VERSION = 6

PARTS_TOGETHER = 32
"""Parts of the pairs in one part of this stage. A split of 0.2% is two pairs of each: read one after the other behind a
store that answers in 30 ms they were 111 ms a part, and no batch for a GPU.
"""

_WORDS = (10, 25, 50, 100, 200)


def _content(config: Config, bundle: Product, pairs: Product, corpus: Product) -> dict[str, Any]:
    return config.evaluate.content()


def _work(
    attempt: Attempt, run_parts: RunParts, config: Config, bundle: Product, pairs: Product, corpus: Product
) -> Made:
    """Raises LeakageError where the bundle's own corpus trained on an article or an image of today's held-out split,
    StageError where more vectors than `evaluate.max_left_out` are not finite."""
    section = config.evaluate
    labelled = load_sets(section.sets)
    check_leakage(run_parts.tasks, section.resources, bundle, pairs, corpus, section.split)
    attempt.parts = parts_of(pairs)
    run_parts(HeldOut, section.resources, (bundle.place.at("bundle").uri, pairs, corpus, section))
    result = measure_pool(attempt, section)
    result["bundle_product"] = bundle.fingerprint
    result |= _on_sets(attempt.product, labelled, bundle, section)
    for name, image in plots.draw(result).items():
        attempt.place.write(name, image)
    attempt.place.write("evaluation.json", json.dumps(result, indent=1).encode())
    return Made({"recall@10": {way: result["retrieval"][way]["recall@10"]["value"] for way in DIRECTIONS}})


def _check(config: Config, *_: Any) -> list[str]:
    try:
        load_sets(config.evaluate.sets)
    except ConfigError as error:
        return [str(error)]
    return []


def _fit(config: Config, capacity: Capacity, *_: Any) -> list[str]:
    return capacity.lacks("evaluate.resources", config.evaluate.resources)


evaluate = Stage("evaluate", VERSION, _content, _work, check=_check, fit=_fit)
"""Reads the bundle, the pairs and the corpus."""


def parts_of(pairs: Product) -> int:
    """How many parts the pool of a product of pairs is made of."""
    return -(-pairs.parts // PARTS_TOGETHER)


def held_out(corpus: pa.Table, pairs: pa.Table, split: str) -> tuple[np.ndarray, Ledger]:
    """Rows of one part that are encoded, and the ledger of the other held-out pairs.

    Args:
        corpus: columns pair_id, split, kept; pairs: columns pair_id, figure_id, panel; aligned row by row.

    Returns:
        Ascending row numbers (int64): kept, in `split`, a panel or the first whole image of its figure.
    """
    ledger, rows, seen = Ledger("evaluate"), [], set()
    kept = pc.and_(corpus["kept"], pc.equal(corpus["split"], split)).to_numpy()
    candidates = np.flatnonzero(kept)
    ids, figures, panels = (pairs[name].to_pylist() for name in ("pair_id", "figure_id", "panel"))
    for row in candidates:
        if panels[row] == 0 and figures[row] in seen:
            ledger.drop("held-out pair", ids[row], Reason.SECOND_IMAGE)
            continue
        if panels[row] == 0:
            seen.add(figures[row])
        rows.append(row)
    ledger.count("held-out pair", len(candidates), len(rows))
    return np.array(rows, np.int64), ledger


def _on_sets(product: Product, sets: list[LabelledSet], bundle: Product, section: Evaluate) -> dict[str, Any]:
    """The figures of each labelled set by its name, for this bundle ("sets") and for others, and how they compare."""
    if not sets:
        return {"sets": {}}
    resources = section.resources
    where = place(known(), resources.num_cpus, resources.num_gpus)
    task = ray.remote(**where.options)(_sets_of)
    own = bundle.place.at("bundle").uri
    uris = [own, *section.bundles]
    features = f"{product.root}/features"
    # a bundle's vectors all over the cluster, then its figures in one task: small fits and sums of what lies in storage
    encoded = {uri: encode_on_cluster(uri, sets, features, resources, section.precision) for uri in uris}
    if section.fusion.epochs:
        _fuse(uris, sets, features, section)
    arguments = ([one.uri for one in sets], features, section, product.place.uri)
    wait_for_nodes("evaluate", known(), [(where, 1)], resources.wait_for_nodes_s)
    tasks = [task.remote(uri, *arguments, bundle if uri == own else None, encoded[uri]) for uri in uris]
    found = dict(zip(uris, ray.get(tasks), strict=True))
    out: dict[str, Any] = {"sets": found[own][1]}
    if section.bundles:
        names = [_name(uri, found[uri][0], own) for uri in uris]
        every = {name: found[uri][1] for name, uri in zip(names, uris, strict=True)}
        rows = gather({name: found[uri][2] for name, uri in zip(names, uris, strict=True)})
        out |= {"bundles": every, "table": table(every)}
        ids = {name: found[uri][0] for name, uri in zip(names, uris, strict=True)}
        out["comparison"] = comparison(rows, section.bootstraps, section.seed, ids)
    return out


def _fuse(uris: list[str], sets: list[LabelledSet], features: str, section: Evaluate) -> None:
    """Train the fusion heads of all bundles, one after the other."""
    from biomedclip_ray.evaluate.fusion import jobs_of, train_on_ray

    where = place(known(), section.resources.num_cpus, section.resources.num_gpus)
    find = ray.remote(**where.options)(_features_of)
    owns = ray.get([find.remote(uri, features, section) for uri in uris])
    for uri, own in zip(uris, owns, strict=True):
        for job in jobs_of(uri, own, sets, section):
            train_on_ray(job, section.resources)


def _features_of(uri: str, features: str, section: Evaluate) -> str:
    from biomedclip_ray.clip.encoder import Encoder

    return features_of(features, Encoder.load(uri, precision=section.precision))


def _name(uri: str, bundle_id: str, own: str) -> str:
    return "this bundle" if uri == own else f"{uri.rstrip('/').rpartition('/')[2]} ({bundle_id})"


def _sets_of(
    uri: str,
    sets: list[str],
    features: str,
    section: Evaluate,
    out: str,
    trained: Product | None,
    encoded: dict[Job, Encoded],
) -> tuple[str, dict[str, Any], Written]:
    """One bundle on all sets, whose images are encoded: its id, figures by set, and where the rows of each task lie."""
    from biomedclip_ray.clip.encoder import Encoder

    encoder = Encoder.load(uri, precision=section.precision)
    near = (lambda hashes, images: near_copies(hashes, images, trained)) if trained is not None else None
    asked = Asked(encoder, load_sets(sets), features, section, recalled(encoded), uri)
    return encoder.bundle_id, *asked.all(Place(out).at(f"rows/{encoder.bundle_id}"), near)


class HeldOut:
    """Encodes the held-out figures of a part; holds the model, so one is made per process."""

    def __init__(self, bundle: str, pairs: Product, corpus: Product, section: Evaluate) -> None:
        from biomedclip_ray.clip.encoder import Encoder

        self.encoder = Encoder.load(bundle, precision=section.precision)
        self.pairs, self.corpus, self.section = pairs, corpus, section
        self.threads = math.ceil(section.resources.num_cpus)

    def __call__(self, part: int) -> PartResult:
        first = part * PARTS_TOGETHER
        with ThreadPoolExecutor(PARTS_TOGETHER) as threads:
            read = list(threads.map(self._read, range(first, min(first + PARTS_TOGETHER, self.pairs.parts))))
        ledger = Ledger("evaluate")
        for _, one in read:
            ledger.rows += one.rows
            for unit, counts in one.counts.items():
                ledger.count(unit, *counts)
        schema = _schema(self.encoder.dimensions)
        tables = [table for table, _ in read if table is not None]
        if not tables:
            return PartResult(schema.empty_table(), ledger)
        found = pa.concat_tables(tables)
        texts = found["text"].to_pylist()
        text, image = encode_pairs(self.encoder, texts, found["image"].to_pylist(), self.threads)
        lengths = np.stack([np.linalg.norm(side, axis=1) for side in (text, image)])
        good = np.flatnonzero((np.isfinite(lengths) & (lengths > 0)).all(axis=0))
        lost = sorted(set(range(len(texts))) - set(good.tolist()))
        for row in lost:
            ledger.drop("held-out pair", found["pair_id"][row].as_py(), Reason.NON_FINITE)
        ledger.count("held-out pair", 0, -len(lost))
        columns = {name: found[name].take(good) for name in (*_FACTS, "text_sha256", "group")}
        columns |= {
            "year": pc.cast(found["year"].take(good), pa.string()),
            "caption_words": pa.array([_length(texts[row]) for row in good]),
            "text_vector": to_column(text[good]),
            "image_vector": to_column(image[good]),
        }
        columns["bundle"] = pa.array([self.encoder.bundle_id] * len(good))
        return PartResult(conform(pa.table(columns), schema), ledger)

    def _read(self, part: int) -> tuple[pa.Table | None, Ledger]:
        """The held-out figures of one part of the pairs; of the images only the row groups that hold one."""
        judged = self.corpus.read(part, ["pair_id", "split", "group", "kept"])
        with self.pairs.open_data(part) as source:
            file = pq.ParquetFile(source, pre_buffer=True)
            facts = file.read(columns=[*_FACTS, "figure_id", "text_sha256", "year"])
            check_aligned(self.corpus, self.pairs, part, judged, facts)
            rows, ledger = held_out(judged, facts, self.section.split)
            if not len(rows):
                return None, ledger
            content = pa.concat_tables(table for _, table in some_rows(file, rows, ["text", "image"]))
        found = facts.take(rows).append_column("group", judged["group"].take(rows))
        return found.append_column("text", content["text"]).append_column("image", content["image"]), ledger


_FACTS = ("pair_id", "article_id", "panel", "figure_kind", "license")


def _length(text: str) -> str:
    """The slice of a caption by its words: "11 to 25"."""
    words = len(text.split())
    low = 1
    for high in _WORDS:
        if words <= high:
            return f"{low} to {high}"
        low = high + 1
    return f"over {_WORDS[-1]}"


def _schema(dimensions: int) -> pa.Schema:
    """data/ of this stage: the held-out pairs with their vectors."""
    vector = pa.list_(pa.float32(), dimensions)
    return pa.schema(
        {
            "pair_id": pa.string(),
            "article_id": pa.string(),
            "panel": pa.int16(),
            "figure_kind": pa.string(),
            "license": pa.string(),
            "year": pa.string(),
            "caption_words": pa.string(),
            "text_sha256": pa.string(),
            "group": pa.int64(),
            "text_vector": vector,
            "image_vector": vector,
            "bundle": pa.string(),
        }
    )
