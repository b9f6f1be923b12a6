"""TIFF by tifffile: what its tags say, at any depth; of several pages what `tiff_pages` chooses.

tifffile gives the numbers as they are stored. So white-is-zero, the colour table, alpha and the orientation are applied
here, each once.
"""

from __future__ import annotations

import io
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from tifffile import TiffPage

from biomedclip_ray.images import pillow
from biomedclip_ray.images.channels import MOST, composite
from biomedclip_ray.images.depth import Decoded, Values, opaque, rgb
from biomedclip_ray.images.errors import ImageError, Limits
from biomedclip_ray.images.jpeg import ORIENTATION
from biomedclip_ray.images.resample import upright
from biomedclip_ray.images.tiff_pages import MASK, Choice, choose
from biomedclip_ray.schema import Reason

_ASSOCIATED, _UNASSOCIATED = 1, 2
_GDAL_NODATA = 42113
_WHITE_IS_0, _BLACK_IS_0, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_JPEG, _OLD_JPEG, _APERIO_YCBC = 7, 6, 33003
_JPEG_2000 = (33003, 33004, 33005, 34712)
_WAY_OUT = "save it as RGB or grey of 8 or 16 bits"


def is_slide(data: bytes | Path) -> bool:
    """Whether a TIFF, or the file at a path, is a whole slide by its scanner's tags: OpenSlide's to read."""
    _quiet()
    try:
        with tifffile.TiffFile(data if isinstance(data, Path) else io.BytesIO(data)) as file:
            page = file.pages.first
            return bool(page.is_svs or page.is_ndpi or page.is_scn or page.is_bif or page.is_philips)
    except Exception:  # broken, which `read` says in words
        return False


def read(data: bytes, name: str, limits: Limits) -> Decoded:
    """Decode. Raises ImageError."""
    _quiet()
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            choice = choose(file, limits)
            if len(choice.planes) == 1 and not choice.values:
                decoded = _one_page(data, *choice.planes[0], limits)
            else:
                decoded = _composite(data, choice, limits)
    except ImageError:
        raise
    except Exception as error:  # tifffile and its codecs raise a dozen types on broken bytes; each is one ledger row
        raise _told(data, error) from error
    return Decoded(decoded.pixels, "; ".join(filter(None, (choice.note, decoded.note))))


def size(data: bytes, name: str) -> tuple[int, int]:
    """(width, height) of the page that `read` would show. Raises ImageError."""
    _quiet()
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = choose(file, None).planes[0][0]
            return page.imagewidth, page.imagelength
    except ImageError:
        raise
    except Exception as error:  # as above
        raise _told(data, error) from error


@lru_cache(maxsize=1)
def _quiet() -> None:
    """A million files' odd tags are no news; what matters is a row in the ledger."""
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)


def _told(data: bytes, error: Exception) -> ImageError:
    big = len(data) > 3 and data[2:4] in (b"+\0", b"\0+")
    first = data[8:16] if big else data[4:8]
    cut = int.from_bytes(first, "little" if data.startswith(b"II") else "big") >= len(data)
    detail = f"{type(error).__name__}: {error}".splitlines()[0]
    if isinstance(error, NotImplementedError) or "not supported" in detail or "cannot decompress" in detail:
        return ImageError(Reason.NOT_SUPPORTED, f"TIFF, {detail}: {_WAY_OUT}")
    return ImageError(Reason.TRUNCATED_IMAGE if cut else Reason.BROKEN_IMAGE, detail)


def _one_page(data: bytes, page: TiffPage, number: int, limits: Limits) -> Decoded:
    _check(page, limits)
    if (page.photometric == _YCBCR and page.compression not in (_JPEG, _APERIO_YCBC)) or page.compression == _OLD_JPEG:
        return pillow.read(data, "TIFF", limits, page=number)  # libtiff knows every form of it
    _check_segments(data, page)
    try:
        decoded = _shown(page, _values(page))
    except (ImageError, MemoryError):
        raise
    except Exception:  # tifffile lacks a few old forms of 8 bits and fewer, which libtiff has
        if page.bitspersample > 8 or page.sampleformat not in (None, 1):
            raise
        return pillow.read(data, "TIFF", limits, page=number)
    tag = page.tags.get(ORIENTATION)
    turn = tag.value if tag is not None else 1
    return Decoded(upright(decoded.pixels, turn if turn in range(1, 9) else 1), decoded.note)


def _check(page: TiffPage, limits: Limits) -> None:
    limits.check(page.imagewidth, page.imagelength)
    if page.imagewidth * page.imagelength * page.samplesperpixel * page.imagedepth > 16 * limits.max_pixels:
        told = f"{page.imagewidth} x {page.imagelength} pixels of {page.samplesperpixel} samples"
        raise ImageError(Reason.TOO_MANY_PIXELS, told)


def _check_segments(data: bytes, page: TiffPage) -> None:
    """tifffile fills what is missing with zeros; a file that ends before its last strip is cut."""
    end = max((offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)), default=0)
    if page.compression == 1 and len(page.dataoffsets) == 1:  # some writers claim more than the pixels need
        end = page.dataoffsets[0] + min(page.databytecounts[0], page.nbytes)
    if end > len(data):
        raise ImageError(Reason.TRUNCATED_IMAGE, f"{len(data)} bytes of {end}")


def _values(page: TiffPage) -> Values:
    """(h, w) or (h, w, samples), as they are stored."""
    values: Values = page.asarray(maxworkers=1)
    axes = page.axes
    if "Z" in axes:
        where = axes.index("Z")
        values, axes = values.take(values.shape[where] // 2, where), axes.replace("Z", "")
    if axes == "SYX":
        return np.moveaxis(values, 0, 2)
    if axes not in ("YX", "YXS"):
        values = values.reshape(page.imagelength, page.imagewidth, -1)  # a side of 1 is squeezed
    return values


def _shown(page: TiffPage, values: Values) -> Decoded:
    if page.compression in _JPEG_2000 and _is_clipped(values):
        raise ImageError(Reason.NOT_SUPPORTED, f"JPEG 2000 of {page.bitspersample} bits in TIFF: {_WAY_OUT}")
    if values.dtype.kind == "c":
        raise ImageError(Reason.NOT_SUPPORTED, f"TIFF of complex numbers: {_WAY_OUT}")
    bits = page.bitspersample
    if page.photometric == _PALETTE:
        return _from_palette(page, values)
    if values.dtype == np.uint8 and bits < 8:
        values = (values.astype(np.uint16) * 255 // ((1 << bits) - 1)).astype(np.uint8)
    samples = 1 if values.ndim == 2 else values.shape[2]
    extras = tuple(int(extra) for extra in page.extrasamples)
    if page.photometric == _CMYK and samples >= 4:
        eight = values if values.dtype == np.uint8 else (values >> 8).astype(np.uint8)
        return Decoded(np.array(Image.fromarray(np.ascontiguousarray(eight[:, :, :4]), "CMYK").convert("RGB")))
    if page.photometric in (_RGB, _YCBCR) and samples >= 3:
        return _on_white(values[:, :, :3], values, extras, 3, page)
    if page.photometric in (_WHITE_IS_0, _BLACK_IS_0, MASK, _RGB):
        if samples == 1 or any(extra in (_ASSOCIATED, _UNASSOCIATED) for extra in extras[: samples - 1]):
            return _on_white(values.reshape(*values.shape[:2], -1)[:, :, 0], values, extras, 1, page)
        planes = [np.ascontiguousarray(values[:, :, sample]) for sample in range(min(samples, MOST))]
        return composite(planes, [None] * len(planes), samples)
    name = getattr(page.photometric, "name", page.photometric)
    raise ImageError(Reason.NOT_SUPPORTED, f"TIFF in {name} colours: {_WAY_OUT}")


def _is_clipped(values: Values) -> bool:
    """OpenJPEG keeps 26 bits of 32 and cuts what is beyond without a word."""
    low, high = (0, 2**26 - 1) if values.dtype.kind == "u" else (-(2**25), 2**25 - 1)
    return values.dtype.itemsize > 2 and bool(values.max() >= high or (low and values.min() <= low))


def _on_white(colour: Values, values: Values, extras: tuple[int, ...], colours: int, page: TiffPage) -> Decoded:
    """Composited where a sample is called alpha; a fourth sample that is not is none (RGBX)."""
    tag = page.tags.get(_GDAL_NODATA)
    nodata = _number(tag.value) if tag is not None else None
    white_is_0 = page.photometric == _WHITE_IS_0
    place = next((n for n, extra in enumerate(extras) if extra in (_ASSOCIATED, _UNASSOCIATED)), None)
    if place is None or values.ndim == 2 or colours + place >= values.shape[2]:
        return rgb(colour, white_is_0=white_is_0, nodata=nodata)
    alpha = values[:, :, colours + place]
    if extras[place] == _ASSOCIATED:
        colour = _unmultiplied(colour, alpha)
    return rgb(colour, alpha=alpha, white_is_0=white_is_0, nodata=nodata)


def _unmultiplied(colour: Values, alpha: Values) -> Values:
    """Colours before they were multiplied with alpha, so that window and paper are those of any other image."""
    share = np.maximum(alpha.astype(np.float64) / opaque(alpha), 1e-9)
    full = colour / (share if colour.ndim == 2 else share[:, :, None])
    if colour.dtype.kind in "ui":
        kind = np.iinfo(colour.dtype)
        top = np.nextafter(float(kind.max), 0) if kind.bits == 64 else kind.max  # no float64 is 2**64 - 1
        return np.rint(np.clip(full, kind.min, top)).astype(colour.dtype)
    return full.astype(colour.dtype)


def _from_palette(page: TiffPage, values: Values) -> Decoded:
    table = page.colormap
    if table is None:
        raise ImageError(Reason.BROKEN_IMAGE, "the palette is missing")
    # libtiff's rule: some writers give 8 bits where the format has 16
    eight = table if int(table.max()) < 256 else table >> 8
    index = np.minimum(values.reshape((*values.shape[:2], -1))[:, :, 0], table.shape[1] - 1)
    return Decoded(np.ascontiguousarray(eight.astype(np.uint8).T[index]))


def _composite(data: bytes, choice: Choice, limits: Limits) -> Decoded:
    planes = list(choice.values)
    for page, _ in [] if choice.values else choice.planes:
        _check(page, limits)
        _check_segments(data, page)
        planes.append(_values(page))
    first = choice.planes[0][0]
    _check(first, limits)
    if len(planes) == 1:
        return _shown(first, planes[0])
    if planes[0].ndim == 3:  # several RGB images that are called channels
        return _shown(first, planes[0])
    return composite(planes, list(choice.tables), choice.channels)


def _number(text: Any) -> float | None:
    try:
        return float(str(text).strip("\0 "))
    except ValueError:
        return None
