"""The report of a run: `root/report.html`, one file that carries its images and plots and needs no script and no
network.

Reads only what the products hold, and a bounded part of it (a few parts for the grid, at most 10,000 held-out pairs for
the queries), so that the report of 20 million pairs costs what the demo's costs. A product that is not there yet leaves
a sentence in its place. Nothing is chosen by hand: grid and queries take the first pairs in storage order, which is
hash order, in turn from each kind of figure.
"""

from __future__ import annotations

import base64
import io
import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
from PIL import Image

from biomedclip_ray.clip.loss import LOSSES
from biomedclip_ray.clip.vectors import to_matrix
from biomedclip_ray.corpus.groups import SPLITS
from biomedclip_ray.evaluate.tables import READINGS, slice_lines
from biomedclip_ray.report import svg
from biomedclip_ray.report.nodes import nodes_section
from biomedclip_ray.report.sets import sets_section
from biomedclip_ray.report.words import bytes_text, count_text, duration_text, share_text
from biomedclip_ray.schema import ACKNOWLEDGEMENT, Reason
from biomedclip_ray.search.table import open_table
from biomedclip_ray.store.place import Place
from biomedclip_ray.store.product import Product
from biomedclip_ray.train.metrics import is_stuck, read
from biomedclip_ray.train.validate import score

GRID_PAIRS = 24
QUERIES = 10
RESULTS = 5
MAX_POOL = 10_000
CURVES = {  # of metrics.jsonl
    "lr": "learning rate",
    "logit_scale": "logit scale",
    "grad_norm": "gradient norm",
    "pairs_per_s": "pairs a second",
    "data_wait_share": "share of a step spent waiting for data",
    "mfu": "share of the device's peak (MFU)",
}
_GRID_PARTS = 8
_IMAGE_SIDE = 256  # pixels; the stored 384 would triple the file for nothing that a grid shows


@dataclass(frozen=True)
class Query:
    """A held-out caption with the images nearest to it."""

    caption: str
    rank: int
    """Of its own image among `pool`, from 1; ties count half."""
    results: list[dict[str, Any]]
    """image (data URI), caption, score, right (bool), rank; the right one comes last where it is not
    among the first.
    """


def write_report(root: str, out: Path | None = None) -> str:
    """Write the report of the last run on `root`, as `root/report.html` or as `out`. Returns where it lies.

    Raises:
        FileNotFoundError: no run has written `root/run.json`.
    """
    place = Place(root)
    page = render(root, json.loads(place.read("run.json"))).encode()
    if out is None:
        place.write("report.html", page)
        return f"{place.uri}/report.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    Place(str(out.parent)).write(out.name, page)
    return str(out)


def render(root: str, run: dict[str, Any]) -> str:
    """The page for the content of `run.json`; products are looked up below `root`, wherever it lies now."""
    stages = [_stage(root, entry) for entry in run["stages"]]
    products = {stage["name"]: stage["product"] for stage in stages if stage["product"] is not None}
    evaluation = _json(products.get("evaluate"), "evaluation.json")
    source = run["config"]["source"]["uri"]
    template = resources.files("biomedclip_ray.report").joinpath("report.html.j2").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"count": count_text, "duration": duration_text, "bytes": bytes_text, "share": share_text}
    return environment.from_string(template).render(
        root=Place(root).uri,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        source=source,
        inventory=run["inventory"],
        started=run["started"],
        updated=run["updated"],
        stages=stages,
        corpus=_corpus(products.get("curate")),
        training=_training(products.get("train")),
        evaluation=evaluation,
        readings=READINGS,
        slices=list(slice_lines(evaluation["slices"])) if evaluation else [],
        interval=svg.interval,
        nodes=nodes_section(root, run),
        sets=sets_section(evaluation) if evaluation else "",
        pairs=list(_grid(products["preprocess"])) if "preprocess" in products else [],
        queries=_queries(products["embed"], evaluation["split"] if evaluation else "test")
        if "embed" in products
        else None,
        licenses=_licenses(products["preprocess"]) if "preprocess" in products else [],
        terms=ACKNOWLEDGEMENT,
    )


def _stage(root: str, entry: dict[str, Any]) -> dict[str, Any]:
    """A line of run.json with its finished product (or None) and what the manifest knows better."""
    fingerprint = str(entry.get("product") or "").rstrip("/").rpartition("/")[2]
    product = Product(root, entry["name"], 0, {}, (), fingerprint) if fingerprint else None
    if product is not None and not product.finished:
        product = None
    manifest = product.manifest if product else {}
    counts = entry.get("counts") or manifest.get("counts", [])
    return {
        "name": entry["name"],
        "state": entry["state"],
        "seconds": entry.get("seconds"),
        "peak_rss": entry.get("peak_rss") or manifest.get("peak_rss"),
        "fingerprint": fingerprint,
        "product": product,
        "counts": [_unit(count) for count in counts],
        "created": manifest.get("created"),
        "config": json.dumps(manifest.get("config", {}), indent=1, ensure_ascii=False),
        "inputs": manifest.get("inputs", []),
        "versions": manifest.get("versions", {}),
    }


def _unit(count: dict[str, Any]) -> dict[str, Any]:
    """The balance of one unit with each reason's sentence, the most frequent reason first."""
    dropped = sorted(count["dropped"].items(), key=lambda item: -item[1])
    reasons = [{"reason": reason, "n": n, "sentence": Reason(reason).sentence} for reason, n in dropped]
    return {"unit": count["unit"], "in": count["in"], "kept": count["kept"], "reasons": reasons}


def _corpus(product: Product | None) -> dict[str, Any] | None:
    """Kept pairs and groups of each split, and what the search for duplicates and leaks found."""
    if product is None:
        return None
    pairs: Counter[str] = Counter()
    for table in product.scan(["split", "kept"]):  # counted anew: an erasure may have taken some
        pairs.update(table.filter(table["kept"])["split"].to_pylist())
    splits = {split: pairs[split] for split in SPLITS}
    return {"splits": splits, **{name: product.manifest[name] for name in ("near", "leakage", "shared_texts")}}


def _training(product: Product | None) -> dict[str, Any] | None:
    """The loss curve with the line of the chance loss, and what metrics.jsonl and manifest say of the run."""
    lines = read(product.place) if product is not None else []
    if product is None or not lines:
        return None
    losses = [(float(line["step"]), float(line["loss"])) for line in lines]
    recipe = product.manifest["config"]["train"]
    batch = int(recipe["batch"])
    loss = LOSSES[recipe["loss"]]
    chance = loss.chance(batch)
    formula = f"{shown} = " if (shown := loss.chance_formula(batch)) else ""
    validation = sorted((int(step), found) for step, found in product.manifest.get("validation", {}).items())
    recall = [(float(step), score(found)) for step, found in validation]
    curves = {"recall@10 of the validation split": recall} | {
        words: [(float(line["step"]), line[name]) for line in lines if math.isfinite(line.get(name, math.nan))]
        for name, words in CURVES.items()
    }
    return {
        "plot": svg.curve(
            losses,
            f"Loss by step: {losses[0][1]:.2f} at step {lines[0]['step']}, {losses[-1][1]:.2f} at step "
            f"{lines[-1]['step']}",
            (chance, f"chance loss: {formula}{chance:.2f}"),
        ),
        "curves": [
            (words, points[-1][1], svg.curve(points, words, small=True)) for words, points in curves.items() if points
        ],
        "steps": lines[-1]["step"],
        "batch": batch,
        "first": losses[0][1],
        "final": float(np.mean([loss for _, loss in losses[-5:]])),
        "stuck": is_stuck(lines),
        "starts": product.manifest.get("starts", {}),
    }


def _grid(product: Product) -> Iterator[dict[str, Any]]:
    """The first pairs of each kind of figure in turn, from the first parts."""
    columns = ["pair_id", "label", "text", "image", "figure_kind", "license", "journal", "year", "article_id"]
    rows: list[dict[str, Any]] = []
    for part in range(min(product.parts, _GRID_PARTS)):
        rows += product.read(part, columns).slice(0, 40 * GRID_PAIRS).to_pylist()
        if len(rows) >= 20 * GRID_PAIRS:
            break
    for row in _in_turn(rows, GRID_PAIRS):
        yield row | {"image": image_uri(row["image"])}


def _in_turn(rows: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most `most` rows: the first of each kind of figure, then the second of each, and so on."""
    seen: Counter[str | None] = Counter()
    turns = []
    for row in rows:
        turns.append(seen[row["figure_kind"]])
        seen[row["figure_kind"]] += 1
    order = sorted(range(len(rows)), key=lambda i: (turns[i], str(rows[i]["figure_kind"])))
    return [rows[i] for i in order[:most]]


def _queries(product: Product, split: str) -> dict[str, Any]:
    """Captions of held-out pairs against the images of that split: exact cosine over at most MAX_POOL pairs."""
    columns = ["caption", "figure_kind", "thumbnail", "text_vector", "image_vector"]
    pool = open_table(product.place).to_table(columns=columns, filter=f"split = '{split}'", limit=MAX_POOL)
    if not pool.num_rows:
        return {"split": split, "pool": 0, "queries": []}
    texts, images = to_matrix(pool["text_vector"]), to_matrix(pool["image_vector"])
    facts = pool.select(["caption", "figure_kind"]).append_column("row", pa.array(range(pool.num_rows))).to_pylist()
    queries = []
    for fact in _in_turn(facts, QUERIES):
        own = fact["row"]
        scores = images @ texts[own]
        ties = int((scores == scores[own]).sum()) - 1
        rank = int((scores > scores[own]).sum()) + ties // 2 + 1
        best = np.argsort(-scores, kind="stable")[:RESULTS].tolist()
        shown = best if own in best else [*best, own]
        results = [
            {
                "image": image_uri(pool["thumbnail"][row].as_py()),
                "caption": pool["caption"][row].as_py() or "",
                "score": float(scores[row]),
                "right": row == own,
                "rank": rank if row == own else place + 1,
            }
            for place, row in enumerate(shown)
        ]
        queries.append(Query(fact["caption"] or "", rank, results))
    return {"split": split, "pool": pool.num_rows, "queries": queries}


def _licenses(product: Product) -> list[tuple[str, int]]:
    """Pairs under each licence, most first."""
    counts: Counter[str] = Counter()
    for table in product.scan(["license"]):
        counts.update(value or "unknown" for value in table["license"].to_pylist())
    return counts.most_common()


def _json(product: Product | None, name: str) -> Any:
    return json.loads(product.place.read(name)) if product is not None and product.place.exists(name) else None


def image_uri(data: bytes | None) -> str | None:
    """A stored image as a data URI of at most 256 pixels; None where there is none."""
    if not data:
        return None
    with Image.open(io.BytesIO(data)) as image:
        image.thumbnail((_IMAGE_SIDE, _IMAGE_SIDE))
        small = io.BytesIO()
        image.convert("RGB").save(small, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(small.getvalue()).decode()
