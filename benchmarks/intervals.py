"""Do the intervals hold, and what does a draw cost? Coverage by simulation, and draws a second beside revision 70c1554.

    python benchmarks/intervals.py [--sets 4000] [--draws 500] [--quick] [--before WORKTREE]

Coverage: articles with 4.3 figures on average (1 + Poisson(3.3)) whose difficulty differs (logit-normal, standard
deviation 1), recall 0.1 to 0.99, 20 to 200 articles, `--sets` data sets a cell; the product's own `means`. The draws of
a cell are the same for all its sets, as they are for all sets of one seed. Paired: two bundles on the same figures, 0
to 10 points apart. Prints the table and coverage_least, coverage_most, coverage_mean and coverage_paired in percent.

Draws: every metric of two classes at 32,768 rows, process time a draw on one thread; with `--before` (a worktree of
70c1554) `draws_vs_before ratio=X` is its seconds over ours. Exit 1 where a bound is missed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy.optimize import brentq

from biomedclip_ray.evaluate.intervals import Clusters, difference, means, spread, weighted_means
from biomedclip_ray.evaluate.metrics import classification

LEAST, MOST, MEAN = 93.0, 98.0, (94.0, 96.5)
PAIRED = (93.0, 97.0)
DRAWS = 10.0
RECALLS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99)
ARTICLES = (20, 30, 50, 100, 200)
ROWS = 32_768
_Z = np.linspace(-6, 6, 801)
_WEIGHTS = np.exp(-_Z * _Z / 2) / np.exp(-_Z * _Z / 2).sum()


def level(recall: float) -> float:
    """The logit at which articles of that mean recall are centred."""
    return float(brentq(lambda m: (_WEIGHTS / (1 + np.exp(-(m + _Z)))).sum() - recall, -30, 30))


def clusters_of(random: np.random.Generator, articles: int) -> np.ndarray:
    return np.repeat(np.arange(articles), 1 + random.poisson(3.3, articles))


def coverage(recall: float, articles: int, sets: int, draws: int) -> float:
    random, centre, covered = np.random.default_rng([articles, int(1000 * recall)]), level(recall), 0
    for number in range(sets):
        of = clusters_of(random, articles)
        chance = 1 / (1 + np.exp(-(centre + random.normal(size=articles))))[of]
        hits = (random.random(len(of)) < chance).astype(float)
        found = means({"recall": hits}, Clusters.number(of), draws, number)["recall"]
        if not found["low"] < found["high"]:
            raise RuntimeError(f"an interval without width: {found}")
        covered += found["low"] <= recall <= found["high"]
    return 100 * covered / sets


def paired_coverage(apart: float, articles: int, sets: int, draws: int) -> float:
    random, covered = np.random.default_rng([articles, int(1000 * apart), 7]), 0
    centres = [level(0.5 + apart), level(0.5)]
    for number in range(sets):
        of = clusters_of(random, articles)
        hard = random.normal(size=articles)[of]
        hits = np.stack(
            [random.random(len(of)) < 1 / (1 + np.exp(-(hard + centre))) for centre in centres], axis=1
        ).astype(float)
        clusters = Clusters.number(of)
        counts = np.concatenate(list(clusters.draws(draws, number)))
        drawn = weighted_means(hits, clusters)(counts)
        gap = hits.mean(axis=0)
        found = difference(gap[0] - gap[1], spread(drawn[:, 0] - drawn[:, 1], clusters), clusters, len(of))
        covered += found["low"] <= apart <= found["high"]
    return 100 * covered / sets


def rows() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    labels = random.choice(2, ROWS)
    logits = random.normal(size=(ROWS, 2))
    logits[np.arange(ROWS), labels] += 1
    return labels, logits


def our_draw(draws: int = 200) -> float:
    """Seconds of a draw of every metric."""
    labels, logits = rows()
    clusters = Clusters.number(np.arange(ROWS))
    classification(labels, logits, clusters, 1, 0)
    started = time.process_time()
    classification(labels, logits, clusters, draws, 0)
    return (time.process_time() - started) / draws


_BEFORE = """
import sys, time
sys.path[:0] = [sys.argv[1], sys.argv[2]]
import numpy as np
from biomedclip_ray.evaluate.classify import scores
random = np.random.default_rng(0)
labels = random.choice(2, 32768)
logits = random.normal(size=(32768, 2))
logits[np.arange(32768), labels] += 1
scores(labels, logits, np.arange(32768), 0, 1, 0)
started = time.process_time()
scores(labels, logits, np.arange(32768), 0, 40, 0)
print((time.process_time() - started) / 40)
"""


def their_draw(worktree: str) -> float:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", _BEFORE, worktree, str(Path(worktree) / "benchmarks")]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sets", type=int, default=4000)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--quick", action="store_true", help="400 data sets a cell, and bounds wider by 2 points")
    parser.add_argument("--before", metavar="WORKTREE", help="a checkout of revision 70c1554")
    options = parser.parse_args()
    sets, slack = (400, 2.0) if options.quick else (options.sets, 0.0)
    print("| articles | " + " | ".join(f"recall {recall:g}" for recall in RECALLS) + " |")
    print("|--:|" + "--:|" * len(RECALLS))
    cells = []
    for articles in ARTICLES:
        line = [coverage(recall, articles, sets, options.draws) for recall in RECALLS]
        cells += line
        print(f"| {articles} | " + " | ".join(f"{cell:.1f}" for cell in line) + " |", flush=True)
    apart = [paired_coverage(gap, articles, sets, options.draws) for gap in (0.0, 0.1) for articles in (20, 50, 200)]
    found = {
        "coverage_least": (min(cells), min(cells) >= LEAST - slack),
        "coverage_most": (max(cells), max(cells) <= MOST + slack),
        "coverage_mean": (float(np.mean(cells)), MEAN[0] <= np.mean(cells) <= MEAN[1]),
        "coverage_paired": (float(np.mean(apart)), PAIRED[0] - slack <= min(apart) and max(apart) <= PAIRED[1] + slack),
    }
    print(f"  paired cells: {', '.join(f'{cell:.1f}' for cell in apart)}")
    for name, (value, _) in found.items():
        print(f"{name} ratio={value:.2f}")
    good = all(fine for _, fine in found.values())
    ours = our_draw()
    print(f"  a draw of every metric of {ROWS:,} rows: {1000 * ours:.2f} ms")
    if options.before:
        theirs = their_draw(options.before)
        print(f"  of three metrics at 70c1554: {1000 * theirs:.2f} ms")
        print(f"draws_vs_before ratio={theirs / ours:.1f} bound={DRAWS}")
        good &= theirs / ours >= DRAWS
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
