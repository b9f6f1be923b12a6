"""Figure JPEGs: `figures.image.prepare` against Pillow (open, convert, bicubic resize, JPEG), the same checks and
hashes in both.

    python benchmarks/images.py [--data FOLDER] [--rounds N] [--every K]

Prints `images_224_vs_pillow ratio=X` and `images_384_vs_pillow ratio=X`: process time of the baseline over ours, over
the JPEGs of the corpus, alternating image by image, the best of N rounds of each. Beside it the PSNR of what a reader
of our JPEG gets against a reader of the baseline's: a resize that is fast because it blurs or aliases would show there.
Images that are not shrunk have the same pixels in both and are left out of the PSNR. Exit 1 below a bound.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from articles import add_data_option
from numpy.typing import NDArray
from PIL import Image

from biomedclip_ray.images.errors import ImageError
from biomedclip_ray.images.image import Recipe, decode, prepare
from biomedclip_ray.images.phash import perceptual_hash
from biomedclip_ray.schema import Reason

BOUNDS = {224: 1.6, 384: 1.4}
PSNR_MEAN, PSNR_WORST = 38.0, 33.0
QUALITY, MIN_SIDE, MAX_PIXELS, MAX_ASPECT = 90, 32, 178_956_970, 12.0


@dataclass
class Baseline:
    jpeg: bytes
    shrunk: bool


def pillow(data: bytes, short_side: int) -> Baseline:
    """What most pipelines do, with the checks and hashes that `prepare` makes."""
    image = Image.open(io.BytesIO(data))
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(Reason.TOO_MANY_PIXELS)
    if min(width, height) < MIN_SIDE:
        raise ImageError(Reason.TOO_SMALL)
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(Reason.BAD_ASPECT)
    ratio = min(1.0, short_side / min(width, height))
    small = image.convert("RGB")
    if ratio < 1:
        small = small.resize((round(width * ratio), round(height * ratio)), Image.Resampling.BICUBIC)
    pixels = np.asarray(small)
    if np.ptp(pixels[::8, ::8, 1]) <= 4 and np.ptp(pixels) <= 4:
        raise ImageError(Reason.BLANK)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=QUALITY)
    hashlib.sha256(data).hexdigest()
    perceptual_hash(pixels)
    return Baseline(out.getvalue(), ratio < 1)


def ours(data: bytes, short_side: int) -> bytes:
    return prepare(data, Recipe(short_side, QUALITY, MIN_SIDE, MAX_PIXELS, MAX_ASPECT)).jpeg


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    error = float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2))
    return 10 * math.log10(255**2 / max(error, 1e-6))


def seconds(work: Callable[[bytes, int], object], data: bytes, short_side: int) -> float:
    began = time.process_time()
    work(data, short_side)
    return time.process_time() - began


def jpegs(folder: Path) -> list[bytes]:
    """The corpus' JPEGs by their bytes, whatever their names, that pass the checks."""
    files = [path.read_bytes() for path in sorted(folder.glob("bucket/PMC*/*")) if path.is_file()]
    wanted = [data for data in files if data.startswith(b"\xff\xd8\xff")]
    kept = []
    for data in wanted:
        try:
            pillow(data, 64)
        except ImageError:
            continue
        kept.append(data)
    return kept


def measure(files: list[bytes], short_side: int, rounds: int) -> bool:
    """Print one line of figures; whether all bounds hold."""
    fast, slow = np.full(len(files), np.inf), np.full(len(files), np.inf)
    for _ in range(rounds):
        for k, data in enumerate(files):
            slow[k] = min(slow[k], seconds(pillow, data, short_side))
            fast[k] = min(fast[k], seconds(ours, data, short_side))
    noise = []
    for data in files:
        base = pillow(data, short_side)
        if base.shrunk:
            noise.append(psnr(decode(ours(data, short_side)), decode(base.jpeg)))
    ratio = slow.sum() / fast.sum()
    mean, worst = float(np.mean(noise)), min(noise)
    print(
        f"images_{short_side}_vs_pillow ratio={ratio:.2f}  bound {BOUNDS[short_side]}; {len(files)} JPEGs, "
        f"{1000 * fast.mean():.2f} ms each (Pillow {1000 * slow.mean():.2f} ms); PSNR of the {len(noise)} shrunk: "
        f"mean {mean:.1f} dB (bound {PSNR_MEAN:.0f}), worst {worst:.1f} dB (bound {PSNR_WORST:.0f})"
    )
    good = ratio >= BOUNDS[short_side] and mean >= PSNR_MEAN and worst >= PSNR_WORST
    return bool(good)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_data_option(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--every", type=int, default=1, help="take only every K-th image, to see whether it runs")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    files = jpegs(options.data / "corpus")[:: options.every]
    if not files:
        print(f"no JPEG under {options.data}/corpus/bucket; name the folder with --data", file=sys.stderr)
        return 2
    good = [measure(files, short_side, options.rounds) for short_side in BOUNDS]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
