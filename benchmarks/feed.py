"""The feed of the training: Ray Data's blocks against the same functions (read, decode, crop, tokenize) in plain
processes.

    python benchmarks/feed.py [--data FOLDER] [--pairs N] [--steps N]

- `feed_vs_functions`: pairs per second that reach a consumer in steady state, over those of as many plain processes as
  there are CPUs, each making its share of the same blocks. Images are the corpus' own at a short side of 384, cropped
  to 224; captions are the corpus' own, with 256 tokens. The first and last blocks do not count: start-up is not the
  feed's pace.
- The share of a step's time that two training workers wait for their blocks, in a real run on Ray Train of the towers
  of `pmc_cpu.yaml`; the first steps, which fill the pipeline, do not count. Aim: below 5%.

Exit 1 below the bound.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import statistics
import sys
import tempfile
import time
from contextlib import closing
from itertools import islice
from pathlib import Path

import cv2
import ray

from biomedclip_ray.clip.tokenizer import fit_tokenizer
from biomedclip_ray.config import TrainResources, parse
from biomedclip_ray.store.product import Product
from biomedclip_ray.train.batches import Feed, InOrder, batches, decode_block, read_span
from biomedclip_ray.train.metrics import read
from biomedclip_ray.train.order import Order
from biomedclip_ray.train.rows import find_rows
from biomedclip_ray.train.train import train

sys.path.insert(0, str(Path(__file__).parent))
import clips
from articles import add_data_option

BOUND = {"feed_vs_functions": 0.75}
WAIT_AIM = 0.05
CPUS = 2
MICRO, WINDOW, SIZE, CONTEXT = 256, 2048, 224, 256
STEP_ROWS = 64
"""Of one worker in the run with two."""
ROUNDS = 2
"""Of each side, the best of which counts."""
EDGE = 4
"""Blocks at either end that are not timed."""


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
    # one task more than CPUs: Ray starts the next up to 0.1 s after one ended
    resources = TrainResources(feed_cpus=0.5, feed_concurrency=CPUS + 1)
    shard = InOrder().configure({"train": batches(ray.put(feed), 0, count, resources)}, 1, None, None)[0]["train"]
    blocks = count // MICRO
    arrived = []
    with closing(iter(shard.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2))) as arriving:
        for block in islice(arriving, blocks - EDGE):
            arrived.append((time.monotonic(), len(block["position"])))
    timed = arrived[EDGE:]
    return sum(rows for _, rows in timed[1:]) / (timed[-1][0] - timed[0][0])


def wait_share(root: str, pairs: Product, corpus: Product, steps: int) -> float:
    """Of the time of a step, over all but the first third of `steps`, with two workers."""
    batch = 2 * STEP_ROWS
    epochs = steps * batch / len(find_rows(pairs, corpus, "train"))
    resources = {"workers": 2, "cpus_per_worker": 0.5, "threads": 1, "feed_cpus": 0.5}
    recipe = {"epochs": epochs, "batch": batch, "micro_batches": 2, "log_steps": 1, "window": WINDOW}
    model = {"config": "cpu_128", "init": "random", "vocab_size": 8192}
    config = parse({"root": root, "model": model, "train": {**recipe, "resources": resources}}, "benchmark")
    lines = read(train.run(config, pairs, corpus).product.place)
    return statistics.mean(line["data_wait_share"] for line in lines[len(lines) // 3 :])


def start_ray() -> None:
    ray.init("local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_data_option(parser)
    parser.add_argument("--pairs", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=18, help="of the run with two workers")
    options = parser.parse_args()
    captions = clips.real_captions(options.data)
    pictures = [image for image, _ in clips.real_pairs(options.data)]
    rows = [(pictures[n % len(pictures)], captions[n % len(captions)]) for n in range(options.pairs)]
    with tempfile.TemporaryDirectory(prefix="biomedclip-bench-", ignore_cleanup_errors=True) as root:
        pairs, corpus = clips.products(rows, root)
        chosen = find_rows(pairs, corpus, "train")
        tokenizer = fit_tokenizer(captions, 8192, CONTEXT)
        order = Order(chosen.chunk_rows, WINDOW, 0)
        feed = Feed(pairs, chosen, order, tokenizer, SIZE, (0.9, 1.0), 0, MICRO)
        count = len(chosen) // MICRO * MICRO
        if count <= 2 * (EDGE + 1) * MICRO:
            parser.error(
                f"--pairs={options.pairs} are {count // MICRO} blocks; {2 * (EDGE + 1) + 1} are needed to time any"
            )
        plain = max(pace_of_functions(feed, count) for _ in range(ROUNDS))  # before there is Ray: it does not fork well
        start_ray()
        fed = max(pace_of_feed(feed, count) for _ in range(ROUNDS))
        waits = wait_share(root, pairs, corpus, options.steps)
        ray.shutdown()
    print(
        f"  {fed:.0f} pairs/s through Ray Data, {plain:.0f} in {CPUS} plain processes, {count} pairs in blocks of "
        f"{MICRO}\n"
        f"  two workers wait for data {waits:.1%} of a step (aim: below {WAIT_AIM:.0%})"
    )
    return clips.verdict({"feed_vs_functions": fed / plain}, BOUND)


if __name__ == "__main__":
    sys.exit(main())
