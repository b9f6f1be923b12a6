"""A compound figure -> its panels, by letters and layout. Pure, no model.

The caption says how many panels there are and what they are called (`subcaptions`), the letters in the image say where
each begins, and the image is cut along blank gaps until every piece holds one letter. Where letters cannot be read the
widest gaps decide. A figure whose caption names no panels is split only when letters in it are beyond doubt: a wrong
cut makes two pairs with wrong texts, a missed one keeps a right pair.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from biomedclip_ray.figures.arrows import joined_by_arrows
from biomedclip_ray.figures.cuts import (
    Cut,
    Layers,
    Region,
    by_lines,
    cut_lines,
    hang_together,
    layers_of,
    tight,
    widest,
    without_bands,
    working_copy,
)
from biomedclip_ray.figures.letters import Letter, find_letters
from biomedclip_ray.images.resample import Pixels

# Worth of a cut: 1 to 1.6 for a gap, 0.6 to 0.9 for a border, and up to this for standing where the panels' letters
# stand.
_NEARNESS = 0.7
_POOR = 0.6
_CLEAN = 1.3
_UNNAMED = tuple("ABCDEFGHIJKL")
# Likeness of a letter that is beyond doubt, and of one that may be anything.
_SURE = 0.9
_UNSURE = 0.7
# Letters further from a corner than this, in their own heights, are all alike; what counts where no letter was read.
_FAR = 8.0
_NO_LETTER = 4.0
WEIGHTS = (-0.15, -0.14, 0.47, -0.13, -0.03)
"""Of `plausibility_features`, from `benchmarks/panels_layouts.py --fit`."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel: (x0, y0, x1, y1) in fractions of the figure's sides, and its label as the caption writes it."""

    box: tuple[float, float, float, float]
    label: str | None


@dataclass(frozen=True, slots=True)
class _Habit:
    """Where a figure's letters stand in their panels: 0 at the end (right, bottom), 1 at the start, between in the
    middle.
    """

    across: float
    down: float


def split_panels(image: Pixels, labels: tuple[str, ...] = ()) -> list[Panel]:
    """The panels in the order of their labels; one panel without label for a figure that is a single image.

    Args:
        image: (h, w, 3) uint8 RGB.
        labels: what the caption calls the panels, in order (the keys of `subcaptions`); () where it names none.
    """
    single = [Panel((0.0, 0.0, 1.0, 1.0), None)]
    colour = working_copy(image)
    letters = find_letters(np.asarray(cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY), np.uint8), labels or _UNNAMED)
    if not labels and not (letters := _beyond_doubt(letters)):
        return single
    layers = layers_of(colour)
    whole = Region(0, 0, colour.shape[1], colour.shape[0])
    if not labels:
        worth, pieces = max(_by_each_habit(layers, whole, letters), key=lambda option: option[0])
        clean = len(pieces) == len(letters) and worth >= _CLEAN * (len(letters) - 1)
        labels = tuple(letters) if clean else ()
    if len(labels) < 2:
        return single
    options = [tightened(layers, pieces, labels, whole) for pieces in ways_to_cut(layers, whole, letters)]
    if (bare := without_bands(layers)) is not None:
        options += [_placed(layers, bare, pieces, labels, whole) for pieces in ways_to_cut(bare, whole, letters)]
    best = max(options, key=lambda boxes: (len(boxes), _plausibility(boxes, letters, labels)))
    boxes = [box for _, box in best]
    if hang_together(layers.ink, (bare or layers).ink, boxes) or joined_by_arrows(layers.ink, boxes):
        return single
    return as_panels(best, whole)


def as_panels(boxes: list[tuple[str, Region]], whole: Region) -> list[Panel]:
    """Working pixels to fractions of the figure's sides."""
    width, height = whole.x1, whole.y1
    return [Panel((box.x0 / width, box.y0 / height, box.x1 / width, box.y1 / height), label) for label, box in boxes]


def ways_to_cut(
    layers: Layers, whole: Region, letters: dict[str, Letter]
) -> Iterator[list[tuple[Letter | None, Region]]]:
    """The ways to cut a figure: by its letters, for each place where they may stand in their panels, and by lines
    alone.
    """
    if letters:
        yield from (pieces for _, pieces in _by_each_habit(layers, whole, letters))
    yield [(None, whole)]


def _by_each_habit(
    layers: Layers, whole: Region, letters: dict[str, Letter]
) -> Iterator[tuple[float, list[tuple[Letter | None, Region]]]]:
    """`_by_letters` for each place where the letters may stand in their panels; the upper left first."""
    for across, down in itertools.product((1.0, 0.5, 0.0), (1.0, 0.0)):
        yield _by_letters(layers, whole, list(letters.values()), _Habit(across, down))


def tightened(
    layers: Layers, pieces: list[tuple[Letter | None, Region]], labels: tuple[str, ...], whole: Region
) -> list[tuple[str, Region]]:
    return _placed(layers, layers, pieces, labels, whole)


def _placed(
    layers: Layers, cut: Layers, pieces: list[tuple[Letter | None, Region]], labels: tuple[str, ...], whole: Region
) -> list[tuple[str, Region]]:
    """Each label with its piece, cut as `cut` shows it, and as tight as all ink allows."""
    return [(label, tight(layers.ink, region)) for label, region in _with_missing(cut, pieces, labels, whole)]


def _plausibility(boxes: list[tuple[str, Region]], letters: dict[str, Letter], labels: tuple[str, ...]) -> float:
    """How much a way of cutting looks like a figure: panels alike in area and shape, each with its letter at a corner.

    Only for ways that find as many panels. The weights are those of a ridge regression on drawn compounds.
    """
    return float(np.dot(WEIGHTS, plausibility_features(boxes, letters, labels)))


def plausibility_features(
    boxes: list[tuple[str, Region]], letters: dict[str, Letter], labels: tuple[str, ...]
) -> tuple[float, ...]:
    """What a way of cutting is weighed by.

    Returns:
        spread of the panels' log area and of their log shape; share of labels whose letter is in its panel, by its
        likeness; mean and spread of the letters' distance from the nearest corner, in heights of a capital.
    """
    width = np.array([max(1, box.x1 - box.x0) for _, box in boxes], np.float64)
    height = np.array([max(1, box.y1 - box.y0) for _, box in boxes], np.float64)
    offsets, trust = [], 0.0
    for label, box in boxes:
        letter = letters.get(label)
        if letter is not None and box.holds(letter):
            x, y = letter.x + letter.width / 2, letter.y + letter.height / 2
            trust += min(1.0, max(0.0, (letter.likeness - _UNSURE) / (_SURE - _UNSURE)))
            offsets.append((min(x - box.x0, box.x1 - x) / letter.capital, min(y - box.y0, box.y1 - y) / letter.capital))
    away = np.clip(offsets or [(_NO_LETTER, _NO_LETTER)], 0, _FAR)
    return (
        float(np.log(width * height).std()),
        float(np.log(width / height).std()),
        trust / len(labels),
        float(away.mean()),
        float(away.std(axis=0).sum()),
    )


def _beyond_doubt(letters: dict[str, Letter]) -> dict[str, Letter]:
    """Letters that run on from A, each clearly read, all of one size, A at the upper left and B in its
    row or column.
    """
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
    layers: Layers, region: Region, letters: list[Letter], habit: _Habit
) -> tuple[float, list[tuple[Letter | None, Region]]]:
    """Cut until every piece holds one letter: (sum of the cuts' worth, pieces).

    A letter that can only be cut off through the middle of an image is none, and is dropped.
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


def _best_letter_cut(layers: Layers, region: Region, letters: list[Letter], habit: _Habit) -> Cut:
    """The best of the lines that part the letters; worthless where there is but one."""
    best = Cut(True, region.x1, -9.0)
    for vertical in (True, False):
        sides = sorted((q.x, q.x + q.width) if vertical else (q.y, q.y + q.height) for q in letters)
        origin = region.x0 if vertical else region.y0
        found = None
        end = sides[0][1]
        for (_, previous_end), (start, _) in itertools.pairwise(sides):
            end = max(end, previous_end)
            if start <= end:
                continue
            found = found or cut_lines(layers, region, vertical)
            place = habit.across if vertical else habit.down
            for low, high, worth in found:
                at = origin + (low + high + 1) // 2
                if end <= at <= start:
                    near = 1 - abs((at - end) / (start - end) - place)
                    best = max(best, Cut(vertical, at, worth + _NEARNESS * near), key=lambda cut: cut.worth)
    return best


def _with_missing(
    layers: Layers, pieces: list[tuple[Letter | None, Region]], labels: tuple[str, ...], whole: Region
) -> list[tuple[str, Region]]:
    """Give each label a piece; one without a letter shares the piece of a neighbour in the sequence, cut where it is
    best.

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
        placed += list(zip(group, by_lines(layers, _owner(group, found), len(group)), strict=False))
    if len(placed) < len(labels):
        alone = by_lines(layers, whole, len(labels))
        if len(alone) > len(placed):
            return list(zip(labels, alone, strict=False))
    return placed


def _owner(group: list[str], found: dict[str, Region]) -> Region:
    """The piece of the one label in the group whose letter was read."""
    return next(found[label] for label in group if label in found)


def _room(layers: Layers, region: Region, count: int) -> float:
    """How well a region can be cut into so many pieces: the worth of the last cut needed, times the region's area."""
    cut = widest(layers, region)
    return 0.0 if cut is None else cut.worth * (region.x1 - region.x0) * (region.y1 - region.y0) / count
