"""JPEG 2000, JPEG XL, JPEG-LS, and JPEGs of 12 bits or without loss, by imagecodecs (Pillow has none or keeps 8 bits).
Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import imagecodecs
import numpy as np

from biomedclip_ray.images import jpeg, pillow
from biomedclip_ray.images.depth import Decoded, Values, rgb
from biomedclip_ray.images.errors import ImageError, Limits
from biomedclip_ray.images.resample import upright
from biomedclip_ray.schema import Reason

_DECODERS = {
    "JPEG": imagecodecs.jpeg_decode,
    "JPEG-LS": imagecodecs.jpegls_decode,
    "JPEG 2000": imagecodecs.jpeg2k_decode,
    "JPEG XL": imagecodecs.jpegxl_decode,
}
_SIZ = b"\xff\x4f\xff\x51"  # where a JPEG 2000 codestream begins, in a box or bare
_END = b"\xff\xd9"
_MORE = bytes(range(1, 65))  # behind a whole scan passed over, behind a cut one taken for pixels
_BEHIND_THE_END = 4096  # bytes that boxes and padding may take
_JXL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def read(data: bytes, name: str, limits: Limits) -> Decoded:
    """Decode a whole image of the format `name`. Raises ImageError."""
    limits.check(*size(data, name))
    if name in ("JPEG", "JPEG-LS") and not is_whole(data):
        raise ImageError(Reason.TRUNCATED_IMAGE, f"the {name} has no end")
    try:
        if name == "JPEG 2000" and _j2k_bits(data) <= 8:
            return pillow.read(data, name, limits)  # which knows palettes, alpha and YCC
        values: Values = _DECODERS[name](data)
    except Exception as error:  # each codec has its own error; each becomes one ledger row
        cut = "NEED_MORE_INPUT" in str(error) or (name == "JPEG 2000" and _END not in data[-_BEHIND_THE_END:])
        reason = Reason.TRUNCATED_IMAGE if cut else Reason.BROKEN_IMAGE
        detail = error.detail if isinstance(error, ImageError) else str(error)
        raise ImageError(reason, f"{name}: {detail}") from error
    limits.check(values.shape[1], values.shape[0])
    decoded = _rgb(values, name)
    if name != "JPEG":
        return decoded
    if is_filled(values, data, _DECODERS[name]):
        raise ImageError(Reason.TRUNCATED_IMAGE, f"the {name} ends before its end marker")
    return Decoded(upright(decoded.pixels, jpeg.header(data).orientation), decoded.note)


def is_whole(data: bytes) -> bool:
    """Whether the last scan of a JPEG or JPEG-LS has an end: their decoders fill what is missing, or look for it for
    seconds.
    """
    return data.rfind(_END) > data.rfind(b"\xff\xda")


def is_filled(values: Values, data: bytes, decoder: Callable[[bytes], Values]) -> bool:
    """Whether a decoder made some of these values itself: of a JPEG that was cut and had an end marker put on."""
    end = data.rfind(_END)
    try:
        return not np.array_equal(values, decoder(data[:end] + _MORE + data[end:]))
    except RuntimeError:  # imagecodecs' own
        return True


def size(data: bytes, name: str) -> tuple[int, int]:
    """(width, height) by the header. Raises ImageError."""
    try:
        if name == "JPEG 2000":
            x1, y1, x0, y0 = struct.unpack_from(">4I", data, data.index(_SIZ) + 8)
            return x1 - x0, y1 - y0
        if name == "JPEG XL":
            return _jxl_size(data)
    except (ValueError, struct.error, IndexError) as error:
        raise ImageError(Reason.TRUNCATED_IMAGE, f"the {name} ends in its header") from error
    head = jpeg.header(data)
    return head.width, head.height


def _rgb(values: Values, name: str) -> Decoded:
    channels = 1 if values.ndim == 2 else values.shape[2]
    if values.ndim > 3 or channels > 4:
        raise ImageError(Reason.NOT_SUPPORTED, f"{name} of the shape {values.shape}: save one RGB image")
    if channels == 1:
        return rgb(values.reshape(values.shape[:2]))
    # JPEG XL says alpha for a second or fourth channel; the others know only colours
    alpha = values[:, :, -1] if name == "JPEG XL" and channels in (2, 4) else None
    return rgb(values[:, :, :3] if channels >= 3 else values[:, :, 0], alpha=alpha)


def _j2k_bits(data: bytes) -> int:
    return (data[data.index(_SIZ) + 42] & 0x7F) + 1


def _jxl_size(data: bytes) -> tuple[int, int]:
    """SizeHeader of ISO/IEC 18181-1: bits from the lowest on, behind the codestream's two-byte signature."""
    start = 2
    if not data.startswith(b"\xff\x0a"):
        start, kind = 0, b""
        while kind not in (b"jxlc", b"jxlp"):
            start += int.from_bytes(data[start : start + 4], "big") if kind else 0
            kind = data[start + 4 : start + 8]
            if not kind or (int.from_bytes(data[start : start + 4], "big") < 8 and kind != b"jxlc"):
                raise ValueError("no codestream")
        start += 8 + (4 if kind == b"jxlp" else 0) + 2
    bits = int.from_bytes(data[start : start + 16], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    small = take(1)

    def side() -> int:
        return (take(5) + 1) * 8 if small else take((9, 13, 18, 30)[take(2)]) + 1

    height = side()
    ratio = take(3)
    if not ratio:
        return side(), height
    across, down = _JXL_RATIOS[ratio - 1]
    return height * across // down, height
