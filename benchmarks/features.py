"""Features of images through evaluate beside a plain loop over the same files with the same model.

    python benchmarks/features.py [--images 2000] [--config NAME] [--rounds 3]

The model is open_clip's ViT-B-32 with random weights (`--config`: another, of clip/configs). Both read, decode, resize
and encode in batches of 64 on all cores, model loaded; ours also hashes each file, computes its perceptual hash, and
writes the vectors. Images are JPEGs of 384 x 300 pixels. Wall time, alternating, the median of the rounds. Prints
`features_vs_loop ratio=X`: seconds of the loop over ours. Exit 1 below the bound.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import open_clip
from PIL import Image

from biomedclip_ray.clip.bundle import save_bundle
from biomedclip_ray.clip.encoder import Encoder
from biomedclip_ray.clip.model import build_model, model_config
from biomedclip_ray.clip.tokenizer import fit_tokenizer
from biomedclip_ray.config import Model
from biomedclip_ray.evaluate.features import PART, Features, encode_part
from biomedclip_ray.evaluate.readers import Images

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


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--config", default=str(CONFIG))
    parser.add_argument("--rounds", type=int, default=3)
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
        ours, loop = [], []
        for number in range(options.rounds):
            started = time.perf_counter()
            plain = encoder.encode_images(data)
            loop.append(time.perf_counter() - started)
            started = time.perf_counter()
            features = Features(f"{scratch}/features{number}")
            for start in range(0, len(data), PART):
                encode_part(encoder, features, images, start, min(start + PART, len(data)))
            ours.append(time.perf_counter() - started)
    ratio = float(np.median(loop) / np.median(ours))
    print(f"  {len(plain):,} images: loop {np.median(loop):.1f} s, evaluate {np.median(ours):.1f} s")
    print(f"features_vs_loop ratio={ratio:.2f} bound={BOUND:.2f}")
    return 0 if ratio >= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
