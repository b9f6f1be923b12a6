"""Do the intervals hold, and what does a draw cost? Coverage by simulation, and draws a second beside revision 70c1554.

    python benchmarks/intervals.py [--sets 4000] [--draws 500] [--quick] [--skip before]

Coverage: articles with 4.3 figures on average (1 + Poisson(3.3)) whose difficulty differs (logit-normal, standard
deviation 1), recall 0.1 to 0.99, 20 to 200 articles, `--sets` data sets a cell; the product's own functions. The draws
of a cell are the same for all its sets, as they are for all sets of one seed. Paired: two bundles on the same figures,
0 to 10 points apart. Prints the table and coverage_least, coverage_most, coverage_mean and coverage_paired in percent.

Draws: every metric of two classes at 32,768 rows, process time a draw on one thread; `draws_vs_before ratio=X` is the
seconds of revision 70c1554, taken out of this repository's history, over ours. Exit 1 where a bound is missed.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy.optimize import brentq

from biomedclip_ray.evaluate.intervals import Clusters, difference, share, spread, telling, weighted_means
from biomedclip_ray.evaluate.metrics import classification

LEAST, MOST, MEAN = 93.0, 98.0, (94.0, 96.5)
PAIRED = (93.0, 97.0)
DRAWS = 10.0
BEFORE = "70c1554"
RECALLS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99)
ARTICLES = (20, 30, 50, 100, 200)
ROWS = 32_768
_Z = np.linspace(-6, 6, 801)
_WEIGHTS = np.exp(-_Z * _Z / 2) / np.exp(-_Z * _Z / 2).sum()


def level(recall: float) -> float:
    """The logit at which articles of that mean recall are centred."""
    return float(brentq(lambda m: (_WEIGHTS / (1 + np.exp(-(m + _Z)))).sum() - recall, -30, 30))


def simulated(
    cell: list[int], articles: int, sets: int
) -> Iterator[tuple[np.random.Generator, np.ndarray, np.ndarray]]:
    """Data sets of a cell: the random state, the article of each figure, and how hard each article is."""
    random = np.random.default_rng(cell)
    for _ in range(sets):
        of = np.repeat(np.arange(articles), 1 + random.poisson(3.3, articles))
        yield random, of, random.normal(size=articles)


def counts_of(articles: int, draws: int) -> np.ndarray:
    """(draws, articles) how often each article is drawn: one set of draws for a whole cell."""
    return np.concatenate(list(Clusters.number(np.arange(articles)).draws(draws, 0))).astype(np.float64)


def coverage(recall: float, articles: int, sets: int, draws: int) -> float:
    centre, covered, counts = level(recall), 0, counts_of(articles, draws)
    for random, of, hard in simulated([articles, int(1000 * recall)], articles, sets):
        hits = (random.random(len(of)) < (1 / (1 + np.exp(-(centre + hard))))[of]).astype(float)
        clusters = Clusters.number(of)
        drawn = weighted_means(hits[:, None], clusters)(counts)[:, 0]
        telling_ones = telling(hits, clusters)
        found = share(float(hits.mean()), spread(drawn, clusters), clusters, len(of), telling_ones)
        if not found["low"] < found["high"]:
            raise RuntimeError(f"an interval without width: {found}")
        covered += found["low"] <= recall <= found["high"]
    return 100 * covered / sets


def paired_coverage(apart: float, articles: int, sets: int, draws: int) -> float:
    centres, covered, counts = np.array([level(0.5 + apart), level(0.5)]), 0, counts_of(articles, draws)
    for random, of, hard in simulated([articles, int(1000 * apart), 7], articles, sets):
        hits = (random.random((len(of), 2)) < 1 / (1 + np.exp(-(hard[of, None] + centres)))).astype(float)
        clusters = Clusters.number(of)
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
sys.path.insert(0, sys.argv[1])
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


def their_draw() -> float:
    """Seconds of a draw of three metrics at revision BEFORE."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    repository = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(["git", "-C", repository, "archive", BEFORE], capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(folder, filter="data")
        command = [sys.executable, "-c", _BEFORE, folder]
        return float(subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sets", type=int, default=4000)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--quick", action="store_true", help="100 data sets a cell: whether everything runs")
    parser.add_argument("--skip", choices=["before"], nargs="*", default=[])
    options = parser.parse_args()
    sets = 100 if options.quick else options.sets
    print("| articles | " + " | ".join(f"recall {recall:g}" for recall in RECALLS) + " |")
    print("|--:|" + "--:|" * len(RECALLS))
    cells = []
    for articles in ARTICLES:
        line = [coverage(recall, articles, sets, options.draws) for recall in RECALLS]
        cells += line
        print(f"| {articles} | " + " | ".join(f"{cell:.1f}" for cell in line) + " |", flush=True)
    apart = [paired_coverage(gap, articles, sets, options.draws) for gap in (0.0, 0.1) for articles in (20, 50, 200)]
    mean = float(np.mean(cells))
    print(f"  paired cells: {', '.join(f'{cell:.1f}' for cell in apart)}")
    print(f"coverage_least ratio={min(cells):.2f} bound={LEAST}")
    print(f"coverage_most ratio={max(cells):.2f} bound<={MOST}")
    print(f"coverage_mean ratio={mean:.2f} bound={MEAN[0]} (and at most {MEAN[1]})")
    print(f"coverage_paired ratio={np.mean(apart):.2f} bound={PAIRED[0]} (every cell, and at most {PAIRED[1]})")
    good = min(cells) >= LEAST and max(cells) <= MOST and MEAN[0] <= mean <= MEAN[1]
    good &= PAIRED[0] <= min(apart) and max(apart) <= PAIRED[1]
    ours = our_draw()
    print(f"  a draw of every metric of {ROWS:,} rows: {1000 * ours:.2f} ms")
    if "before" not in options.skip:
        theirs = their_draw()
        print(f"  of three metrics at {BEFORE}: {1000 * theirs:.2f} ms")
        print(f"draws_vs_before ratio={theirs / ours:.1f} bound={DRAWS}")
        good &= theirs / ours >= DRAWS
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
