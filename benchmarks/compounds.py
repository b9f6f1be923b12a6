"""Compound figures drawn on real layouts: where real figures have their panels and letters, other images and other
types.

The layouts (`corpus/layouts`, 8,500 figures) are read where they lie; they state no licence and are never copied.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from panels import Figure, corpus_figures
from panels_report import Box
from PIL import Image, ImageDraw, ImageFont

from biomedclip_ray.sample import plots

Pixels = NDArray[np.uint8]
Layout = dict[str, Any]

# The types that journals ask for, Helvetica and Times, as their free doubles; none of them is among the reader's
# templates.
FONTS = Path("/usr/share/fonts/truetype/liberation")
_TYPES = ("Sans-Bold",) * 5 + ("Sans-Regular",) * 3 + ("Serif-Bold",) * 2 + ("Serif-Regular",)


@dataclass(frozen=True)
class Picture:
    """An image to fill a panel with, without white margin, and what it shows."""

    kind: str
    pixels: Pixels

    @property
    def is_dark_edged(self) -> bool:
        """Reaches to its own edge, as photographs do: letters stand in it, not beside it."""
        edge = np.concatenate((self.pixels[0], self.pixels[-1], self.pixels[:, 0], self.pixels[:, -1]))
        return bool((edge.min(axis=1) < 225).mean() > 0.7)


def layouts(corpus: Path) -> list[Layout]:
    """Those of several panels whose letters run on from A; all letters in the case of the first, which the source
    mixes.
    """
    every = []
    lines = gzip.decompress((corpus / "layouts" / "layouts.jsonl.gz").read_bytes()).decode().splitlines()
    for line in lines:
        layout = json.loads(line)
        letters = [panel["letter"] or "" for panel in layout["panels"]]
        count = len(letters)
        if not 2 <= count <= 26 or sorted(map(str.lower, letters)) != list(ascii_lowercase[:count]):
            continue
        for panel in layout["panels"]:
            panel["letter"] = panel["letter"].lower() if letters[0].islower() else panel["letter"].upper()
        every.append(layout)
    return every


def pictures(corpus: Path) -> list[Picture]:
    """The corpus' single figures and panels (without their upper left, where the letter is) and the
    sample's drawings.
    """
    found = []
    for figure in corpus_figures(corpus):
        height, width = figure.image.shape[:2]
        if not figure.is_compound:
            found.append(Picture("single", _trimmed(figure.image)))
        for x0, y0, x1, y1 in figure.boxes:
            panel = figure.image[int(y0 * height) : int(y1 * height), int(x0 * width) : int(x1 * width)]
            panel = panel[panel.shape[0] // 8 :, panel.shape[1] // 8 :]
            if min(panel.shape[:2]) > 80:
                found.append(Picture("panel", _trimmed(panel)))
    kinds = list(plots.KINDS)
    for seed in range(150):
        kind = kinds[seed % len(kinds)]
        image, _ = plots.KINDS[kind](np.random.default_rng(10_000 + seed), 480, 360)
        found.append(Picture(kind, _trimmed(np.asarray(image))))
    return found


def typefaces(folder: Path) -> dict[str, Path]:
    """The faces that letters are drawn in: the Liberation fonts of a folder, which look like most journals' Arial and
    Times; matplotlib's DejaVu where there are none.
    """
    dejavu = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    found = {}
    for face in set(_TYPES):
        family, _, weight = face.partition("-")
        other = dejavu / f"DejaVu{family}{'-Bold' if weight == 'Bold' else ''}.ttf"
        found[face] = mine if (mine := folder / f"Liberation{face}.ttf").is_file() else other
    return found


def draw(rng: np.random.Generator, layout: Layout, every: list[Picture], faces: dict[str, Path]) -> Figure:
    """A JPEG-compressed figure with this layout; its caption is its labels."""
    scale = max(1.0, 700 / layout["width"] * min(1.0, layout["aspect"]))
    width, height = round(layout["width"] * scale), round(layout["width"] / layout["aspect"] * scale)
    pad, gap = int(rng.integers(0, 20)), int(rng.integers(1, 4))
    canvas = np.full((height + 2 * pad, width + 2 * pad, 3), 255, np.uint8)

    def place(box: list[float], margin: int = 0) -> tuple[int, int, int, int]:
        x0, y0, x1, y1 = box
        left, top = round(x0 * width) + pad + margin, round(y0 * height) + pad + margin
        right, bottom = round(x1 * width) + pad - margin, round(y1 * height) + pad - margin
        return left, top, max(right, left + 8), max(bottom, top + 8)

    of_several = 0.7 if rng.random() < 0.35 else 0.1
    if rng.random() < 0.6:
        kind = every[int(rng.integers(len(every)))].kind
        every = [picture for picture in every if picture.kind == kind]
    boxes = []
    for panel in layout["panels"]:
        room, letter = place(panel["box"], gap), place(panel["letter_box"])
        shape = (room[2] - room[0]) / (room[3] - room[1])
        some = [every[int(k)] for k in rng.integers(len(every), size=6)]
        picture = min(some, key=lambda one: abs(np.log(one.pixels.shape[1] / one.pixels.shape[0] / shape)))
        left, top, right, bottom = room if picture.is_dark_edged else _beside(room, letter)
        several = 1 + int(rng.integers(1, 4)) * int(rng.random() < of_several)
        drawn = _filled([picture, *some][:several], right - left, bottom - top, int(rng.integers(4, 25)))
        tall, wide = drawn.shape[:2]
        left, top = left + (right - left - wide) // 2, top + (bottom - top - tall) // 2
        part = canvas[top : top + tall, left : left + wide]
        part[:] = drawn[: part.shape[0], : part.shape[1]]
        boxes.append(
            (min(left, letter[0]), min(top, letter[1]), max(left + wide, letter[2]), max(top + tall, letter[3]))
        )
    image = Image.fromarray(canvas)
    font = str(faces[_TYPES[int(rng.integers(len(_TYPES)))]])
    for panel in layout["panels"]:
        _write(image, panel["letter"], place(panel["letter_box"]), font, backed=rng.random() < 0.5)
    quality = int(rng.integers(70, 95))
    _, code = cv2.imencode(".jpg", np.asarray(image)[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    pixels = np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR)[:, :, ::-1], np.uint8)
    tall, wide = pixels.shape[:2]
    fractions: list[Box] = [(x0 / wide, y0 / tall, x1 / wide, y1 / tall) for x0, y0, x1, y1 in boxes]
    labels = [panel["letter"] for panel in layout["panels"]]
    caption = " ".join(f"({label}) Drawn." for label in sorted(labels, key=str.lower))
    return Figure("drawn", np.ascontiguousarray(pixels), caption, True, fractions, labels)


def _trimmed(pixels: Pixels) -> Pixels:
    ink = pixels.min(axis=2) < 227
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else pixels


def _beside(room: tuple[int, int, int, int], letter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """The room without the strip, on the side where it costs least, that the letter stands in."""
    left, top, right, bottom = room
    x0, y0, x1, y1 = letter
    strips = {"top": y1 - top, "left": x1 - left, "bottom": bottom - y0, "right": right - x0}
    side = min(strips, key=lambda name: strips[name])
    if side == "top":
        top = min(y1 + 2, bottom - 8)
    elif side == "left":
        left = min(x1 + 2, right - 8)
    elif side == "bottom":
        bottom = max(y0 - 2, top + 8)
    else:
        right = max(x0 - 2, left + 8)
    return left, top, right, bottom


def _filled(some: list[Picture], width: int, height: int, gap: int) -> Pixels:
    """One image, or several in a row or column: a panel of several plots."""
    each = (max(width, height) - gap * (len(some) - 1)) // len(some)
    if len(some) == 1 or each < 30:
        return _fitted(some[0].pixels, width, height)
    canvas = np.full((height, width, 3), 255, np.uint8)
    for k, picture in enumerate(some):
        at = k * (each + gap)
        if width >= height:
            part = _fitted(picture.pixels, each, height)
            canvas[: part.shape[0], at : at + part.shape[1]] = part
        else:
            part = _fitted(picture.pixels, width, each)
            canvas[at : at + part.shape[0], : part.shape[1]] = part
    return _trimmed(canvas)


def _fitted(pixels: Pixels, width: int, height: int) -> Pixels:
    """As large as the room allows, stretched by half at most."""
    tall, wide = pixels.shape[:2]
    stretch = min(1.5, max(1 / 1.5, (width / height) / (wide / tall)))
    scale = min(width / (wide * stretch), height / tall)
    size = (min(width, max(4, round(wide * stretch * scale))), min(height, max(4, round(tall * scale))))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def _write(image: Image.Image, letter: str, box: tuple[int, int, int, int], font: str, *, backed: bool) -> None:
    """The letter as high as its box; white on dark, on a white square where the ground is neither and `backed`."""
    draw = ImageDraw.Draw(image)
    _, above, _, below = draw.textbbox((0, 0), letter, font=ImageFont.truetype(font, 100))
    face = ImageFont.truetype(font, max(8, int(100 * (box[3] - box[1]) / (below - above))))
    ground = float(np.asarray(image.crop(box).convert("L")).mean())
    if backed and 60 < ground < 200:
        draw.rectangle((box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1), fill=(255, 255, 255))
        ground = 255.0
    before, above, _, _ = draw.textbbox((0, 0), letter, font=face)
    draw.text((box[0] - before, box[1] - above), letter, fill=(255,) * 3 if ground < 128 else (0,) * 3, font=face)
