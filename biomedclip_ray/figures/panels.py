"""A compound figure -> its panels, by letters and layout. Pure, no model.

The caption says how many panels there are and what they are called (`subcaptions`), the letters in the picture say where each
begins, and the picture is cut along blank gaps until every piece holds one letter. Where letters cannot be read the widest gaps
decide. A figure whose caption names no panels is split only when letters in it are beyond doubt: a wrong cut makes two pairs
with wrong texts, a missed one keeps a right pair.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from biomedclip_ray.figures.letters import Letter, find_letters
from biomedclip_ray.figures.resample import Pixels

Ink = NDArray[np.uint8]

# Pixels of the long side that letters and gaps are looked for at.
_WORKING_SIDE = 1200
_INK_CONTRAST = 28
_UNNAMED = tuple("ABCDEFGHIJKL")
_SURE = 0.88
_MIN_SIDE = 0.02


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel: (x0, y0, x1, y1) in fractions of the figure's sides, and its label as the caption writes it."""

    box: tuple[float, float, float, float]
    label: str | None


@dataclass(frozen=True, slots=True)
class _Region:
    """A rectangle in working pixels; right and bottom are outside."""

    x0: int
    y0: int
    x1: int
    y1: int

    def holds(self, letter: Letter) -> bool:
        x, y = letter.x + letter.width / 2, letter.y + letter.height / 2
        return self.x0 <= x < self.x1 and self.y0 <= y < self.y1


@dataclass(frozen=True, slots=True)
class _Cut:
    """A line through a region, at x where `vertical`, else at y, and how good it is."""

    vertical: bool
    at: int
    worth: float

    def halves(self, region: _Region) -> tuple[_Region, _Region]:
        if self.vertical:
            return _Region(region.x0, region.y0, self.at, region.y1), _Region(self.at, region.y0, region.x1, region.y1)
        return _Region(region.x0, region.y0, region.x1, self.at), _Region(region.x0, self.at, region.x1, region.y1)


def split_panels(image: Pixels, labels: tuple[str, ...] = ()) -> list[Panel]:
    """The panels in the order of their labels; one panel without label for a figure that is a single picture.

    Args:
        image: (h, w, 3) uint8 RGB.
        labels: what the caption calls the panels, in order (the keys of `subcaptions`); () where it names none.
    """
    luma, ink = _working_copy(image)
    letters = find_letters(luma, labels or _UNNAMED)
    whole = _Region(0, 0, luma.shape[1], luma.shape[0])
    if not labels:
        letters = _beyond_doubt(letters)
        labels = tuple(letters)
    if len(labels) < 2:
        return [Panel((0.0, 0.0, 1.0, 1.0), None)]
    regions = _by_letters(ink, whole, list(letters.values()))
    pieces = _with_missing(ink, regions, labels)
    panels = []
    for label, region in pieces:
        box = _tight(ink, region)
        fractions = (box.x0 / whole.x1, box.y0 / whole.y1, box.x1 / whole.x1, box.y1 / whole.y1)
        panels.append(Panel(fractions, label))
    return panels


def _working_copy(image: Pixels) -> tuple[Pixels, Ink]:
    """(luma, ink as 0 or 1): the picture at working size, and what differs from its ground."""
    scale = _WORKING_SIDE / max(image.shape[:2])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    colour = cv2.resize(image, size, interpolation=method)
    border = np.concatenate((colour[0], colour[-1], colour[:, 0], colour[:, -1]))
    ground = np.median(border, axis=0) if np.median(border.std(axis=0)) < 60 else np.array([255, 255, 255])
    contrast = cv2.absdiff(colour, np.broadcast_to(ground.astype(np.uint8), colour.shape).copy()).max(axis=2)
    ink = (contrast > _INK_CONTRAST).astype(np.uint8)
    return cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY).astype(np.uint8), ink


def _beyond_doubt(letters: dict[str, Letter]) -> dict[str, Letter]:
    """Letters that run on from A, each clearly read, all of one size, A the uppermost or leftmost."""
    sure: dict[str, Letter] = {}
    for label in _UNNAMED:
        letter = letters.get(label)
        if letter is None or letter.likeness < _SURE:
            break
        sure[label] = letter
    if len(sure) < 2:
        return {}
    sizes = [letter.capital for letter in sure.values()]
    first = sure["A"]
    corner = all(first.x <= other.x + first.capital or first.y <= other.y - first.capital for other in sure.values())
    return sure if max(sizes) < 1.2 * min(sizes) and corner else {}


def _by_letters(ink: Ink, region: _Region, letters: list[Letter]) -> list[tuple[Letter | None, _Region]]:
    """Cut until every piece holds one letter."""
    if len(letters) <= 1:
        return [(letters[0] if letters else None, region)]
    cut = _best_letter_cut(ink, region, letters)
    pieces: list[tuple[Letter | None, _Region]] = []
    for half in cut.halves(region):
        pieces += _by_letters(ink, half, [letter for letter in letters if half.holds(letter)])
    return pieces


def _best_letter_cut(ink: Ink, region: _Region, letters: list[Letter]) -> _Cut:
    cuts = []
    for vertical in (True, False):
        starts = [
            (letter.x, letter.x + letter.width) if vertical else (letter.y, letter.y + letter.height)
            for letter in letters
        ]
        starts.sort()
        profile = _profile(ink, region, vertical)
        origin = region.x0 if vertical else region.y0
        end = starts[0][1]
        for (_, previous_end), (start, _) in itertools.pairwise(starts):
            end = max(end, previous_end)
            if start > end:
                cuts.append(_cut_between(profile, vertical, origin, end, start))
    return max(cuts, key=lambda cut: cut.worth)


def _profile(ink: Ink, region: _Region, vertical: bool) -> NDArray[np.float64]:
    """Ink of each column (or row) of the region, as a share of its length."""
    part = ink[region.y0 : region.y1, region.x0 : region.x1]
    return part.mean(axis=0 if vertical else 1)


def _cut_between(profile: NDArray[np.float64], vertical: bool, origin: int, low: int, high: int) -> _Cut:
    """The best line between the end of one letter and the start of the next.

    A letter stands at its panel's upper left: the last wide gap before it is where its panel begins. What counts is how blank
    the line is, how wide the gap, and how near the letter.
    """
    span = profile[low - origin : high - origin]
    gaps = _gaps(span)
    length = len(profile)
    best = None
    for begin, end, blank in gaps:
        width = min(1.0, (end - begin) / (0.03 * length))
        near = end / len(span)
        worth = 1.0 * blank + 0.6 * width + 0.7 * near
        if best is None or worth > best.worth:
            best = _Cut(vertical, low + (begin + end + 1) // 2, worth)
    if best is None:
        at = len(span) - 1 - int(np.argmin(span[::-1]))
        best = _Cut(vertical, low + at, 0.3 - 3.0 * float(span[at]))
    return best


def _gaps(span: NDArray[np.float64]) -> list[tuple[int, int, float]]:
    """(begin, end, blankness) of the runs with next to no ink."""
    blank = np.concatenate(([False], span < 0.004, [False]))
    edges = np.flatnonzero(blank[1:] != blank[:-1])
    return [(int(b), int(e), 1.0 - float(span[b:e].mean()) * 100) for b, e in zip(edges[::2], edges[1::2], strict=True)]


def _with_missing(
    ink: Ink, regions: list[tuple[Letter | None, _Region]], labels: tuple[str, ...]
) -> list[tuple[str, _Region]]:
    """Give each label a piece; those without a letter share the piece of the label before them, cut at its widest gaps."""
    found = {letter.label: region for letter, region in regions if letter is not None}
    if not found:
        return list(zip(labels, _by_gaps(ink, regions[0][1], len(labels)), strict=False))
    owners: dict[str, list[str]] = {}
    waiting: list[str] = []
    owner = None
    for label in labels:
        if label in found:
            owner = label
            owners[owner] = [*waiting, label]
            waiting = []
        elif owner is None:
            waiting.append(label)
        else:
            owners[owner].append(label)
    pieces = []
    for name, group in owners.items():
        pieces += list(zip(group, _by_gaps(ink, found[name], len(group)), strict=False))
    return pieces


def _by_gaps(ink: Ink, region: _Region, count: int) -> list[_Region]:
    """Cut a region into so many pieces at its widest gaps, larger pieces first; in reading order, fewer where gaps lack."""
    pieces = [region]
    while len(pieces) < count:
        options = [(cut, k) for k, piece in enumerate(pieces) if (cut := _widest_gap(ink, piece)) is not None]
        if not options:
            break
        cut, k = max(options, key=lambda option: option[0].worth)
        pieces[k : k + 1] = cut.halves(pieces[k])
    return pieces


def _widest_gap(ink: Ink, region: _Region) -> _Cut | None:
    box = _tight(ink, region)
    best = None
    for vertical in (True, False):
        profile = _profile(ink, box, vertical)
        origin = box.x0 if vertical else box.y0
        for begin, end, _ in _gaps(profile):
            middle = (begin + end) / 2 / len(profile)
            balance = min(middle, 1 - middle) * 2
            if balance < 0.15:
                continue
            worth = (end - begin) * (0.4 + balance)
            if best is None or worth > best.worth:
                best = _Cut(vertical, origin + (begin + end + 1) // 2, worth)
    return best


def _tight(ink: Ink, region: _Region) -> _Region:
    """The region without the blank margin around its ink; unchanged where it is all blank."""
    part = ink[region.y0 : region.y1, region.x0 : region.x1]
    rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
    if not len(rows):
        return region
    return _Region(
        region.x0 + int(columns[0]),
        region.y0 + int(rows[0]),
        region.x0 + int(columns[-1]) + 1,
        region.y0 + int(rows[-1]) + 1,
    )
