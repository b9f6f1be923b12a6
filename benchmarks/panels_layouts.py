"""How well compound figures are separated on layouts that nobody looked at while the rules were written.

    python benchmarks/panels_layouts.py [--figures 300] [--fit] [--data FOLDER] [--report FILE]

Draws compounds on the real layouts of the corpus (`compounds`) and measures panels and labels as `panels.py` does. The
ways to cut are chosen among by weights; `--fit` finds them on every second layout (ridge regression of a way's merit,
within each figure) and prints them; the measure always runs on the other half. Prints `panels_f1_50 ratio=...` and so
on; exit 1 below a bound.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from articles import add_data_option
from compounds import FONTS, draw, layouts, pictures, typefaces
from numpy.typing import NDArray
from panels import Figure, matches, measure
from panels_report import write

from biomedclip_ray.figures.cuts import Region, layers_of, working_copy
from biomedclip_ray.figures.letters import find_letters
from biomedclip_ray.figures.panels import WEIGHTS, as_panels, plausibility_features, tightened, ways_to_cut

BOUNDS = {"compound_or_single": 0.95, "panels_f1_50": 0.90, "panels_f1_75": 0.82, "labels": 0.82}


def drawn(corpus: Path, count: int, half: int, faces: dict[str, Path]) -> Iterator[Figure]:
    """Figures on every second layout, drawn by chance; the same for the same count and half."""
    rng = np.random.default_rng(half)
    chosen, fillings = layouts(corpus)[half::2], pictures(corpus)
    for k in range(count):
        yield draw(np.random.default_rng((half, k)), chosen[int(rng.integers(len(chosen)))], fillings, faces)


def fit(figures: Iterator[Figure]) -> NDArray[np.float64]:
    """Weights of the features, for ways to cut that find as many panels: ridge regression (alpha 2) on centred rows."""
    rows, merits = [], []
    for figure in figures:
        labels = tuple(sorted(figure.labels, key=str.lower))
        colour = working_copy(figure.image)
        layers, whole = layers_of(colour), Region(0, 0, colour.shape[1], colour.shape[0])
        letters = find_letters(cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY), labels)
        ways = [tightened(layers, pieces, labels, whole) for pieces in ways_to_cut(layers, whole, letters)]
        most = max(map(len, ways))
        ways = [way for way in ways if len(way) == most]
        features = np.array([plausibility_features(way, letters, labels) for way in ways])
        merit = np.array([_merit(way, whole, figure) for way in ways])
        rows.append(features - features.mean(axis=0))
        merits.append(merit - merit.mean())
    x, y = np.concatenate(rows), np.concatenate(merits)
    return np.asarray(np.linalg.solve(x.T @ x + 2 * np.eye(x.shape[1]), x.T @ y))


def _merit(way: list[tuple[str, Region]], whole: Region, figure: Figure) -> float:
    """Half F1 at 0.5, a quarter F1 at 0.75, a quarter the share of labels right."""
    panels = as_panels(way, whole)
    half, most = matches(panels, figure.boxes, 0.5), matches(panels, figure.boxes, 0.75)
    right = sum(panels[i].label == figure.labels[j] for i, j in half)
    every = len(panels) + len(figure.boxes)
    return len(half) / every + len(most) / every / 2 + right / len(figure.boxes) / 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_data_option(parser)
    parser.add_argument("--figures", type=int, default=300)
    parser.add_argument(
        "--fit", action="store_true", help="also find the weights anew, on the other half of the layouts"
    )
    parser.add_argument(
        "--fonts",
        type=Path,
        default=FONTS,
        help="the folder of the Liberation fonts (Debian: fonts-liberation); DejaVu stands in where they are missing",
    )
    parser.add_argument("--report", type=Path, help="HTML file for the table and what went wrong")
    options = parser.parse_args()
    corpus = options.data / "corpus"
    if not (corpus / "layouts").is_dir():
        print(f"{corpus}/layouts is not there; name the folder that holds corpus/ with --data", file=sys.stderr)
        return 2
    faces = typefaces(options.fonts)
    print(f"letters in {', '.join(sorted(face.stem for face in faces.values()))}")
    cv2.setNumThreads(1)
    if options.fit:
        weights = fit(drawn(corpus, options.figures, 0, faces))
        print("weights", ", ".join(f"{weight:.2f}" for weight in weights), "- in use:", ", ".join(map(str, WEIGHTS)))
    results, cost, wrong = measure("layouts", list(drawn(corpus, options.figures, 1, faces)), BOUNDS)
    if options.report is not None:
        write(options.report, results, {"layouts": cost}, wrong, [])
    return 0 if all(each.reached for each in results) else 1


if __name__ == "__main__":
    sys.exit(main())
