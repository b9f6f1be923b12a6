"""Numbers of any depth -> 8-bit RGB: by the range of the values, not by what the file's type could hold.

A detector's 12 bits stand in 16, one hot pixel stands far above them, a gap in a float image is -9999 or NaN: the
window is what is left when outliers, gaps and what cannot be seen are left out. Images of 8 bits stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from biomedclip_ray.images.resample import Pixels

Values = NDArray[Any]
Mask = NDArray[np.bool_]

OUTLIERS = 0.001
"""Share of the values at either end that may lie outside the window; they are left out only where that halves the
range.
"""
_GAPS = (-9999, -99999, -999, -32768, -32767, -(2**31))
"""What stands where there is no value (GDAL, ESRI, NetCDF and the types' own least numbers)."""
_NO_MEASUREMENT = 1e20
_TOPS = tuple(float(2**bits - 1) for bits in (8, 10, 12, 14, 15, 16, 24, 31, 32, 63, 64))
_SAMPLED = 4_000_000


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image as its file shows it."""

    pixels: Pixels
    """(h, w, 3) uint8 RGB, upright."""
    note: str = ""
    """How it was taken from the file where that is not plain: page, window, channels."""
    patient: str | None = None
    """Who is shown, where the file says it; for a keyed hash, never for a product."""


@dataclass(frozen=True, slots=True)
class Window:
    """The values shown as black and as white."""

    low: float
    high: float
    cut: bool = False
    """Whether values lie outside it."""

    @property
    def note(self) -> str:
        return f"{self.low:.6g} to {self.high:.6g} shown as black to white" + (", outliers cut" if self.cut else "")


def rgb(
    values: Values, *, alpha: Values | None = None, white_is_0: bool = False, nodata: float | None = None
) -> Decoded:
    """Grey (h, w) or colour (h, w, 3) of any number type as RGB, on white where alpha says so.

    Args:
        alpha: (h, w) of the type of `values`; what it hides does not count for the window.
        white_is_0: grey whose least value is white.
        nodata: the value that the file calls none.
    """
    cover = (
        None if alpha is None else np.clip(np.nan_to_num(alpha.astype(np.float32) / np.float32(opaque(alpha))), 0, 1)
    )
    seen = None if cover is None else cover > 0
    note = ""
    if values.dtype == np.uint8:
        grey = values
    elif values.dtype == np.bool_:
        grey = values.astype(np.uint8) * 255
    else:
        grey, window = to_8_bits(values, seen=seen, nodata=nodata)
        note = window.note
    if white_is_0:
        grey = 255 - grey
    pixels = grey if grey.ndim == 3 else cv2.cvtColor(np.ascontiguousarray(grey), cv2.COLOR_GRAY2RGB)
    if cover is not None:
        pixels = np.rint(255 + (pixels.astype(np.float32) - 255) * cover[:, :, None]).astype(np.uint8)
    return Decoded(np.ascontiguousarray(pixels), note)


def to_8_bits(values: Values, *, seen: Mask | None = None, nodata: float | None = None) -> tuple[Pixels, Window]:
    """Values of one or several channels, all through one window, as uint8 of the same shape."""
    if values.dtype == np.int16 and nodata is None and not _has_gaps(values):
        # moved up by half the type's range: the same image at the speed of uint16
        moved = values.view(np.uint16) ^ np.uint16(0x8000)
        pixels, window = to_8_bits(moved, seen=seen)
        return pixels, Window(window.low - 32768, window.high - 32768, window.cut)
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2 and nodata is None:
        values = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
        if values.dtype == np.uint8:
            values = values.astype(np.uint16)
        window = _window_16(values if seen is None else values[seen])
        return _through_16(values, window), window
    numbers: NDArray[np.floating[Any]] = values.astype(np.float64 if values.dtype.itemsize > 2 else np.float32)
    finite = np.isfinite(numbers) & (np.abs(numbers) < _NO_MEASUREMENT)
    if nodata is not None:
        finite &= numbers != nodata
    if seen is not None:
        finite &= seen if seen.ndim == finite.ndim else seen[:, :, None]
    counted = numbers[finite]
    counted, gap = _without_gaps(counted)
    window = _window(counted)
    shown = (numbers - window.low) * (255.0 / max(window.high - window.low, 1e-300))
    shown = np.nan_to_num(shown, nan=0.0, posinf=255.0, neginf=0.0)
    if gap is not None:
        shown[numbers == gap] = 0
    if nodata is not None:
        shown[numbers == nodata] = 0
    return np.rint(np.clip(shown, 0, 255)).astype(np.uint8), window


def through(values: Values, low: float, high: float) -> Pixels:
    """Values shown from black at `low` to white at `high`."""
    return np.rint(np.clip((values.astype(np.float64) - low) * (255.0 / max(high - low, 1e-300)), 0, 255)).astype(
        np.uint8
    )


def _window_16(values: Values) -> Window:
    """The window of unsigned 16-bit values, by their histogram: a tenth of a sort's time."""
    if not values.size:
        return Window(0, 0)
    flat = values.reshape(values.shape[0], -1)
    counts = cv2.calcHist([flat], [0], None, [65536], [0, 65536]).ravel() if flat.size < 2**24 else None
    if counts is None:  # calcHist counts in float32, which ends at 2**24
        counts = np.bincount(flat.ravel(), minlength=65536)
    used = np.flatnonzero(counts)
    below = np.cumsum(counts, dtype=np.float64)
    left_out = OUTLIERS * below[-1]
    low = int(np.searchsorted(below, left_out, side="right"))
    high = int(np.searchsorted(below, below[-1] - left_out, side="left"))
    return _judged(float(used[0]), float(used[-1]), float(low), float(high))


def _window(values: Values) -> Window:
    if not values.size:
        return Window(0, 0)
    some = values[:: -(-values.size // _SAMPLED)]
    low, high = np.quantile(some, [OUTLIERS, 1 - OUTLIERS])
    return _judged(float(values.min()), float(values.max()), float(low), float(high))


def _judged(least: float, most: float, low: float, high: float) -> Window:
    """Without outliers where they take more than half of the range; a flat image with few marks keeps them."""
    if high > low and most - least > 2 * (high - low):
        return Window(low, high, cut=True)
    return Window(least, most)


def _through_16(values: Values, window: Window) -> Pixels:
    """OpenCV's saturating arithmetic: a third of the time of numpy's."""
    flat = values.reshape(values.shape[0], -1)
    raised: Values = cv2.subtract(flat, np.full(4, window.low))
    shown: Pixels = cv2.convertScaleAbs(raised, alpha=255.0 / max(window.high - window.low, 1e-12))
    return shown.reshape(values.shape)


def _has_gaps(values: Values) -> bool:
    return bool(values.size) and int(values.min()) in _GAPS


def _without_gaps(values: Values) -> tuple[Values, float | None]:
    """The values without the sign for none, and that sign: known, the least, and further away than the others' whole
    range.
    """
    if not values.size or float(values.min()) not in _GAPS:
        return values, None
    gap = float(values.min())
    rest = values[values != gap]
    if rest.size and float(rest.min()) - gap > float(rest.max() - rest.min()):
        return rest, gap
    return values, None


def opaque(alpha: Values) -> float:
    """The value of an opaque pixel: the largest of the fewest bits that hold all values, for writers store 8 or 12 bits
    in 16 or 32; in 8 bits 255, in floats 1, where none is above it.
    """
    if alpha.dtype == np.bool_ or not alpha.size:
        return 1.0
    if alpha.dtype.itemsize == 1:
        return float(np.iinfo(alpha.dtype).max)
    used = float(np.nanmax(alpha))
    if alpha.dtype.kind == "f" and not used > 1:
        return 1.0
    return next((top for top in _TOPS if used <= top), used)
