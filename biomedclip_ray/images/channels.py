"""Channels of a microscope, each grey -> one RGB image, light added to light as the viewers of the field show it."""

from __future__ import annotations

from typing import Any

import numpy as np
from lxml import etree
from numpy.typing import NDArray

from biomedclip_ray.images.depth import Decoded, Values, to_8_bits

MOST = 7
"""Channels that are shown; more would run into one another, and there are no further colours."""
_FALLBACK = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "grey": (255, 255, 255),
    "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
    "yellow": (255, 255, 0),
}
"""ImageJ's colours of a composite, in its order, for channels whose file names none."""

Table = NDArray[np.uint8]
"""(256, 3): the RGB of each grey."""


def composite(channels: list[Values], tables: list[Table | None], of: int) -> Decoded:
    """Each channel through its own window and table, added up.

    Args:
        channels: (h, w) of any number type, all of one size; at most `MOST`.
        tables: the file's colours; None: the fallback's.
        of: how many channels the file has.
    """
    total = np.zeros((*channels[0].shape, 3), np.uint16)
    words = []
    for number, (values, table) in enumerate(zip(channels, tables, strict=True)):
        grey = values if values.dtype == np.uint8 else to_8_bits(values)[0]
        name = list(_FALLBACK)[number]
        total += (ramp(_FALLBACK[name]) if table is None else table)[grey]
        words.append(name if table is None else _hex(table))
    told = f"{len(channels)} of {of} channels" if of > len(channels) else f"{of} channels"
    if all(table is None for table in tables):
        told += ", colours chosen"
    return Decoded(np.minimum(total, 255).astype(np.uint8), f"{told}: {', '.join(words)}")


def ramp(colour: tuple[int, int, int]) -> Table:
    """From black to a colour."""
    table: Table = np.rint(np.arange(256)[:, None] * (np.array(colour) / 255)).astype(np.uint8)
    return table


def ome_tables(pixels: etree._Element, count: int) -> list[Table | None]:
    """The colours of an OME `Pixels` element's channels; none where all are white, OME's default for a channel that
    says nothing.
    """
    found: list[tuple[int, int, int] | None] = []
    for channel in pixels.iterfind("{*}Channel"):
        said = channel.get("Color")
        try:
            number = int(said) & 0xFFFFFFFF if said is not None else None
        except ValueError:
            number = None
        colour = None if number is None else (number >> 24, number >> 16 & 255, number >> 8 & 255)
        found += [colour] * int(channel.get("SamplesPerPixel") or 1)
    if len(found) < count or all(colour in (None, (255, 255, 255)) for colour in found):
        return [None] * count
    return [None if colour is None else ramp(colour) for colour in found[:count]]


def imagej_tables(metadata: dict[str, Any], count: int) -> list[Table | None]:
    """The lookup tables that ImageJ writes for each channel."""
    tables = metadata.get("LUTs") or []
    if len(tables) < count:
        return [None] * count
    return [np.ascontiguousarray(np.asarray(table, np.uint8).T) for table in tables[:count]]


def _hex(table: Table) -> str:
    return "#" + bytes(table[255]).hex()
