"""Whole slides by OpenSlide: a thumbnail, and tiles of tissue.

OpenSlide wants a file: bytes go into a temporary one, a slide of gigabytes is read where it lies. Tiles are squares of
`TILE` pixels at the level nearest to `MICRONS` a pixel; where there is more tissue than tiles are asked for, they are
spread evenly over it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from biomedclip_ray.images.depth import Decoded
from biomedclip_ray.images.errors import ImageError, Limits
from biomedclip_ray.images.reading import ONE, Reading, missing
from biomedclip_ray.images.resample import Pixels
from biomedclip_ray.schema import Reason

THUMBNAIL = 2048
"""Pixels of the thumbnail's longer side."""
TILE = 1024
"""Pixels of a tile's side."""
MICRONS = 0.5
"""Per pixel of a tile: what 20x objectives give."""
_TISSUE = 0.5
"""Least share of a tile that is tissue."""


def read(data: bytes, name: str, limits: Limits) -> Decoded:
    """The thumbnail. Raises ImageError."""
    return next(decoded for _, decoded in each(data, limits, ONE))


def each(data: bytes, limits: Limits, reading: Reading) -> Iterator[tuple[str, Decoded]]:
    """The thumbnail, and as many tiles of tissue as are asked for. Raises ImageError."""
    with tempfile.NamedTemporaryFile(suffix=".tif") as file:
        file.write(data)
        file.flush()
        yield from each_of(Path(file.name), limits, reading)


def each_of(path: Path, limits: Limits, reading: Reading) -> Iterator[tuple[str, Decoded]]:
    """`each` of a file, of which only the tiles that are shown are read. Raises ImageError."""
    with _opened(path) as slide:
        thumbnail = _on_white(slide.get_thumbnail((THUMBNAIL, THUMBNAIL)))
        limits.check(thumbnail.shape[1], thumbnail.shape[0])
        width, height = slide.dimensions
        yield "", Decoded(thumbnail, f"whole slide, thumbnail of {width} x {height}")
        places = _places(slide, thumbnail, reading.tiles)
        for number, (x, y, level) in enumerate(places, start=1):
            tile = _on_white(slide.read_region((x, y), level, (TILE, TILE)))
            yield f"tile-{number}", Decoded(tile, f"whole slide, tile {number} of {len(places)} at {x}, {y}")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        import openslide
    except ImportError as error:
        raise missing("a whole slide", error) from error
    try:
        with openslide.OpenSlide(str(path)) as slide:
            yield slide
    except openslide.OpenSlideError as error:
        raise ImageError(Reason.BROKEN_IMAGE, f"OpenSlide: {error}".replace(str(path), "the file")) from error


def _on_white(image: Any) -> Pixels:
    """What was not scanned is transparent black in OpenSlide."""
    rgba = np.asarray(image.convert("RGBA")).astype(np.float32)
    share = rgba[:, :, 3:] / 255
    return np.rint(255 + (rgba[:, :, :3] - 255) * share).astype(np.uint8)


def _places(slide: Any, thumbnail: Pixels, count: int) -> list[tuple[int, int, int]]:
    """(x, y, level) of tiles: corners at full size, of those cells of a grid in which most is tissue."""
    if count <= 0:
        return []
    level = _level(slide)
    side = TILE * slide.level_downsamples[level]
    width, height = slide.dimensions
    tissue = _tissue(thumbnail)
    scale = thumbnail.shape[1] / width
    found = []
    for row in range(max(1, int(height // side))):
        for column in range(max(1, int(width // side))):
            x, y = int(column * side), int(row * side)
            part = tissue[int(y * scale) : int((y + side) * scale) + 1, int(x * scale) : int((x + side) * scale) + 1]
            if part.size and part.mean() >= _TISSUE:
                found.append((x, y, level))
    if len(found) <= count:
        return found
    return [found[int((n + 0.5) * len(found) / count)] for n in range(count)]


def _level(slide: Any) -> int:
    try:
        microns = float(slide.properties["openslide.mpp-x"])
    except (KeyError, ValueError):
        microns = MICRONS
    wanted = MICRONS / microns
    return int(np.argmin([abs(np.log(factor / wanted)) for factor in slide.level_downsamples]))


def _tissue(thumbnail: Pixels) -> np.ndarray:
    """Where the thumbnail is stained: saturation above Otsu's threshold, and not black."""
    hsv = cv2.cvtColor(thumbnail, cv2.COLOR_RGB2HSV)
    saturation = cv2.medianBlur(np.ascontiguousarray(hsv[:, :, 1]), 5)
    threshold, _ = cv2.threshold(saturation, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return (saturation > max(threshold, 12)) & (hsv[:, :, 2] > 30)
