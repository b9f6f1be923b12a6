"""What is in a publisher's file: its format by its bytes, and its pixels by Pillow, upright and on white. Pure.

`image.prepare` asks here for every picture that the fast path does not know for sure. Metadata is never read further than the
orientation: a huge profile or text chunk costs nothing and loses nothing.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from biomedclip_ray.images.resample import Pixels
from biomedclip_ray.schema import Reason

ORIENTATION = 0x0112
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_NEEDED = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"})
_TIFF_PHOTOMETRIC = 262
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
class Limits:
    """What a picture's header may claim; see `image.prepare`."""

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


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn as EXIF says (1 upright, 3 upside down, 6 and 8 on a side; even and 5, 7 mirrored too)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def pillow_pixels(data: bytes, original_format: str, limits: Limits) -> Pixels:
    """Decode with Pillow to upright RGB, alpha on white. Raises ImageError."""
    try:
        if original_format == "PNG":
            data = _png_without_metadata(data)
        with Image.open(io.BytesIO(data), formats=[original_format]) as image:
            limits.check(*image.size)
            if _is_deep_colour(image, data):
                return _deep_colour_pixels(data, image.getexif().get(ORIENTATION, 1))
            image.load()
            limits.check(*image.size)
            return rgb_pixels(image)
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
    return upright(np.rint(colour).astype(np.uint8), orientation if orientation in range(1, 9) else 1)


def rgb_pixels(image: Image.Image) -> Pixels:
    """(h, w, 3) uint8, upright: alpha on white, numbers of more than 8 bits by their range."""
    # Pillow inverts such a picture of 8 bits, and leaves one of 16 as it is: film that was scanned
    white_is_0 = image.mode.startswith("I") and getattr(image, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == 0
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        seen = values != image.info.get("transparency")  # a 16-bit PNG may name one grey that is none
        grey = np.full(values.shape, 255, np.uint8)
        scaled = _by_range(values[seen])
        grey[seen] = 255 - scaled if white_is_0 else scaled
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
