"""Stage: a bundle, the held-out pairs and labelled sets -> evaluation.json, plots, and the pool's vectors.

The pool is one whole figure per figure of the held-out split. Its vectors stay in data/ as parts: an interrupted run
encodes nothing twice, and whoever doubts a figure recomputes it from there with ten lines of numpy. Before anything is
encoded, a bundle that was trained on today's held-out articles or pictures is refused.
"""

from __future__ import annotations

import io
import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from PIL import Image

from biomedclip_ray.clip.vectors import encode_pairs, to_column, to_matrix
from biomedclip_ray.config import Config, Evaluate
from biomedclip_ray.evaluate import plots
from biomedclip_ray.evaluate.leakage import check_leakage, near_copies
from biomedclip_ray.evaluate.retrieval import by_kind, retrieval
from biomedclip_ray.evaluate.sets import LabelledSet, load_set
from biomedclip_ray.run.capacity import Capacity, known
from biomedclip_ray.run.nodes import wait_for_nodes
from biomedclip_ray.run.placement import place
from biomedclip_ray.run.stage import Made, RunParts, Stage
from biomedclip_ray.schema import Reason
from biomedclip_ray.store.attempt import Attempt
from biomedclip_ray.store.ledger import Ledger, PartResult
from biomedclip_ray.store.parquet import conform
from biomedclip_ray.store.product import Product

VERSION = 1


def _content(config: Config, bundle: Product, pairs: Product, corpus: Product) -> dict[str, Any]:
    return config.evaluate.model_dump(mode="json")


def _work(
    attempt: Attempt, run_parts: RunParts, config: Config, bundle: Product, pairs: Product, corpus: Product
) -> Made:
    """Raises LeakageError where the bundle's own corpus trained on an article or a picture of today's held-out split."""
    section = config.evaluate
    labelled = [load_set(uri) for uri in section.sets]
    check_leakage(bundle, pairs, corpus, section.split)
    attempt.parts = pairs.parts
    run_parts(_HeldOut, section.resources, (bundle.place.at("bundle").uri, pairs, corpus, section))
    pool = pa.concat_tables(attempt.scan())
    result = measure(pool, section.split, section.bootstraps, section.seed)
    result["bundle_product"] = bundle.fingerprint
    result["sets"] = _on_sets(labelled, bundle, section)
    for name, picture in plots.draw(result).items():
        attempt.place.write(name, picture)
    attempt.place.write("evaluation.json", json.dumps(result, indent=1).encode())
    return Made()


def _fit(config: Config, capacity: Capacity, *_: Any) -> list[str]:
    return capacity.lacks("evaluate.resources", config.evaluate.resources)


evaluate = Stage("evaluate", VERSION, _content, _work, fit=_fit)
"""Reads the bundle, the pairs and the corpus."""


def held_out(corpus: pa.Table, pairs: pa.Table, split: str) -> tuple[np.ndarray, Ledger]:
    """Rows of the retrieval pool within one part, and the ledger of the other held-out pairs.

    Args:
        corpus: columns pair_id, split, kept; pairs: columns pair_id, figure_id, panel; aligned row by row.

    Returns:
        Ascending row numbers (int64): kept, in `split`, a whole figure, the first picture of its figure.

    Raises:
        RuntimeError: the two tables are not aligned.
    """
    if corpus["pair_id"].to_pylist() != pairs["pair_id"].to_pylist():
        raise RuntimeError("corpus and pairs are not aligned row by row: curate ran over other pairs")
    ledger, rows, seen = Ledger("evaluate"), [], set()
    kept = pc.and_(corpus["kept"], pc.equal(corpus["split"], split)).to_numpy()
    candidates = np.flatnonzero(kept)
    ids, figures, panels = (pairs[name].to_pylist() for name in ("pair_id", "figure_id", "panel"))
    for row in candidates:
        if panels[row] != 0:
            ledger.drop("held-out pair", ids[row], Reason.NOT_WHOLE_FIGURE)
        elif figures[row] in seen:
            ledger.drop("held-out pair", ids[row], Reason.SECOND_PICTURE)
        else:
            seen.add(figures[row])
            rows.append(row)
    ledger.count("held-out pair", len(candidates), len(rows))
    return np.array(rows, np.int64), ledger


def measure(pool: pa.Table, split: str, bootstraps: int, seed: int) -> dict[str, Any]:
    """The content of evaluation.json for a pool of encoded pairs (columns of `_schema`).

    Raises:
        RuntimeError: vectors of more than one bundle.
    """
    text, image = (to_matrix(pool[name]) for name in ("text_vector", "image_vector"))
    bundles = pc.unique(pool["bundle"]).to_pylist()
    if len(bundles) != 1:
        raise RuntimeError(f"the pool holds vectors of {len(bundles)} bundles: {bundles}")
    groups = pool["group"].to_numpy()
    articles = np.unique(pool["article_id"].to_pylist(), return_inverse=True)[1]
    found, ranks = retrieval(text, image, groups, articles, bootstraps, seed)
    kinds = pc.fill_null(pool["figure_kind"], "unknown").to_pylist()
    return {
        "bundle": bundles[0],
        "split": split,
        "n": pool.num_rows,
        "dimensions": text.shape[1],
        "bootstraps": bootstraps,
        "resampled": "articles",
        "seed": seed,
        "retrieval": found,
        "by_kind": by_kind(text, image, kinds, articles, bootstraps, seed),
        "rank_histogram": {way: plots.histogram(ranked.expected(), pool.num_rows) for way, ranked in ranks.items()},
    }


def _on_sets(sets: list[LabelledSet], bundle: Product, section: Evaluate) -> dict[str, Any]:
    """The figures of each labelled set by its name, and how many of its pictures the bundle saw in training."""
    resources = section.resources
    where = place(known(), resources.num_cpus, resources.num_gpus)
    if sets:
        wait_for_nodes("evaluate", known(), [(where, 1)], resources.wait_for_nodes_s)
    task = ray.remote(**where.options)(measure_set)
    uri = bundle.place.at("bundle").uri
    found = ray.get([task.remote(uri, labelled, section.bootstraps, section.seed) for labelled in sets])
    out: dict[str, Any] = {}
    for labelled, (figures, hashes) in zip(sets, found, strict=True):
        seen = near_copies(hashes, bundle)
        figures["pictures_near_training"] = None if seen is None else {"n": int(seen.sum()), "of": len(seen)}
        out[labelled.name] = figures
    return out


def measure_set(bundle: str, labelled: LabelledSet, draws: int, seed: int) -> tuple[dict[str, Any], np.ndarray]:
    """All that is measured on one labelled set, and the perceptual hashes (uint64) of the pictures it asks about."""
    from biomedclip_ray.clip.encoder import Encoder
    from biomedclip_ray.evaluate.classify import zero_shot
    from biomedclip_ray.evaluate.probe import linear_probe
    from biomedclip_ray.evaluate.vqa import answer_questions
    from biomedclip_ray.images.image import perceptual_hash

    encoder = Encoder.load(bundle)
    out = labelled.about()
    out["encoder"] = {
        "bundle": encoder.bundle_id,
        "preprocessing": encoder.info["preprocess_cfg"],
        "context_length": encoder.tokenizer.context_length,
        "logit_scale": encoder.logit_scale,
    }
    if labelled.task == "vqa":
        pictures = labelled.tables["images"]["image"].to_pylist()
        out["vqa"] = answer_questions(encoder, labelled, draws, seed)
    else:
        pictures = labelled.tables["test"]["image"].to_pylist()
        test = encoder.encode_images(pictures)
        train = encoder.encode_images(labelled.tables["train"]["image"].to_pylist())
        out["zero_shot"] = zero_shot(encoder, labelled, test, draws, seed)
        out["linear_probe"] = linear_probe(labelled, train, test, draws, seed)
    hashes = [perceptual_hash(_pixels(picture)) for picture in pictures]
    return out, np.array(hashes, np.uint64)


def _pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))


class _HeldOut:
    """Encodes the held-out figures of a part; holds the model, so one is made per process."""

    def __init__(self, bundle: str, pairs: Product, corpus: Product, section: Evaluate) -> None:
        from biomedclip_ray.clip.encoder import Encoder

        self.encoder = Encoder.load(bundle)
        self.pairs, self.corpus, self.section = pairs, corpus, section

    def __call__(self, part: int) -> PartResult:
        judged = self.corpus.read(part, ["pair_id", "split", "group", "kept"])
        facts = self.pairs.read(part, ["pair_id", "article_id", "figure_id", "panel", "figure_kind"])
        rows, ledger = held_out(judged, facts, self.section.split)
        schema = _schema(self.encoder.dimensions)
        if not len(rows):
            return PartResult(schema.empty_table(), ledger)
        content = self.pairs.read(part, ["text", "image"]).take(rows)
        threads = math.ceil(self.section.resources.num_cpus)
        text, image = encode_pairs(self.encoder, content["text"].to_pylist(), content["image"].to_pylist(), threads)
        columns = {name: facts[name].take(rows) for name in ("pair_id", "article_id", "figure_kind")}
        columns |= {
            "group": judged["group"].take(rows),
            "text_vector": to_column(text),
            "image_vector": to_column(image),
        }
        columns["bundle"] = pa.array([self.encoder.bundle_id] * len(rows))
        return PartResult(conform(pa.table(columns), schema), ledger)


def _schema(dimensions: int) -> pa.Schema:
    """data/ of this stage: the pool with its vectors."""
    vector = pa.list_(pa.float32(), dimensions)
    return pa.schema(
        {
            "pair_id": pa.string(),
            "article_id": pa.string(),
            "figure_kind": pa.string(),
            "group": pa.int64(),
            "text_vector": vector,
            "image_vector": vector,
            "bundle": pa.string(),
        }
    )
