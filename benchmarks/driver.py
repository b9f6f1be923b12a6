"""What the driver does for each part of a stage, behind an object store that answers in 30 ms.

    python benchmarks/driver.py [--parts 2000] [--delay-ms 30] [--only finish]

Wall time of a step with its tasks, in milliseconds a part. Eighteen thousand parts, all of PubMed Central, close in
three minutes a stage at 10 ms.

- `ms_a_part_finish`: balancing the ledgers of a stage and writing its manifest.
- `ms_a_part_curate`: all of curate, on a Ray of two CPUs: its tasks read, one decides, others write; the driver reads
  nothing.

The store runs in threads of this process, so what is printed is more than what a store elsewhere would take. Exit 1
above the bound.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
import time
from pathlib import Path

import pyarrow as pa

from biomedclip_ray.config import parse
from biomedclip_ray.corpus.curate import curate
from biomedclip_ray.schema import CORPUS, PAIRS, Reason, hash64
from biomedclip_ray.store.attempt import Attempt, attempt
from biomedclip_ray.store.ledger import Ledger
from biomedclip_ray.store.product import Product

sys.path.insert(0, str(Path(__file__).parent))
from objects import object_store

BOUND_MS = 10.0
ROWS = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", type=int, default=2000)
    parser.add_argument("--delay-ms", type=float, default=30.0)
    parser.add_argument("--only", choices=("finish", "curate"))
    options = parser.parse_args()
    found = {}
    with object_store() as store:
        for name, measure in (("ms_a_part_finish", finish), ("ms_a_part_curate", curated)):
            if options.only in (None, name.rpartition("_")[2]):
                found[name] = measure(store, options.parts, options.delay_ms / 1000)
    for name, ms in found.items():
        print(f"{name} ratio={ms:.2f} bound<={BOUND_MS:.0f}", flush=True)
    return int(any(ms > BOUND_MS for ms in found.values()))


def finish(store: type, parts: int, delay_s: float) -> float:
    """Close a stage whose parts are all done."""
    product = Product.plan("s3://bucket/finish", "curate", 1, {}, [])
    with attempt(product, parts) as current:
        for part in range(parts):
            _write(current, part)
        store.delay_s = delay_s
        started = time.perf_counter()
        current.finish_parts(0.0)
        seconds = time.perf_counter() - started
        store.delay_s = 0.0
    assert product.manifest["counts"][0]["in"] == parts * (ROWS + 1)
    return 1000 * seconds / parts


def curated(store: type, parts: int, delay_s: float) -> float:
    """Run curate over pairs that lie in the store; Ray's own start is not counted."""
    import ray

    pairs = Product.plan("s3://bucket/curate", "preprocess", 1, {}, [])
    with attempt(pairs, parts) as current:
        for part in range(parts):
            ids = [f"PMC{part}.1/F{n}#0" for n in range(ROWS)]
            rows = [dict.fromkeys(PAIRS.names) | _pair(name) for name in ids]
            table = pa.Table.from_pylist(rows, schema=PAIRS)
            current.write_part(part, table, Ledger("preprocess").table(), {"picture": (ROWS, ROWS)})
        current.finish_parts(0.0)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    try:
        config = parse({"root": "s3://bucket/curate"}, "benchmark")
        ray.get([ray.remote(num_cpus=1)(lambda: __import__("biomedclip_ray.corpus.curate")).remote() for _ in range(2)])
        store.delay_s = delay_s
        started = time.perf_counter()
        product = curate.run(config, pairs).product
        seconds = time.perf_counter() - started
        store.delay_s = 0.0
        assert product.manifest["counts"][0]["kept"] == parts * ROWS
    finally:
        ray.shutdown()
    return 1000 * seconds / parts


def _pair(name: str) -> dict[str, object]:
    text = f"The image of {name}."
    return {
        "pair_id": name,
        "article_id": name.partition("/")[0],
        "pmcid": name.partition(".")[0],
        "figure_id": name.partition("#")[0],
        "panel": 0,
        "text": text,
        "image": name.encode(),
        "sha256": hashlib.sha256(name.encode()).hexdigest(),
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "phash": hash64(name),
        "license": "CC BY",
        "figure_kind": "chart",
    }


def _write(current: Attempt, part: int) -> None:
    ledger = Ledger("curate")
    ledger.drop("pair", f"PMC{part}.1/F0#0", Reason.DUPLICATE)
    ledger.count("pair", ROWS + 1, ROWS)
    rows = [{"pair_id": f"PMC{part}.1/F{n}#0", "split": "train", "group": n, "kept": True} for n in range(ROWS)]
    current.write_part(part, pa.Table.from_pylist(rows, schema=CORPUS), ledger.table(), ledger.counts)


if __name__ == "__main__":
    sys.exit(main())
