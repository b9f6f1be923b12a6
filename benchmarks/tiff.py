"""Deep and multi-page TIFFs: `images.image.read` against tifffile's read and numpy's mapping through the same window.

    python benchmarks/tiff.py [--rounds N] [--side PIXELS]

Prints `tiff_vs_tifffile ratio=X`: our process time over theirs, summed over the forms below, alternating file by file,
the best of N rounds of each. Theirs reads the same pages with one thread and is told the window; ours finds page,
channels and window itself. Exit 1 above the bound, or where the pixels differ by more than one level.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from biomedclip_ray.images.errors import Limits
from biomedclip_ray.images.image import read

BOUND = 1.3
ANY = Limits(1, 10**9, 1e9)
Values = NDArray[Any]
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


@dataclass(frozen=True)
class Form:
    name: str
    data: bytes
    pages: tuple[int, ...]
    """Those that are shown: one, or one for each channel."""
    windows: tuple[tuple[float, float], ...]
    """What is black and white in each."""
    is_planar: bool = False


def detector(side: int, samples: int, seed: int) -> Values:
    """12 bits in 16: smooth shapes with a sensor's noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    planes = [np.sin(6 * x + n) * np.cos(5 * y - n) * 1500 + 2000 for n in range(samples)]
    return (np.stack(planes, 2) + rng.normal(0, 40, (side, side, 1))).clip(0, 4095).astype(np.uint16)


def written(values: Values, **options: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, values, **options)
    return out.getvalue()


def forms(side: int) -> list[Form]:
    grey, colour = detector(side, 1, 0)[:, :, 0], detector(side, 3, 1)
    stack = np.stack([detector(side // 2, 1, n)[:, :, 0] for n in range(9)])
    channels = np.moveaxis(detector(side, 3, 2), 2, 0)
    planar = np.moveaxis(colour, 2, 0)
    plain: dict[str, Any] = {"metadata": None}
    made = [
        Form(f"grey {name}", written(grey, compression=name, **plain), (0,), (span(grey),))
        for name in (None, "lzw", "zlib", "zstd")
    ]
    rgb: dict[str, Any] = {"photometric": "rgb", **plain}
    made.append(Form("colour", written(colour, **rgb), (0,), (span(colour),)))
    made.append(
        Form("colour zlib, tiles", written(colour, compression="zlib", tile=(256, 256), **rgb), (0,), (span(colour),))
    )
    made.append(
        Form(
            "planar lzw",
            written(planar, compression="lzw", planarconfig="separate", **rgb),
            (0,),
            (span(colour),),
            True,
        )
    )
    axes = {"photometric": "minisblack", "metadata": {"axes": "ZYX"}}
    made.append(
        Form("OME, middle of 9 slices", written(stack, ome=True, compression="zlib", **axes), (4,), (span(stack[4]),))
    )
    axes = {"photometric": "minisblack", "metadata": {"axes": "CYX"}}
    made.append(Form("OME, 3 channels", written(channels, ome=True, **axes), (0, 1, 2), tuple(map(span, channels))))
    return made


def span(values: Values) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def theirs(form: Form) -> Values:
    with tifffile.TiffFile(io.BytesIO(form.data)) as file:
        planes = [file.pages[n].asarray(maxworkers=1) for n in form.pages]
    shown = [mapped(plane, *window) for plane, window in zip(planes, form.windows, strict=True)]
    if len(shown) > 1:
        total = np.zeros((*shown[0].shape, 3), np.uint16)
        for plane, colour in zip(shown, COLOURS, strict=True):
            total += (plane[:, :, None] * (np.array(colour, np.uint16) // 255)).astype(np.uint16)
        return np.minimum(total, 255).astype(np.uint8)
    if form.is_planar:
        return np.ascontiguousarray(np.moveaxis(shown[0], 0, 2))
    return shown[0] if shown[0].ndim == 3 else np.repeat(shown[0][:, :, None], 3, axis=2)


def mapped(values: Values, low: float, high: float) -> Values:
    return np.rint(np.clip((values.astype(np.float32) - low) * (255 / (high - low)), 0, 255)).astype(np.uint8)


def ours(form: Form) -> Values:
    return read(form.data, ANY).pixels


def seconds(function: Callable[[Form], Values], form: Form) -> float:
    start = time.process_time()
    function(form)
    return time.process_time() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=2048, help="pixels of a side")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    all_forms = forms(options.side)
    fast, base = np.full(len(all_forms), np.inf), np.full(len(all_forms), np.inf)
    for _ in range(options.rounds):
        for k, form in enumerate(all_forms):
            base[k] = min(base[k], seconds(theirs, form))
            fast[k] = min(fast[k], seconds(ours, form))
    same = True
    for form, us, them in zip(all_forms, fast, base, strict=True):
        off = int(np.abs(ours(form).astype(int) - theirs(form)).max())
        same &= off <= 1
        print(
            f"  {form.name:24} {1000 * us:7.1f} ms, tifffile {1000 * them:7.1f} ms, {us / them:.2f}; pixels within "
            f"{off}"
        )
    ratio = fast.sum() / base.sum()
    print(
        f"tiff_vs_tifffile ratio={ratio:.2f}  bound {BOUND} (at most); {len(all_forms)} forms of {options.side} x "
        f"{options.side}; "
        f"tifffile {tifffile.__version__}, numpy {np.__version__}"
    )
    return 0 if same and ratio <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
