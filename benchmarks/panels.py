"""How well compound figures are separated, and what it costs.

    python benchmarks/panels.py [--data FOLDER] [--report FILE] [--every K]

On the labelled figures of the corpus and on the sample's drawn compounds: compound or single, panels found (F1 at an
overlap of
0.5 and 0.75 of the union), labels, core-milliseconds a figure; on the labelled captions: subcaptions. Each with its 95%
interval, from 2,000 resamples of the figures, because the truth is small. A subcaption counts when its label is right
and its words (F1 >= 0.8) are, after the words common to all subcaptions are taken off both ends. `--report` writes one
HTML file with the table and all that is not wholly right, truth and answer side by side. Prints `panels_f1_50
ratio=...` and so on, and `panels_vs_before ratio=...`, the time of revision 70c1554 over today's on the same figures;
exit 1 below a goal.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from articles import add_data_option
from earlier import REVISION
from numpy.typing import NDArray
from panels_before import panels_vs_before
from panels_report import Box, Measured, WrongCaption, WrongFigure, write
from PIL import Image

from biomedclip_ray.figures.panels import Panel, split_panels
from biomedclip_ray.figures.subcaptions import subcaptions
from biomedclip_ray.jats import article as jats
from biomedclip_ray.sample import plots

GOALS = {"compound_or_single": 0.95, "panels_f1_50": 0.92, "panels_f1_75": 0.80, "labels": 0.90, "subcaptions_f1": 0.90}
FASTER = 2.5


@dataclass
class Figure:
    name: str
    image: NDArray[np.uint8]
    caption: str
    is_compound: bool
    boxes: list[Box] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    @property
    def named(self) -> tuple[str, ...]:
        """The labels as the caption names them."""
        return tuple(subcaptions(self.caption))


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


def measured(
    source: str, name: str, score: Callable[[NDArray[np.float64]], float], rows: Sequence[Sequence[float]], goal: float
) -> Measured:
    """A figure of merit with its interval, printed."""
    counts = np.array(rows, np.float64)
    rng = np.random.default_rng(0)
    resampled = [score(counts[rng.integers(len(counts), size=len(counts))]) for _ in range(2000)]
    low, high = np.percentile(resampled, (2.5, 97.5))
    result = Measured(source, name, score(counts), float(low), float(high), len(counts), goal)
    print(f"{source} {name} ratio={result.value:.3f}  95% {low:.3f} to {high:.3f}, n={result.n}  goal {result.goal}")
    return result


def measure(
    source: str, figures: list[Figure], goals: dict[str, float] = GOALS
) -> tuple[list[Measured], float, list[WrongFigure]]:
    """(figures of merit, mean core-milliseconds a figure, what is not wholly right)."""
    kind, half, most, named, spent = [], [], [], [], []
    wrong = []
    for figure in figures:
        began = time.process_time()
        panels = split_panels(figure.image, figure.named)
        spent.append(time.process_time() - began)
        right_kind = (len(panels) > 1) == figure.is_compound
        kind.append((float(right_kind), 1.0))
        why = [] if right_kind else [f"taken for a {'single picture' if figure.is_compound else 'compound figure'}"]
        if figure.boxes:
            at_half, at_most = matches(panels, figure.boxes, 0.5), matches(panels, figure.boxes, 0.75)
            half.append((len(at_half), len(panels), len(figure.boxes)))
            most.append((len(at_most), len(panels), len(figure.boxes)))
            if not len(at_most) == len(figure.boxes) == len(panels):
                why.append(
                    f"found {len(panels)} of {len(figure.boxes)} panels, {len(at_half)} right at 0.5, {len(at_most)} "
                    "at 0.75"
                )
            if figure.labels:
                right = [(panels[i].label or "").lower() == figure.labels[j].lower() for i, j in at_half]
                named.append((sum(right), len(figure.labels)))
                if sum(right) < len(figure.labels):
                    why.append(f"{sum(right)} of {len(figure.labels)} labels right")
        if why:
            true = list(zip(figure.labels or [""] * len(figure.boxes), figure.boxes, strict=True))
            found = [(panel.label or "", panel.box) for panel in panels]
            wrong.append(WrongFigure(f"{source}: {figure.name}", figure.image, "; ".join(why), true, found))
    results = [
        measured(source, name, score, rows, goals[name])
        for name, score, rows in (
            ("compound_or_single", share, kind),
            ("panels_f1_50", f1, half),
            ("panels_f1_75", f1, most),
            ("labels", share, named),
        )
    ]
    milliseconds = 1000 * np.array(spent)
    print(f"{source} core-ms a figure: mean {milliseconds.mean():.0f}, median {np.median(milliseconds):.0f}")
    return results, float(milliseconds.mean()), wrong


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


def measure_captions(path: Path) -> tuple[Measured, list[WrongCaption]]:
    rows, wrong = [], []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        true = own_words({item["label"]: item["text"] for item in row["subcaptions"]})
        given = own_words(subcaptions(row["caption"]))
        right = {label for label, words in given.items() if label in true and word_f1(words, true[label]) >= 0.8}
        rows.append((len(right), len(given), len(true)))
        if not len(right) == len(given) == len(true):
            labels = sorted({*true, *given})
            sides = [tuple(" ".join(side.get(label, ["–"])) for side in (true, given)) for label in labels]
            table = [(label, *texts, label in right) for label, texts in zip(labels, sides, strict=True)]
            wrong.append(WrongCaption(row["caption"], table))  # type: ignore[arg-type]
    return measured("corpus", "subcaptions_f1", f1, rows, GOALS["subcaptions_f1"]), wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_data_option(parser)
    parser.add_argument("--report", type=Path, help="HTML file for the table and what went wrong")
    parser.add_argument("--every", type=int, default=1, help="take only every K-th figure, to see whether it runs")
    options = parser.parse_args()
    corpus = options.data / "corpus"
    if not corpus.is_dir():
        print(f"{corpus} is not there; name the folder that holds corpus/ with --data", file=sys.stderr)
        return 2
    cv2.setNumThreads(1)
    of_corpus, corpus_cost, corpus_wrong = measure("corpus", corpus_figures(corpus)[:: options.every])
    of_sample, sample_cost, sample_wrong = measure("sample", sample_figures(60 // options.every))
    of_captions, captions = measure_captions(corpus / "captions" / "subcaptions-dev.jsonl")
    every = [*of_corpus, of_captions, *of_sample]
    asked = [
        (figure.image, figure.named) for figure in [*corpus_figures(corpus), *sample_figures(15)][:: options.every]
    ]
    faster = panels_vs_before(asked)
    if faster is not None:
        print(f"panels_vs_before ratio={faster:.2f}  seconds of revision {REVISION} over today's, bound {FASTER}")
    if options.report is not None:
        cost = {"corpus": corpus_cost, "sample": sample_cost}
        write(options.report, every, cost, [*corpus_wrong, *sample_wrong], captions)
    return 0 if all(each.reached for each in every) and (faster is None or faster >= FASTER) else 1


if __name__ == "__main__":
    sys.exit(main())
