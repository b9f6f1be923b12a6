"""TIFF by tifffile: what its tags say, at any depth; of several pages the one that stands for the file, or its channels
as one.

tifffile gives the numbers as they are stored. So white-is-zero, the colour table, alpha and the orientation are applied
here, each once. Which page counts, and the note says so:

- channels (axis C of OME, ImageJ, LSM, ... or samples that no tag calls colour) become one composite;
- of a stack in depth the middle, of a time series and of other pages the first;
- of a page and its thumbnails (NewSubfileType 1) or its mask the largest full page; where that has too many pixels, the
  largest thumbnail or pyramid level that has not.
"""

from __future__ import annotations

import io
import logging
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from lxml import etree
from PIL import Image
from tifffile import TiffPage

from biomedclip_ray.images import pillow
from biomedclip_ray.images.channels import MOST, Table, composite, imagej_tables, ome_tables
from biomedclip_ray.images.depth import Decoded, Values, opaque, rgb
from biomedclip_ray.images.errors import ImageError, Limits
from biomedclip_ray.images.jpeg import ORIENTATION
from biomedclip_ray.images.resample import upright
from biomedclip_ray.schema import Reason

_ASSOCIATED, _UNASSOCIATED = 1, 2
_GDAL_NODATA = 42113
_WHITE_IS_0, _BLACK_IS_0, _RGB, _PALETTE, _MASK, _CMYK, _YCBCR = 0, 1, 2, 3, 4, 5, 6
_JPEG, _OLD_JPEG, _APERIO_YCBC = 7, 6, 33003
_JPEG_2000 = (33003, 33004, 33005, 34712)
_WAY_OUT = "save it as RGB or grey of 8 or 16 bits"


@dataclass(frozen=True)
class _Choice:
    """What is shown of a file."""

    planes: list[tuple[TiffPage, int]]
    """One page with its place in the file, or one for each channel."""
    note: str = ""
    channels: int = 1
    """How many the file has."""
    tables: tuple[Table | None, ...] = ()
    values: tuple[Values, ...] = ()
    """Planes that stand in no page of their own: ImageJ writes large stacks behind one page."""


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
            choice = _choose(file, limits)
            if len(choice.planes) == 1 and not choice.values:
                decoded = _one_page(data, *choice.planes[0], limits)
            else:
                decoded = _composite(data, choice, limits)
    except ImageError:
        raise
    except (
        Exception
    ) as error:  # tifffile and its codecs raise a dozen types on broken bytes; each becomes one ledger row
        raise _told(data, error) from error
    return Decoded(decoded.pixels, "; ".join(filter(None, (choice.note, decoded.note))))


def size(data: bytes, name: str) -> tuple[int, int]:
    """(width, height) of the page that `read` would show. Raises ImageError."""
    _quiet()
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = _choose(file, None).planes[0][0]
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


# -- which page -------------------------------------------------------------------------------------------------------


def _choose(file: tifffile.TiffFile, limits: Limits | None) -> _Choice:
    pages = file.pages
    if not len(pages):
        raise ImageError(Reason.TRUNCATED_IMAGE, "the TIFF has no page")
    first = pages.first
    if first.is_dng or first.photometric in (32803, 34892):
        raise ImageError(Reason.NOT_SUPPORTED, "raw camera data: develop it to TIFF or JPEG")
    if (
        file.is_ome
        or file.is_imagej
        or file.is_lsm
        or file.is_stk
        or file.is_fluoview
        or file.is_micromanager
        or file.is_shaped
    ):
        found = _of_series(file)
        if found is not None:
            return found
    return _of_pages(file, limits)


def _of_pages(file: tifffile.TiffFile, limits: Limits | None) -> _Choice:
    """The first page; where that is a thumbnail the largest full one; where that is too large its best
    smaller level.
    """
    first = file.pages.first
    count = len(file.pages)
    too_large = limits is not None and first.imagewidth * first.imagelength > limits.max_pixels
    masked = first.photometric == _MASK and count > 1
    if not first.is_reduced and not masked and not too_large:
        return _Choice([(first, 0)], f"page 1 of {count}" if count > 1 else "")
    every = [(page, number) for number, page in enumerate(file.pages) if isinstance(page, TiffPage)]
    every += [(sub, number) for page, number in every[:1] for sub in page.pages or () if isinstance(sub, TiffPage)]
    every = [(page, number) for page, number in every if page.photometric != _MASK and not page.subfiletype & 4]
    full = [item for item in every if not item[0].is_reduced]
    if too_large and limits is not None:
        smaller = [item for item in every if item[0].imagewidth * item[0].imagelength <= limits.max_pixels]
        alike = [item for item in smaller if _same_shape(item[0], first)]
        if first.is_reduced or not alike:
            return _Choice([(first, 0)])  # the limits say why not
        page, number = max(alike, key=_area)
        told = f"level of {page.imagewidth} x {page.imagelength} for {first.imagewidth} x {first.imagelength}"
        return _Choice([(page, number)], told)
    page, number = max(full or every or [(first, 0)], key=_area)
    others = "masks" if masked else "thumbnails"
    return _Choice([(page, number)], f"page {number + 1} of {count}, the others are {others}" if count > 1 else "")


def _area(item: tuple[TiffPage, int]) -> int:
    return item[0].imagewidth * item[0].imagelength


def _same_shape(level: TiffPage, whole: TiffPage) -> bool:
    """Whether a page is a smaller copy of another, not a label or a second image."""
    return abs(math.log(level.imagewidth * whole.imagelength / (level.imagelength * whole.imagewidth))) < 0.02


def _of_series(file: tifffile.TiffFile) -> _Choice | None:
    """Planes by the axes that the microscope's software wrote; None where there is one page, or the axes cannot be
    read.
    """
    ome = _ome(file)
    if ome is not None and _is_of_a_set(ome):
        return _Choice(
            [(file.pages.first, 0)],
            f"page 1 of {len(file.pages)} in one file of a set, whose others are images of their own",
        )
    series = file.series[0]
    key = series.keyframe
    leading = len(series.shape) - len(key.shape)
    if leading <= 0 or not any(size > 1 for size in series.shape[:leading]):
        return None
    axes = dict(zip(series.axes[:leading], series.shape[:leading], strict=True))
    at = {axis: count // 2 if axis == "Z" else 0 for axis, count in axes.items()}
    channels = axes.get("C", 1)
    told = [f"{_AXES.get(axis, 'page')} {at[axis] + 1} of {n}" for axis, n in axes.items() if n > 1 and axis != "C"]
    if len(file.series) > 1:
        told.append(f"image 1 of {len(file.series)}")
    shown = min(channels, MOST)
    places = [
        np.ravel_multi_index(tuple((at | {"C": c}).values() if "C" in at else at.values()), tuple(axes.values()))
        for c in range(shown)
    ]
    tables: list[Table | None] = [None] * shown
    if channels > 1 and ome is not None:
        tables = ome_tables(ome, shown)
    elif channels > 1 and file.imagej_metadata:
        tables = imagej_tables(file.imagej_metadata, shown)
    if len(series.pages) == math.prod(axes.values()):
        planes = [(_page(file, series, int(place)), int(place)) for place in places]
        return _Choice(planes, ", ".join(told), channels, tuple(tables))
    if series.dataoffset is None:
        return None
    values = tuple(_behind(file, series, leading, int(place)) for place in places)
    return _Choice([(file.pages.first, 0)], ", ".join(told), channels, tuple(tables), values)


_AXES = {"Z": "slice", "T": "time"}


def _page(file: tifffile.TiffFile, series: tifffile.TiffPageSeries, place: int) -> TiffPage:
    page = series.pages[place]
    if page is None:
        raise ImageError(Reason.BROKEN_IMAGE, f"plane {place + 1} of the file is missing")
    return page if isinstance(page, TiffPage) else page.aspage()


def _behind(file: tifffile.TiffFile, series: tifffile.TiffPageSeries, leading: int, place: int) -> Values:
    """A plane of numbers that lie one behind the other without pages. Raises ImageError where the file ends before."""
    shape = series.shape[leading:]
    dtype = np.dtype(file.byteorder + series.dtype.char)
    handle = file.filehandle
    length = math.prod(shape) * dtype.itemsize
    handle.seek(int(series.dataoffset or 0) + place * length)
    data = handle.read(length)
    if len(data) < length:
        raise ImageError(Reason.TRUNCATED_IMAGE, f"plane {place + 1} lies behind the file's end")
    return np.frombuffer(data, dtype).reshape(shape).astype(series.dtype)


def _ome(file: tifffile.TiffFile) -> etree._Element | None:
    """The first `Pixels` element of the file's OME-XML."""
    if not file.is_ome or not file.ome_metadata:
        return None
    parser = etree.XMLParser(resolve_entities=False, no_network=True, recover=True)
    root = etree.fromstring(file.ome_metadata.encode(), parser)
    return None if root is None else root.find(".//{*}Pixels")


def _is_of_a_set(pixels: etree._Element) -> bool:
    """Whether other files hold planes too: tifffile would read zeros for them without a word."""
    files = {uuid.text for uuid in pixels.iterfind("{*}TiffData/{*}UUID")}
    return len(files) > 1


# -- its pixels -------------------------------------------------------------------------------------------------------


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
    if page.photometric in (_WHITE_IS_0, _BLACK_IS_0, _MASK, _RGB):
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


def _composite(data: bytes, choice: _Choice, limits: Limits) -> Decoded:
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
