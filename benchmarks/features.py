"""Features of images through evaluate beside a plain loop over the same files with the same model.

    python benchmarks/features.py [--images 2000] [--config NAME] [--pieces 8]

The model is open_clip's ViT-B-32 with random weights (`--config`: another, of clip/configs). Both read, decode, resize
and encode in batches of 64 on all cores, model loaded; ours also hashes each file, computes its perceptual hash, and
writes the vectors. Images are JPEGs of 384 x 300 pixels. Wall time, the pieces in turns, the first of a pair in turns
too; the median over the pairs. Prints what a file costs besides the model, on one thread, and `features_vs_loop
ratio=X`: seconds of the loop over ours. Exit 1 below the bound. About four minutes on two cores.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import open_clip
from PIL import Image

from biomedclip_ray.clip.bundle import save_bundle
from biomedclip_ray.clip.encoder import Encoder
from biomedclip_ray.clip.model import build_model, model_config
from biomedclip_ray.clip.tokenizer import fit_tokenizer
from biomedclip_ray.config import Model
from biomedclip_ray.evaluate.features import Features, encode_part, key_of
from biomedclip_ray.evaluate.readers import Images
from biomedclip_ray.images.image import as_pillow
from biomedclip_ray.images.phash import perceptual_hash

BOUND = 0.90
CONFIG = Path(open_clip.__file__).parent / "model_configs" / "ViT-B-32.json"


def jpegs(count: int) -> list[bytes]:
    random = np.random.default_rng(0)
    out = []
    for _ in range(count):
        small = Image.fromarray(random.integers(0, 255, (30, 38, 3), np.uint8))
        sink = io.BytesIO()
        small.resize((384, 300), Image.Resampling.BICUBIC).save(sink, "JPEG", quality=90)
        out.append(sink.getvalue())
    return out


def besides(encoder: Encoder, data: list[bytes]) -> dict[str, float]:
    """Milliseconds a file of what is not the model; the last two are ours alone."""
    with as_pillow(data[0]) as image:
        pixels = np.asarray(image.convert("RGB"))
    work: dict[str, Callable[[bytes], object]] = {
        "decode and resize": lambda one: encoder.pixels([one]),
        "hash of the bytes": key_of,
        "perceptual hash": lambda one: perceptual_hash(pixels),
    }
    out = {}
    for name, function in work.items():
        started = time.perf_counter()
        for one in data:
            function(one)
        out[name] = 1000 * (time.perf_counter() - started) / len(data)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--config", default=str(CONFIG))
    parser.add_argument("--pieces", type=int, default=8)
    options = parser.parse_args()
    data = jpegs(options.images)
    images = Images(len(data), lambda start, stop: list(data[start:stop]))
    with tempfile.TemporaryDirectory() as scratch:
        context = model_config(options.config)["text_cfg"]["context_length"]
        tokenizer = fit_tokenizer(["a plain caption of a figure"], 300, context)
        built = build_model(Model(config=options.config, init="random"), tokenizer)
        folder = Path(scratch) / "bundle"
        save_bundle(folder, built.model, built.model_cfg, built.preprocess_cfg, tokenizer, {})
        encoder = Encoder.load(folder)
        encoder.encode_images(data[:64])
        features = Features(f"{scratch}/features")
        edges = np.linspace(0, len(data), options.pieces + 1).round().astype(int).tolist()

        def ours(start: int, stop: int) -> None:
            encode_part(encoder, features, images, start, stop)

        def loop(start: int, stop: int) -> None:
            encoder.encode_images(data[start:stop])

        took: dict[str, list[float]] = {"ours": [], "loop": []}
        for number, piece in enumerate(pairwise(edges)):
            for work in (loop, ours) if number % 2 else (ours, loop):
                started = time.perf_counter()
                work(*piece)
                took[work.__name__].append(time.perf_counter() - started)
    ratio = float(np.median(np.array(took["loop"]) / np.array(took["ours"])))
    print(f"  {len(data):,} images: loop {sum(took['loop']):.1f} s, evaluate {sum(took['ours']):.1f} s")
    print(f"  {', '.join(f'{name} {cost:.2f} ms' for name, cost in besides(encoder, data[:100]).items())} a file")
    print(f"features_vs_loop ratio={ratio:.2f} bound={BOUND:.2f}")
    return 0 if ratio >= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
