"""What each part of a stage costs in all, behind an object store that answers in 30 ms.

    python benchmarks/driver.py [--parts 2000] [--delay-ms 30] [--only finish]

Wall time of a step with its tasks, on a Ray of two CPUs, in milliseconds a part, and beside it what it takes of CPUs,
which is what a busy machine does not change. Eighteen thousand parts, all of PubMed
Central, close in three minutes a stage at 10 ms.

- `ms_a_part_finish`: balancing the ledgers of a stage and writing its manifest.
- `ms_a_part_curate`: all of curate: reading, deciding, writing.
- `ms_a_part_leaks`: whether a bundle was trained on what it is to be tested with.
- `ms_a_part_evaluate`: evaluate's scan for the held-out pairs, their vectors by a model of 16 pixels, and the pool of
  them brought together; a process that loads torch is in it.
- `ms_a_part_embed`: embed's count of what its parts hold.

The store runs in this process, so what is printed is more than what a store elsewhere would take. Exit 1
above the bound.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
from PIL import Image

from biomedclip_ray.clip.bundle import save_bundle
from biomedclip_ray.clip.model import build_model
from biomedclip_ray.clip.tokenizer import fit_tokenizer
from biomedclip_ray.config import Config, parse
from biomedclip_ray.corpus.curate import curate
from biomedclip_ray.evaluate.encode_pool import HeldOut, parts_of
from biomedclip_ray.evaluate.evaluate import evaluate
from biomedclip_ray.evaluate.leakage import check_leakage
from biomedclip_ray.evaluate.pool import Pool
from biomedclip_ray.run.parts import on_ray
from biomedclip_ray.run.tasks import RayTasks
from biomedclip_ray.schema import CORPUS, PAIRS, Reason, hash64
from biomedclip_ray.search import embed
from biomedclip_ray.store.attempt import attempt
from biomedclip_ray.store.ledger import Count, Ledger
from biomedclip_ray.store.place import Place
from biomedclip_ray.store.product import Product

sys.path.insert(0, str(Path(__file__).parent))
from objects import Store, object_store

BOUND_MS = 10.0
ROWS = 20
ROOT = "s3://bucket/root"
MODEL = {"embed_dim": 32, "custom_text": True}
MODEL |= {"vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}}
MODEL |= {"text_cfg": {"context_length": 16, "width": 32, "heads": 2, "layers": 1, "pool_type": "eos"}}


def main() -> int:
    steps = {"finish": finish, "curate": curated, "leaks": leaks, "evaluate": evaluated, "embed": embedded}
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", type=int, default=2000)
    parser.add_argument("--delay-ms", type=float, default=30.0)
    parser.add_argument("--only", choices=tuple(steps), nargs="+", default=list(steps))
    options = parser.parse_args()
    over = False
    with object_store() as store:
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
        try:
            warm = ray.remote(num_cpus=1)(lambda: __import__("biomedclip_ray.corpus.curate"))
            ray.get([warm.remote() for _ in range(2)])
            made = Made(store, options.parts)
            for name in options.only:
                timed = steps[name](made)
                store.delay_s, asked = options.delay_ms / 1000, store.asked
                started, worked = time.perf_counter(), cpu_s()
                timed()
                ms = 1000 * (time.perf_counter() - started) / options.parts
                store.delay_s = 0.0
                cpu = 1000 * (cpu_s() - worked) / options.parts
                requests = (store.asked - asked) / options.parts
                print(f"  {requests:.1f} requests a part, {cpu:.1f} ms of CPUs with the store's")
                print(f"ms_a_part_{name} ratio={ms:.2f} bound<={BOUND_MS:.0f}", flush=True)
                over |= ms > BOUND_MS
        finally:
            ray.shutdown()
    return int(over)


def cpu_s() -> float:
    """Seconds of CPUs that this process and those below it have taken, but for those that have ended."""
    parents, taken = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            told = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        pid = int(stat.parent.name)
        parents[pid], taken[pid] = int(told[1]), int(told[11]) + int(told[12])
    ours = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(taken[pid] for pid in ours) / os.sysconf("SC_CLK_TCK")


class Made:
    """Pairs of so many parts, and what is made from them when it is asked for; written past the store's door."""

    def __init__(self, store: Store, parts: int) -> None:
        self.store, self.parts = store, parts
        evaluation = {"resources": {"num_cpus": 1}}
        self.config: Config = parse({"root": ROOT, "evaluate": evaluation, "embed": evaluation}, "benchmark")
        image = io.BytesIO()
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(image, "JPEG")
        rows = [[_pair(f"PMC{part}.1/F{n}#0", image.getvalue()) for n in range(ROWS)] for part in range(parts)]
        self.pairs = self.product("preprocess", [], rows, PAIRS)

    def product(
        self, stage: str, inputs: list[Product], rows: list[list[dict[str, object]]], schema: pa.Schema
    ) -> Product:
        product = Product.plan(ROOT, stage, 1, {}, inputs)
        with written_at_once(self.store), attempt(product, len(rows)) as current:
            for part, of in enumerate(rows):
                ledger = Ledger(stage)
                ledger.count("pair", len(of), len(of))
                table = pa.Table.from_pylist([dict.fromkeys(schema.names) | row for row in of], schema=schema)
                current.write_part(part, table, ledger.table(), ledger.counts)
            current.finish_parts(0.0)
        return product

    @cached_property
    def corpus(self) -> Product:
        """The articles of every other part are held out; of each two pairs are kept."""
        rows = [
            [
                {
                    "pair_id": f"PMC{part}.1/F{n}#0",
                    "split": "test" if part % 2 else "train",
                    "group": hash64(f"{part} {n}") >> 1,
                    "kept": n < 2,
                    "reason": None if n < 2 else "balance",
                }
                for n in range(ROWS)
            ]
            for part in range(self.parts)
        ]
        return self.product("curate", [self.pairs], rows, CORPUS)

    @cached_property
    def bundle(self) -> Product:
        product = Product.plan(ROOT, "train", 1, {}, [self.pairs, self.corpus])
        tokenizer = fit_tokenizer(["an image of a cell"], 100, 16)
        with tempfile.TemporaryDirectory() as folder, attempt(product) as current:
            config = Path(folder) / "model.json"
            config.write_text(json.dumps(MODEL))
            model = self.config.model.model_copy(update={"config": str(config), "init": "random"})
            built = build_model(model, tokenizer)
            save_bundle(Path(folder) / "bundle", built.model, built.model_cfg, built.preprocess_cfg, tokenizer, {})
            product.place.at("bundle").upload(Path(folder) / "bundle")
            current.finish([Count("step", 1, 1)])
        return product


@contextmanager
def written_at_once(store: Store) -> Iterator[None]:
    """What is prepared goes into the store without a request for each file."""
    before = Place.write

    def write(place: Place, name: str, data: bytes) -> None:
        store.objects[place.at(name).plain.removeprefix("s3://bucket/")] = data

    Place.write = write  # type: ignore[method-assign]
    try:
        yield
    finally:
        Place.write = before  # type: ignore[method-assign]


def finish(made: Made) -> Callable[[], None]:
    """Close a stage whose parts are all done; each has dropped a pair."""
    product = Product.plan(ROOT, "ingest", 1, {}, [])
    with written_at_once(made.store), attempt(product, made.parts) as current:
        for part in range(made.parts):
            ledger = Ledger("curate")
            ledger.drop("pair", f"PMC{part}.1/F0#0", Reason.DUPLICATE)
            ledger.count("pair", ROWS + 1, ROWS)
            rows = [{"pair_id": f"PMC{part}.1/F{n}#0", "split": "train", "group": n, "kept": True} for n in range(ROWS)]
            current.write_part(part, pa.Table.from_pylist(rows, schema=CORPUS), ledger.table(), ledger.counts)

    def timed() -> None:
        current.finish_parts(0.0)
        assert product.manifest["counts"][0]["in"] == made.parts * (ROWS + 1)

    return timed


def curated(made: Made) -> Callable[[], None]:
    def timed() -> None:
        product = curate.run(made.config, made.pairs).product
        assert product.manifest["counts"][0]["kept"] == made.parts * ROWS

    return timed


def leaks(made: Made) -> Callable[[], None]:
    bundle, corpus = made.bundle, made.corpus
    return lambda: check_leakage(
        RayTasks(), made.config.evaluate.resources, bundle, made.pairs, corpus, made.config.evaluate.split
    )


def evaluated(made: Made) -> Callable[[], None]:
    bundle, corpus, section = made.bundle, made.corpus, made.config.evaluate
    product = evaluate.plan(made.config, bundle, made.pairs, corpus)

    def timed() -> None:
        with attempt(product, parts_of(made.pairs)) as current:
            arguments = (bundle.place.at("bundle").uri, made.pairs, corpus, section)
            on_ray(current, HeldOut, section.resources, arguments)
            assert len(Pool(current)) == made.parts // 2 * 2

    return timed


def embedded(made: Made) -> Callable[[], None]:
    product = Product.plan(ROOT, "embed", 1, {}, [])
    with written_at_once(made.store), attempt(product, made.parts) as current:
        for part in range(made.parts):
            ledger = Ledger("embed")
            ledger.drop("pair", f"PMC{part}.1/F0#0", Reason.NOT_IN_CORPUS)
            ledger.count("pair", ROWS + 1, ROWS)
            current.write_part(part, CORPUS.empty_table(), ledger.table(), ledger.counts)

    def timed() -> None:
        assert embed.checked(current, made.config.embed) == made.parts * ROWS

    return timed


def _pair(name: str, image: bytes) -> dict[str, object]:
    text = f"The image of {name}."
    return {
        "pair_id": name,
        "article_id": name.partition("/")[0],
        "pmcid": name.partition(".")[0],
        "figure_id": name.partition("#")[0],
        "panel": 0,
        "text": text,
        "image": image,
        "sha256": hashlib.sha256(name.encode()).hexdigest(),
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "phash": hash64(name),
        "license": "CC BY",
        "figure_kind": "chart",
    }


if __name__ == "__main__":
    sys.exit(main())
