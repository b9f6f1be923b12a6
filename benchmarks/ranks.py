"""Ranks of both directions, exact, beside one sgemm of the same pool and beside faiss; their growth, and their memory.

    python benchmarks/ranks.py [--sizes 20000 50000 100000] [--rounds 3 2 1] [--grown 200000] [--whole 725739]
        [--faiss-at 50000] [--width 512] [--skip faiss memory]

One thread, process time, ours and the peers alternating; the median of the rounds of each size. The pool is that of a
model that has learnt something: image i is text i with noise, recall@10 of 2,000 pairs about a half. `sgemm` is
`text @ image.T` in strips of 1,024 rows; `ranks` holds both directions, ties apart, near ties decided in float64. faiss
is IndexFlatIP, both directions, the first ten only (it has no ranks).

At `--grown` every `--every`-th tile is counted and their seconds taken that many times (tiles are counted one by one,
whatever the pool), so that the growth exponent reaches there in minutes. Memory is that of processes of their own: a
worker that counts a whole tile, and the driver of a pool of `--whole` pairs with three readings, rows and figures,
which is given counts instead of counting. Prints NAME ratio=X: ours over sgemm, faiss over ours at one size, growth,
GB. Exit 1 where a bound is missed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from biomedclip_ray.evaluate.ranks import DIRECTIONS, TILE, Keys, Tile, rank, ranked
from biomedclip_ray.evaluate.tiles import Thresholds, best_in_tile, count_tile

MOST, LEAST_VS_FAISS = 1.35, 1.4
GROWTH, OFF = 2.0, 0.05
DRIVER_GB, WORKER_GB = 1.5, 2.0


def pool(n: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(n)
    text = random.standard_normal((n, width), np.float32)
    image = text + np.float32(8.0) * random.standard_normal((n, width), np.float32)
    for side in (text, image):
        side /= np.linalg.norm(side, axis=1, keepdims=True)
    return text, image


def sgemm(text: np.ndarray, image: np.ndarray) -> None:
    out = np.empty((1024, len(image)), np.float32)
    for start in range(0, len(text), 1024):
        part = text[start : start + 1024]
        np.matmul(part, image.T, out=out[: len(part)])


def ranks(text: np.ndarray, image: np.ndarray) -> dict:
    every = np.arange(len(text))
    return rank(text, image, {"strict": Keys(every, every)})["strict"]


def faiss_both(text: np.ndarray, image: np.ndarray) -> None:
    import faiss

    faiss.omp_set_num_threads(1)
    for queries, candidates in ((text, image), (image, text)):
        index = faiss.IndexFlatIP(text.shape[1])
        index.add(candidates)
        index.search(queries, 10)


def seconds(work: Callable[..., object], *args: Any) -> float:
    started = time.process_time()
    work(*args)
    return time.process_time() - started


def grown(n: int, width: int, every: int) -> float:
    """Seconds that ranks of a pool take, from every so manyth tile of it."""
    text, image = pool(n, width)
    spent = {"tiles": 0.0, "area": 0.0, "whole": 0.0}

    def each(work: Callable[..., Any], jobs: Iterable[tuple[Tile, Any]]) -> Iterator[tuple[Tile, Any]]:
        for number, (at, argument) in enumerate(jobs):
            sides = text[at.text : at.text_stop], image[at.image : at.image_stop]
            if work is count_tile:
                area = len(sides[0]) * len(sides[1])
                spent["whole"] += area
                if number % every:
                    yield at, counts_of(at, argument)
                    continue
                spent["area"] += area
            started = time.process_time()
            found = work(*sides, argument)
            spent["tiles"] += (time.process_time() - started) if work is count_tile else 0.0
            yield at, found

    edges = [*range(0, n, TILE), n]
    own = np.arange(n)
    took = seconds(lambda: ranked(edges, edges, {"strict": Keys(own, own)}, each))
    return took + spent["tiles"] * (spent["whole"] / spent["area"] - 1)


def counts_of(at: Tile, sides: tuple[Thresholds, Thresholds]) -> Any:
    """What a tile of a perfect model would give: of ties only that of each pair with itself."""
    own = int(at.text == at.image)
    return tuple((np.zeros(len(side.row), np.int64), np.full(len(side.row), own)) for side in sides)


def worker(width: int) -> None:
    """Count one whole tile."""
    text, image = pool(TILE, width)
    own = Keys(np.arange(TILE), np.arange(TILE))
    sides = tuple(Thresholds(np.arange(TILE), side.score, TILE) for side in best_in_tile(text, image, own))
    count_tile(text, image, (sides[0], sides[1]))


def driver(n: int) -> None:
    """What the driver of a pool holds: ids, keys, thresholds, counts, rows and figures; it is given the counts."""
    from biomedclip_ray.evaluate import retrieval

    ids, articles = [f"PMC{i}.1/F1#0" for i in range(n)], [f"PMC{i // 4}.1" for i in range(n)]
    keys = retrieval.readings(np.arange(n) // 2 * 2, np.arange(n) // 3)
    random = np.random.default_rng(0)

    def each(work: Callable[..., Any], jobs: Iterable[tuple[Tile, Any]]) -> Iterator[tuple[Tile, Any]]:
        for at, argument in jobs:
            if work is count_tile:
                yield at, counts_of(at, argument)
            else:
                sizes = at.text_stop - at.text, at.image_stop - at.image
                yield at, tuple((random.random(size), np.ones(size, np.int64)) for size in sizes)

    edges = [*range(0, n, TILE), n]
    found = ranked(edges, edges, keys, each)
    rows = retrieval.rows_of(dict.fromkeys(DIRECTIONS, ids), dict.fromkeys(DIRECTIONS, articles), found)
    retrieval.measure_rows(rows, keys, 20, 0)  # more draws take more time and no more memory


def peak_gb(what: str, *numbers: int) -> float:
    """Peak memory of a process that does only that."""
    code = f"import ranks; from biomedclip_ray.run.memory import peak_rss; ranks.{what}(*{numbers}); print(peak_rss())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).resolve().parent
    )
    return int(done.stdout) / 1e9


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 50_000, 100_000])
    parser.add_argument("--rounds", type=int, nargs="+", default=[3, 2, 1], help="of each size; the last for the rest")
    parser.add_argument("--grown", type=int, default=200_000, help="the size to which growth is followed; 0: none")
    parser.add_argument("--every", type=int, default=4, help="of its tiles one in so many is counted")
    parser.add_argument("--whole", type=int, default=725_739, help="pairs whose driver's memory is taken")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--faiss-at", type=int, default=50_000, help="the size at which faiss runs too")
    parser.add_argument("--skip", choices=["faiss", "memory"], nargs="*", default=[])
    options = parser.parse_args()
    beside = "faiss" not in options.skip and options.faiss_at in options.sizes
    if beside and not importlib.util.find_spec("faiss"):
        print("faiss is not installed: make bench installs it, or leave it out with --skip faiss", file=sys.stderr)
        return 2
    good, ours = True, {}
    for number, n in enumerate(options.sizes):
        rounds = options.rounds[min(number, len(options.rounds) - 1)]
        middle, hits = side_by_side(n, options.width, rounds, beside and n == options.faiss_at)
        ours[n] = middle["ranks"]
        shown = ", ".join(f"{name} {value:.2f} s" for name, value in middle.items())
        print(f"  n={n}: {shown}; recall@10 of 2,000: {hits:.2f}; rounds: {rounds}")
        good &= told(f"ranks_{n}_of_sgemm", middle["ranks"] / middle["sgemm"], most=MOST)
        if "faiss" in middle:
            print(f"  faiss-cpu {version('faiss-cpu')}, numpy {version('numpy')}")
            good &= told("ranks_vs_faiss", middle["faiss"] / middle["ranks"], least=LEAST_VS_FAISS)
    if options.grown:
        ours[options.grown] = grown(options.grown, options.width, options.every)
        print(f"  n={options.grown}: ranks {ours[options.grown]:.0f} s, from one tile in {options.every}")
    if len(ours) > 1:
        sizes = sorted(ours)
        growth = float(np.polyfit(np.log(sizes), np.log([ours[n] for n in sizes]), 1)[0])
        hours = ours[sizes[-1]] * (725_739 / sizes[-1]) ** 2 / 3600
        print(f"  growth exponent {growth:.3f} from {sizes[0]:,} to {sizes[-1]:,}")
        print(f"  725,739 pairs by its square: {hours:.2f} core-hours")
        good &= told("ranks_growth_off_2", abs(growth - GROWTH), most=OFF)
    if "memory" not in options.skip:
        good &= told("ranks_worker_gb", peak_gb("worker", options.width), most=WORKER_GB)
        good &= told("ranks_driver_gb", peak_gb("driver", options.whole), most=DRIVER_GB)
    return 0 if good else 1


def side_by_side(n: int, width: int, rounds: int, beside: bool) -> tuple[dict[str, float], float]:
    """Median seconds of each peer, and recall@10 of the first 2,000 pairs."""
    text, image = pool(n, width)
    found = ranks(text[:2000], image[:2000])  # the libraries warm up
    peers: dict[str, Callable[..., object]] = {"sgemm": sgemm, "ranks": ranks}
    if beside:
        peers["faiss"] = faiss_both
    took: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(rounds):
        for name, work in peers.items():
            took[name].append(seconds(work, text, image))
    return {name: float(np.median(values)) for name, values in took.items()}, float(
        found[DIRECTIONS[0]].hits(10).mean()
    )


def told(name: str, ratio: float, most: float | None = None, least: float | None = None) -> bool:
    """Print a ratio; whether it is within its bound."""
    bound = f"bound<={most}" if most is not None else f"bound={least}"
    print(f"{name} ratio={ratio:.3f} {bound}", flush=True)
    return ratio <= most if most is not None else ratio >= (least or 0.0)


if __name__ == "__main__":
    sys.exit(main())
