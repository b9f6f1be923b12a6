"""The forward pass that an `Encoder` makes on a CPU beside that of plain open_clip, with the same weights.

    python benchmarks/forward.py [--config NAME] [--batch N] [--seconds S] [--turns N]

Four processes hold an open_clip model at random weights (ViT-B-16) and compute in turns, in a thread as the server
does: plainly; keeping what they free (`run.memory.keep_freed`); packed besides, as far as that pays on this CPU
(`clip/packing.py`); and in pieces besides (`clip/streams.py`), as an `Encoder` is. Prints how many times as many images
a second (batches of 32) `kept` and `packed` give as `plain`, and `packed` texts of 77 tokens one by one:
`kept_images_vs_plain`, `packed_images_vs_plain`, `packed_texts_vs_plain ratio=X`, with page faults an image and peak
memory.

Then two processes stand for those that a server has beside its model: each computes for 8 ms and sleeps for 60, at a
priority above the model's, as Ray's workers are niced. `streams_images_vs_threads ratio=X`: images a second of `pieces`
over those of `packed`, whose threads share each operation. Bound 1.0 each; exit 1 below one.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from biomedclip_ray.run.memory import keep_freed, peak_rss

sys.path.insert(0, str(Path(__file__).parent))
from clips import verdict

NAMES = ("plain", "kept", "packed", "pieces")
WORKS_S, SLEEPS_S, NICE = 0.008, 0.06, 15


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", default="ViT-B-16", help="of open_clip")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one turn, for images and for texts")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--child", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--beside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.beside:
        work_and_sleep()
    if options.child:
        os.nice(NICE)
        if options.child != "plain":
            keep_freed()
        thread = threading.Thread(target=child, args=(options,))
        thread.start()
        thread.join()
        return 0
    command = [sys.executable, __file__, *sys.argv[1:], "--child"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    children = {name: subprocess.Popen([*command, name], text=True, **pipes) for name in NAMES}
    quiet = asked(children, options.turns, "images and texts")
    others = [subprocess.Popen([sys.executable, __file__, "--beside"]) for _ in range(2)]
    try:
        busy = asked({name: children[name] for name in ("packed", "pieces")}, options.turns, "images")
    finally:
        for process in others:
            process.kill()
            process.wait()
    for process in children.values():
        process.communicate()
    for when, found in (("alone", quiet), ("beside busy processes", busy)):
        for name, (images, texts, faults, peak) in found.items():
            print(
                f"  {name}, {when}: {images:.2f} images/s, {texts or math.nan:.2f} texts/s, "
                f"{faults:.0f} page faults an image, peak {peak:.0f} MB"
            )
    ratios = {
        "kept_images_vs_plain": quiet["kept"][0] / quiet["plain"][0],
        "packed_images_vs_plain": quiet["packed"][0] / quiet["plain"][0],
        "packed_texts_vs_plain": quiet["packed"][1] / quiet["plain"][1],
        "streams_images_vs_threads": busy["pieces"][0] / busy["packed"][0],
    }
    return verdict(ratios, dict.fromkeys(ratios, 1.0))


def asked(children: dict[str, Any], turns: int, what: str) -> dict[str, list[float]]:
    """Medians of what each child tells in its turns, one after the other."""
    told: dict[str, list[list[float]]] = {name: [] for name in children}
    for turn in range(turns + 1):
        for name, process in children.items():
            print(what, flush=True, file=process.stdin)
            line = process.stdout.readline().split()
            if turn:  # the first one warms up
                told[name].append([float(figure) for figure in line])
    return {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in told.items()}


def work_and_sleep() -> None:
    while True:
        began = time.perf_counter()
        while time.perf_counter() - began < WORKS_S:
            pass
        time.sleep(SLEEPS_S)


def child(options: argparse.Namespace) -> None:
    """For each line asked: images a second, texts a second (0 unless asked for), page faults an image, peak MB."""
    import open_clip
    import torch

    from biomedclip_ray.clip.packing import pack, packs_images
    from biomedclip_ray.clip.streams import Streams

    torch.manual_seed(0)
    model = open_clip.create_model(options.config, pretrained=None).eval()
    size = model.visual.image_size
    images = torch.randn(options.batch, 3, *(size if isinstance(size, tuple) else (size, size)))
    text = open_clip.tokenize(["axial CT of the liver"])
    if options.child in ("packed", "pieces"):
        some = images[:1] if packs_images(images.dtype) else images[:0]
        pack(model, lambda: (len(some) and model.encode_image(some), model.encode_text(text)))

    pieces = Streams()

    def encode() -> object:
        if options.child != "pieces":
            return model.encode_image(images)
        return pieces(lambda rows: model.encode_image(images[rows]).numpy(), len(images), model.visual.output_dim)

    def rate(work: Callable[[], object], items: int) -> float:
        began, passes = time.perf_counter(), 0
        while time.perf_counter() - began < options.seconds:
            work()
            passes += 1
        return passes * items / (time.perf_counter() - began)

    with torch.inference_mode():
        for asked_for in sys.stdin:
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            began = time.perf_counter()
            of_images = rate(encode, options.batch)
            seen = of_images * (time.perf_counter() - began)
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
            of_texts = rate(lambda: model.encode_text(text), 1) if "texts" in asked_for else 0.0
            print(of_images, of_texts, faults / seen, peak_rss() / 2**20, flush=True)


if __name__ == "__main__":
    sys.exit(main())
