"""How much of an accuracy is left when images get worse: five corruptions at five strengths (after Hendrycks &
Dietterich 2019).

Noise, blur, contrast, brightness and JPEG, made by Pillow and numpy from the image's own hash, so that every run and
machine that decodes alike makes the same ones and their vectors are kept like any other. A strength changes an image by
more than the one below it (a test says so). What counts is the drop relative to the clean accuracy above chance.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from biomedclip_ray.evaluate.features import key_of
from biomedclip_ray.images.image import as_pillow

STRENGTHS = (1, 2, 3, 4, 5)
_NOISE = (0.04, 0.08, 0.12, 0.18, 0.26)
_BLUR = (0.004, 0.008, 0.014, 0.022, 0.032)  # of the longer side
_CONTRAST = (0.7, 0.5, 0.35, 0.2, 0.1)
_BRIGHTNESS = (1.2, 1.4, 1.6, 1.9, 2.3)
_JPEG = (30, 18, 12, 8, 4)
KINDS = ("noise", "blur", "contrast", "brightness", "jpeg")


def corrupt(data: bytes, kind: str, strength: int) -> bytes:
    """An image's bytes made worse, as PNG (as JPEG where that is the corruption).

    Args:
        kind: one of KINDS; strength: 1 to 5.

    Raises:
        One of UNREADABLE: bytes that are no image.
    """
    with as_pillow(data) as opened:
        image = opened.convert("RGB")
    at = strength - 1
    sink = io.BytesIO()
    if kind == "jpeg":
        image.save(sink, "JPEG", quality=_JPEG[at])
        return sink.getvalue()
    if kind == "noise":
        random = np.random.default_rng(int(key_of(data), 16))  # the same image, the same noise
        noisy = np.asarray(image, float) + 255 * _NOISE[at] * random.normal(size=(image.height, image.width, 3))
        image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    elif kind == "blur":
        image = image.filter(ImageFilter.GaussianBlur(max(image.size) * _BLUR[at]))
    elif kind == "contrast":
        image = ImageEnhance.Contrast(image).enhance(_CONTRAST[at])
    else:
        image = ImageEnhance.Brightness(image).enhance(_BRIGHTNESS[at])
    image.save(sink, "PNG", compress_level=1)
    return sink.getvalue()


def relative_drop(clean: float, worse: float, chance: float) -> float | None:
    """Share of what is above chance that is lost; None where nothing is above it."""
    return (clean - worse) / (clean - chance) if clean > chance else None


def summary(accuracies: dict[str, list[float]], clean: float, chance: float, n: int) -> dict[str, Any]:
    """What evaluation.json says: accuracy and relative drop of each kind at each strength, and the mean drop.

    Args:
        accuracies: kind -> accuracy at STRENGTHS.
    """
    out: dict[str, Any] = {"n": n, "clean": clean, "chance": chance, "kinds": {}}
    drops = []
    for kind, found in accuracies.items():
        lost = [relative_drop(clean, value, chance) for value in found]
        out["kinds"][kind] = {"accuracy": found, "relative_drop": lost}
        drops += [value for value in lost if value is not None]
    out["mean_relative_drop"] = float(np.mean(drops)) if drops else None
    return out
