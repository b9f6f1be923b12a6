"""Any publisher's picture file -> one upright, checked, shrunken RGB JPEG with its hashes.

The format is what the bytes say; size, shape and decompression bombs are judged from the header before anything is decoded.
JPEGs (nearly all of PubMed Central) take libjpeg-turbo and `resample.shrink`, about three times as fast as Pillow's decode and
bicubic resize; whatever that path does not know for sure (CMYK, odd markers) and all other formats go through Pillow. Metadata
is never read further than the orientation: a huge profile or text chunk costs nothing.
"""

from __future__ import annotations

import hashlib
import io
import struct
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

from biomedclip_ray.figures.resample import Pixels, shrink
from biomedclip_ray.schema import Reason

# From this ratio on the decoder halves (its 4x4 inverse DCT): the worst figure of the corpus stays 36 dB near the full decode's
# pixels, and a large picture costs a third less. Quarter scale, or half at 2, would blur line art (20 to 30 dB).
_HALF_DECODE_FROM = 3.2
# A picture whose channels differ by no more than JPEG's rounding holds nothing.
_BLANK_RANGE = 4
_ORIENTATION = 0x0112
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_NEEDED = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"})
_TIFF_BITS_PER_SAMPLE = 258


class ImageError(ValueError):
    """A picture that is not kept: `reason` for the ledger, `detail` for the reader."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason.sentence}: {detail}" if detail else reason.sentence)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[ImageError], tuple[Reason, str]]:
        return ImageError, (self.reason, self.detail)


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


@dataclass(frozen=True, slots=True)
class _Limits:
    min_side: int
    max_pixels: int
    max_aspect: float

    def check(self, width: int, height: int) -> None:
        """Judge what a header claims. Raises ImageError."""
        claim = f"{width} x {height} pixels"
        if width * height > self.max_pixels:
            raise ImageError(Reason.TOO_MANY_PIXELS, claim)
        if min(width, height) < self.min_side:
            raise ImageError(Reason.TOO_SMALL, claim)
        if max(width, height) > self.max_aspect * min(width, height):
            raise ImageError(Reason.BAD_ASPECT, claim)


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
    # One task has one core; OpenCV's own threads would take the neighbours'. The setting is one per process.
    if cv2.getNumThreads() != 1:
        cv2.setNumThreads(1)
    limits = _Limits(max(min_side, 1), max_pixels, max_aspect)
    original_format = image_format(data)
    fast = _jpeg_shrunken(data, short_side, limits) if original_format == "JPEG" else None
    if fast is not None:
        stored, original_width, original_height = fast
    else:
        whole = _pillow_pixels(data, original_format, limits)
        original_height, original_width = whole.shape[:2]
        stored = shrink(whole, *_stored_size(original_width, original_height, short_side))
    # A coarse look settles all but blank pictures, which then get a full one.
    if np.ptp(stored[::8, ::8, 1]) <= _BLANK_RANGE and _is_flat(stored):
        raise ImageError(Reason.BLANK, f"{original_width} x {original_height} pixels of one colour")
    return Picture(
        jpeg=simplejpeg.encode_jpeg(stored, quality=quality, colorspace="RGB", colorsubsampling="420"),
        width=stored.shape[1],
        height=stored.shape[0],
        original_width=original_width,
        original_height=original_height,
        original_format=original_format,
        sha256=hashlib.sha256(data).hexdigest(),
        phash=perceptual_hash(stored),
    )


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


def image_format(data: bytes) -> str:
    """JPEG, PNG, GIF, TIFF or WEBP, by the first bytes. Raises ImageError (UNKNOWN_FORMAT)."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(_PNG_SIGNATURE):
        return "PNG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    raise ImageError(Reason.UNKNOWN_FORMAT, f"{len(data)} bytes that begin with {data[:8].hex(' ') or 'nothing'}")


def _is_flat(pixels: Pixels) -> bool:
    return int((pixels.max(axis=(0, 1)).astype(np.int16) - pixels.min(axis=(0, 1))).max()) <= _BLANK_RANGE


def _stored_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    ratio = min(1.0, short_side / min(width, height))
    return max(1, round(width * ratio)), max(1, round(height * ratio))


def _jpeg_shrunken(data: bytes, short_side: int, limits: _Limits) -> tuple[Pixels, int, int] | None:
    """(shrunken pixels, upright width, upright height), or None where Pillow has to decide."""
    width, height, components, orientation = _jpeg_header(data)
    limits.check(width, height)
    if components not in (1, 3):
        return None  # CMYK and YCCK: inverted or not by the Adobe marker, as Pillow sees it
    small = _stored_size(width, height, short_side)
    halve = min(width / small[0], height / small[1]) >= _HALF_DECODE_FROM
    half = {"min_factor": 2.0, "min_width": (width + 1) // 2, "min_height": (height + 1) // 2} if halve else {}
    try:
        pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", **half)
    except ValueError as error:
        message = str(error)
        if "remature end" in message:  # of the file, or of its data before an end marker that somebody added
            raise ImageError(Reason.TRUNCATED_IMAGE, message) from error
        if "Huffman" in message:
            raise ImageError(Reason.BROKEN_IMAGE, message) from error
        return None  # extra bytes between markers and the like
    pixels = _upright(shrink(pixels, *small, source=(width, height) if halve else None), orientation)
    return (pixels, height, width) if orientation >= 5 else (pixels, width, height)


def _jpeg_header(data: bytes) -> tuple[int, int, int, int]:
    """(width, height, components, EXIF orientation) from the segments before the first scan. Raises ImageError."""
    frame: tuple[int, int, int] | None = None
    orientation, position, end = 1, 2, len(data)
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
            orientation = _exif_orientation(segment)
        position += 1 + length
    if frame is None or 0 in frame:
        raise ImageError(Reason.BROKEN_IMAGE, "the JPEG has no frame header with a size")
    return (*frame, orientation)


def _exif_orientation(segment: bytes) -> int:
    """1 to 8; 1 where the block cannot be read: bad metadata is no reason to lose a picture."""
    exif = Image.Exif()
    try:
        exif.load(segment)
        value = exif.get(_ORIENTATION, 1)
    except (SyntaxError, ValueError, struct.error, TypeError, KeyError, OSError):
        return 1
    return value if value in range(1, 9) else 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn as EXIF says (1 upright, 3 upside down, 6 and 8 on a side; even and 5, 7 mirrored too)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _pillow_pixels(data: bytes, original_format: str, limits: _Limits) -> Pixels:
    """Decode with Pillow to upright RGB, alpha on white. Raises ImageError."""
    try:
        if original_format == "PNG":
            data = _png_without_metadata(data)
        with Image.open(io.BytesIO(data), formats=[original_format]) as image:
            limits.check(*image.size)
            if _is_deep_colour(image, data):
                return _deep_colour_pixels(data, image.getexif().get(_ORIENTATION, 1))
            image.load()
            limits.check(*image.size)
            return _rgb(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(Reason.TOO_MANY_PIXELS, str(error)) from error
    except Exception as error:  # Pillow's plug-ins raise a dozen types on broken bytes; each becomes one ledger row
        detail = f"{type(error).__name__}: {error}".partition(" <_io.BytesIO")[0]
        cut = "truncated" in str(error).lower() or isinstance(error, EOFError) or _ends_early(data, original_format)
        raise ImageError(Reason.TRUNCATED_IMAGE if cut else Reason.BROKEN_IMAGE, detail) from error


def _ends_early(data: bytes, original_format: str) -> bool:
    """Whether a file that could not be read is shorter than it says it is."""
    if original_format == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if original_format == "TIFF":
        return int.from_bytes(data[4:8], "little" if data.startswith(b"II") else "big") >= len(data)
    return len(data) < 48  # shorter than the header and one pixel


def _png_without_metadata(data: bytes) -> bytes:
    """The PNG without text, profile and other chunks, for whose size Pillow would refuse the picture."""
    kept, position = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while position + 8 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big") + 12
        if data[position + 4 : position + 8] in _PNG_NEEDED:
            kept.append(data[position : position + size])
        position += size
    return b"".join(kept)


def _is_deep_colour(image: Image.Image, data: bytes) -> bool:
    """Whether there are 16 bits in each of several channels, of which Pillow would keep the upper 8 whatever their range."""
    if image.format == "PNG":
        return data[24] == 16 and data[25] in (2, 4, 6)
    if image.format != "TIFF" or image.mode not in ("RGB", "RGBA", "RGBX"):
        return False
    bits = image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, 8)  # type: ignore[attr-defined]
    return 16 in (bits if isinstance(bits, tuple) else (bits,))


def _deep_colour_pixels(data: bytes, orientation: int) -> Pixels:
    """16-bit colour scaled by its range to (h, w, 3) uint8 RGB. Raises ImageError."""
    deep = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if deep is None or deep.ndim != 3 or deep.shape[2] not in (3, 4):
        raise ImageError(Reason.BROKEN_IMAGE, "16-bit colour that OpenCV cannot decode")
    colour = _by_range(deep[:, :, 2::-1]).astype(np.float32)
    if deep.shape[2] == 4:
        alpha = deep[:, :, 3:].astype(np.float32) / np.iinfo(deep.dtype).max
        colour = 255 + (colour - 255) * alpha
    return _upright(np.rint(colour).astype(np.uint8), orientation if orientation in range(1, 9) else 1)


def _rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I") or image.mode == "F":
        grey = _by_range(np.asarray(image))
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    return np.array(image.convert("RGB"))


def _by_range(values: NDArray[np.generic]) -> Pixels:
    """Numbers of any range, spread over 0..255; a detector of 12 bits in 16 would else be black."""
    numbers = values.astype(np.float32)
    finite = np.isfinite(numbers)
    if not finite.any():
        return np.zeros(values.shape, np.uint8)
    low, high = float(numbers[finite].min()), float(numbers[finite].max())
    scaled = (np.nan_to_num(numbers, nan=low, posinf=high, neginf=low) - low) * (255.0 / max(high - low, 1e-12))
    return np.rint(scaled).astype(np.uint8)


@lru_cache(maxsize=1)
def _dct_basis() -> NDArray[np.float64]:
    """(8, 32): the eight lowest vectors of the orthonormal DCT-II."""
    rows, columns = np.arange(8)[:, None], np.arange(32)[None, :]
    basis = np.cos(np.pi * (2 * columns + 1) * rows / 64) * np.sqrt(2 / 32)
    basis[0] /= np.sqrt(2)
    return basis
