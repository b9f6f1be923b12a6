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
# Worth of a cut: 1 to 1.6 for a gap, 0.6 to 0.9 for a border, and up to this for standing where the panels' letters stand.
_NEARNESS = 0.7
_POOR = 0.6
_CLEAN = 1.3
_LEAST_BALANCE = 0.15
_UNNAMED = tuple("ABCDEFGHIJKL")
_SURE = 0.9


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
class _Habit:
    """Where a figure's letters stand in their panels: 0 at the end (right, bottom), 1 at the start, between in the middle."""

    across: float
    down: float


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


@dataclass(frozen=True, slots=True)
class _Layers:
    """What of the picture the cuts look at; (h, w) uint8 of 0 and 1, working size."""

    ink: Ink
    """Differs from the figure's ground."""
    jump_x: Ink
    """Differs from the pixel to the left: a vertical border is a column of these."""
    jump_y: Ink

    def profile(self, layer: Ink, region: _Region, vertical: bool) -> Profile:
        """The layer's share in each column (or row) of the region."""
        part = layer[region.y0 : region.y1, region.x0 : region.x1]
        sums = cv2.reduce(part, 0 if vertical else 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel()
        return sums / max(1, part.shape[0 if vertical else 1])


def split_panels(image: Pixels, labels: tuple[str, ...] = ()) -> list[Panel]:
    """The panels in the order of their labels; one panel without label for a figure that is a single picture.

    Args:
        image: (h, w, 3) uint8 RGB.
        labels: what the caption calls the panels, in order (the keys of `subcaptions`); () where it names none.
    """
    luma, layers = _working_copy(image)
    letters = find_letters(luma, labels or _UNNAMED)
    if not labels:
        letters = _beyond_doubt(letters)
    whole = _Region(0, 0, luma.shape[1], luma.shape[0])
    worth, pieces = max(
        (_by_letters(layers, whole, list(letters.values()), habit) for habit in _habits(letters, whole)),
        key=lambda option: option[0],
    )
    if not labels:
        clean = bool(letters) and len(pieces) == len(letters) and worth >= _CLEAN * (len(letters) - 1)
        labels = tuple(letters) if clean else ()
    if len(labels) < 2:
        return [Panel((0.0, 0.0, 1.0, 1.0), None)]
    panels = []
    for label, region in _with_missing(layers, pieces, labels, whole):
        box = _tight(layers.ink, region)
        fractions = (box.x0 / whole.x1, box.y0 / whole.y1, box.x1 / whole.x1, box.y1 / whole.y1)
        panels.append(Panel(fractions, label))
    return panels


def _working_copy(image: Pixels) -> tuple[Ink, _Layers]:
    """The picture's luma and layers at working size."""
    scale = _WORKING_SIDE / max(image.shape[:2])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    colour = cv2.resize(image, size, interpolation=method)
    border = np.concatenate((colour[0], colour[-1], colour[:, 0], colour[:, -1]))
    ground = np.median(border, axis=0)
    if (np.abs(border - ground).max(axis=1) < _INK_CONTRAST).mean() < _EVEN_BORDER:
        ground = np.full(3, 255)
    contrast = _strongest(cv2.absdiff(colour, np.full_like(colour, ground)))
    luma = np.asarray(cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY), np.uint8)
    jump_x, jump_y = np.zeros_like(luma), np.zeros_like(luma)
    jump_x[:, 2:] = _strongest(cv2.absdiff(colour[:, 2:], colour[:, :-2])) > _JUMP
    jump_y[2:] = _strongest(cv2.absdiff(colour[2:], colour[:-2])) > _JUMP
    return luma, _Layers((contrast > _INK_CONTRAST).astype(np.uint8), jump_x, jump_y)


def _strongest(difference: NDArray[np.generic]) -> Ink:
    """The largest of three channels; OpenCV takes a twentieth of the time of numpy's max over so short an axis."""
    first, second, third = cv2.split(difference)
    return np.asarray(cv2.max(cv2.max(first, second), third), np.uint8)


def _habits(letters: dict[str, Letter], whole: _Region) -> list[_Habit]:
    """Upper left, and those other places that the letters' distances from the figure's sides allow."""
    if not letters:
        return [_Habit(1, 1)]
    left, right = min(q.x for q in letters.values()), whole.x1 - max(q.x + q.width for q in letters.values())
    top, bottom = min(q.y for q in letters.values()), whole.y1 - max(q.y + q.height for q in letters.values())
    across = [1.0] + [0.0] * (right < left) + [0.5] * (min(left, right) > 0.05 * whole.x1)
    down = [1.0] + [0.0] * (bottom < top)
    return [_Habit(x, y) for x in across for y in down]


def _beyond_doubt(letters: dict[str, Letter]) -> dict[str, Letter]:
    """Letters that run on from A, each clearly read, all of one size, A at the upper left and B in its row or column."""
    sure: dict[str, Letter] = {}
    for label in _UNNAMED:
        letter = letters.get(label)
        if letter is None or letter.likeness < _SURE:
            break
        sure[label] = letter
    if len(sure) < 2:
        return {}
    first, *others = sure.values()
    sizes = [letter.capital for letter in sure.values()]
    unit = first.capital
    aligned = all(min(abs(first.x - q.x), abs(first.y - q.y)) < unit / 2 for q in others[:1])
    leads = all(first.x <= q.x + unit and first.y <= q.y + unit for q in others)
    return sure if max(sizes) < 1.2 * min(sizes) and aligned and leads else {}


def _by_letters(
    layers: _Layers, region: _Region, letters: list[Letter], habit: _Habit
) -> tuple[float, list[tuple[Letter | None, _Region]]]:
    """Cut until every piece holds one letter: (sum of the cuts' worth, pieces).

    A letter that can only be cut off through the middle of a picture is none, and is dropped.
    """
    while len(letters) > 1:
        cut = _best_letter_cut(layers, region, letters, habit)
        if cut.worth >= _POOR:
            break
        fewer = [[other for other in letters if other is not letter] for letter in letters]
        letters = max(fewer, key=lambda rest: _best_letter_cut(layers, region, rest, habit).worth)
    if len(letters) <= 1:
        return 0.0, [(letters[0] if letters else None, region)]
    worth, pieces = cut.worth, []
    for half in cut.halves(region):
        more, some = _by_letters(layers, half, [letter for letter in letters if half.holds(letter)], habit)
        worth += more
        pieces += some
    return worth, pieces


def _best_letter_cut(layers: _Layers, region: _Region, letters: list[Letter], habit: _Habit) -> _Cut:
    """The best of the lines that part the letters; worthless where there is but one."""
    best = _Cut(True, region.x1, -9.0)
    for vertical in (True, False):
        sides = sorted((q.x, q.x + q.width) if vertical else (q.y, q.y + q.height) for q in letters)
        origin = region.x0 if vertical else region.y0
        lines = None
        end = sides[0][1]
        for (_, previous_end), (start, _) in itertools.pairwise(sides):
            end = max(end, previous_end)
            if start <= end:
                continue
            lines = lines or _lines(layers, region, vertical)
            place = habit.across if vertical else habit.down
            for low, high, worth in lines:
                at = origin + (low + high + 1) // 2
                if end <= at <= start:
                    near = 1 - abs((at - end) / (start - end) - place)
                    best = max(best, _Cut(vertical, at, worth + _NEARNESS * near), key=lambda cut: cut.worth)
    return best


def _lines(layers: _Layers, region: _Region, vertical: bool) -> list[tuple[int, int, float]]:
    """(begin, end, worth) of the lines along which the region may be cut, from its own origin.

    Blank gaps, the wider the better; and borders, where two pictures meet without a gap.
    """
    profile = layers.profile(layers.ink, region, vertical)
    jumps = layers.profile(layers.jump_x if vertical else layers.jump_y, region, vertical)
    lines = [(low, high, 1.0 + 0.6 * min(1.0, (high - low) / (0.03 * len(profile)))) for low, high in _gaps(profile)]
    usual = float(np.median(jumps))
    for at in np.flatnonzero((jumps > _BORDER) & (jumps > 2 * usual)):
        lines.append((int(at), int(at), 0.3 + 0.6 * float(jumps[at])))
    return lines


def _gaps(profile: Profile) -> list[tuple[int, int]]:
    """(begin, end) of the runs with next to no ink."""
    blank = np.concatenate(([False], profile < _BLANK, [False]))
    edges = np.flatnonzero(blank[1:] != blank[:-1])
    return [(int(begin), int(end)) for begin, end in zip(edges[::2], edges[1::2], strict=True)]


def _with_missing(
    layers: _Layers, pieces: list[tuple[Letter | None, _Region]], labels: tuple[str, ...], whole: _Region
) -> list[tuple[str, _Region]]:
    """Give each label a piece; one without a letter shares the piece of a neighbour in the sequence, cut where it is best.

    Where that leaves a label without a piece, and the lines alone make as many pieces as there are labels, these count.
    """
    found = {letter.label: region for letter, region in pieces if letter is not None}
    groups = [[label] for label in labels if label in found]
    for label in labels:
        if label not in found and groups:
            place = labels.index(label)
            later = next((group for group in groups if labels.index(group[-1]) > place), None)
            earlier = next((group for group in reversed(groups) if labels.index(group[0]) < place), None)
            options = [group for group in (earlier, later) if group is not None]
            best = max(options, key=lambda group: _room(layers, _owner(group, found), len(group) + 1))
            best.append(label)
            best.sort(key=labels.index)
    placed = []
    for group in groups:
        placed += list(zip(group, _by_lines(layers, _owner(group, found), len(group)), strict=False))
    if len(placed) < len(labels):
        alone = _by_lines(layers, whole, len(labels))
        if len(alone) > len(placed):
            return list(zip(labels, alone, strict=False))
    return placed


def _owner(group: list[str], found: dict[str, _Region]) -> _Region:
    """The piece of the one label in the group whose letter was read."""
    return next(found[label] for label in group if label in found)


def _room(layers: _Layers, region: _Region, count: int) -> float:
    """How well a region can be cut into so many pieces: the worth of the last cut needed, times the region's area."""
    cut = _widest(layers, region)
    return 0.0 if cut is None else cut.worth * (region.x1 - region.x0) * (region.y1 - region.y0) / count


def _by_lines(layers: _Layers, region: _Region, count: int) -> list[_Region]:
    """Cut a region into so many pieces, at the best lines; in reading order, fewer where there is no line."""
    pieces = [region]
    while len(pieces) < count:
        options = [(cut, k) for k, piece in enumerate(pieces) if (cut := _widest(layers, piece)) is not None]
        if not options:
            break
        cut, k = max(options, key=lambda option: option[0].worth)
        pieces[k : k + 1] = cut.halves(pieces[k])
    return pieces


def _widest(layers: _Layers, region: _Region) -> _Cut | None:
    """The line that parts a region into the most equal halves by the widest gap."""
    box = _tight(layers.ink, region)
    best = None
    for vertical in (True, False):
        origin, length = (box.x0, box.x1 - box.x0) if vertical else (box.y0, box.y1 - box.y0)
        for low, high, worth in _lines(layers, box, vertical):
            middle = (low + high) / 2 / max(1, length)
            balance = 2 * min(middle, 1 - middle)
            if balance < _LEAST_BALANCE:
                continue
            cut = _Cut(vertical, origin + (low + high + 1) // 2, (worth + balance) * length / _WORKING_SIDE)
            best = cut if best is None or cut.worth > best.worth else best
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
