"""Ranks of both directions, exact, beside one sgemm of the same pool and beside faiss.

    python benchmarks/ranks.py [--sizes 20000 50000 100000] [--width 512] [--rounds 3] [--faiss-at 50000] [--skip faiss]

One thread, process time, ours and the peers alternating; the median of the rounds. The pool is that of a model that has
learnt something: image i is text i with noise, recall@10 of 2,000 pairs about a half. `sgemm` is `text @ image.T` in
strips of 1,024 rows; `ranks` holds both directions, ties apart, near ties decided in float64. faiss is IndexFlatIP,
both directions, the first ten only (it has no ranks). Prints NAME ratio=X: ours over sgemm, and faiss over ours at one
size. Exit 1 where a bound is missed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from biomedclip_ray.evaluate.ranks import DIRECTIONS, Keys, rank

MOST, LEAST_VS_FAISS = 1.35, 1.4


def pool(n: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(n)
    text = random.normal(size=(n, width)).astype(np.float32)
    image = text + 8.0 * random.normal(size=(n, width)).astype(np.float32)
    text, image = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (text, image))
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


def seconds(work: Callable[..., object], *args: np.ndarray) -> float:
    started = time.process_time()
    work(*args)
    return time.process_time() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 50_000, 100_000])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--faiss-at", type=int, default=50_000, help="the size at which faiss runs too")
    parser.add_argument("--skip", choices=["faiss"], nargs="*", default=[])
    options = parser.parse_args()
    beside = "faiss" not in options.skip and options.faiss_at in options.sizes
    if beside and not importlib.util.find_spec("faiss"):
        print("faiss is not installed: make bench installs it, or leave it out with --skip faiss", file=sys.stderr)
        return 2
    good, ours = True, {}
    for n in options.sizes:
        text, image = pool(n, options.width)
        found = ranks(text[:2000], image[:2000])  # the libraries warm up
        peers: dict[str, Callable[..., object]] = {"sgemm": sgemm, "ranks": ranks}
        if beside and n == options.faiss_at:
            peers["faiss"] = faiss_both
        took: dict[str, list[float]] = {name: [] for name in peers}
        for _ in range(options.rounds):
            for name, work in peers.items():
                took[name].append(seconds(work, text, image))
        middle = {name: float(np.median(values)) for name, values in took.items()}
        ours[n] = middle["ranks"]
        hits = float(found[DIRECTIONS[0]].hits(10).mean())
        print(
            f"  n={n}: "
            + ", ".join(f"{name} {value:.2f} s" for name, value in middle.items())
            + f"; recall@10 of 2,000: {hits:.2f}"
        )
        ratio = middle["ranks"] / middle["sgemm"]
        print(f"ranks_{n}_of_sgemm ratio={ratio:.3f} bound<={MOST}", flush=True)
        good &= ratio <= MOST
        if "faiss" in middle:
            ratio = middle["faiss"] / middle["ranks"]
            print(f"ranks_vs_faiss ratio={ratio:.2f} bound={LEAST_VS_FAISS}", flush=True)
            good &= ratio >= LEAST_VS_FAISS
    if len(ours) > 1:
        sizes = sorted(ours)
        growth = np.polyfit(np.log(sizes), np.log([ours[n] for n in sizes]), 1)[0]
        print(f"  growth exponent {growth:.2f} from {sizes[0]:,} to {sizes[-1]:,}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
