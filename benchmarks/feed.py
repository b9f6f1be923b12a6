"""The feed of the training: Ray Data's blocks against the same functions (read, decode, crop, tokenize) in plain processes.

    python benchmarks/feed.py [--data FOLDER] [--pairs N]

Prints `feed_vs_functions ratio=X`: pairs per second that reach a consumer in steady state, over those of as many plain
processes as there are CPUs, each making its share of the same blocks. Pictures are the corpus' own JPEGs at a short side of
384, cropped to 224; captions are the corpus' own, with 256 tokens. The first and last blocks do not count: start-up is not
the feed's pace. Exit 1 below the bound.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import cv2
import pyarrow as pa
import ray

from biomedclip_ray.clip.tokenizer import fit_tokenizer
from biomedclip_ray.config import TrainResources
from biomedclip_ray.figures.image import ImageError, prepare
from biomedclip_ray.product import Product, conform
from biomedclip_ray.schema import CORPUS, LEDGER, PAIRS
from biomedclip_ray.train.batches import Feed, InOrder, batches, decode_block, read_span
from biomedclip_ray.train.order import Order
from biomedclip_ray.train.rows import find_rows

BOUND = 0.75
CPUS = 2
MICRO, WINDOW, SIZE, CONTEXT = 64, 1024, 224, 256
EDGE = 6
"""Blocks at either end that are not timed."""


def products(data: Path, root: str, count: int) -> tuple[Product, Product]:
    """`count` pairs in eight parts: the corpus' pictures and captions, over and over."""
    pictures = []
    for path in sorted((data / "bucket").glob("PMC*/*.jp*g")):
        try:
            stored = prepare(
                path.read_bytes(), short_side=384, quality=90, min_side=32, max_pixels=178_956_970, max_aspect=12.0
            )
        except ImageError:
            continue
        pictures.append(stored.jpeg)
    lines = (data / "expected" / "figures.jsonl").read_text(encoding="utf-8").splitlines()
    captions = [caption for line in lines if (caption := json.loads(line).get("caption"))]
    pairs = Product.plan(root, "preprocess", 1, {}, [])
    corpus = Product.plan(root, "curate", 1, {}, [pairs])
    for product, schema in ((pairs, PAIRS), (corpus, CORPUS)):
        with product.running(parts=8):
            for part in range(8):
                rows = [
                    {
                        "pair_id": f"PMC{n}.1/F1#0",
                        "image": pictures[n % len(pictures)],
                        "text": captions[n % len(captions)],
                        "split": "train",
                        "kept": True,
                    }
                    for n in range(part, count, 8)
                ]
                table = conform(pa.Table.from_pylist(rows, schema=schema), schema)
                product.write_part(part, table, LEDGER.empty_table(), {"pair": (len(rows), len(rows))})
            product.finish_parts(0.0)
    return pairs, corpus


def functions(feed: Feed, start: int, stop: int, ready: multiprocessing.synchronize.Barrier) -> None:
    """One plain process' share: every span from `start` on, block by block."""
    cv2.setNumThreads(1)
    ready.wait()
    for first, last in feed.order.spans(start, stop):
        span = read_span(feed, first, last)
        for offset in range(0, last - first, MICRO):
            decode_block(feed, span.slice(offset, MICRO))


def pace_of_functions(feed: Feed, count: int) -> float:
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(CPUS + 1)
    share = count // CPUS // MICRO * MICRO
    processes = [context.Process(target=functions, args=(feed, i * share, (i + 1) * share, ready)) for i in range(CPUS)]
    for process in processes:
        process.start()
    ready.wait()
    began = time.monotonic()
    for process in processes:
        process.join()
    return CPUS * share / (time.monotonic() - began)


def pace_of_feed(feed: Feed, count: int) -> float:
    resources = TrainResources(feed_cpus=0.75, feed_concurrency=CPUS)
    shard = InOrder().configure({"train": batches(ray.put(feed), 0, count, resources)}, 1, None, None)[0]["train"]
    blocks = count // MICRO
    arrived = []
    for block in islice(shard.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2), blocks - EDGE):
        arrived.append((time.monotonic(), len(block["position"])))
    timed = arrived[EDGE:]
    return sum(rows for _, rows in timed[1:]) / (timed[-1][0] - timed[0][0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = os.environ.get("BIOMEDCLIP_TEST_DATA", str(Path(__file__).resolve().parents[2] / "shared"))
    parser.add_argument("--data", type=Path, default=Path(default), help="the folder that holds corpus/")
    parser.add_argument("--pairs", type=int, default=8192)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        pairs, corpus = products(options.data / "corpus", root, options.pairs)
        rows = find_rows(pairs, corpus, "train")
        texts = [text for part in range(8) for text in pairs.read(part, ["text"])["text"].to_pylist()]
        tokenizer = fit_tokenizer(texts[:2000], 8192, CONTEXT)
        order = Order(rows.chunk_rows, WINDOW, 0)
        feed = Feed(pairs, rows, order, tokenizer, SIZE, (0.9, 1.0), 0, MICRO)
        count = len(rows) // MICRO * MICRO
        plain = pace_of_functions(feed, count)
        ray.init("local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
        fed = pace_of_feed(feed, count)
        ray.shutdown()
    ratio = fed / plain
    print(
        f"feed_vs_functions ratio={ratio:.2f}  bound {BOUND}; {fed:.0f} pairs/s through Ray Data, {plain:.0f} in "
        f"{CPUS} plain processes, {count} pairs in blocks of {MICRO}"
    )
    return 0 if ratio >= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
