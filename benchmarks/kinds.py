"""How often the cheap guess of a figure's kind is right, and what it costs.

    python benchmarks/kinds.py [--data FOLDER] [--bundle URI]

On the sample's ten drawn kinds (40 of each), with and without their captions; on the corpus' records that a search for
pathway drawings collected (whose kind is "diagram" by that); with --bundle also what that CLIP's zero-shot answer gives
on the sample. Each with its 95% interval from 2,000 resamples. Prints `NAME ratio=X`; exit 1 below 0.85 on the sample
with captions.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from articles import add_data_option

from biomedclip_ray.config import Kinds
from biomedclip_ray.figures.captions import training_text
from biomedclip_ray.figures.clip_kinds import bundle_id, name_kinds
from biomedclip_ray.figures.kinds import figure_kind
from biomedclip_ray.images.errors import ImageError
from biomedclip_ray.images.image import Recipe, decode, prepare
from biomedclip_ray.jats import article as jats
from biomedclip_ray.sample import plots

GOAL = 0.85
# What the sample draws, in the names of `schema.KINDS` where they differ.
NAMES = {
    "radiograph": "radiology",
    "ecg": "signal",
    "survival_curve": "chart",
    "bar_chart": "chart",
    "pathway": "diagram",
}


def report(name: str, right: list[bool]) -> float:
    hits = np.array(right, float)
    rng = np.random.default_rng(0)
    low, high = np.percentile([hits[rng.integers(len(hits), size=len(hits))].mean() for _ in range(2000)], (2.5, 97.5))
    print(f"{name} ratio={hits.mean():.3f}  95% {low:.3f} to {high:.3f}, n={len(hits)}")
    return float(hits.mean())


def sample() -> bool:
    read, seen, spent = [], [], []
    for drawn, draw in plots.KINDS.items():
        kind = NAMES.get(drawn, drawn)
        wrong: Counter[str] = Counter()
        for seed in range(40):
            picture, sentence = draw(np.random.default_rng(seed), 480, 360)
            pixels = np.asarray(picture.convert("RGB"))
            began = time.process_time()
            answer, _ = figure_kind(pixels, sentence)
            spent.append(time.process_time() - began)
            read.append(answer == kind)
            seen.append(figure_kind(pixels, "")[0] == kind)
            wrong[answer] += answer != kind
        if wrong.total():
            print(f"  {drawn}: {dict(+wrong)} of 40")
    print(f"milliseconds a figure: {1000 * float(np.mean(spent)):.2f}")
    report("sample_kinds_by_image_alone", seen)
    return report("sample_kinds", read) >= GOAL


def by_bundle(uri: str) -> None:
    kinds = Kinds(bundle=uri)
    rows, truth = [], []
    for drawn, draw in plots.KINDS.items():
        for seed in range(40):
            rows.append({"image": np.asarray(draw(np.random.default_rng(seed), 480, 360)[0].convert("RGB"))})
            truth.append(NAMES.get(drawn, drawn))
    name_kinds(rows[:1], kinds, bundle_id(kinds))  # loads the bundle
    began = time.process_time()
    name_kinds(rows, kinds, bundle_id(kinds))
    print(f"milliseconds a figure: {1000 * (time.process_time() - began) / len(rows):.2f}")
    report("sample_kinds_by_bundle", [row["figure_kind"] == kind for row, kind in zip(rows, truth, strict=True)])


def pathways(bucket: Path) -> None:
    right = []
    for path in sorted(bucket.glob("PMC*/*.xml")):
        xml = path.read_bytes()
        if b"thin-record" not in xml:
            continue
        for figure in jats.parse_figures(xml):
            for name in [name for forms in figure.graphics for name in forms][:1]:
                file = next(iter(path.parent.glob(name + "*")), None)
                if file is None:
                    continue
                try:
                    picture = prepare(file.read_bytes(), Recipe(384, 90, 32, 10**8, 12))
                except ImageError:
                    continue
                kind, _ = figure_kind(decode(picture.jpeg), training_text(figure.caption, figure.label))
                right.append(kind == "diagram")
    report("corpus_pathways_are_diagrams", right)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_data_option(parser)
    parser.add_argument("--bundle", help="a CLIP whose zero-shot answer is measured beside")
    options = parser.parse_args()
    good = sample()
    if options.bundle:
        by_bundle(options.bundle)
    bucket = options.data / "corpus" / "bucket"
    if bucket.is_dir():
        pathways(bucket)
    else:
        print(f"{bucket} is not there; the corpus is left out")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
