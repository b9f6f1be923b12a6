"""The search for near hashes at growing sizes: seconds and peak memory, and whether it finds what was planted.

    python benchmarks/near.py [--most N] [--bits R]

Each size runs in a process of its own; seconds are process time. Four in five hashes are random, one in five lies
within R bits of another, and one in fifty belongs to a few crowded families, as plots on white do. Prints `near_n=N
seconds=S peak_mb=M found=F missed=K` for each size and `near_growth ratio=X`: hashes ten times over seconds ten times,
from the middle size to the largest; linear would be 1.0, all pairs 0.1. Exit 1 below 0.4 (sorting and empty caches take
their part), above 2,500 MB for ten million, where fewer than 99.99% of the planted pairs are found, or where one is
missed that does not lie in a crowd.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from pathlib import Path

import numpy as np

from biomedclip_ray.corpus.near import near_pairs

sys.path.insert(0, str(Path(__file__).parent))
from articles import peak_mb

BOUND, MEGABYTES_PER_MILLION, FOUND = 0.4, 250.0, 0.9999


def hashes(n: int, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n,) uint64, and the positions of the planted pairs in it."""
    rng = np.random.default_rng(n)
    values = rng.integers(0, 2**64, n, np.uint64)
    planted = n // 5
    originals, copies = np.arange(planted), np.arange(planted) + planted
    values[copies] = values[originals]
    for _ in range(bits):  # some flips undo others: 0 to `bits` bits
        values[copies] ^= np.uint64(1) << rng.integers(0, 64, planted, np.uint64)
    crowd = n // 50
    families = rng.integers(0, 2**64, 20, np.uint64)
    values[-crowd:] = families[rng.integers(0, 20, crowd)]
    for _ in range(3):
        values[-crowd:] ^= np.uint64(1) << rng.integers(0, 64, crowd, np.uint64)
    return values, originals, copies


def measure(n: int, bits: int) -> tuple[float, float, int, int, int]:
    """(seconds, peak MB of the process, planted pairs, those of them that are missed, and missed outside of crowds)."""
    values, originals, copies = hashes(n, bits)
    started = time.process_time()
    pairs = near_pairs(values, bits)
    seconds = time.process_time() - started
    peak = peak_mb()
    found = np.isin(originals * n + copies, pairs.left * n + pairs.right)
    missed = ~found
    alone = missed & ~np.isin(originals, pairs.crowded) & ~np.isin(copies, pairs.crowded)
    return seconds, peak, len(found), int(missed.sum()), int(alone.sum())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--most", type=int, default=10_000_000)
    parser.add_argument("--bits", type=int, default=4)
    options = parser.parse_args()
    sizes = [options.most // 100, options.most // 10, options.most]
    good, seconds = True, []
    for n in sizes:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            took, peak, planted, missed, alone = pool.apply(measure, (n, options.bits))
        seconds.append(took)
        found = 1 - missed / planted
        print(
            f"near_n={n} seconds={took:.2f} peak_mb={peak:.0f} found={found:.5f} missed={missed}, {alone} outside of "
            "crowds"
        )
        good &= found >= FOUND and not alone
    good &= peak <= max(500.0, MEGABYTES_PER_MILLION * sizes[-1] / 1e6)
    ratio = sizes[-1] / sizes[-2] / (seconds[-1] / seconds[-2])
    print(f"near_growth ratio={ratio:.2f} bound={BOUND:.2f}")
    return 0 if good and ratio >= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
