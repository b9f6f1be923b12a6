"""JPEG by libjpeg-turbo, straight to the stored size: nearly all of PubMed Central, at three times Pillow's speed.

Whatever this path does not know for sure (CMYK, odd markers) is left to Pillow. Metadata is never read further than the
orientation: a huge profile or text chunk costs nothing and loses nothing.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

import simplejpeg
from PIL import Image

from biomedclip_ray.images.errors import ImageError
from biomedclip_ray.images.resample import Pixels, shrink, stored_size, upright
from biomedclip_ray.schema import Reason

# From this ratio on the decoder halves (its 4x4 inverse DCT): the worst figure of the corpus stays 36 dB near the full
# decode's pixels, and a large image costs a third less. Quarter scale, or half at 2, would blur line art (20 to 30 dB).
_HALF_DECODE_FROM = 3.2
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation\s*(?:=\s*"|>)\s*([1-8])')
ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the first scan."""

    width: int
    height: int
    components: int
    bits: int
    process: int
    """The frame marker's second byte: 0xC0 baseline, 0xC2 progressive, 0xC3 lossless, 0xF7 JPEG-LS."""
    orientation: int

    @property
    def is_eight_bits(self) -> bool:
        """Whether it is a JPEG as cameras and publishers write it; hospitals' have 12 bits, or are without loss."""
        return self.bits == 8 and self.process not in (0xC3, 0xC7, 0xCB, 0xCF, 0xF7)


def shrunken(data: bytes, head: Header, short_side: int | None) -> tuple[Pixels, int, int] | None:
    """(shrunken pixels, upright width, upright height), or None where Pillow has to decide."""
    if not head.is_eight_bits:
        return None
    width, height, orientation = head.width, head.height, head.orientation
    plain = head.components in (1, 3)
    small = stored_size(width, height, short_side)
    halve = min(width / small[0], height / small[1]) >= _HALF_DECODE_FROM
    half = {"min_factor": 2.0, "min_width": (width + 1) // 2, "min_height": (height + 1) // 2} if halve else {}
    try:
        pixels = simplejpeg.decode_jpeg(data, colorspace="RGB" if plain else "CMYK", **half)
    except ValueError as error:
        message = str(error)
        if (
            "remature end" in message or "found marker 0xd9 instead of RST" in message
        ):  # of the file, or of its data before an end marker that somebody added
            raise ImageError(Reason.TRUNCATED_IMAGE, message) from error
        if "before marker 0xd9" in message and _lacks_restarts(data, head):
            raise ImageError(Reason.TRUNCATED_IMAGE, f"{message}, and restart markers are missing") from error
        if "Huffman" in message or "instead of RST" in message:
            raise ImageError(Reason.BROKEN_IMAGE, message) from error
        return None  # extra bytes between markers and the like
    if not plain:
        return None  # CMYK and YCCK: whole, and inverted or not by the Adobe marker, as Pillow sees it
    pixels = upright(shrink(pixels, *small, source=(width, height) if halve else None), orientation)
    return (pixels, height, width) if orientation >= 5 else (pixels, width, height)


def _lacks_restarts(data: bytes, head: Header) -> bool:
    """Whether the last scan has fewer restart markers than it says: a cut file that was filled up before its end."""
    scan = data.rfind(b"\xff\xda")
    interval = data.rfind(b"\xff\xdd\0\4", 0, scan)
    frame = data.find(bytes((0xFF, head.process)))
    if min(scan, interval, frame) < 0:
        return False
    every = int.from_bytes(data[interval + 4 : interval + 6], "big")
    sampling = {
        data[at]: (data[at + 1] >> 4, data[at + 1] & 15)
        for at in range(frame + 10, frame + 10 + 3 * head.components, 3)
    }
    in_scan = [sampling.get(data[scan + 5 + 2 * n], (1, 1)) for n in range(data[scan + 4])]
    widest, highest = (max(factor[k] for factor in sampling.values()) for k in (0, 1))
    across, down = in_scan[0] if len(in_scan) == 1 else (1, 1)  # a scan of one component counts its own blocks
    blocks = -(-head.width * across // (8 * widest)) * -(-head.height * down // (8 * highest))
    return every > 0 and len(re.findall(rb"\xff[\xd0-\xd7]", data[scan:])) < -(-blocks // every) - 1


def header(data: bytes) -> Header:
    """The segments before the first scan. Raises ImageError.

    The orientation is that of the first EXIF block, and where it says none that of XMP: Pillow's rule.
    """
    frame: tuple[int, int, int, int, int] | None = None
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
        is_frame = 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)
        if (is_frame or marker == 0xF7) and len(segment) >= 6:
            bits, height, width, components = struct.unpack_from(">BHHB", segment)
            frame = width, height, components, bits, marker
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
    return Header(*frame, orientation if orientation in range(1, 9) else 1)


def _exif_orientation(segment: bytes) -> int | None:
    """None where there is none, or the block cannot be read: bad metadata is no reason to lose a image."""
    exif = Image.Exif()
    try:
        exif.load(segment)
        value: int | None = exif.get(ORIENTATION)
    except (SyntaxError, ValueError, struct.error, TypeError, KeyError, OSError):
        return None
    return value
