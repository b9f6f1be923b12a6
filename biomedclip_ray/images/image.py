"""Any publisher's picture file -> one upright, checked, shrunken RGB JPEG with its hashes.

The format is what the bytes say; size, shape and decompression bombs are judged from the header before anything is decoded.
JPEGs (nearly all of PubMed Central) take libjpeg-turbo and `resample.shrink`, about three times as fast as Pillow's decode and
bicubic resize; whatever that path does not know for sure (CMYK, odd markers) and all other formats go through Pillow. Metadata
is never read further than the orientation: a huge profile or text chunk costs nothing.
"""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from biomedclip_ray.images.formats import ORIENTATION, ImageError, Limits, image_format, pillow_pixels, upright
from biomedclip_ray.images.resample import Pixels, shrink
from biomedclip_ray.schema import Reason

# From this ratio on the decoder halves (its 4x4 inverse DCT): the worst figure of the corpus stays 36 dB near the full decode's
# pixels, and a large picture costs a third less. Quarter scale, or half at 2, would blur line art (20 to 30 dB).
_HALF_DECODE_FROM = 3.2
# A picture whose channels differ by no more than JPEG's rounding holds nothing.
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation\s*(?:=\s*"|>)\s*([1-8])')
_BLANK_RANGE = 4


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as it is stored."""

    jpeg: bytes
    """Baseline RGB JPEG, 4:2:0, upright, without metadata."""
    width: int
    """Pixels of the stored picture."""
    height: int
    original_width: int
    """Pixels of the original, upright."""
    original_height: int
    original_format: str
    """JPEG, PNG, GIF, TIFF or WEBP."""
    sha256: str
    """Hex digest of the original file's bytes."""
    phash: int
    """64-bit perceptual hash, see `perceptual_hash`."""


def prepare(
    data: bytes, *, short_side: int, quality: int, min_side: int, max_pixels: int, max_aspect: float
) -> Picture:
    """Decode, check, shrink and encode one file.

    Args:
        data: JPEG, PNG, GIF, TIFF or WebP; of several pages or frames the first counts.
        short_side: pixels of the stored picture's short side; a smaller picture keeps its size.
        quality: JPEG quality, 1 to 100.
        min_side: pixels; shorter sides are refused.
        max_pixels: width x height that the header may claim.
        max_aspect: long side / short side that the header may claim.

    Raises:
        ImageError: with the ledger's reason. Nothing else is raised for bad bytes.
    """
    limits = Limits(max(min_side, 1), max_pixels, max_aspect)
    pixels, width, height, original_format = read_pixels(data, limits, short_side)
    jpeg = _checked_jpeg(pixels, quality)
    digest = hashlib.sha256(data).hexdigest()
    phash = perceptual_hash(pixels)
    return Picture(jpeg, pixels.shape[1], pixels.shape[0], width, height, original_format, digest, phash)


def prepare_crop(
    whole: Pixels,
    box: tuple[float, float, float, float],
    original_format: str,
    limits: Limits,
    short_side: int,
    quality: int,
) -> Picture:
    """Check, shrink and encode a part of a picture: `prepare` for a panel.

    Args:
        whole: (h, w, 3) uint8 RGB, from `read_pixels`.
        box: (x0, y0, x1, y1) in fractions of the picture's sides.

    Returns:
        a Picture whose originals' size is the part's, and whose sha256 is that of its own JPEG: the file holds several.

    Raises:
        ImageError: the part is too small, too narrow or blank.
    """
    rows, columns = whole.shape[:2]
    part = whole[round(box[1] * rows) : round(box[3] * rows), round(box[0] * columns) : round(box[2] * columns)]
    height, width = part.shape[:2]
    limits.check(width, height)
    pixels = shrink(np.ascontiguousarray(part), *_stored_size(width, height, short_side))
    jpeg = _checked_jpeg(pixels, quality)
    digest = hashlib.sha256(jpeg).hexdigest()
    return Picture(
        jpeg, pixels.shape[1], pixels.shape[0], width, height, original_format, digest, perceptual_hash(pixels)
    )


def read_pixels(data: bytes, limits: Limits, short_side: int | None = None) -> tuple[Pixels, int, int, str]:
    """(upright RGB pixels, upright width and height of the original, format); shrunken to a short side if one is given.

    Raises:
        ImageError: unknown format, beyond the limits, cut or broken.
    """
    # One task has one core; OpenCV's own threads would take the neighbours'. The setting is one per process.
    if cv2.getNumThreads() != 1:
        cv2.setNumThreads(1)
    original_format = image_format(data)
    fast = _jpeg_shrunken(data, short_side, limits) if original_format == "JPEG" else None
    if fast is not None:
        return *fast, original_format
    whole = pillow_pixels(data, original_format, limits)
    height, width = whole.shape[:2]
    return shrink(whole, *_stored_size(width, height, short_side)), width, height, original_format


def decode(jpeg: bytes) -> Pixels:
    """A stored JPEG as (h, w, 3) uint8 RGB. Raises ImageError for bytes that are no whole JPEG."""
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(jpeg, colorspace="RGB")
    except ValueError as error:
        raise ImageError(Reason.BROKEN_IMAGE, str(error)) from error
    return pixels


def perceptual_hash(pixels: Pixels) -> int:
    """64 bits of a picture's coarse structure; near-equal pictures differ in few bits.

    The signs, against their median, of the 8 x 8 lowest DCT coefficients of the 32 x 32 luma (pHash, Zauner 2010), row by row,
    the first in the highest bit. Plain float64 products, so that every machine gives the same bits.
    """
    luma = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    while min(luma.shape) >= 128:  # 2x2 means are vectorised: 0.1 ms instead of 0.5
        rows, columns = luma.shape[0] // 2, luma.shape[1] // 2
        luma = cv2.resize(luma[: 2 * rows, : 2 * columns], (columns, rows), interpolation=cv2.INTER_AREA)
    luma = cv2.resize(luma, (32, 32), interpolation=cv2.INTER_AREA)
    basis = _dct_basis()
    low = (basis @ luma @ basis.T).ravel()
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def _checked_jpeg(pixels: Pixels, quality: int) -> bytes:
    """Encode; raises ImageError (BLANK) for one colour."""
    # A coarse look settles all but blank pictures, which then get a full one.
    if np.ptp(pixels[::8, ::8, 1]) <= _BLANK_RANGE and _is_flat(pixels):
        raise ImageError(Reason.BLANK, f"{pixels.shape[1]} x {pixels.shape[0]} pixels of one colour")
    jpeg: bytes = simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="420")
    return jpeg


def _is_flat(pixels: Pixels) -> bool:
    return int((pixels.max(axis=(0, 1)).astype(np.int16) - pixels.min(axis=(0, 1))).max()) <= _BLANK_RANGE


def _stored_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    ratio = 1.0 if short_side is None else min(1.0, short_side / min(width, height))
    return max(1, round(width * ratio)), max(1, round(height * ratio))


def _jpeg_shrunken(data: bytes, short_side: int | None, limits: Limits) -> tuple[Pixels, int, int] | None:
    """(shrunken pixels, upright width, upright height), or None where Pillow has to decide."""
    width, height, components, orientation = _jpeg_header(data)
    limits.check(width, height)
    plain = components in (1, 3)
    small = _stored_size(width, height, short_side)
    halve = min(width / small[0], height / small[1]) >= _HALF_DECODE_FROM
    half = {"min_factor": 2.0, "min_width": (width + 1) // 2, "min_height": (height + 1) // 2} if halve else {}
    try:
        pixels = simplejpeg.decode_jpeg(data, colorspace="RGB" if plain else "CMYK", **half)
    except ValueError as error:
        message = str(error)
        if "remature end" in message:  # of the file, or of its data before an end marker that somebody added
            raise ImageError(Reason.TRUNCATED_IMAGE, message) from error
        if "Huffman" in message:
            raise ImageError(Reason.BROKEN_IMAGE, message) from error
        return None  # extra bytes between markers and the like
    if not plain:
        return None  # CMYK and YCCK: whole, and inverted or not by the Adobe marker, as Pillow sees it
    pixels = upright(shrink(pixels, *small, source=(width, height) if halve else None), orientation)
    return (pixels, height, width) if orientation >= 5 else (pixels, width, height)


def _jpeg_header(data: bytes) -> tuple[int, int, int, int]:
    """(width, height, components, orientation) from the segments before the first scan. Raises ImageError.

    The orientation is that of the first EXIF block, and where it says none that of XMP: Pillow's rule.
    """
    frame: tuple[int, int, int] | None = None
    exif: bytes | None = None
    in_xmp: re.Match[bytes] | None = None
    position, end = 2, len(data)
    while True:
        position = data.find(b"\xff", position)
        while position >= 0 and data[position : position + 1] == b"\xff":
            position += 1
        if position < 0 or position + 3 > end:
            raise ImageError(Reason.TRUNCATED_IMAGE, "the JPEG ends in its header")
        marker = data[position]
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:
            position += 1
            continue
        if marker in (0xDA, 0xD9):  # the scan, or the end
            break
        length = int.from_bytes(data[position + 1 : position + 3], "big")
        segment = data[position + 3 : position + 1 + length]
        if length < 2 or len(segment) < length - 2:
            raise ImageError(Reason.TRUNCATED_IMAGE, "the JPEG ends in its header")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(segment) >= 6:
            height, width = struct.unpack_from(">HH", segment, 1)
            frame = width, height, segment[5]
        elif marker == 0xE1 and segment.startswith(b"Exif\0\0"):
            exif = segment if exif is None else exif
        elif marker == 0xE1 and segment.startswith(b"http://ns.adobe.com/xap/"):
            in_xmp = in_xmp or _XMP_ORIENTATION.search(segment)
        position += 1 + length
    if frame is None or 0 in frame:
        raise ImageError(Reason.BROKEN_IMAGE, "the JPEG has no frame header with a size")
    orientation = _exif_orientation(exif) if exif is not None else None
    if orientation is None:
        orientation = int(in_xmp[1]) if in_xmp else 1
    return (*frame, orientation if orientation in range(1, 9) else 1)


def _exif_orientation(segment: bytes) -> int | None:
    """None where there is none, or the block cannot be read: bad metadata is no reason to lose a picture."""
    exif = Image.Exif()
    try:
        exif.load(segment)
        value: int | None = exif.get(ORIENTATION)
    except (SyntaxError, ValueError, struct.error, TypeError, KeyError, OSError):
        return None
    return value


@lru_cache(maxsize=1)
def _dct_basis() -> NDArray[np.float64]:
    """(8, 32): the eight lowest vectors of the orthonormal DCT-II."""
    rows, columns = np.arange(8)[:, None], np.arange(32)[None, :]
    basis = np.cos(np.pi * (2 * columns + 1) * rows / 64) * np.sqrt(2 / 32)
    basis[0] /= np.sqrt(2)
    return basis
