"""Ingest of many nodes: whether the driver and Ray's pipeline keep up where 1 to 64 nodes of 32 cores work.

    python benchmarks/scale.py [--nodes 1 8 64] [--parts 60] [--only catalog ingest preprocess]

The pipeline is the shipped one (`run/parts.py`): one part, one block, one task, two files, resources and progress. Of
its tasks network and decoding are replaced by the time that they were measured to take (`workflows/rates.json`, and the
plan's 100 ms of latency), and the source answers 5,500 requests a second, to all nodes together.

Scaled down to two cores: a node is one process that takes a part in a 32nd of a core's time, so that parts come and go
as on 32 cores, and 64 nodes are 64 processes instead of 2,048 (what a driver pays for tasks that merely run is not in
it); and all of it goes so much more slowly that the source answers `--rate` parts a second, for those 64 processes
share this machine with the driver. They are up before anything is timed: on a cluster each starts on its own machine.

Prints the curve, and for the most nodes `efficiency_64_STAGE ratio=X`: parts a second, from the first tenth of them
until the last are handed out, over the lesser of 64 times one node's and what the source answers; or, where that is
less, the share of the real rate that the driver's CPU a part allows on one core. Exit 1 below 0.85. Where pipeline and
machine fall short, `ceiling` is what bare Ray tasks of the same sleep reach here.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from biomedclip_ray.config import PartResources
from biomedclip_ray.cost.inputs import Rates, World
from biomedclip_ray.run.parts import on_ray
from biomedclip_ray.store.attempt import attempt
from biomedclip_ray.store.ledger import Ledger, PartResult
from biomedclip_ray.store.product import Product

BOUND = 0.85
CORES, ARTICLES, THREADS = 32, 450, 32
RATES = Path(__file__).resolve().parents[1] / "workflows" / "rates.json"


@dataclass(frozen=True)
class Work:
    """What one part asks of the source, and how long it takes a core."""

    requests: int
    core_s: float
    slower: float = 1.0

    @property
    def node_s(self) -> float:
        """Seconds a part, of all cores of a node together: its work, or the latency that its threads wait out."""
        waiting = self.requests * World().latency_ms / 1000 / THREADS
        return self.slower * max(self.core_s, waiting) / CORES

    @property
    def answers(self) -> float:
        """Parts a second that the source answers."""
        return World().requests_per_s / self.requests / self.slower


def works(rate: float | None = None) -> dict[str, Work]:
    """Each stage's work, at its own pace or at that of a source that answers `rate` parts a second."""
    rates, world = Rates(**json.loads(RATES.read_text())), World()
    images = round(ARTICLES * world.figures * world.with_file)
    ms = rates.request_ms
    every = {
        "catalog": Work(ARTICLES, ARTICLES * (rates.version_ms + ms) / 1000),
        "ingest": Work(ARTICLES, ARTICLES * (rates.article_ms + ms) / 1000),
        "preprocess": Work(images, images * (rates.image_ms + rates.panels_ms + ms) / 1000),
    }
    return every if rate is None else {name: replace(one, slower=one.answers / rate) for name, one in every.items()}


@ray.remote(num_cpus=0)
class Source:
    """Answers so many requests a second; those who ask wait for their turn."""

    def __init__(self) -> None:
        self.free = 0.0

    def turn(self, seconds: float) -> float:
        """When a part has been answered that takes the source so long."""
        self.free = max(self.free, time.time()) + seconds
        return self.free


def warm(nodes: int) -> None:
    """Have a process for each node up, with what its tasks import."""
    with tempfile.TemporaryDirectory() as folder:

        @ray.remote(num_cpus=1)
        def meet(number: int) -> None:
            importlib.import_module(on_ray.__module__)
            Path(folder, str(number)).touch()
            while len(list(Path(folder).iterdir())) < nodes:
                time.sleep(0.2)

        ray.get([meet.remote(number) for number in range(nodes)])


def part_of(part: int, work: Work, source: Any) -> PartResult:
    """A part's task, without its network and its decoding."""
    begun = time.time()
    answered = ray.get(source.turn.remote(1 / work.answers))
    time.sleep(max(0.0, begun + work.node_s - time.time(), answered - time.time()))
    ledger = Ledger("catalog")
    ledger.count("article_version", ARTICLES, ARTICLES)
    return PartResult(pa.table({"article_id": [f"PMC{part}{n:03d}.1" for n in range(ARTICLES)]}), ledger)


def pipeline(name: str, work: Work, nodes: int, parts: int, root: str) -> tuple[float, float]:
    """(parts a second, the driver's CPU in milliseconds a part)."""
    product = Product.plan(f"{root}/{nodes}", name, 1, {}, [])
    source = Source.remote()  # type: ignore[attr-defined]
    folder, seen, stop = Path(product.uri) / "ledger", list[tuple[int, float, float]](), threading.Event()

    def look() -> None:
        while not stop.wait(0.1):
            done = len(list(folder.glob("part-*"))) if folder.exists() else 0
            seen.append((done, time.time(), time.process_time()))

    thread = threading.Thread(target=look)
    with attempt(product, parts) as current:
        thread.start()
        on_ray(current, part_of, PartResources(), (work, source))
        stop.set()
        thread.join()
        current.finish_parts(0.0)
    steady = [one for one in seen if parts // 10 <= one[0] <= parts - nodes]
    (first, begun, used), (last, ended, then) = steady[0], steady[-1]
    return (last - first) / (ended - begun), 1000 * (then - used) / (last - first)


def ceiling(work: Work, nodes: int, parts: int) -> float:
    """Parts a second of bare tasks with the same sleep and source."""
    source = Source.remote()  # type: ignore[attr-defined]
    task = ray.remote(num_cpus=1)(lambda part: (part_of(part, work, source), time.time())[1])
    ended = sorted(ray.get([task.remote(part) for part in range(parts)]))
    first, last = parts // 10, parts - 1 - nodes
    return float((last - first) / (ended[last] - ended[first]))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    stages = list(works())
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--parts", type=int, default=60, help="at least; twice the nodes and 20 where that is more")
    parser.add_argument("--only", nargs="+", choices=stages, default=stages)
    parser.add_argument("--rate", type=float, default=3.0, help="parts a second that the source answers")
    options = parser.parse_args()
    every = {name: work for name, work in works(options.rate).items() if name in options.only}
    nodes, short = sorted({1, *options.nodes}), False
    os.environ |= {"RAY_enable_worker_prestart": "0", "RAY_prestart_worker_first_driver": "0"}
    one: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as root:
        for count in nodes:
            ray.init("local", num_cpus=count, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            try:
                warm(count)
                for name, work in every.items():
                    rate, cpu, best = _measure(name, work, count, options.parts, root, one)
                    if count == nodes[-1]:
                        short |= _judge(name, work, count, rate, cpu, best)
            finally:
                ray.shutdown()
    return int(short)


def _measure(
    name: str, work: Work, nodes: int, parts: int, root: str, one: dict[str, float]
) -> tuple[float, float, float]:
    """Parts a second, the driver's milliseconds a part, and the parts a second that there could be."""
    # a node that is slower than the source gets as many parts as it does in that time
    parts = max(2 * nodes + 20, round(parts * min(1.0, nodes / work.node_s / work.answers)))
    rate, cpu = pipeline(name, work, nodes, parts, root)
    best = min(nodes * one.setdefault(name, rate), work.answers)
    print(f"{name} on {nodes} nodes: {rate:.2f} parts/s of {best:.2f}, the driver {cpu:.1f} ms a part", flush=True)
    return rate, cpu, best


def _judge(name: str, work: Work, nodes: int, rate: float, cpu: float, best: float) -> bool:
    """Print the efficiency; True where it is below the bound."""
    if rate < BOUND * best:
        bare = ceiling(work, nodes, 2 * nodes + 20)
        print(f"  ceiling of this machine: bare tasks reach {bare:.2f} parts/s, {bare / best:.2f}")
    allowed = 1000 / cpu / (work.slower * best)
    efficiency = min(rate / best, allowed)
    print(f"  at the real rate the driver is busy {100 / allowed:.0f}% of the time")
    print(f"efficiency_{nodes}_{name} ratio={efficiency:.2f} bound={BOUND}", flush=True)
    return efficiency < BOUND


if __name__ == "__main__":
    sys.exit(main())
