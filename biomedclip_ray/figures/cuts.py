"""Lines along which a figure may be cut: blank gaps and borders between images. Pure, no model."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from biomedclip_ray.figures.letters import Letter
from biomedclip_ray.images.resample import Pixels

Ink = NDArray[np.uint8]
Profile = NDArray[np.float64]

# Pixels of the long side that letters and gaps are looked for at.
_WORKING_SIDE = 1200
# Levels that part ink from the ground, and neighbours from one another; JPEG's ringing stays below.
_INK_CONTRAST = 28
_JUMP = 14
# Share of the figure's outermost pixels that have one colour if that is its ground; else white is assumed.
_EVEN_BORDER = 0.8
# Share of ink below which a line is blank, share of jumps from which it is a border.
_BLANK = 0.004
_BORDER = 0.6
_LEAST_BALANCE = 0.15
# Share of ink of a line through a band, and of the lines beside it; share of the drawing that a band is thick at most.
_BAND, _BAND_ENDS, _THIN = 0.97, 0.9, 0.08
# Share of ink from which a line is a panel's own; lengths of a stroke in its breadths; share of a drawing's sides that
# may be its frame.
_SOLID, _LONG, _FRAME = 0.3, 2.5, 0.02
# Working pixels by which one row may reach into the next.
_ROW_SLACK = 24


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle in working pixels; right and bottom are outside."""

    x0: int
    y0: int
    x1: int
    y1: int

    def holds(self, letter: Letter) -> bool:
        x, y = letter.x + letter.width / 2, letter.y + letter.height / 2
        return self.x0 <= x < self.x1 and self.y0 <= y < self.y1


@dataclass(frozen=True, slots=True)
class Cut:
    """A line through a region, at x where `vertical`, else at y, and how good it is."""

    vertical: bool
    at: int
    worth: float

    def halves(self, region: Region) -> tuple[Region, Region]:
        if self.vertical:
            return Region(region.x0, region.y0, self.at, region.y1), Region(self.at, region.y0, region.x1, region.y1)
        return Region(region.x0, region.y0, region.x1, self.at), Region(region.x0, self.at, region.x1, region.y1)


@dataclass(frozen=True, slots=True)
class Layers:
    """What of the image the cuts look at; (h, w) uint8 of 0 and 1, working size."""

    ink: Ink
    """Differs from the figure's ground."""
    jump_x: Ink
    """Differs from the pixel to the left: a vertical border is a column of these."""
    jump_y: Ink
    known: dict[tuple[Region, bool], list[tuple[int, int, float]]] = field(default_factory=dict)
    """Lines that were looked for already: several ways to cut a figure begin alike."""
    best: dict[Region, Cut | None] = field(default_factory=dict)
    """And the widest of them."""
    parted: dict[tuple[Region, int], list[Region]] = field(default_factory=dict)
    """And the pieces that lines alone make."""

    def profile(self, layer: Ink, region: Region, vertical: bool) -> Profile:
        """The layer's share in each column (or row) of the region."""
        part = layer[region.y0 : region.y1, region.x0 : region.x1]
        sums = cv2.reduce(part, 0 if vertical else 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel()
        return sums / max(1, part.shape[0 if vertical else 1])


def working_copy(image: Pixels) -> Pixels:
    """The image at working size."""
    scale = _WORKING_SIDE / max(image.shape[:2])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=method), np.uint8)


def layers_of(colour: Pixels) -> Layers:
    """What the cuts look at, of an image at working size."""
    height, width = colour.shape[:2]
    border = np.concatenate((colour[0], colour[-1], colour[:, 0], colour[:, -1])).T
    ground = np.median(border, axis=1)
    red, green, blue = np.abs(border - ground[:, None])
    if (np.maximum(np.maximum(red, green), blue) < _INK_CONTRAST).mean() < _EVEN_BORDER:
        ground = np.full(3, 255)
    ink = _over(cv2.absdiff(colour, (*ground.astype(int).tolist(), 0)), _INK_CONTRAST)
    jump_x, jump_y = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
    if min(height, width) > 2:
        # as rows of single levels, three a pixel, which OpenCV takes faster than pixels of three
        levels = colour.reshape(height, -1)
        jump_x[:, 2:] = _over(cv2.absdiff(levels[:, 6:], levels[:, :-6]).reshape(height, -1, 3), _JUMP)
        jump_y[2:] = _over(cv2.absdiff(levels[2:], levels[:-2]).reshape(-1, width, 3), _JUMP)
    return Layers(ink, jump_x, jump_y)


def without_bands(layers: Layers) -> Layers | None:
    """The layers without the ink of thin bands that run through the whole drawing, a membrane or a line of the ground:
    they would join all columns, or all rows. None where there is no such band.
    """
    box = tight(layers.ink, Region(0, 0, layers.ink.shape[1], layers.ink.shape[0]))
    ink = layers.ink
    for vertical in (False, True):
        profile = layers.profile(layers.ink, box, vertical)
        for low, high in _runs(profile > _BAND):
            around = np.concatenate((profile[max(0, low - 2) : low], profile[high : high + 2]))
            inside = low > 2 and high < len(profile) - 2
            if inside and high - low <= _THIN * len(profile) and around.max(initial=0) < _BAND_ENDS:
                ink = ink.copy() if ink is layers.ink else ink
                if vertical:
                    ink[:, box.x0 + low - 1 : box.x0 + high + 1] = 0
                else:
                    ink[box.y0 + low - 1 : box.y0 + high + 1] = 0
    return None if ink is layers.ink else Layers(ink, layers.jump_x, layers.jump_y)


def _over(difference: Pixels, level: int) -> Ink:
    """1 where any of three channels is over the level, else 0; in grey, 255 of any one channel is 29 at least."""
    over = cv2.threshold(difference, level, 255, cv2.THRESH_BINARY, dst=difference)[1]
    return np.asarray(cv2.threshold(cv2.cvtColor(over, cv2.COLOR_RGB2GRAY), 0, 1, cv2.THRESH_BINARY)[1], np.uint8)


def cut_lines(layers: Layers, region: Region, vertical: bool) -> list[tuple[int, int, float]]:
    """(begin, end, worth) of the lines along which the region may be cut, from its own origin.

    Blank gaps, the wider the better; and borders, where two images meet without a gap.
    """
    known = layers.known.get((region, vertical))
    if known is not None:
        return known
    profile = layers.profile(layers.ink, region, vertical)
    jumps = layers.profile(layers.jump_x if vertical else layers.jump_y, region, vertical)
    found = [(low, high, 1.0 + 0.6 * min(1.0, (high - low) / (0.03 * len(profile)))) for low, high in _gaps(profile)]
    usual = float(np.median(jumps))
    for at in np.flatnonzero((jumps > _BORDER) & (jumps > 2 * usual)):
        found.append((int(at), int(at), 0.3 + 0.6 * float(jumps[at])))
    layers.known[region, vertical] = found
    return found


def _gaps(profile: Profile) -> list[tuple[int, int]]:
    """(begin, end) of the runs with next to no ink."""
    return _runs(profile < _BLANK)


def _runs(where: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(begin, end) of each run of True."""
    padded = np.concatenate(([False], where, [False]))
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    return [(int(begin), int(end)) for begin, end in zip(edges[::2], edges[1::2], strict=True)]


def by_lines(layers: Layers, region: Region, count: int) -> list[Region]:
    """Cut a region into so many pieces, at the best lines; in reading order, fewer where there is no line."""
    known = layers.parted.get((region, count))
    if known is not None:
        return known
    pieces = [region]
    while len(pieces) < count:
        options = [(cut, k) for k, piece in enumerate(pieces) if (cut := widest(layers, piece)) is not None]
        if not options:
            break
        cut, k = max(options, key=lambda option: option[0].worth)
        pieces[k : k + 1] = cut.halves(pieces[k])
    ordered = _in_reading_order([(piece, tight(layers.ink, piece)) for piece in pieces])
    layers.parted[region, count] = [piece for piece, _ in ordered]
    return layers.parted[region, count]


def _in_reading_order(pieces: list[tuple[Region, Region]]) -> list[tuple[Region, Region]]:
    """Row by row where rows can be told, else column by column (1,005 of 1,149 real layouts where the two differ)."""
    for start, end in (("y0", "y1"), ("x0", "x1")):
        pieces = sorted(pieces, key=lambda piece: getattr(piece[1], start))
        reached = 0
        for k in range(1, len(pieces)):
            reached = max(reached, getattr(pieces[k - 1][1], end))
            if getattr(pieces[k][1], start) >= reached - _ROW_SLACK:
                return _in_reading_order(pieces[:k]) + _in_reading_order(pieces[k:])
    return pieces


def widest(layers: Layers, region: Region) -> Cut | None:
    """The line that parts a region into the most equal halves by the widest gap."""
    if region not in layers.best:
        layers.best[region] = _widest(layers, region)
    return layers.best[region]


def _widest(layers: Layers, region: Region) -> Cut | None:
    box = tight(layers.ink, region)
    best = None
    for vertical in (True, False):
        origin, length = (box.x0, box.x1 - box.x0) if vertical else (box.y0, box.y1 - box.y0)
        for low, high, worth in cut_lines(layers, box, vertical):
            middle = (low + high) / 2 / max(1, length)
            balance = 2 * min(middle, 1 - middle)
            if balance < _LEAST_BALANCE:
                continue
            cut = Cut(vertical, origin + (low + high + 1) // 2, (worth + balance) * length / _WORKING_SIDE)
            best = cut if best is None or cut.worth > best.worth else best
    return best


def tight(ink: Ink, region: Region) -> Region:
    """The region without the blank margin around its ink; unchanged where it is all blank."""
    x, y, width, height = cv2.boundingRect(ink[region.y0 : region.y1, region.x0 : region.x1])
    if not width:
        return region
    return Region(region.x0 + x, region.y0 + y, region.x0 + x + width, region.y0 + y + height)


def hang_together(ink: Ink, bare: Ink, boxes: list[Region]) -> bool:
    """Whether strokes, arrows as a rule, lead from box to box until all are reached: what looks like panels are steps
    of one drawing.

    Args:
        bare: the ink without bands, which reach from box to box too and join nothing.
    """
    drawing = tight(ink, Region(0, 0, ink.shape[1], ink.shape[0]))
    reached, waiting = {0}, [0]
    while waiting:
        here = boxes[waiting.pop()]
        for k in set(range(len(boxes))) - reached:
            ways = ((here, boxes[k]), (boxes[k], here))
            if any(
                _leads(ink, bare, drawing, first, second)
                or _leads(ink.T, bare.T, _turned(drawing), _turned(first), _turned(second))
                for first, second in ways
            ):
                reached.add(k)
                waiting.append(k)
    return len(boxes) > 1 and len(reached) == len(boxes)


def _turned(region: Region) -> Region:
    return Region(region.y0, region.x0, region.y1, region.x1)


def _leads(ink: Ink, bare: Ink, drawing: Region, left: Region, right: Region) -> bool:
    """Whether one long thin piece of ink takes half of the way from what is solid in the left box to what is in the
    right one; a frame around the drawing is none, nor is a band, which takes all of the way.
    """
    frame = round(_FRAME * (drawing.y1 - drawing.y0))
    low, high = max(left.y0, right.y0, drawing.y0 + frame), min(left.y1, right.y1, drawing.y1 - frame)
    if left.x1 > right.x0 or 2 * (high - low) < min(left.y1 - left.y0, right.y1 - right.y0):
        return False
    middle = (left.x1 + right.x0) // 2 - left.x0
    part = slice(low, high), slice(left.x0, right.x1)
    solid = np.flatnonzero(ink[part].mean(axis=0) > _SOLID)
    before, after = solid[solid < middle], solid[solid >= middle]
    if not before.size or not after.size:
        return False
    for layer, may_be_band in ((ink, True), (bare, False)):
        way = layer[part][:, before[-1] + 1 : after[0]]
        length = way.shape[1]
        begin, end = max(_runs(np.asarray(way.any(axis=0))), key=lambda run: run[1] - run[0], default=(0, 0))
        thick = np.count_nonzero(way[:, begin:end].any(axis=1))
        leads = 0 < length <= 2 * (end - begin) and end - begin >= _LONG * thick
        if leads and not (may_be_band and end - begin == length):
            return True
    return False
