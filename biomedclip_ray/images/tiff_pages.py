"""Which page of a TIFF stands for the file, or which channels do as one. The note says so:

- channels (axis C of OME, ImageJ, LSM, ... or samples that no tag calls colour) become one composite;
- of a stack in depth the middle, of a time series and of other pages the first;
- of a page and its thumbnails (NewSubfileType 1) or its mask the largest full page; where that has too many pixels, the
  largest thumbnail or pyramid level that has not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import tifffile
from lxml import etree
from tifffile import TiffPage

from biomedclip_ray.images.channels import MOST, Table, imagej_tables, ome_tables
from biomedclip_ray.images.depth import Values
from biomedclip_ray.images.errors import ImageError, Limits
from biomedclip_ray.schema import Reason

MASK = 4
"""PhotometricInterpretation of a page that is another's mask."""


@dataclass(frozen=True)
class Choice:
    """What is shown of a file."""

    planes: list[tuple[TiffPage, int]]
    """One page with its place in the file, or one for each channel."""
    note: str = ""
    channels: int = 1
    """How many the file has."""
    tables: tuple[Table | None, ...] = ()
    values: tuple[Values, ...] = ()
    """Planes that stand in no page of their own: ImageJ writes large stacks behind one page."""


def choose(file: tifffile.TiffFile, limits: Limits | None) -> Choice:
    """What is shown of a file; with limits, a smaller level where the page has too many pixels. Raises ImageError."""
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


def _of_pages(file: tifffile.TiffFile, limits: Limits | None) -> Choice:
    """The first page; where that is a thumbnail the largest full one; where that is too large its best
    smaller level.
    """
    first = file.pages.first
    count = len(file.pages)
    too_large = limits is not None and first.imagewidth * first.imagelength > limits.max_pixels
    masked = first.photometric == MASK and count > 1
    if not first.is_reduced and not masked and not too_large:
        return Choice([(first, 0)], f"page 1 of {count}" if count > 1 else "")
    every = [(page, number) for number, page in enumerate(file.pages) if isinstance(page, TiffPage)]
    every += [(sub, number) for page, number in every[:1] for sub in page.pages or () if isinstance(sub, TiffPage)]
    every = [(page, number) for page, number in every if page.photometric != MASK and not page.subfiletype & 4]
    full = [item for item in every if not item[0].is_reduced]
    if too_large and limits is not None:
        smaller = [item for item in every if item[0].imagewidth * item[0].imagelength <= limits.max_pixels]
        alike = [item for item in smaller if _same_shape(item[0], first)]
        if first.is_reduced or not alike:
            return Choice([(first, 0)])  # the limits say why not
        page, number = max(alike, key=_area)
        told = f"level of {page.imagewidth} x {page.imagelength} for {first.imagewidth} x {first.imagelength}"
        return Choice([(page, number)], told)
    page, number = max(full or every or [(first, 0)], key=_area)
    others = "masks" if masked else "thumbnails"
    return Choice([(page, number)], f"page {number + 1} of {count}, the others are {others}" if count > 1 else "")


def _area(item: tuple[TiffPage, int]) -> int:
    return item[0].imagewidth * item[0].imagelength


def _same_shape(level: TiffPage, whole: TiffPage) -> bool:
    """Whether a page is a smaller copy of another, not a label or a second image."""
    return abs(math.log(level.imagewidth * whole.imagelength / (level.imagelength * whole.imagewidth))) < 0.02


def _of_series(file: tifffile.TiffFile) -> Choice | None:
    """Planes by the axes that the microscope's software wrote; None where there is one page, or the axes cannot be
    read.
    """
    ome = _ome(file)
    if ome is not None and _is_of_a_set(ome):
        return Choice(
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
        return Choice(planes, ", ".join(told), channels, tuple(tables))
    if series.dataoffset is None:
        return None
    values = tuple(_behind(file, series, leading, int(place)) for place in places)
    return Choice([(file.pages.first, 0)], ", ".join(told), channels, tuple(tables), values)


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
