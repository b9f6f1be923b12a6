"""How well compound figures are separated, and what it costs.

    python benchmarks/panels.py [--data FOLDER] [--failures FOLDER]

On the labelled figures of the corpus and on the sample's drawn compounds: compound or single, panels found (F1 at an overlap of
0.5 and 0.75 of the union), labels, core-milliseconds a figure; on the labelled captions: subcaptions. Each with its 95%
interval, from 2,000 resamples of the figures, because the truth is small. A subcaption counts when its label is right and its
words (F1 >= 0.8) are, after the words common to all subcaptions are taken off both ends. `--failures` writes the figures that
are not wholly right, truth in green and answer in red. Prints `panels_f1_50 ratio=...` and so on; exit 1 below a goal.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from biomedclip_ray.figures.panels import Panel, split_panels
from biomedclip_ray.figures.subcaptions import subcaptions
from biomedclip_ray.pmc import jats
from biomedclip_ray.sample import plots

GOALS = {"compound_or_single": 0.95, "panels_f1_50": 0.92, "panels_f1_75": 0.80, "labels": 0.90, "subcaptions_f1": 0.90}
Box = tuple[float, float, float, float]


@dataclass
class Figure:
    name: str
    image: NDArray[np.uint8]
    caption: str
    is_compound: bool
    boxes: list[Box] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)


def corpus_figures(corpus: Path) -> list[Figure]:
    """The figures of expected/panels.jsonl with their captions from the XML."""
    figures, captions = [], {}
    for line in (corpus / "expected" / "panels.jsonl").read_text().splitlines():
        row = json.loads(line)
        folder = corpus / "bucket" / row["pmcid_version"]
        if folder not in captions:
            article = jats.parse_article(next(folder.glob("*.xml")).read_bytes())
            captions[folder] = {name: f.caption for f in article.figures for forms in f.graphics for name in forms}
        of_article = captions[folder]
        stem = re.sub(r"\.(jpe?g|png|tiff?|gif)$", "", row["file"])
        caption = of_article.get(row["file"]) or of_article.get(stem) or ""
        with Image.open(folder / row["file"]) as image:
            pixels = np.asarray(image.convert("RGB"))
        boxes = [tuple(box) for box in row.get("boxes", [])]
        figures.append(Figure(row["file"], pixels, caption, row["kind"] == "compound", boxes, row["labels"]))
    return figures


def sample_figures(count: int) -> list[Figure]:
    """Drawn compounds and, as often, drawn singles."""
    figures = []
    kinds = list(plots.KINDS)
    for seed in range(count):
        rng = np.random.default_rng(seed)
        chosen = [kinds[int(k)] for k in rng.integers(len(kinds), size=int(rng.integers(2, 5)))]
        picture, boxes, sentences = plots.compound(rng, chosen)
        labels = list("ABCD"[: len(boxes)])
        caption = " ".join(f"({label}) {sentence}." for label, sentence in zip(labels, sentences, strict=True))
        figures.append(
            Figure(f"compound-{seed}", np.asarray(picture), caption, True, [tuple(b) for b in boxes], labels)  # type: ignore[misc]
        )
        single, sentence = plots.KINDS[chosen[0]](rng, 480, 360)
        figures.append(Figure(f"single-{seed}", np.asarray(single), sentence, False))
    return figures


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def matches(panels: list[Panel], boxes: list[Box], least: float) -> list[tuple[int, int]]:
    """Pairs (panel, box), best overlap first, each used once."""
    pairs = sorted(((overlap(p.box, b), i, j) for i, p in enumerate(panels) for j, b in enumerate(boxes)), reverse=True)
    taken: list[tuple[int, int]] = []
    for share, i, j in pairs:
        if share >= least and all(i != k and j != m for k, m in taken):
            taken.append((i, j))
    return taken


def f1(counts: NDArray[np.float64]) -> float:
    """Of rows (right, given, true)."""
    right, given, true = counts.sum(axis=0)
    return float(2 * right / max(1.0, given + true))


def share(counts: NDArray[np.float64]) -> float:
    """Of rows (right, all)."""
    right, every = counts.sum(axis=0)
    return float(right / max(1.0, every))


def report(
    name: str, score: Callable[[NDArray[np.float64]], float], rows: Sequence[Sequence[float]], goal: bool
) -> bool:
    """Print a figure with its interval; whether the goal is reached."""
    counts = np.array(rows, np.float64)
    rng = np.random.default_rng(0)
    resampled = [score(counts[rng.integers(len(counts), size=len(counts))]) for _ in range(2000)]
    low, high = np.percentile(resampled, (2.5, 97.5))
    value = score(counts)
    key = name.split()[-1]
    text = f"{name} ratio={value:.3f}  95% {low:.3f} to {high:.3f}, n={len(counts)}"
    print(text + (f"  goal {GOALS[key]}" if goal else ""))
    return value >= GOALS[key] or not goal


def measure(source: str, figures: list[Figure], failures: Path | None) -> bool:
    kind, half, most, named, spent = [], [], [], [], []
    for figure in figures:
        began = time.process_time()
        panels = split_panels(figure.image, tuple(subcaptions(figure.caption)))
        spent.append(time.process_time() - began)
        right_kind = (len(panels) > 1) == figure.is_compound
        kind.append((float(right_kind), 1.0))
        good = right_kind
        if figure.boxes:
            at_half, at_most = matches(panels, figure.boxes, 0.5), matches(panels, figure.boxes, 0.75)
            half.append((len(at_half), len(panels), len(figure.boxes)))
            most.append((len(at_most), len(panels), len(figure.boxes)))
            good = good and len(at_most) == len(figure.boxes) == len(panels)
            if figure.labels:
                right = [(panels[i].label or "").lower() == figure.labels[j].lower() for i, j in at_half]
                named.append((sum(right), len(figure.labels)))
        if failures is not None and not good:
            draw(figure, panels, failures / f"{source}-{Path(figure.name).stem}.png")
    results = [
        report(f"{source} compound_or_single", share, kind, True),
        report(f"{source} panels_f1_50", f1, half, True),
        report(f"{source} panels_f1_75", f1, most, True),
        report(f"{source} labels", share, named, True),
    ]
    milliseconds = 1000 * np.array(spent)
    print(f"{source} core-ms a figure: mean {milliseconds.mean():.0f}, median {np.median(milliseconds):.0f}")
    return all(results)


def own_words(texts: dict[str, str]) -> dict[str, list[str]]:
    """Each text's words without the beginning and the end that all share."""
    words = {label: re.findall(r"\w+", text.lower()) for label, text in texts.items()}
    if len(words) < 2:
        return words
    rows = list(words.values())
    shortest = min(map(len, rows))
    head = next((k for k in range(shortest) if len({row[k] for row in rows}) > 1), shortest)
    rest = shortest - head
    tail = next((k for k in range(rest) if len({row[-1 - k] for row in rows}) > 1), rest)
    return {label: row[head : len(row) - tail] for label, row in words.items()}


def word_f1(a: list[str], b: list[str]) -> float:
    if not a and not b:
        return 1.0
    return 2 * (Counter(a) & Counter(b)).total() / (len(a) + len(b))


def measure_captions(path: Path) -> bool:
    rows = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        true = own_words({item["label"]: item["text"] for item in row["subcaptions"]})
        given = own_words(subcaptions(row["caption"]))
        right = sum(label in true and word_f1(words, true[label]) >= 0.8 for label, words in given.items())
        rows.append((right, len(given), len(true)))
    return report("corpus subcaptions_f1", f1, rows, True)


def draw(figure: Figure, panels: list[Panel], path: Path) -> None:
    picture = np.ascontiguousarray(figure.image[:, :, ::-1])
    height, width = picture.shape[:2]
    boxes = [(box, (0, 160, 0)) for box in figure.boxes] + [(panel.box, (0, 0, 255)) for panel in panels]
    for (x0, y0, x1, y1), colour in boxes:
        cv2.rectangle(picture, (int(x0 * width), int(y0 * height)), (int(x1 * width), int(y1 * height)), colour, 3)
    cv2.imwrite(str(path), picture)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = os.environ.get("BIOMEDCLIP_TEST_DATA", str(Path(__file__).resolve().parents[2] / "shared"))
    parser.add_argument("--data", type=Path, default=Path(default), help="the folder that holds corpus/")
    parser.add_argument("--failures", type=Path, help="folder for pictures of what went wrong")
    options = parser.parse_args()
    if options.failures is not None:
        options.failures.mkdir(parents=True, exist_ok=True)
    corpus = options.data / "corpus"
    if not corpus.is_dir():
        print(f"{corpus} is not there; name the folder that holds corpus/ with --data", file=sys.stderr)
        return 2
    cv2.setNumThreads(1)
    good = [
        measure("corpus", corpus_figures(corpus), options.failures),
        measure("sample", sample_figures(60), options.failures),
        measure_captions(corpus / "captions" / "subcaptions-dev.jsonl"),
    ]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
