"""PNG, GIF, WebP, BMP, and what the faster or deeper readers leave over, by Pillow: upright, on white. Pure."""

from __future__ import annotations

import io
import struct

import imagecodecs
import numpy as np
from PIL import Image, ImageOps

from biomedclip_ray.images.depth import Decoded, Values, rgb
from biomedclip_ray.images.errors import ImageError, Limits
from biomedclip_ray.images.jpeg import ORIENTATION
from biomedclip_ray.images.resample import Pixels, upright
from biomedclip_ray.schema import Reason

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_NEEDED = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"})
_TIFF_PHOTOMETRIC = 262
_PILLOWS_NAMES = {"JPEG 2000": "JPEG2000"}


def read(data: bytes, name: str, limits: Limits | None, page: int = 0) -> Decoded:
    """Decode an image of the format `name`.

    Raises:
        ImageError: beyond the limits, cut, broken, or in colours that Pillow cannot turn into RGB.
    """
    try:
        if name == "PNG":
            data = _png_without_metadata(data)
        with Image.open(io.BytesIO(data), formats=[_PILLOWS_NAMES.get(name, name)]) as image:
            if limits is not None:
                limits.check(*image.size)
            if is_deep(data, name):
                return _deep_png(data)
            if page:
                image.seek(page)
            image.load()
            if limits is not None:
                limits.check(*image.size)
            if image.mode in ("LAB", "HSV"):
                raise ImageError(Reason.NOT_SUPPORTED, f"{name} in {image.mode} colours: save it as RGB")
            return Decoded(rgb_pixels(image))
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(Reason.TOO_MANY_PIXELS, str(error)) from error
    except Exception as error:  # Pillow's plug-ins raise a dozen types on broken bytes; each becomes one ledger row
        detail = f"{type(error).__name__}: {error}".partition(" <_io.BytesIO")[0]
        said_so = any(words in detail.lower() for words in ("truncated", "not enough image data"))
        cut = said_so or isinstance(error, EOFError) or _ends_early(data, name)
        raise ImageError(Reason.TRUNCATED_IMAGE if cut else Reason.BROKEN_IMAGE, detail) from error


def is_deep(data: bytes, name: str) -> bool:
    """Whether it is a PNG of 16 bits a channel."""
    return name == "PNG" and data[24:25] == b"\x10"


def size(data: bytes, name: str) -> tuple[int, int]:
    """(width, height) by the header. Raises ImageError."""
    if name == "PNG":  # Pillow reads text chunks too before it tells the size, and refuses the image for a long one
        if len(data) < 24 or data[12:16] != b"IHDR":
            raise ImageError(Reason.BROKEN_IMAGE, "the PNG has no header")
        width, height = struct.unpack_from(">II", data, 16)
        return width, height
    try:
        with Image.open(io.BytesIO(data), formats=[_PILLOWS_NAMES.get(name, name)]) as image:
            return image.size
    except Image.DecompressionBombError as error:
        raise ImageError(Reason.TOO_MANY_PIXELS, str(error)) from error
    except Exception as error:  # as above
        raise ImageError(
            Reason.BROKEN_IMAGE, f"{type(error).__name__}: {error}".partition(" <_io.BytesIO")[0]
        ) from error


def rgb_pixels(image: Image.Image) -> Pixels:
    """(h, w, 3) uint8, upright: alpha on white, numbers of more than 8 bits by their range."""
    # Pillow inverts such an image of 8 bits, and leaves one of 16 as it is: film that was scanned
    white_is_0 = image.mode.startswith("I") and getattr(image, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == 0
    is_bmp = image.format == "BMP"
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        named = image.info.get("transparency")  # a 16-bit PNG may name one grey that is none
        alpha = None if named is None else (values != named).astype(np.uint8) * 255
        return rgb(values, alpha=alpha, white_is_0=white_is_0).pixels
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if is_bmp and not np.asarray(image)[:, :, 3].any():
            return np.array(image.convert("RGB"))  # the fourth byte was never meant: ultrasound machines write 0
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    return np.array(image.convert("RGB"))


def _deep_png(data: bytes) -> Decoded:
    """16 bits a channel, of which Pillow would keep the upper 8 whatever their range."""
    kind = data[25]  # bit 1: colour, bit 2: alpha
    values: Values = imagecodecs.png_decode(data)
    if values.dtype != np.uint16:
        raise ImageError(Reason.BROKEN_IMAGE, f"the PNG says 16 bits and holds {values.dtype}")
    alpha = None
    colours = 3 if kind & 2 else 1
    if kind & 4:
        alpha = values[:, :, colours]
    elif named := _png_chunk(data, b"tRNS"):
        none = np.frombuffer(named[: 2 * colours], ">u2").astype(np.uint16)
        flat = values.reshape(*values.shape[:2], -1)[:, :, :colours]
        alpha = np.where((flat == none).all(axis=2), 0, 65535).astype(np.uint16)
    shown = rgb(values[:, :, :3] if colours == 3 else values.reshape(*values.shape[:2], -1)[:, :, 0], alpha=alpha)
    exif = Image.Exif()
    if block := _png_chunk(data, b"eXIf"):
        exif.load(block)
    return Decoded(upright(shown.pixels, exif.get(ORIENTATION, 1)), shown.note)


def _png_chunk(data: bytes, name: bytes) -> bytes | None:
    position = len(_PNG_SIGNATURE)
    while position + 8 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        if data[position + 4 : position + 8] == name:
            return data[position + 8 : position + 8 + length]
        position += length + 12
    return None


def _ends_early(data: bytes, name: str) -> bool:
    """Whether a file that could not be read is shorter than it says it is."""
    if name == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if name == "BMP":
        return int.from_bytes(data[2:6], "little") > len(data)
    if name == "PNG":
        return b"IEND" not in data[-64:]
    return len(data) < 48  # shorter than the header and one pixel


def _png_without_metadata(data: bytes) -> bytes:
    """The PNG without text, profile and other chunks, for whose size Pillow would refuse the image."""
    kept, position = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while position + 8 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big") + 12
        if data[position + 4 : position + 8] in _PNG_NEEDED:
            kept.append(data[position : position + size])
        position += size
    return b"".join(kept)
