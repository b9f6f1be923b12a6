"""Finding the letters that name a compound figure's panels. Pure; a reader of single glyphs, no OCR engine.

Isolated glyphs are cut out (dark on light and light on dark), compared with letters drawn in the usual typefaces, and of all
that look like a wanted letter the set is chosen that agrees in size, alignment and reading order: a lone "A" in a diagram looks
like a label, "A" to "F" of one size on one grid are labels.
"""

from __future__ import annotations

import math
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
# (white on black, level): levels below which a pixel of the picture, or of its negative, is ink.
_LEVELS = ((False, 130), (False, 60), (True, 130), (True, 45))
_ROWS = 64
_BEAM = 40
_PER_LETTER = 8
_LOOKS_LIKE = 0.70


@dataclass(frozen=True, slots=True)
class Letter:
    """A glyph read as a label; pixels of the picture it was found in."""

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
        wanted: labels in reading order; their case does not matter. Those of several characters ("B1", "iv") are not seen.
    """
    wanted = tuple(label for label in wanted if len(label) == 1)
    glyphs = _glyphs(luma)
    if not glyphs or not wanted:
        return {}
    characters, bank, heights = _templates()
    likeness = np.stack([glyph.vector for glyph in glyphs]) @ bank.T
    lower = np.array([character.lower() for character in characters])
    candidates: list[list[Letter]] = []
    for label in wanted:
        same = lower == label.lower()
        mine = likeness[:, same]
        rival = likeness[:, ~same].max(axis=1)
        best, which = mine.max(axis=1), mine.argmax(axis=1)
        options = [
            Letter(label, g.x, g.y, g.width, g.height, float(best[k]), g.height / float(heights[same][which[k]]))
            for k, g in enumerate(glyphs)
            if best[k] >= _LOOKS_LIKE and best[k] >= rival[k] - 0.04
        ]
        options.sort(key=lambda letter: -letter.likeness)
        candidates.append(options[:_PER_LETTER])
    return {letter.label: letter for letter in _agreeing(candidates, luma.shape[1], luma.shape[0])}


@dataclass(frozen=True, slots=True)
class _Glyph:
    x: int
    y: int
    width: int
    height: int
    vector: NDArray[np.float32]


def _glyphs(luma: Grey) -> list[_Glyph]:
    """Connected pieces of a letter's size and shape with nothing of their kind beside them.

    Letters are black or white as a rule, so each is looked for at a strict level too, where it parts from texture under it.
    """
    found = []
    for light, level in _LEVELS:
        picture = 255 - luma if light else luma
        _, _, stats, _ = cv2.connectedComponentsWithStats((picture < level).astype(np.uint8), connectivity=8)
        stats = stats[1:]
        w, h, area = stats[:, 2], stats[:, 3], stats[:, 4]
        fits = (h >= _GLYPH_HEIGHT[0]) & (h <= _GLYPH_HEIGHT[1]) & (w >= 2) & (w <= 1.5 * h) & (area >= 0.12 * w * h)
        pieces = stats[fits]
        for left, top, width, height, _ in pieces[_alone(pieces, stats[(h >= 3) & (w >= 2)])].tolist():
            if not light or _on_dark(luma, left, top, width, height):
                ink = 255 - picture[top : top + height, left : left + width]
                found.append(_Glyph(left, top, width, height, _vector(ink)))
    return found


def _alone(pieces: NDArray[np.int32], others: NDArray[np.int32]) -> NDArray[np.bool_]:
    """(n,): which glyphs are no part of a word or number; brackets around one and stops after it do not count.

    Args:
        pieces: (n, 5) left, top, width, height, area.
        others: (m, 5) what may stand beside them.
    """
    alone = np.zeros(len(pieces), bool)
    ox, oy, ow, oh = (others[:, k][None, :] for k in range(4))
    for begin in range(0, len(pieces), _ROWS):
        x, y, w, h = (pieces[begin : begin + _ROWS, k][:, None] for k in range(4))
        reach = np.maximum(2, np.rint(0.4 * h).astype(np.int32))
        level = (np.minimum(oy + oh, y + h) - np.maximum(oy, y)) > 0.4 * np.minimum(oh, h)
        like = level & (oh > 0.4 * h) & (oh < 2.5 * h)
        left = like & (ox + ow > x - reach) & (ox + ow <= x + 1) & (ox < x)
        right = like & (ox < x + w + reach) & (ox >= x + w - 1)
        word = ~((ow <= 0.5 * h) & (oh >= 1.1 * h))
        bracketed = right.any(axis=1) & ~((left | right) & word).any(axis=1)
        end = np.where(right, ox + ow, 0).max(axis=1, keepdims=True)
        goes_on = (like & (ox < end + reach) & (ox >= end - 1)).any(axis=1)
        alone[begin : begin + _ROWS] = ~(left | right).any(axis=1) | (bracketed & ~goes_on)
    return alone


def _on_dark(luma: Grey, x: int, y: int, w: int, h: int) -> bool:
    ring = luma[max(0, y - 2) : y + h + 2, max(0, x - 2) : x + w + 2]
    inner = luma[y : y + h, x : x + w]
    border = (float(ring.sum()) - float(inner.sum())) / max(1, ring.size - inner.size)
    return border < 110


def _vector(ink: Grey) -> NDArray[np.float32]:
    """A glyph, white on black, as a unit vector: its box fitted into a square, mean taken out."""
    height, width = ink.shape
    scale = (_SIDE - 4) / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(ink, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR).astype(np.float32)
    ordered = np.sort(small, axis=None)
    low, high = float(ordered[len(ordered) // 20]), float(ordered[-1 - len(ordered) // 20])
    small = np.clip((small - low) / max(1.0, high - low), 0, 1)
    square = np.zeros((_SIDE, _SIDE), np.float32)
    top, left = (_SIDE - size[1]) // 2, (_SIDE - size[0]) // 2
    square[top : top + size[1], left : left + size[0]] = small
    square = cv2.GaussianBlur(square, (3, 3), 0.8)
    vector = square.ravel() - square.mean()
    return (vector / max(1e-6, float(np.linalg.norm(vector)))).astype(np.float32)


@lru_cache(maxsize=1)
def _templates() -> tuple[list[str], NDArray[np.float32], NDArray[np.float32]]:
    """(characters, (n, 576) unit vectors, height over the capitals' height) of letters and their rivals in several types."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    names = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif-Bold.ttf", "STIXGeneral.ttf", "STIXGeneralBol.ttf")
    types: list[tuple[ImageFont.FreeTypeFont, int]] = [
        (ImageFont.truetype(str(folder / name), 64), 0) for name in names
    ]
    plain = ImageFont.load_default(64)
    if isinstance(plain, ImageFont.FreeTypeFont):  # Pillow's own is close to Helvetica; a stroke makes it bold
        types += [(plain, 0), (plain, 2), (plain, 4)]
    characters, vectors, heights = [], [], []
    for face, stroke in types:
        capital = _drawn("E", face, stroke).shape[0]
        for character in _LETTERS + _OTHERS:
            ink = _drawn(character, face, stroke)
            characters.append(character)
            vectors.append(_vector(ink))
            heights.append(ink.shape[0] / capital)
    return characters, np.stack(vectors), np.array(heights, np.float32)


def _drawn(character: str, face: ImageFont.FreeTypeFont, stroke: int) -> Grey:
    """The largest connected piece of a drawn character: what is cut out of pictures is one piece too."""
    canvas = Image.new("L", (128, 128))
    ImageDraw.Draw(canvas).text((20, 20), character, fill=255, font=face, stroke_width=stroke)
    ink = np.asarray(canvas)
    _, _, stats, _ = cv2.connectedComponentsWithStats((ink > 100).astype(np.uint8))
    x, y, w, h, _ = stats[1 + int(stats[1:, 4].argmax())]
    return np.ascontiguousarray(ink[y : y + h, x : x + w])


def _agreeing(candidates: list[list[Letter]], width: int, height: int) -> list[Letter]:
    """The set with the best sum of likeness, agreement in size, alignment and order; a beam search label by label."""
    beam: list[tuple[float, tuple[Letter, ...]]] = [(0.0, ())]
    for options in candidates:
        grown = list(beam)  # the label may be missing
        for worth, chosen in beam:
            for letter in options:
                step = _worth(letter, chosen)
                if step is not None:
                    grown.append((worth + step, (*chosen, letter)))
        grown.sort(key=lambda item: -item[0])
        beam = grown[:_BEAM]
    worth, chosen = beam[0]
    return list(chosen) if len(chosen) >= 2 else []


def _worth(letter: Letter, chosen: tuple[Letter, ...]) -> float | None:
    """What one more letter adds; None where it cannot stand beside the others."""
    worth = 2.0 * (letter.likeness - _LOOKS_LIKE) + 0.1
    if not chosen:
        return worth
    sizes = [abs(math.log(letter.capital / other.capital)) for other in chosen]
    worth += 0.25 if min(sizes) < 0.1 else -2.5 * (min(sizes) - 0.1)
    worth -= 0.5 * max(0.0, max(sizes) - 0.35)
    unit = letter.capital
    aligned = 0
    for other in chosen:
        dx, dy = abs(letter.x - other.x), abs(letter.y - other.y)
        if max(dx, dy) < 1.5 * unit:
            return None
        aligned += dx < 0.5 * unit or dy < 0.5 * unit
    worth += 0.25 if aligned else 0.0
    last = chosen[-1]
    if (
        letter.x <= last.x + unit and letter.y <= last.y + unit
    ):  # up and to the left of the one before: no order reads so
        worth -= 1.2
    return worth
