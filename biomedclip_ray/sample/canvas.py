"""What all drawings share: random choices, fields of noise, fonts, cells, places and number words.

Every image is drawn fresh, so that no two are the same by accident and the bucket's truth stays exact; what is pooled
are the costly ingredients (fields of smooth noise, fonts).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

T = TypeVar("T")
Rng = np.random.Generator
Colour = tuple[int, int, int]
Drawn = tuple[Image.Image, str]

POSITIONS: dict[str, tuple[float, float]] = {
    "upper left": (0.28, 0.28),
    "upper right": (0.72, 0.28),
    "lower left": (0.28, 0.72),
    "lower right": (0.72, 0.72),
    "centre": (0.5, 0.5),
}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def pick(rng: Rng, options: Sequence[T]) -> T:
    """One of the options, uniformly."""
    return options[int(rng.integers(len(options)))]


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, `size` pixels high: the same on every machine."""
    return ImageFont.load_default(size)


@cache
def _noise_field(grain: int) -> np.ndarray:
    """A (1024, 1024) float32 field of smooth noise in [-1, 1] with features `grain` pixels wide."""
    small = np.random.default_rng(grain).random((1024 // grain + 2,) * 2, dtype=np.float32)
    field = np.asarray(Image.fromarray(small, "F").resize((1024, 1024), Image.Resampling.BICUBIC))
    return (field - 0.5) * 2


def noise(rng: Rng, width: int, height: int, grain: int) -> np.ndarray:
    """A random cut-out of the noise field of that grain, float32 (height, width), about [-1, 1]."""
    x, y = int(rng.integers(1024 - width)), int(rng.integers(1024 - height))
    step = 1 if rng.random() < 0.5 else -1
    return _noise_field(grain)[y : y + height, x : x + width][::step]


def blob(
    draw: ImageDraw.ImageDraw,
    centre: tuple[float, float],
    radii: tuple[float, float],
    angle: float,
    fill: Colour | int | None,
    outline: Colour | int | None = None,
    line: int = 1,
    wobble: float = 0.0,
) -> None:
    """A turned ellipse with an uneven edge, which is what a cell looks like."""
    t = np.linspace(0, 2 * np.pi, 26, endpoint=False)
    edge = 1 + wobble * (np.sin(2 * t + angle * 7) + 0.6 * np.sin(3 * t + angle * 11))
    x, y = radii[0] * edge * np.cos(t), radii[1] * edge * np.sin(t)
    px = centre[0] + x * np.cos(angle) - y * np.sin(angle)
    py = centre[1] + x * np.sin(angle) + y * np.cos(angle)
    draw.polygon(list(zip(px.tolist(), py.tolist(), strict=True)), fill=fill, outline=outline, width=line)


def shade(colour: Colour, factor: float) -> Colour:
    """A darker (factor < 1) or lighter colour."""
    r, g, b = (max(0, min(255, round(c * factor))) for c in colour)
    return r, g, b


def spread(
    rng: Rng, n: int, width: int, height: int, gap: float, around: tuple[float, float] | None
) -> list[tuple[float, float]]:
    """Places for n things at least `gap` apart where there is room, over the field or around a point."""
    places: list[tuple[float, float]] = []
    for attempt in range(n * 12):
        if around is None:
            x, y = rng.uniform(0.06, 0.94) * width, rng.uniform(0.06, 0.94) * height
        else:
            x, y = (around[0] + rng.normal(0, 0.12)) * width, (around[1] + rng.normal(0, 0.12)) * height
        room = gap * max(0.35, 1 - attempt / (n * 12))
        if all((x - a) ** 2 + (y - b) ** 2 > room * room for a, b in places):
            places.append((float(x), float(y)))
        if len(places) == n:
            break
    return places


def grainy(image: Image.Image, rng: Rng, strength: float, grain: int = 2) -> Image.Image:
    """The image with sensor noise and uneven light, 0..255."""
    width, height = image.size
    light = strength * noise(rng, width, height, grain) + 1.6 * strength * noise(rng, width, height, 128)
    pixels = np.asarray(image, dtype=np.float32) + (light if image.mode == "L" else light[..., None])
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).convert("RGB")


def scale_bar(image: Image.Image, colour: Colour) -> None:
    """A bar in the lower right corner."""
    width, height = image.size
    ImageDraw.Draw(image).rectangle((width * 0.76, height - 18, width * 0.94, height - 13), fill=colour)
