"""Catalog to pairs as a Ray Data pipeline, beside the same functions in two plain processes and in Daft.

    python benchmarks/ingest.py [--articles 1500] [--pairs 5] [--memory 500 5000] [--only ratios|memory] [--skip daft]

- `ingest_vs_two_processes`: wall time of two plain processes that take parts from a queue, over ours on two CPUs. 1.00
  would mean that planning, scheduling, moving and writing blocks cost nothing.
- `ingest_vs_daft`: the same against a Daft pipeline (of the extra `benchmark`). Daft runs Python functions in processes
  of its own, started for each query; in threads it is slower.
- `ingest_memory`: the growth that is allowed over that of the peak memory, of driver and workers, from 500 to 5,000
  articles, each in a fresh process.

All three run the stages' own workers and write the same files; only what runs them differs. Real articles where they
are at hand, 150 to a part (the default is 450): Ray Data starts one task at a time in its first second, until it has
heard what the cluster has, and takes 30 ms for a block, which parts of a second would feel and parts of minutes do not.
Median of the ratios of alternating pairs, after a warm run of each. Exit 1 below a bound, 2 where something is missing.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from biomedclip_ray.config import Config, PartResources, parse
from biomedclip_ray.figures.preprocess import preprocess
from biomedclip_ray.pmc.catalog import catalog
from biomedclip_ray.pmc.ingest import ingest
from biomedclip_ray.run.memory import peak_rss
from biomedclip_ray.run.parts import Runner, on_ray
from biomedclip_ray.sources.inventory import resolve_inventory
from biomedclip_ray.store.attempt import Attempt
from biomedclip_ray.store.ledger import PartResult
from biomedclip_ray.store.product import Product

sys.path.insert(0, str(Path(__file__).parent))
from articles import add_skip_option, compares_with, multiply, origin, peak_mb

BOUNDS = {"ingest_memory": 1.0, "ingest_vs_two_processes": 0.80, "ingest_vs_daft": 1.0}
MEMORY_GROWTH = 1.25
CPUS = 2
ARTICLES_PER_PART = 150
os.environ["OMP_NUM_THREADS"] = "1"
# Ray's workers are polite (nice 15), which beside other work on the machine would be measured as slowness.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - its name


def config_of(bucket: Path, root: Path) -> Config:
    source = {"uri": str(bucket), "articles_per_part": ARTICLES_PER_PART, "resources": {"threads": 4}}
    return parse({"root": str(root), "source": source, "preprocess": {"short_side": 384}}, "benchmark")


def data_stages(bucket: Path, runner: Runner = on_ray) -> tuple[float, Product]:
    """(seconds, pairs) of catalog, ingest and preprocess into a fresh root."""
    with tempfile.TemporaryDirectory(prefix="biomedclip-bench-", ignore_cleanup_errors=True) as root:
        config = config_of(bucket, Path(root))
        started = time.perf_counter()
        versions = catalog.run(config, resolve_inventory(config), runner=runner).product
        articles = ingest.run(config, versions, runner=runner).product
        pairs = preprocess.run(config, articles, runner=runner).product
        seconds = time.perf_counter() - started
        pairs.manifest  # noqa: B018 - read before the folder goes
        return seconds, pairs


def one_part(attempt: Attempt, worker: Callable[..., PartResult], args: tuple[Any, ...], part: int) -> int:
    """One part in whatever process: what a task of the pipeline does."""
    result = worker(part, *args)
    attempt.write_part(part, result.data, result.ledger.table(), result.ledger.counts, peak_rss())
    return part


def plainly(pool: Any, bucket: Path) -> tuple[float, Product]:
    def run(
        attempt: Attempt, worker: Callable[..., PartResult], resources: PartResources, args: tuple[Any, ...] = ()
    ) -> None:
        tasks = [pool.apply_async(one_part, (attempt, worker, args, part)) for part in attempt.missing_parts()]
        for task in tasks:
            task.get()

    return data_stages(bucket, run)


def by_daft(bucket: Path) -> tuple[float, Product]:
    import daft  # type: ignore[import-not-found]

    def run(
        attempt: Attempt, worker: Callable[..., PartResult], resources: PartResources, args: tuple[Any, ...] = ()
    ) -> None:
        @daft.cls(max_concurrency=CPUS, use_process=True)
        class Part:
            @daft.method(return_dtype=daft.DataType.int64())
            def run(self, part: int) -> int:
                return one_part(attempt, worker, args, part)

        missing = attempt.missing_parts()
        frame = daft.from_pydict({"part": missing}).into_batches(1)
        done = frame.with_column("done", Part().run(daft.col("part"))).to_pydict()["done"]
        assert sorted(done) == missing

    return data_stages(bucket, run)


def start_ray() -> None:
    import ray

    ray.init("local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def compare(bucket: Path, pairs: int, with_daft: bool) -> dict[str, float]:
    """The ratios; above 1 the pipeline is faster."""
    start_ray()
    others: dict[str, Callable[[], tuple[float, Product]]] = {}
    with multiprocessing.get_context("spawn").Pool(CPUS) as pool:
        others["ingest_vs_two_processes"] = lambda: plainly(pool, bucket)
        if with_daft:
            others["ingest_vs_daft"] = lambda: by_daft(bucket)
        ratios = {}
        data_stages(bucket)
        for name, other in others.items():
            other()
            found = []
            for _ in range(pairs):
                theirs, theirs_made = other()
                ours, ours_made = data_stages(bucket)
                assert theirs_made.manifest["counts"] == ours_made.manifest["counts"]
                found.append(theirs / ours)
                print(f"  {name}: {theirs:.2f} s against our {ours:.2f} s", flush=True)
            ratios[name] = statistics.median(found)
    return ratios


def memory(bucket: Path) -> dict[str, float]:
    """Peak MB of the driver and of the largest worker, in this fresh process."""
    start_ray()
    _, pairs = data_stages(bucket)
    return {"driver_mb": peak_mb(), "worker_mb": pairs.manifest["peak_rss"] / 2**20}


def growth(source: Path, folder: Path, sizes: list[int]) -> float:
    """How many times the memory of the smaller run the larger takes, of driver or worker, whichever grows more."""
    peaks = []
    for n in sizes:
        bucket = folder / f"articles-{n}"
        multiply(source, bucket, n)
        command = [sys.executable, __file__, "--memory-of", str(bucket)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        peaks.append(json.loads(output.splitlines()[-1]))
        print(f"  articles={n} " + " ".join(f"{k}={v:.0f}" for k, v in peaks[-1].items()), flush=True)
    return max(peaks[1][name] / peaks[0][name] for name in peaks[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--articles", type=int, default=1500)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--memory", type=int, nargs=2, default=(500, 5000), metavar="N")
    parser.add_argument("--only", choices=("ratios", "memory"))
    add_skip_option(parser, "daft")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(json.dumps(memory(options.memory_of)))
        return 0
    with_daft = options.only != "memory" and compares_with("daft", options)
    ratios = {}
    with tempfile.TemporaryDirectory(prefix="biomedclip-bench-") as name:
        folder = Path(name)
        source = origin(folder / "origin")
        if options.only != "ratios":
            ratios["ingest_memory"] = MEMORY_GROWTH / growth(source, folder, options.memory)
        if options.only != "memory":
            multiply(source, folder / "bucket", options.articles)
            ratios |= compare(folder / "bucket", options.pairs, with_daft)
    for name, ratio in ratios.items():
        print(f"{name} ratio={ratio:.2f} bound={BOUNDS[name]:.2f}")
    return int(any(ratio < BOUNDS[name] for name, ratio in ratios.items()))


if __name__ == "__main__":
    sys.exit(main())
