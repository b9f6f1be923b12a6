"""Finding the letters that name a compound figure's panels. Pure; a reader of single glyphs, no OCR engine.

Isolated glyphs are cut out (dark on light and light on dark), compared with letters drawn in the usual typefaces, and
of all that look like a wanted letter the set is chosen that agrees in size, alignment and reading order: a lone "A" in
a diagram looks like a label, "A" to "F" of one size on one grid are labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Grey = NDArray[np.uint8]

_GLYPH_HEIGHT = (9, 64)
_SIDE = 24
_OTHERS = "0123456789+*#%&()=?"
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# (white on black, level): levels below which a pixel of the image, or of its negative, is ink.
_LEVELS = ((False, 130), (False, 60), (True, 130), (True, 45))
# Mean level of the ground around a white letter.
_DARK = 110
_ROWS = 64
_BEAM = 40
_PER_LETTER = 8
_LOOKS_LIKE = 0.70
# Outlines beyond which listing them takes longer than labels do.
_MANY = 20_000
# OpenCV's Gaussian of three pixels with a sigma of 0.8, its side and middle.
_SOFT = tuple(cv2.getGaussianKernel(3, 0.8).ravel()[:2].astype(float).tolist())


@dataclass(frozen=True, slots=True)
class Letter:
    """A glyph read as a label; pixels of the image it was found in."""

    label: str
    x: int
    y: int
    width: int
    height: int
    likeness: float
    """Cosine with the nearest drawn letter."""
    capital: float
    """Pixels that a capital letter of the same type would be high."""


def find_letters(luma: Grey, wanted: tuple[str, ...]) -> dict[str, Letter]:
    """The panels' letters that are there, at most one for each wanted label.

    Args:
        luma: (h, w) uint8; letters 9 to 64 pixels high are seen.
        wanted: labels in reading order; their case does not matter. Those of several characters ("B1", "iv") are not
            seen.
    """
    wanted = tuple(label for label in wanted if len(label) == 1)
    glyphs = _glyphs(luma)
    if not glyphs or not wanted:
        return {}
    bank = _templates()
    likeness = _vectors([glyph.ink for glyph in glyphs]) @ bank.vectors.T
    # by character, whatever its case: (glyphs, characters); each one's rival is the best of the others
    by_character = np.maximum.reduceat(likeness, bank.starts, axis=1)
    first = by_character.argmax(axis=1)
    two = np.partition(by_character, -2, axis=1)[:, -2:]
    candidates: list[list[Letter]] = []
    for label in wanted:
        column = bank.characters.index(label.lower())
        best = by_character[:, column]
        rival = np.where(first == column, two[:, 0], two[:, 1])
        options = []
        for k in np.flatnonzero((best >= _LOOKS_LIKE) & (best >= rival - 0.04)).tolist():
            begin, end = bank.starts[column], bank.ends[column]
            relative = float(bank.heights[begin + int(likeness[k, begin:end].argmax())])
            g = glyphs[k]
            options.append(Letter(label, g.x, g.y, g.width, g.height, float(best[k]), g.height / relative))
        options.sort(key=lambda letter: -letter.likeness)
        candidates.append(options[:_PER_LETTER])
    return {letter.label: letter for letter in _agreeing(candidates)}


@dataclass(frozen=True, slots=True)
class _Glyph:
    x: int
    y: int
    width: int
    height: int
    ink: Grey


def _glyphs(luma: Grey) -> list[_Glyph]:
    """Connected pieces of a letter's size and shape with nothing of their kind beside them.

    Letters are black or white as a rule, so each is looked for at a strict level too, where it parts from texture under
    it.
    """
    found = {}
    negative = cv2.bitwise_not(luma)
    for light, level in _LEVELS:
        image = negative if light else luma
        mask = cv2.threshold(image, level - 1, 255, cv2.THRESH_BINARY_INV)[1]
        boxes = _components(mask)
        w, h = boxes[:, 2], boxes[:, 3]
        pieces = boxes[(h >= _GLYPH_HEIGHT[0]) & (h <= _GLYPH_HEIGHT[1]) & (w >= 2) & (w <= 1.5 * h)]
        for left, top, width, height in pieces[_alone(pieces, boxes[(h >= 3) & (w >= 2)])].tolist():
            filled = cv2.countNonZero(mask[top : top + height, left : left + width])
            if filled >= 0.12 * width * height and (not light or _on_dark(luma, left, top, width, height)):
                ink = (luma if light else negative)[top : top + height, left : left + width]
                found[left, top, width, height, light] = _Glyph(left, top, width, height, ink)
    return list(found.values())


def _components(mask: Grey) -> NDArray[np.int32]:
    """(n, 4): left, top, width and height of each connected piece.

    By their outlines, which takes a fifth of the time that OpenCV takes for labels with statistics; but for noise.
    """
    outlines, nesting = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if not outlines:
        return np.zeros((0, 4), np.int32)
    if len(outlines) > _MANY:
        return np.asarray(cv2.connectedComponentsWithStats(mask, connectivity=8)[2][1:, :4], np.int32)
    outer = [outlines[k] for k in np.flatnonzero(nesting[0, :, 3] < 0).tolist()]  # the others go around holes
    begins = np.cumsum([0, *map(len, outer[:-1])])
    points = np.concatenate(outer)[:, 0]
    least, most = np.minimum.reduceat(points, begins), np.maximum.reduceat(points, begins)
    return np.concatenate([least, most - least + 1], axis=1)


def _alone(pieces: NDArray[np.int32], others: NDArray[np.int32]) -> NDArray[np.bool_]:
    """(n,): which glyphs are no part of a word or number; brackets around one and stops after it do not count.

    Args:
        pieces: (n, 4) left, top, width, height.
        others: (m, 4) what may stand beside them.
    """
    alone = np.zeros(len(pieces), bool)
    down = np.argsort(pieces[:, 1], kind="stable")
    for begin in range(0, len(pieces), _ROWS):
        some = down[begin : begin + _ROWS]
        x, y, w, h = (pieces[some, k][:, None] for k in range(4))
        # only what is as high on the page as one of these can stand beside it
        high = (others[:, 1] < int((y + h).max())) & (others[:, 1] + others[:, 3] > int(y.min()))
        ox, oy, ow, oh = (others[high, k][None, :] for k in range(4))
        reach = np.maximum(2, np.rint(0.4 * h).astype(np.int32))
        level = (np.minimum(oy + oh, y + h) - np.maximum(oy, y)) > 0.4 * np.minimum(oh, h)
        like = level & (oh > 0.4 * h) & (oh < 2.5 * h)
        left = like & (ox + ow > x - reach) & (ox + ow <= x + 1) & (ox < x)
        right = like & (ox < x + w + reach) & (ox >= x + w - 1)
        word = ~((ow <= 0.5 * h) & (oh >= 1.1 * h))
        bracketed = right.any(axis=1) & ~((left | right) & word).any(axis=1)
        end = np.where(right, ox + ow, 0).max(axis=1, keepdims=True, initial=0)
        goes_on = (like & (ox < end + reach) & (ox >= end - 1)).any(axis=1)
        alone[some] = ~(left | right).any(axis=1) | (bracketed & ~goes_on)
    return alone


def _on_dark(luma: Grey, x: int, y: int, w: int, h: int) -> bool:
    ring = luma[max(0, y - 2) : y + h + 2, max(0, x - 2) : x + w + 2]
    inner = luma[y : y + h, x : x + w]
    border = (cv2.sumElems(ring)[0] - cv2.sumElems(inner)[0]) / max(1, ring.size - inner.size)
    return border < _DARK


def _vectors(inks: list[Grey]) -> NDArray[np.float32]:
    """(n, 576) unit vectors of glyphs, white on black: each one's box fitted into a square, mean taken out."""
    fitted = np.zeros((len(inks), _SIDE, _SIDE), np.uint8)
    sizes = np.zeros(len(inks), np.int64)
    for k, ink in enumerate(inks):
        height, width = ink.shape
        scale = (_SIDE - 4) / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = cv2.resize(ink, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        top, left = (_SIDE - size[1]) // 2, (_SIDE - size[0]) // 2
        fitted[k, top : top + size[1], left : left + size[0]] = small
        sizes[k] = small.size
    low, high = _twentieths(fitted.reshape(len(inks), -1), sizes)
    squares = np.empty((len(inks), _SIDE + 2, _SIDE + 2), np.float32)
    middle = squares[:, 1:-1, 1:-1]
    np.subtract(fitted, low[:, None, None], out=middle)
    middle /= np.maximum(1, high - low)[:, None, None]
    np.clip(middle, 0, 1, out=middle)
    squares[:, 1:-1, 0], squares[:, 1:-1, -1] = squares[:, 1:-1, 2], squares[:, 1:-1, -3]
    squares[:, 0], squares[:, -1] = squares[:, 2], squares[:, -3]
    rows = _SOFT[0] * (squares[:, 2:] + squares[:, :-2]) + _SOFT[1] * squares[:, 1:-1]
    vectors = (_SOFT[0] * (rows[:, :, 2:] + rows[:, :, :-2]) + _SOFT[1] * rows[:, :, 1:-1]).reshape(len(inks), -1)
    vectors -= vectors.mean(axis=1, keepdims=True)
    vectors /= np.maximum(1e-6, np.linalg.norm(vectors, axis=1, keepdims=True))
    return vectors


def _twentieths(levels: Grey, sizes: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(n,) each: what a twentieth of a glyph's levels lies below, and above.

    Args:
        levels: (n, 576) with zeros around the glyph's own.
        sizes: (n,) how many are its own.
    """
    count = len(levels)
    every = np.bincount((levels + (np.arange(count) << 8)[:, None]).ravel(), minlength=count << 8).reshape(count, 256)
    every[:, 0] -= levels.shape[1] - sizes
    up_to = every.cumsum(axis=1)
    few = (sizes // 20)[:, None]
    low, high = (up_to <= few).sum(axis=1), (up_to < sizes[:, None] - few).sum(axis=1)
    return low.astype(np.float32), high.astype(np.float32)


@dataclass(frozen=True)
class _Templates:
    """Drawn characters, sorted by character whatever its case: those of `characters[k]` are rows
    starts[k] to ends[k].
    """

    vectors: NDArray[np.float32]
    heights: NDArray[np.float32]
    """Over the capitals' height of the same type."""
    characters: list[str]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


@lru_cache(maxsize=1)
def _templates() -> _Templates:
    """Letters and their rivals in several types."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    names = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif-Bold.ttf", "STIXGeneral.ttf", "STIXGeneralBol.ttf")
    types: list[tuple[ImageFont.FreeTypeFont, int]] = [
        (ImageFont.truetype(str(folder / name), 64), 0) for name in names
    ]
    plain = ImageFont.load_default(64)
    if isinstance(plain, ImageFont.FreeTypeFont):  # Pillow's own is close to Helvetica; a stroke makes it bold
        types += [(plain, 0), (plain, 2), (plain, 4)]
    characters, inks, heights = [], [], []
    for face, stroke in types:
        capital = _drawn("E", face, stroke).shape[0]
        for character in _LETTERS + _OTHERS:
            ink = _drawn(character, face, stroke)
            characters.append(character.lower())
            inks.append(ink)
            heights.append(ink.shape[0] / capital)
    order = np.argsort(characters, kind="stable")
    distinct, starts = np.unique(np.array(characters)[order], return_index=True)
    ends = np.append(starts[1:], len(order))
    return _Templates(_vectors(inks)[order], np.array(heights, np.float32)[order], distinct.tolist(), starts, ends)


def _drawn(character: str, face: ImageFont.FreeTypeFont, stroke: int) -> Grey:
    """The largest connected piece of a drawn character: what is cut out of images is one piece too."""
    canvas = Image.new("L", (128, 128))
    ImageDraw.Draw(canvas).text((20, 20), character, fill=255, font=face, stroke_width=stroke)
    ink = np.asarray(canvas)
    _, _, stats, _ = cv2.connectedComponentsWithStats((ink > 100).astype(np.uint8))
    x, y, w, h, _ = stats[1 + int(stats[1:, 4].argmax())]
    return np.ascontiguousarray(ink[y : y + h, x : x + w])


def _agreeing(candidates: list[list[Letter]]) -> list[Letter]:
    """The set with the best sum of likeness, agreement in size, alignment and order; a beam search label by label.

    What a letter adds to a set depends on its pairs alone, so those are looked at once, for all letters together.
    """
    every = [letter for options in candidates for letter in options]
    if not every:
        return []
    x, y, capital = (np.array([getattr(letter, name) for letter in every], float) for name in ("x", "y", "capital"))
    alone = 2.0 * (np.array([letter.likeness for letter in every]) - _LOOKS_LIKE) + 0.1
    unit = capital[None, :]  # of the letter that comes, in columns; those chosen before it are rows
    dx, dy = np.abs(x[:, None] - x), np.abs(y[:, None] - y)
    apart = np.abs(np.log(capital[:, None] / capital))
    clash = np.maximum(dx, dy) < 1.5 * unit
    aligned = (dx < 0.5 * unit) | (dy < 0.5 * unit)
    back = (x <= x[:, None] + unit) & (y <= y[:, None] + unit)  # no order of reading goes up and to the left

    # one row a set: its worth, its last letter, and what any letter would find in it
    worth, sets = np.zeros(1), [()]
    least, most = np.full((1, len(every)), np.inf), np.zeros((1, len(every)))
    clashes, rows = np.zeros((1, len(every)), bool), np.zeros((1, len(every)), bool)
    begin = 0
    for options in candidates:
        here = slice(begin, begin + len(options))
        begin += len(options)
        last = np.array([chosen[-1] if chosen else -1 for chosen in sets])
        near, far = least[:, here], most[:, here]
        added = alone[here] + np.where(near < 0.1, 0.25, -2.5 * (near - 0.1)) - 0.5 * np.maximum(0.0, far - 0.35)
        added += 0.25 * rows[:, here] - 1.2 * back[last, here]
        added = np.where(last[:, None] < 0, alone[here], np.where(clashes[:, here], -np.inf, added))
        totals = np.concatenate([worth, (worth[:, None] + added).ravel()])  # the label may be missing
        kept = np.argsort(-totals, kind="stable")[:_BEAM]
        kept = kept[totals[kept] > -np.inf]
        grown = kept >= len(sets)
        parent = np.where(grown, (kept - len(sets)) // max(1, len(options)), kept)
        letter = np.where(grown, here.start + (kept - len(sets)) % max(1, len(options)), -1)
        worth = totals[kept]
        sets = [sets[p] + ((k,) if k >= 0 else ()) for p, k in zip(parent.tolist(), letter.tolist(), strict=True)]
        taken = grown[:, None]
        least = np.where(taken, np.minimum(least[parent], apart[letter]), least[parent])
        most = np.where(taken, np.maximum(most[parent], apart[letter]), most[parent])
        clashes = clashes[parent] | (taken & clash[letter])
        rows = rows[parent] | (taken & aligned[letter])
    return [every[k] for k in sets[0]] if len(sets[0]) >= 2 else []
