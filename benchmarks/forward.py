"""The forward pass that an `Encoder` makes on a CPU beside that of plain open_clip, with the same weights.

    python benchmarks/forward.py [--config NAME] [--batch N] [--seconds S] [--turns N]

Three processes hold an open_clip model at random weights (ViT-B-16) and compute in turns, in a thread as the server
does: plainly; keeping what they free (`run.memory.keep_freed`); and packed besides (`clip/packing.py`), as an `Encoder`
is. Prints how many times as many images a second (batches of 32) `kept` and `packed` give as `plain`, and `packed`
texts of 77 tokens one by one: `kept_images_vs_plain`, `packed_images_vs_plain`, `packed_texts_vs_plain ratio=X` (bound
1.0 each), with page faults an image and peak memory; exit 1 below a bound.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from biomedclip_ray.run.memory import keep_freed, peak_rss

sys.path.insert(0, str(Path(__file__).parent))
from clips import verdict

NAMES = ("plain", "kept", "packed")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", default="ViT-B-16", help="of open_clip")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one turn, for images and for texts")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--child", choices=NAMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        if options.child != "plain":
            keep_freed()
        thread = threading.Thread(target=child, args=(options,))
        thread.start()
        thread.join()
        return 0
    command = [sys.executable, __file__, *sys.argv[1:], "--child"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    children = {name: subprocess.Popen([*command, name], text=True, **pipes) for name in NAMES}
    told: dict[str, list[list[float]]] = {name: [] for name in NAMES}
    for turn in range(options.turns + 1):
        for name, process in children.items():
            print(flush=True, file=process.stdin)
            line = process.stdout.readline().split()
            if turn:  # the first one warms up
                told[name].append([float(figure) for figure in line])
    images, texts = {}, {}
    for name, process in children.items():
        process.communicate()
        images[name], texts[name], faults, peak = map(statistics.median, zip(*told[name], strict=True))
        print(
            f"  {name}: {images[name]:.2f} images/s, {texts[name]:.2f} texts/s, "
            f"{faults:.0f} page faults an image, peak {peak:.0f} MB"
        )
    ratios = {
        "kept_images_vs_plain": images["kept"] / images["plain"],
        "packed_images_vs_plain": images["packed"] / images["plain"],
        "packed_texts_vs_plain": texts["packed"] / texts["plain"],
    }
    return verdict(ratios, dict.fromkeys(ratios, 1.0))


def child(options: argparse.Namespace) -> None:
    """For each line asked: images a second, texts a second, page faults an image, peak MB."""
    import open_clip
    import torch

    from biomedclip_ray.clip.packing import pack

    torch.manual_seed(0)
    model = open_clip.create_model(options.config, pretrained=None).eval()
    size = model.visual.image_size
    images = torch.randn(options.batch, 3, *(size if isinstance(size, tuple) else (size, size)))
    text = open_clip.tokenize(["axial CT of the liver"])
    if options.child == "packed":
        pack(model, lambda: (model.encode_image(images[:1]), model.encode_text(text)))

    def rate(work: Callable[[], object], items: int) -> float:
        began, passes = time.perf_counter(), 0
        while time.perf_counter() - began < options.seconds:
            work()
            passes += 1
        return passes * items / (time.perf_counter() - began)

    with torch.inference_mode():
        for _ in sys.stdin:
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            began = time.perf_counter()
            of_images = rate(lambda: model.encode_image(images), options.batch)
            seen = of_images * (time.perf_counter() - began)
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
            of_texts = rate(lambda: model.encode_text(text), 1)
            print(of_images, of_texts, faults / seen, peak_rss() / 2**20, flush=True)


if __name__ == "__main__":
    sys.exit(main())
