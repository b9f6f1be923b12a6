"""The sample's five kinds of imaging figure: micrograph, fluorescence, radiograph, gel, histology.

Each drawing returns the sentence that describes it: colour, count, shape, place and trend come within its first 25
words and are visible at 64 x 64 pixels, because that is all that the sample's tiny CLIP sees of either. An image takes
2 to 11 ms of one core.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from biomedclip_ray.sample.canvas import (
    NUMBERS,
    POSITIONS,
    Colour,
    Drawn,
    Rng,
    blob,
    grainy,
    noise,
    pick,
    scale_bar,
    shade,
    spread,
)

_DYES: dict[str, Colour] = {
    "purple": (112, 58, 142),
    "blue": (48, 84, 168),
    "brown": (128, 78, 38),
    "pink": (214, 96, 138),
    "green": (60, 128, 76),
}
_FIELDS: dict[str, Colour] = {"grey": (172, 174, 172), "cream": (236, 226, 202), "pale blue": (196, 214, 232)}
_AMOUNTS = {"a few": (4, 7), "about twenty": (18, 22), "densely packed": (55, 70)}


def micrograph(rng: Rng, width: int, height: int) -> Drawn:
    """Stained cells in bright field."""
    dye, field, amount = pick(rng, list(_DYES)), pick(rng, list(_FIELDS)), pick(rng, list(_AMOUNTS))
    shape = pick(rng, ("round", "spindle-shaped", "rod-shaped"))
    where = None if amount == "densely packed" else pick(rng, (None, *POSITIONS))
    low, high = _AMOUNTS[amount]
    n = int(rng.integers(low, high + 1))
    size = min(width, height) * (0.115 if n < 10 else 0.07 if n < 30 else 0.048) * (0.75 if where else 1)
    stretch = {"round": 1.0, "spindle-shaped": 2.3, "rod-shaped": 1.7}[shape]
    image = Image.new("RGB", (width * 2, height * 2), _FIELDS[field])
    draw = ImageDraw.Draw(image)
    colour = _DYES[dye]
    for x, y in spread(rng, n, width * 2, height * 2, size * 4, POSITIONS[where] if where else None):
        angle, r = rng.uniform(0, np.pi), 2 * size * rng.uniform(0.85, 1.15)
        if shape == "rod-shaped":
            blob(draw, (x, y), (r * 1.25, r * 0.36), angle, colour, shade(colour, 0.7), 3)
            continue
        pale: Colour = tuple((c + 2 * f) // 3 for c, f in zip(colour, _FIELDS[field], strict=True))  # type: ignore[assignment]
        blob(draw, (x, y), (r * stretch**0.75, r / stretch**0.6), angle, pale, shade(colour, 0.8), 3, 0.04)
        blob(draw, (x + r * 0.1, y), (r * 0.5, r * 0.5 / stretch**0.4), angle, colour, None, 1, 0.05)
    image = grainy(image.reduce(2).filter(ImageFilter.GaussianBlur(0.7)), rng, 6)
    scale_bar(image, (20, 20, 20))
    place = f"clustered in the {where}" if where else "spread over the field"
    return image, pick(
        rng,
        (
            f"Light micrograph of {amount} {shape} {dye} cells {place} on a {field} background",
            f"Micrograph: {amount} {shape} cells stained {dye}, {place}, {field} background",
            f"Bright-field microscopy shows {amount} {dye} {shape} cells {place} against {field}",
        ),
    )


_CHANNELS: dict[str, tuple[Colour, str]] = {
    "green": ((40, 255, 90), "GFP"),
    "red": ((255, 50, 40), "mCherry"),
    "blue": ((60, 90, 255), "DAPI"),
    "magenta": ((255, 50, 230), "Cy5"),
    "yellow": ((255, 225, 50), "YFP"),
    "cyan": ((40, 230, 255), "CFP"),
}


def fluorescence(rng: Rng, width: int, height: int) -> Drawn:
    """Glowing cells on black, one channel or two."""
    channel = pick(rng, list(_CHANNELS))
    pattern = pick(rng, ("nuclear", "membrane", "punctate", "filamentous"))
    many = rng.random() < 0.5
    nuclei = channel != "blue" and pattern != "nuclear" and rng.random() < 0.5
    n = int(rng.integers(16, 24)) if many else int(rng.integers(3, 7))
    size = min(width, height) * (0.085 if many else 0.16)
    layer, core = Image.new("L", (width, height)), Image.new("L", (width, height))
    draw, dot = ImageDraw.Draw(layer), ImageDraw.Draw(core)
    for x, y in spread(rng, n, width, height, size * 2.1, None):
        angle, level = rng.uniform(0, np.pi), int(rng.integers(190, 256))
        if pattern == "nuclear":
            blob(draw, (x, y), (size * 0.8, size * 0.6), angle, level, None, 1, 0.03)
        elif pattern == "membrane":
            blob(draw, (x, y), (size, size * 0.85), angle, 36, level, max(3, round(size * 0.2)), 0.04)
        elif pattern == "punctate":
            for dx, dy in rng.normal(0, size * 0.55, (9, 2)):
                r = size * 0.11 + 1
                draw.ellipse((x + dx - r, y + dy - r, x + dx + r, y + dy + r), fill=level)
        else:
            for turn in rng.uniform(0, 2 * np.pi, 9):
                end = (x + 1.35 * size * np.cos(turn), y + 1.35 * size * np.sin(turn))
                draw.line((x, y, *end), fill=level, width=max(2, round(size * 0.09)))
        blob(dot, (x, y), (size * 0.36, size * 0.3), angle, 235, None, 1, 0.03)
    signal = np.asarray(layer.filter(ImageFilter.GaussianBlur(1.2)), dtype=np.float32)[..., None] / 255
    light = signal * (1 + 0.25 * noise(rng, width, height, 8)[..., None]) * np.array(_CHANNELS[channel][0], np.float32)
    if nuclei:
        glow = np.asarray(core.filter(ImageFilter.GaussianBlur(1.5)), dtype=np.float32)[..., None] / 255
        light = light * (1 - glow) + glow * np.array(_CHANNELS["blue"][0], np.float32)
    light += 5 + 4 * noise(rng, width, height, 2)[..., None]
    image = Image.fromarray(np.clip(light, 0, 255).astype(np.uint8))
    scale_bar(image, (255, 255, 255))
    count = "many" if many else NUMBERS[n]
    marker = _CHANNELS[channel][1]
    counter = " and blue nuclei" if nuclei else ""
    return image, pick(
        rng,
        (
            f"Fluorescence image of {count} cells with {channel} {pattern} {marker} signal{counter} on black",
            f"Confocal fluorescence microscopy, {channel} {pattern} staining ({marker}){counter} in {count} cells",
            f"{channel.capitalize()} immunofluorescence ({marker}) with {pattern} pattern{counter}, {count} cells",
        ),
    )


def radiograph(rng: Rng, width: int, height: int) -> Drawn:
    """A chest film, a long bone, or a head CT slice, with or without a finding."""
    part = pick(rng, (_chest, _bone, _head))
    image, words = part(rng, width, height)
    image = image.rotate(rng.uniform(-4, 4), Image.Resampling.BILINEAR, fillcolor=10)
    return grainy(image.filter(ImageFilter.GaussianBlur(1.6)), rng, 6), words


def _chest(rng: Rng, width: int, height: int) -> Drawn:
    image = Image.new("L", (width, height), 22)
    draw = ImageDraw.Draw(image)
    w, h = float(width), float(height)
    finding = pick(rng, ("clear lungs", "round opacity", "pleural effusion", "enlarged heart"))
    side = pick(rng, ("left", "right"))
    sign = -1 if side == "left" else 1
    draw.rounded_rectangle((w * 0.06, h * 0.03, w * 0.94, h * 1.2), w * 0.2, fill=122)
    for s in (-1, 1):
        blob(draw, (w * (0.5 + 0.21 * s), h * 0.5), (w * 0.15, h * 0.38), 0.12 * s, 42, None, 1, 0.03)
    draw.rectangle((w * 0.465, 0, w * 0.535, h), fill=165)
    for i in range(7):
        y = h * (0.13 + 0.11 * i)
        draw.arc((w * 0.1, y, w * 0.49, y + h * 0.2), 185, 350, fill=112, width=max(3, height // 60))
        draw.arc((w * 0.51, y, w * 0.9, y + h * 0.2), 190, 355, fill=112, width=max(3, height // 60))
    heart = 0.24 if finding == "enlarged heart" else 0.12
    blob(draw, (w * 0.55, h * 0.66), (w * heart, h * 0.17), 0.5, 176, None, 1, 0.03)
    words = finding
    if finding == "round opacity":
        level = pick(rng, ("upper", "lower"))
        x, y, r = w * (0.5 + 0.22 * sign), h * (0.3 if level == "upper" else 0.68), min(w, h) * 0.085
        draw.ellipse((x - r, y - r, x + r, y + r), fill=226)
        words = f"a round white opacity in the {level} {side} lung field"
    elif finding == "pleural effusion":
        x0, x1 = sorted((w * (0.5 + 0.05 * sign), w * (0.5 + 0.4 * sign)))
        draw.rounded_rectangle((x0, h * 0.6, x1, h * 1.1), w * 0.08, fill=214)
        words = f"a white pleural effusion at the {side} base"
    elif finding == "enlarged heart":
        words = "an enlarged heart and clear lungs"
    device = pick(rng, ("", "", "left", "right"))
    if device:
        x = w * (0.24 if device == "left" else 0.76)
        draw.rounded_rectangle((x - w * 0.06, h * 0.1, x + w * 0.06, h * 0.2), w * 0.02, fill=252)
        draw.line((x, h * 0.2, w * 0.5, h * 0.3, w * 0.56, h * 0.7), fill=245, width=max(3, width // 110))
        words += f", pacemaker on the upper {device}"
    words = pick(rng, (f"Chest radiograph showing {words}", f"Frontal chest X-ray with {words}"))
    return image, words


def _bone(rng: Rng, width: int, height: int) -> Drawn:
    image = Image.new("L", (width, height), 16)
    draw = ImageDraw.Draw(image)
    w, h = float(width), float(height)
    where, kind = (
        pick(rng, ("upper", "middle", "lower")),
        pick(rng, ("transverse fracture", "oblique fracture", "plate")),
    )
    bones = pick(rng, (1, 2))
    draw.rectangle((w * 0.22, 0, w * 0.78, h), fill=58)
    y = h * {"upper": 0.3, "middle": 0.5, "lower": 0.7}[where]
    for i in range(bones):
        x, r = w * (0.5 if bones == 1 else 0.39 + 0.22 * i), w * (0.085 if bones == 1 else 0.06)
        draw.rectangle((x - r, h * 0.08, x + r, h * 0.92), fill=196)
        draw.rectangle((x - r * 0.4, h * 0.14, x + r * 0.4, h * 0.86), fill=140)
        for end in (0.06, 0.94):
            draw.ellipse((x - r * 1.7, h * end - r * 1.5, x + r * 1.7, h * end + r * 1.5), fill=186)
    x, tilt = w * (0.5 if bones == 1 else 0.39), h * (0.0 if kind == "transverse fracture" else 0.09)
    if kind == "plate":
        draw.rectangle((x + w * 0.05, y - h * 0.16, x + w * 0.085, y + h * 0.16), fill=255)
        for k in range(5):
            draw.line((x - w * 0.08, y + h * (0.065 * k - 0.13), x + w * 0.07, y + h * (0.065 * k - 0.13)), 255, 4)
        words = f"a metal plate with five screws in the {where} shaft"
    else:
        draw.line((x - w * 0.14, y + tilt, x + w * 0.14, y - tilt), fill=14, width=max(5, height // 40))
        words = f"{'a' if kind.startswith('t') else 'an'} {kind} of the {where} shaft"
    name = "a single long bone" if bones == 1 else "two parallel forearm bones"
    words = pick(rng, (f"Radiograph of {name} with {words}", f"X-ray showing {words}, {name}"))
    return image, words


def _head(rng: Rng, width: int, height: int) -> Drawn:
    image = Image.new("L", (width, height), 4)
    draw = ImageDraw.Draw(image)
    w, h, where = float(width), float(height), pick(rng, list(POSITIONS))
    bright, large = rng.random() < 0.5, rng.random() < 0.5
    r, centre = min(w, h) * 0.43, (w / 2, h / 2)
    blob(draw, centre, (r * 1.04, r * 0.88), np.pi / 2, 240)
    blob(draw, centre, (r * 0.94, r * 0.78), np.pi / 2, 104)
    for s in (-1, 1):
        blob(draw, (w / 2 + s * r * 0.17, h / 2), (r * 0.3, r * 0.08), np.pi / 2 - 0.25 * s, 46)
    draw.line((w / 2, h / 2 - r * 0.9, w / 2, h / 2 + r * 0.9), fill=128, width=2)
    fx, fy = POSITIONS[where]
    spot = (w / 2 + (fx - 0.5) * 1.7 * r, h / 2 + (fy - 0.5) * 1.9 * r)
    size = r * (0.27 if large else 0.15)
    blob(draw, spot, (size, size * 0.85), 0.4, 232 if bright else 24, None, 1, 0.06)
    lesion = f"{'large' if large else 'small'} {'bright haemorrhage' if bright else 'dark infarct'}"
    words = pick(rng, (f"Axial head CT with a {lesion} at the {where}", f"Brain CT slice: {lesion} in the {where}"))
    return image, words


def gel(rng: Rng, width: int, height: int) -> Drawn:
    """Bands in lanes, dark on light (blot) or light on dark (agarose)."""
    dark_field = rng.random() < 0.5
    lanes, rows = int(rng.integers(4, 9)), int(rng.integers(1, 4))
    trend = pick(rng, ("increasing from left to right", "decreasing from left to right", "even", "lane"))
    odd = int(rng.integers(lanes))
    levels = {
        "increasing from left to right": np.linspace(0.12, 1, lanes),
        "decreasing from left to right": np.linspace(1, 0.12, lanes),
        "even": np.full(lanes, 0.85),
        "lane": np.where(np.arange(lanes) == odd, 0.0, 0.9),
    }[trend]
    place = pick(rng, ("upper", "middle", "lower"))
    base = {"upper": 0.2, "middle": 0.47, "lower": 0.74}[place]
    centres = [base] if rows == 1 else list(np.linspace(0.22, 0.78, rows))
    layer = Image.new("L", (width, height))
    draw = ImageDraw.Draw(layer)
    step = width * 0.92 / lanes
    for row, y in enumerate(centres):
        for lane in range(lanes):
            level = levels[lane] if row == 0 or trend == "even" else 0.85 * rng.uniform(0.8, 1)
            x, thick = width * 0.04 + step * (lane + 0.5), height * 0.028 * (0.7 + level)
            bow = rng.uniform(-2, 2)
            draw.rounded_rectangle(
                (x - step * 0.38, height * y - thick + bow, x + step * 0.38, height * y + thick + bow),
                thick,
                fill=round(255 * float(level)),
            )
    signal = np.asarray(layer.filter(ImageFilter.GaussianBlur(2.2)), dtype=np.float32)
    pixels = (26 + signal * 0.86) if dark_field else (222 - signal * 0.8)
    image = grainy(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), rng, 5)
    what, ground = (
        ("Agarose gel", "white bands on black") if dark_field else ("Western blot", "dark bands on light grey")
    )
    change = f"band missing in lane {NUMBERS[odd + 1]}" if trend == "lane" else f"intensity {trend}"
    row_words = f"one row in the {place} third" if rows == 1 else f"{NUMBERS[rows]} rows"
    return image, pick(
        rng,
        (
            f"{what} with {NUMBERS[lanes]} lanes, {ground}, {row_words}, {change}",
            f"{what}, {ground}: {row_words} of bands in {NUMBERS[lanes]} lanes, {change}",
        ),
    )


_STAINS: dict[str, tuple[Colour, Colour, Colour]] = {
    "haematoxylin and eosin (pink)": ((240, 176, 204), (222, 128, 170), (92, 52, 132)),
    "Masson trichrome (blue)": ((170, 196, 232), (84, 118, 190), (168, 44, 60)),
    "brown DAB immunostain": ((226, 208, 186), (170, 112, 62), (74, 88, 140)),
    "PAS (magenta)": ((244, 218, 234), (196, 52, 136), (98, 60, 140)),
    "silver (black)": ((226, 208, 160), (190, 156, 96), (40, 34, 30)),
}


def histology(rng: Rng, width: int, height: int) -> Drawn:
    """Stained tissue: glands, sheets of nuclei, fibres or fat."""
    stain = pick(rng, list(_STAINS))
    texture = pick(rng, ("round glands", "dense nuclei", "wavy fibres", "fat vacuoles"))
    pale, strong, nucleus = (np.array(c, np.float32) for c in _STAINS[stain])
    field = noise(rng, width, height, 16) * 0.5 + noise(rng, width, height, 64) * 0.7
    if texture == "wavy fibres":
        turn = rng.uniform(-0.6, 0.6)
        rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
        field = np.sin((rows + turn * columns + 26 * noise(rng, width, height, 64)) * 0.16)
    mix = np.clip(field * 0.55 + 0.5, 0, 1)[..., None]
    tissue = pale * (1 - mix) + strong * mix + 6 * noise(rng, width, height, 2)[..., None]
    image = Image.fromarray(np.clip(tissue, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    ink: Colour = (int(nucleus[0]), int(nucleus[1]), int(nucleus[2]))
    rim: Colour = tuple(int(c) for c in (nucleus + strong) / 2)  # type: ignore[assignment]
    n = {"round glands": int(rng.integers(4, 8)), "dense nuclei": 230, "wavy fibres": 45, "fat vacuoles": 26}[texture]
    size = min(width, height) * {"round glands": 0.14, "fat vacuoles": 0.085}.get(texture, 0.016)
    if texture in ("round glands", "fat vacuoles"):
        for x, y in spread(rng, n, width, height, size * 2.2, None):
            angle, r = rng.uniform(0, np.pi), size * rng.uniform(0.85, 1.15)
            if texture == "fat vacuoles":
                blob(draw, (x, y), (r, r * 0.9), angle, (250, 247, 246), shade(ink, 1.2), 2, 0.03)
                continue
            blob(draw, (x, y), (r, r * 0.85), angle, rim, None, 1, 0.03)
            blob(draw, (x, y), (r * 0.62, r * 0.5), angle, (250, 246, 247), None, 1, 0.05)
            for t in np.linspace(0, 2 * np.pi, 16, endpoint=False):
                blob(draw, (x + r * 0.82 * np.cos(t), y + r * 0.7 * np.sin(t)), (r * 0.12, r * 0.08), t, ink)
    else:
        for x, y, angle in zip(
            rng.uniform(0, width, n), rng.uniform(0, height, n), rng.uniform(0, np.pi, n), strict=True
        ):
            long = size * (2.6 if texture == "wavy fibres" else 1.5)
            blob(draw, (x, y), (long, size), 0.2 if texture == "wavy fibres" else angle, ink)
    where = pick(rng, (None, *POSITIONS))
    if where:  # a dark infiltrate: crowded nuclei
        x, y = POSITIONS[where][0] * width, POSITIONS[where][1] * height
        for dx, dy, angle in rng.normal(0, 1, (130, 3)) * (width * 0.07, height * 0.07, 1):
            blob(draw, (x + dx, y + dy), (4.5, 3.5), angle, ink)
    image = image.filter(ImageFilter.GaussianBlur(0.6))
    scale_bar(image, (10, 10, 10))
    spot = f" and a dense infiltrate in the {where}" if where else ""
    amount = f"{NUMBERS[n]} {texture}" if texture == "round glands" else texture
    return image, pick(
        rng,
        (
            f"Histology section with {amount}{spot}, {stain}",
            f"Tissue section stained with {stain} showing {amount}{spot}",
            f"Histological {stain} staining: {amount}{spot}",
        ),
    )
