"""The search for near copies of a set's images among those of training, beside comparing all with all.

    python benchmarks/leaks.py [--images 32768] [--training 1000000]

Process time on one thread. Both sides hold random hashes, a tenth of the set's lies within 4 bits of a training hash,
and a fiftieth of training is one blank image. Prints `leaks_vs_before ratio=X`: seconds a training hash of revision
70c1554's comparison (all with all, in numpy) over ours. Exit 1 below the bound, or where the answers differ on a part.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np

from biomedclip_ray.evaluate.leakage import NEAR_BITS, NearSearch

BOUND = 30.0
_COMPARED = 400
"""Training hashes that all with all is timed on: each takes as long as the next."""


def brute_force(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """What `leakage.near_copies` did at 70c1554."""
    return (np.bitwise_count(ours[:, None] ^ theirs) <= NEAR_BITS).any(axis=1)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=32_768)
    parser.add_argument("--training", type=int, default=1_000_000)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    ours, theirs = (random.integers(0, 2**64, n, np.uint64) for n in (options.images, options.training))
    copies = options.images // 10
    theirs[:copies] = ours[:copies]
    for _ in range(4):
        theirs[:copies] ^= np.uint64(1) << random.integers(0, 64, copies).astype(np.uint64)
    theirs[-options.training // 50 :] = 0
    started = time.process_time()
    search = NearSearch(ours)
    search.look_in(theirs)
    mine = (time.process_time() - started) / options.training
    started = time.process_time()
    brute_force(ours, theirs[:_COMPARED])
    before = (time.process_time() - started) / _COMPARED
    part = NearSearch(ours[:2000])
    part.look_in(theirs[:20_000])
    expected = np.zeros(2000, bool)
    for start in range(0, 20_000, 1000):
        expected |= brute_force(ours[:2000], theirs[start : start + 1000])
    equal = bool((part.found == expected).all()) and bool(search.found[:copies].all())
    print(
        f"  {1e6 * mine:.2f} us a training hash, all with all {1e6 * before:.1f} us; 15.3 million: "
        f"{15.3e6 * mine:.0f} s; equal: {equal}"
    )
    print(f"leaks_vs_before ratio={before / mine:.0f} bound={BOUND:g}")
    return 0 if equal and before / mine >= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
