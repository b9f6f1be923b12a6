"""Every task that a labelled set allows, for one bundle: rows, the figures made of them, and what was left out.

The same code measures in the workflow's stage and in workflows/evaluate.py.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from biomedclip_ray.evaluate import retrieval
from biomedclip_ray.evaluate.classify import Options, PromptPairs, ZeroShot
from biomedclip_ray.evaluate.corruptions import KINDS, STRENGTHS, corrupt, summary
from biomedclip_ray.evaluate.features import Kept
from biomedclip_ray.evaluate.leakage import Copies
from biomedclip_ray.evaluate.measure import estimates, measure
from biomedclip_ray.evaluate.metrics import choices
from biomedclip_ray.evaluate.probe import LinearProbe, few_labels
from biomedclip_ray.evaluate.ranks import DIRECTIONS, Keys, rank
from biomedclip_ray.evaluate.readers import Fetch, Images
from biomedclip_ray.evaluate.sets import LabelledSet
from biomedclip_ray.evaluate.tasks import TooLittle, logits_of
from biomedclip_ray.evaluate.vqa import Questions
from biomedclip_ray.images.image import as_pillow
from biomedclip_ray.store.product import StageError

Found = dict[str, tuple[str, pa.Table, dict[str, Any]]]
"""Task -> (kind, rows, what measure.py needs beside them)."""

EXAMPLES = 6
"""Hits, and as many misses, that are shown as images."""
CORRUPTED = 500
"""Test images that are made worse: 25 times as many are encoded."""
SHOWN_LEFT_OUT = 100
"""Rows left out that are named in the figures; all are counted."""


Near = Callable[[NDArray[np.uint64], Images], Copies | None]

Measured = tuple[dict[str, Any], Found]
"""The entry of one set in evaluation.json, and the rows behind it."""


def ask_untrained(vectors: Kept, labelled: LabelledSet, draws: int, seed: int, max_left_out: float) -> Measured:
    """What needs no training: zero-shot, options, retrieval. It takes seconds, so that a first table comes before the
    probes.

    Args:
        max_left_out: share of the images asked about that may lack a vector.

    Raises:
        StageError: more images than that have no vector; the first is named with its reason.
    """
    asked = asked_of(labelled)
    _, reasons, _ = vectors.table(asked)
    out = labelled.about() | {"left_out": _left_out(labelled, asked, reasons, max_left_out)}
    encoder = vectors.encoder
    out["encoder"] = {
        "bundle": encoder.bundle_id,
        "precision": encoder.precision,
        "preprocessing": encoder.info["preprocess_cfg"],
        "context_length": encoder.tokenizer.context_length,
        "logit_scale": encoder.logit_scale,
    }
    if labelled.task == "vqa":
        return out, {}
    if labelled.task == "retrieval":
        return out, _captions(vectors, labelled, out, draws, seed)
    return out, _asked(_UNTRAINED[labelled.task](), vectors, labelled, out, draws, seed)


def measure_set(
    vectors: Kept,
    labelled: LabelledSet,
    draws: int,
    seed: int,
    max_left_out: float,
    near: Near | None = None,
    corruptions: bool = False,
    begun: Measured | None = None,
    fused: Callable[[str], pa.Table | str] | None = None,
) -> Measured:
    """All figures of one set.

    Args:
        near: perceptual hashes and images -> which of them the bundle saw in training (None: nobody knows).
        corruptions: whether the first CORRUPTED test images are made worse in 25 ways as well.
        begun: what `ask_untrained` gave; the other arguments and errors are its own.
        fused: VQA split -> what a fusion head answered (`fusion.SAID`), or why it did not; None: there is none.
    """
    out, found = begun or ask_untrained(vectors, labelled, draws, seed, max_left_out)
    if labelled.task == "vqa":
        found |= _questions(vectors, labelled, out, draws, seed, fused)
    if labelled.task == "classification":
        if corruptions and "zero_shot" in found:
            out["robustness"] = robustness(vectors, labelled)
        found |= _asked(LinearProbe(seed), vectors, labelled, out, draws, seed)
        if "linear_probe" in found:
            out["few_labels"] = few_labels(vectors, labelled, seed)
    asked = asked_of(labelled)
    table = labelled.tables[asked]
    seen = near(vectors.table(asked)[2], table.images) if near is not None else None
    out["images_near_training"] = None
    if seen is not None:
        ids = [table.ids[row] for row in np.flatnonzero(seen.same)]
        out["images_near_training"] = {"n": len(ids), "of": len(table.ids), "by_hash_alone": int(seen.near.sum())}
        out["images_near_training"]["ids"] = ids[:SHOWN_LEFT_OUT]
        if ids:
            out["without_near_training"] = _without(found, set(ids), seed)
    out["encoded"] = dict(vectors.encoded)
    return out, found


def asked_of(labelled: LabelledSet) -> str:
    """The table whose images are asked about."""
    return "images" if labelled.task in ("vqa", "retrieval") else "test"


def _left_out(labelled: LabelledSet, table: str, reasons: list[str], most: float) -> dict[str, Any]:
    rows = [row for row, reason in enumerate(reasons) if reason]
    ids = labelled.tables[table].ids
    if len(rows) > most * len(reasons):
        raise StageError(
            f"{labelled.name}: {len(rows)} of {len(reasons)} images of {table} have no vector, more than the share of "
            f"{most:g} that may lack one (evaluate.max_left_out); the first is {ids[rows[0]]}: {reasons[rows[0]]}"
        )
    named = [{"id": ids[row], "reason": reasons[row]} for row in rows[:SHOWN_LEFT_OUT]]
    return {"n": len(rows), "of": len(reasons), "reasons": dict(Counter(r for r in reasons if r)), "rows": named}


_UNTRAINED: dict[str, Any] = {"classification": ZeroShot, "multilabel": PromptPairs, "options": Options}


def _asked(task: Any, vectors: Kept, labelled: LabelledSet, out: dict[str, Any], draws: int, seed: int) -> Found:
    """One task's figures into `out`, and its rows; where the set holds too little for it, the sentence that says so."""
    about: dict[str, Any] = {"classes": labelled.classes, "common": _common(labelled)}
    own = dict(about)
    if task.name == "zero_shot" and labelled.task == "classification" and "validation" in labelled.tables:
        own["logits_of_validation"] = _validation(vectors, labelled)
    try:
        rows = task.run(vectors, labelled)
        out[task.name] = measure(task.kind, rows, draws, seed, own) | task.about(vectors, labelled, rows)
    except TooLittle as error:
        out[task.name] = {"left_out": str(error)}
        return {}
    if task.kind == "classification":
        out[task.name]["examples"] = _examples(labelled, rows)
    return {task.name: (task.kind, rows, about)}


def _examples(labelled: LabelledSet, rows: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """The first hits and misses in storage order, as thumbnails: what a reader sees before believing a figure."""
    table = labelled.tables["test"]
    place = {name: row for row, name in enumerate(table.ids)}
    logits, labels = logits_of(rows), rows["label"].to_numpy()
    answers = logits.argmax(axis=1)
    out: dict[str, list[dict[str, Any]]] = {}
    for name, kind in (("hits", answers == labels), ("misses", answers != labels)):
        out[name] = []
        for at in np.flatnonzero(kind)[:EXAMPLES]:
            sample = rows["sample_id"][int(at)].as_py()
            data = table.images.fetch(place[sample], place[sample] + 1)[0]
            entry = {"id": sample, "truth": labelled.classes[labels[at]], "answer": labelled.classes[answers[at]]}
            out[name].append(entry | {"image": thumbnail(data) if data else None})
    return out


def thumbnail(data: bytes) -> str:
    """An image as a data URI of at most 96 pixels."""
    with as_pillow(data) as image:
        image.thumbnail((96, 96))
        small = io.BytesIO()
        image.convert("RGB").save(small, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(small.getvalue()).decode()


def robustness(vectors: Kept, labelled: LabelledSet) -> dict[str, Any]:
    """Zero-shot accuracy of CORRUPTED test images made worse in each way; the clean one is that of the same images,
    which are spread over the whole set: many a set is sorted by class.
    """
    table = labelled.tables["test"]
    every = len(table.ids)
    rows = np.arange(min(CORRUPTED, every)) * every // min(CORRUPTED, every)
    rows = rows[np.isfinite(vectors.images("test")[rows]).all(axis=1)]
    data = [table.images.fetch(row, row + 1)[0] for row in rows.tolist()]
    labels = table.labels[rows]
    logits = ZeroShot().logits(vectors, vectors.images("test")[rows], labelled, labelled.templates)
    clean = float(choices(logits)[np.arange(len(rows)), labels].mean())
    found: dict[str, list[float]] = {}
    for kind in KINDS:
        found[kind] = []
        for strength in STRENGTHS:
            worse = vectors.of(Images(len(data), _worse(data, kind, strength)))
            there = np.flatnonzero(np.isfinite(worse).all(axis=1))
            scores = ZeroShot().logits(vectors, worse[there], labelled, labelled.templates)
            found[kind].append(float(choices(scores)[np.arange(len(there)), labels[there]].mean()))
    return summary(found, clean, float((labels == _common(labelled)).mean()), len(rows))


def _worse(images: Sequence[bytes | None], kind: str, strength: int) -> Fetch:
    def fetch(start: int, stop: int) -> list[bytes | None]:
        return [corrupt(data, kind, strength) if data else None for data in images[start:stop]]

    return fetch


def _common(labelled: LabelledSet) -> int | None:
    """The class that a blind guesser would name: train's commonest, else test's."""
    if labelled.task != "classification":
        return None
    labels = labelled.tables["train" if "train" in labelled.tables else "test"].labels
    return int(np.bincount(labels, minlength=len(labelled.classes)).argmax())


def _validation(vectors: Kept, labelled: LabelledSet) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
    images = vectors.images("validation")
    kept = np.flatnonzero(np.isfinite(images).all(axis=1))
    if not len(kept):
        return None
    logits = ZeroShot().logits(vectors, images[kept], labelled, labelled.templates)
    return labelled.tables["validation"].labels[kept], logits


def _questions(
    vectors: Kept,
    labelled: LabelledSet,
    out: dict[str, Any],
    draws: int,
    seed: int,
    fused: Callable[[str], pa.Table | str] | None,
) -> Found:
    found: Found = {}
    images = labelled.tables["images"]
    hashes: dict[str, str] = {}
    for start, parts in images.images.parts(256):
        for row, data in enumerate(parts, start):
            hashes[images.ids[row]] = hashlib.sha256(data).hexdigest() if data else f"none {row}"
    out["vqa"] = {}
    for split in labelled.splits:
        task = Questions(split, seed)
        try:
            rows = task.run(vectors, labelled)
        except TooLittle as error:
            out["vqa"][split] = {"left_out": str(error)}
            continue
        about = {"overlap": task.about(labelled, hashes)}
        out["vqa"][split] = measure("vqa", rows, draws, seed, about) | about
        found[f"vqa {split}"] = ("vqa", rows, {})
        said = fused(split) if fused is not None else None
        if isinstance(said, str):
            out.setdefault("vqa_fusion", {})[split] = {"left_out": said}
        elif said is not None:
            rows = task.fused(labelled, said)
            out.setdefault("vqa_fusion", {})[split] = measure("vqa", rows, draws, seed, about)
            found[f"vqa_fusion {split}"] = ("vqa", rows, {})
    return found


def _captions(vectors: Kept, labelled: LabelledSet, out: dict[str, Any], draws: int, seed: int) -> Found:
    """Retrieval between captions and images; an image with several captions is found by any of them (CLIP_benchmark's
    definition), and each caption looks for its one image."""
    images, table = vectors.images("images"), labelled.tables["images"]
    texts = labelled.questions["test"]
    kept = np.flatnonzero(np.isfinite(images).all(axis=1))
    place = {table.ids[row]: number for number, row in enumerate(kept)}
    mine = [row for row, name in enumerate(texts["image_id"].to_pylist()) if name in place]
    asked = texts.take(mine)
    text = vectors.encode_text(asked["text"].to_pylist())
    keys = Keys(np.array([place[name] for name in asked["image_id"].to_pylist()]), np.arange(len(kept)))
    ids = {DIRECTIONS[0]: asked["text_id"].to_pylist(), DIRECTIONS[1]: [table.ids[row] for row in kept]}
    clusters = {
        DIRECTIONS[0]: [table.clusters[kept[place[name]]] for name in asked["image_id"].to_pylist()],
        DIRECTIONS[1]: [table.clusters[row] for row in kept],
    }
    readings = {retrieval.STRICT: keys}
    rows = retrieval.rows_of(ids, clusters, rank(text, images[kept], readings))
    rows = rows.append_column("image_id", pa.array(asked["image_id"].to_pylist() + ids[DIRECTIONS[1]]))
    out["retrieval"] = {"images": len(kept), "texts": len(mine), "n": len(mine)}
    out["retrieval"] |= retrieval.measure_rows(rows, readings, draws, seed)
    return {"retrieval": ("retrieval", rows, {"candidates": len(kept)})}


def _without(found: Found, ids: set[str], seed: int) -> dict[str, dict[str, Any]]:
    """The metrics of each task without the rows whose image the bundle may have seen (values; the intervals are the
    whole's); what was seen stays among the candidates of retrieval.
    """
    out: dict[str, dict[str, Any]] = {}
    for task, (kind, rows, about) in found.items():
        column = "image_id" if "image_id" in rows.column_names else "sample_id"
        kept = rows.filter(pa.array([name not in ids for name in rows[column].to_pylist()], pa.bool_()))
        if kept.num_rows:
            values: Mapping[str, Any] = estimates(kind, kept, 0, seed, about)
            out[task] = {"n": kept.num_rows} | {name: one.value for name, one in values.items()}
    return out
