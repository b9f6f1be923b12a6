"""Any publisher's, hospital's or laboratory's image file -> one upright, checked, shrunken RGB JPEG with its hashes.

The format is what the bytes say; size, shape and decompression bombs are judged from the header before anything is
decoded. JPEGs (nearly all of PubMed Central) take libjpeg-turbo and `resample.shrink`, about three times as fast as
Pillow's decode and bicubic resize; every other format has the decoder that its row in `formats.FORMATS` names.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from biomedclip_ray.config import Preprocess
from biomedclip_ray.images import codecs, jpeg, pillow, tiff
from biomedclip_ray.images.depth import Decoded
from biomedclip_ray.images.errors import ImageError, Limits
from biomedclip_ray.images.formats import SLIDE, Decoder, Format, identify, unpacked
from biomedclip_ray.images.medical import dicom, nifti, slides
from biomedclip_ray.images.phash import perceptual_hash
from biomedclip_ray.images.reading import ONE, Reading
from biomedclip_ray.images.resample import Pixels, shrink, stored_size
from biomedclip_ray.schema import Reason

# An image whose channels differ by no more than JPEG's rounding holds nothing.
_BLANK_RANGE = 4
# Twice what Pillow takes without a warning, and its own limit.
_AS_PILLOW_PIXELS = 357_913_940


@dataclass(frozen=True, slots=True)
class Read:
    """An image as its file shows it, before it is checked and stored."""

    pixels: Pixels
    """(h, w, 3) uint8 RGB, upright."""
    width: int
    """Pixels of the original, upright."""
    height: int
    format: str
    note: str = ""
    """How it was taken from its file where that is not plain: page, window, channels."""
    patient: str | None = None
    """Who is shown, where the file says it: for a keyed hash, never for a product."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image as it is stored."""

    jpeg: bytes
    """Baseline RGB JPEG, 4:2:0, upright, without metadata."""
    width: int
    """Pixels of the stored image."""
    height: int
    original_width: int
    """Pixels of the original, upright."""
    original_height: int
    original_format: str
    """A name of `formats.FORMATS`."""
    sha256: str
    """Hex digest of the original file's bytes."""
    phash: int
    """64-bit perceptual hash, see `images.phash`."""
    note: str = ""
    """See `Read`."""
    patient: str | None = None

    def columns(self) -> dict[str, Any]:
        """What a pair's row has from its image, by the columns of schema.PAIRS."""
        return {
            "image": self.jpeg,
            "width": self.width,
            "height": self.height,
            "original_width": self.original_width,
            "original_height": self.original_height,
            "original_format": self.original_format,
            "image_note": self.note or None,
            "sha256": self.sha256,
            "phash": self.phash,
        }


@dataclass(frozen=True)
class Recipe:
    """Which images are taken, and how they are stored.

    Attributes:
        short_side: pixels of the stored image's short side; a smaller image keeps its size.
        quality: JPEG quality, 1 to 100.
        min_side: pixels; shorter sides are refused.
        max_pixels: width x height that the header may claim.
        max_aspect: long side / short side that the header may claim.
    """

    short_side: int
    quality: int
    min_side: int
    max_pixels: int
    max_aspect: float

    @classmethod
    def of(cls, config: Preprocess) -> Recipe:
        return cls(config.short_side, config.quality, config.min_side, config.max_pixels, config.max_aspect)

    @property
    def limits(self) -> Limits:
        return Limits(max(self.min_side, 1), self.max_pixels, self.max_aspect)


def prepare(data: bytes, recipe: Recipe) -> Prepared:
    """Decode, check, shrink and encode one file of any format in `formats.FORMATS`.

    Raises:
        ImageError: with the ledger's reason. Nothing else is raised for bad bytes.
    """
    return _stored(read(data, recipe.limits, recipe.short_side), recipe.quality, hashlib.sha256(data).hexdigest())


def prepare_each(data: bytes, reading: Reading, recipe: Recipe) -> Iterator[Prepared | ImageError]:
    """`prepare` for every image that a file is asked for; of several each has a sha256 of its own."""
    digest = hashlib.sha256(data).hexdigest()
    yield from _prepared(each(data, recipe.limits, recipe.short_side, reading), digest, recipe.quality)


def prepare_file(path: Path, reading: Reading, recipe: Recipe) -> Iterator[Prepared | ImageError]:
    """`prepare_each` of a large file: a whole slide, which may have gigabytes, is not read whole."""
    if not tiff.is_slide(path):
        yield from prepare_each(path.read_bytes(), reading, recipe)
        return
    images = slides.each_of(path, recipe.limits, reading)
    shown = ((name, _shrunken(decoded, SLIDE, recipe.short_side)) for name, decoded in images)
    yield from _prepared(shown, file_sha256(path), recipe.quality)


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes, a piece at a time."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _prepared(images: Iterator[tuple[str, Read]], digest: str, quality: int) -> Iterator[Prepared | ImageError]:
    try:
        for name, image in images:
            own = hashlib.sha256(f"{digest} {name}".encode()).hexdigest() if name else digest
            try:
                yield _stored(image, quality, own)
            except ImageError as error:
                yield ImageError(error.reason, f"{name}: {error.detail}" if name else error.detail)
    except ImageError as error:
        yield error


def _stored(image: Read, quality: int, sha256: str) -> Prepared:
    encoded = _checked_jpeg(image.pixels, quality)
    height, width = image.pixels.shape[:2]
    phash = perceptual_hash(image.pixels)
    facts = (image.width, image.height, image.format, sha256, phash, image.note, image.patient)
    return Prepared(encoded, width, height, *facts)


def prepare_crop(whole: Read, box: tuple[float, float, float, float], recipe: Recipe) -> Prepared:
    """Check, shrink and encode a part of an image: `prepare` for a panel.

    Args:
        whole: from `read`, at its full size.
        box: (x0, y0, x1, y1) in fractions of the image's sides.

    Returns:
        an image whose original's size is the part's, and whose sha256 is that of its own JPEG: the file holds several.

    Raises:
        ImageError: the part is too small, too narrow or blank.
    """
    rows, columns = whole.pixels.shape[:2]
    part = whole.pixels[round(box[1] * rows) : round(box[3] * rows), round(box[0] * columns) : round(box[2] * columns)]
    height, width = part.shape[:2]
    recipe.limits.check(width, height)
    pixels = shrink(np.ascontiguousarray(part), *stored_size(width, height, recipe.short_side))
    encoded = _checked_jpeg(pixels, recipe.quality)
    digest = hashlib.sha256(encoded).hexdigest()
    phash = perceptual_hash(pixels)
    return Prepared(encoded, pixels.shape[1], pixels.shape[0], width, height, whole.format, digest, phash, whole.note)


def read(data: bytes, limits: Limits, short_side: int | None = None) -> Read:
    """The one image that a file stands for, shrunken to a short side if one is given.

    Raises:
        ImageError: unknown format, not supported, beyond the limits, cut or broken.
    """
    # One task has one core; OpenCV's own threads would take the neighbours'. The setting is one per process.
    if cv2.getNumThreads() != 1:
        cv2.setNumThreads(1)
    data = unpacked(data)
    row = identify(data)
    if row.decoder is Decoder.JPEG:
        head = jpeg.header(data)
        limits.check(head.width, head.height)
        fast = jpeg.shrunken(data, head, short_side)
        if fast is not None:
            return Read(*fast, row.name)
    row = _handed_over(row, data)
    return _shrunken(_DECODERS[row.decoder](data, row.name, limits), row, short_side)


def each(
    data: bytes, limits: Limits, short_side: int | None = None, reading: Reading = ONE
) -> Iterator[tuple[str, Read]]:
    """All the images that a file of a hospital or a pathology is asked for, each with its name within the file ("" for
    one).

    Raises:
        ImageError: as `read` does.
    """
    data = unpacked(data)
    row = _handed_over(identify(data), data)
    if row.decoder not in _EACH:
        yield "", read(data, limits, short_side)
        return
    for name, decoded in _EACH[row.decoder](data, limits, reading):
        yield name, _shrunken(decoded, row, short_side)


def _handed_over(row: Format, data: bytes) -> Format:
    """A whole slide is a TIFF by its first bytes."""
    return SLIDE if row.decoder is Decoder.TIFF and tiff.is_slide(data) else row


def _shrunken(decoded: Decoded, row: Format, short_side: int | None) -> Read:
    height, width = decoded.pixels.shape[:2]
    pixels = shrink(decoded.pixels, *stored_size(width, height, short_side))
    return Read(pixels, width, height, row.name, decoded.note, decoded.patient)


def as_pillow(data: bytes) -> Image.Image:
    """A file as a PIL image for a model's own transform: Pillow's where its pixels are those of `read`, else `read`'s.

    Raises:
        ImageError: as `read` does. PIL.UnidentifiedImageError: no image that Pillow knows either.
    """
    try:
        row = identify(data)
    except ImageError as error:
        if error.reason is Reason.UNKNOWN_FORMAT:
            return Image.open(io.BytesIO(data))
        raise
    plain = jpeg.header(data).is_eight_bits if row.decoder is Decoder.JPEG else row.decoder is Decoder.PILLOW
    if plain and not pillow.is_deep(data, row.name):
        return Image.open(io.BytesIO(data), formats=[row.name])
    return Image.fromarray(read(data, Limits(1, _AS_PILLOW_PIXELS, float("inf"))).pixels)


def size(data: bytes) -> tuple[int, int]:
    """(width, height) that a file's header claims, upright or not. Raises ImageError as `read` does."""
    data = unpacked(data)
    row = identify(data)
    if row.decoder is Decoder.JPEG:
        head = jpeg.header(data)
        return head.width, head.height
    return _SIZES[row.decoder](data, row.name)


def _uncommon_jpeg(data: bytes, name: str, limits: Limits) -> Decoded:
    """What the fast path does not know for sure."""
    is_eight_bits = jpeg.header(data).is_eight_bits
    return pillow.read(data, name, limits) if is_eight_bits else codecs.read(data, name, limits)


_DECODERS: dict[Decoder, Callable[[bytes, str, Limits], Decoded]] = {
    Decoder.JPEG: _uncommon_jpeg,
    Decoder.PILLOW: pillow.read,
    Decoder.TIFF: tiff.read,
    Decoder.CODEC: codecs.read,
    Decoder.DICOM: dicom.read,
    Decoder.NIFTI: nifti.read,
    Decoder.SLIDE: slides.read,
}
_EACH: dict[Decoder, Callable[[bytes, Limits, Reading], Iterator[tuple[str, Decoded]]]] = {
    Decoder.DICOM: dicom.each,
    Decoder.SLIDE: slides.each,
}
_SIZES: dict[Decoder, Callable[[bytes, str], tuple[int, int]]] = {
    Decoder.PILLOW: pillow.size,
    Decoder.TIFF: tiff.size,
    Decoder.CODEC: codecs.size,
    Decoder.DICOM: dicom.size,
    Decoder.NIFTI: nifti.size,
}


def decode(encoded: bytes) -> Pixels:
    """A stored JPEG as (h, w, 3) uint8 RGB. Raises ImageError for bytes that are no whole JPEG."""
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(encoded, colorspace="RGB")
    except ValueError as error:
        raise ImageError(Reason.BROKEN_IMAGE, str(error)) from error
    return pixels


def _checked_jpeg(pixels: Pixels, quality: int) -> bytes:
    """Encode; raises ImageError (BLANK) for one colour."""
    # A coarse look settles all but blank images, which then get a full one.
    if np.ptp(pixels[::8, ::8, 1]) <= _BLANK_RANGE and _is_flat(pixels):
        raise ImageError(Reason.BLANK, f"{pixels.shape[1]} x {pixels.shape[0]} pixels of one colour")
    encoded: bytes = simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="420")
    return encoded


def _is_flat(pixels: Pixels) -> bool:
    return int((pixels.max(axis=(0, 1)).astype(np.int16) - pixels.min(axis=(0, 1))).max()) <= _BLANK_RANGE
