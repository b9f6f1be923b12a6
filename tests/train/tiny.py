"""Small pairs and corpus products for the tests of training: drawn shapes whose captions say what is drawn."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from biomedclip_ray.config import Config, parse
from biomedclip_ray.run.capacity import Capacity, NodeKind
from biomedclip_ray.schema import CORPUS, LEDGER, PAIRS
from biomedclip_ray.store.attempt import attempt
from biomedclip_ray.store.parquet import conform
from biomedclip_ray.store.product import Product

COLOURS = ["red", "green", "blue", "white", "yellow", "purple"]
SHAPES = ["round", "square", "striped"]
KIND = "micrograph"


def is_of_kind(article: int) -> bool:
    """Every third article shows micrographs, the others charts."""
    return article % 3 == 0


def config(root: Path | str, **train: object) -> Config:
    """A config that trains in seconds: 16-px towers, batch 32."""
    resources = {"cpus_per_worker": 0.5, "feed_cpus": 0.25, "no_progress_timeout_s": 90, **train.pop("resources", {})}
    section = {
        "epochs": 2,
        "batch": 32,
        "micro_batches": 4,
        "lr": 2e-3,
        "warmup_steps": 4,
        "precision": "fp32",
        "window": 64,
        "checkpoint_steps": 4,
        "log_steps": 1,
        **train,
        "resources": resources,
    }
    model = {"config": str(Path(__file__).with_name("tiny_model.json")), "init": "random", "vocab_size": 200}
    return parse({"root": str(root), "model": model, "train": section}, "test")


def products(
    root: Path | str,
    articles: int = 24,
    figures: int = 5,
    parts: int = 3,
    misleading: tuple[str, ...] = (),
    unreadable: tuple[str, ...] = (),
    mentions: int = 0,
) -> tuple[Product, Product]:
    """Finished pairs and corpus; of each article one figure is dropped, every eighth article is a test article.

    Args:
        misleading: splits whose captions name another colour and shape than is drawn.
        unreadable: splits whose images are none.
        mentions: sentences that cite each figure.
    """
    pairs = Product.plan(str(root), "preprocess", 1, {"articles": articles}, [])
    corpus = Product.plan(str(root), "curate", 1, {}, [pairs])
    rows = [_article(number, figures, misleading, unreadable, mentions) for number in range(articles)]
    for product, schema, which in ((pairs, PAIRS, 0), (corpus, CORPUS, 1)):
        if product.finished:
            continue
        with attempt(product, parts) as current:
            for part in range(parts):
                chosen = [
                    row for number, article in enumerate(rows) for row in article[which] if number % parts == part
                ]
                table = conform(pa.Table.from_pylist(chosen, schema=schema), schema)
                current.write_part(part, table, LEDGER.empty_table(), {"pair": (len(chosen), len(chosen))})
            current.finish_parts(0.0)
    return pairs, corpus


def _article(
    number: int, figures: int, misleading: tuple[str, ...], unreadable: tuple[str, ...], mentions: int
) -> tuple[list[dict], list[dict]]:
    draw = np.random.default_rng(number)
    pairs, corpus = [], []
    split = "test" if number % 8 == 7 else "validation" if number % 8 == 6 else "train"
    for figure in range(figures):
        colour, shape, count = draw.choice(COLOURS), draw.choice(SHAPES), int(draw.integers(1, 4))
        pair_id = f"PMC{number + 1}.1/F{figure + 1}#0"
        told = (_next(SHAPES, shape), _next(COLOURS, colour)) if split in misleading else (shape, colour)
        text = f"{count} {' '.join(told)} cells, field {number} {figure}"
        pairs.append(
            {
                "pair_id": pair_id,
                "article_id": f"PMC{number + 1}.1",
                "text": text,
                "panel": 0,
                "mentions": [f"cited {n}: {text}" for n in range(mentions)],
                "figure_kind": KIND if is_of_kind(number) else "chart",
                "image": b"no picture" if split in unreadable else picture(colour, shape, count),
            }
        )
        kept = figure != 0
        corpus.append(
            {
                "pair_id": pair_id,
                "split": split,
                "group": number * 100 + figure,
                "kept": kept,
                "reason": None if kept else "duplicate",
            }
        )
    return pairs, corpus


def _next(words: list[str], word: str) -> str:
    return words[(words.index(word) + 1) % len(words)]


def picture(colour: str, shape: str, count: int, width: int = 48, height: int = 32) -> bytes:
    image = Image.new("RGB", (width, height), "black")
    brush = ImageDraw.Draw(image)
    for i in range(count):
        box = (2 + 15 * i, 8, 14 + 15 * i, 24)
        if shape == "round":
            brush.ellipse(box, fill=colour)
        elif shape == "square":
            brush.rectangle(box, fill=colour)
        else:
            for line in range(box[0], box[2], 4):
                brush.line((line, box[1], line, box[3]), fill=colour, width=2)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


def cluster(*nodes: dict[str, float]) -> Capacity:
    """What a cluster of just these nodes can have."""
    return Capacity(tuple(NodeKind(f"{n}", node, {}, 1) for n, node in enumerate(nodes)), "the cluster")
