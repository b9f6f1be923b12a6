"""The other five kinds of the sample's figures: ECG, survival curve, bar chart, heat map, pathway; and compounds.

Drawn with Pillow at twice the size and reduced, which costs a tenth of matplotlib (5 ms against 60 ms an image) and
needs neither fonts nor a backend of the machine.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from biomedclip_ray.sample.canvas import NUMBERS, POSITIONS, Colour, Drawn, Rng, font, pick, shade
from biomedclip_ray.sample.imaging import fluorescence, gel, histology, micrograph, radiograph

INKS: dict[str, Colour] = {
    "red": (204, 44, 48),
    "blue": (38, 92, 190),
    "green": (44, 150, 76),
    "orange": (240, 146, 34),
    "purple": (126, 62, 164),
    "black": (44, 44, 44),
}
_BLACK: Colour = (30, 30, 30)
_WHITE: Colour = (255, 255, 255)


def _canvas(width: int, height: int, paper: Colour = _WHITE) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (width * 2, height * 2), paper)
    return image, ImageDraw.Draw(image)


def _axes(draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], x_title: str, y_title: str) -> None:
    """Two axes with ticks around `box` (x0, y0, x1, y1), in pixels of the double-sized canvas."""
    x0, y0, x1, y1 = box
    draw.line((x0, y0, x0, y1, x1, y1), fill=_BLACK, width=4)
    for k in range(1, 6):
        y, x = y1 - (y1 - y0) * k / 5, x0 + (x1 - x0) * k / 5
        draw.line((x0 - 9, y, x0, y), fill=_BLACK, width=3)
        draw.line((x, y1, x, y1 + 9), fill=_BLACK, width=3)
        draw.text((x0 - 14, y), str(20 * k), fill=_BLACK, font=font(18), anchor="rm")
    draw.text(((x0 + x1) / 2, y1 + 34), x_title, fill=_BLACK, font=font(24), anchor="mm")
    draw.text((x0 - 40, y0 - 20), y_title, fill=_BLACK, font=font(24), anchor="lm")


def ecg(rng: Rng, width: int, height: int) -> Drawn:
    """Leads on millimetre paper."""
    paper = pick(rng, ("pink", "green", "white"))
    ground, lines = {
        "pink": ((255, 232, 234), (244, 178, 184)),
        "green": ((232, 246, 232), (170, 216, 172)),
        "white": (_WHITE, (226, 226, 226)),
    }[paper]
    rate = pick(rng, ("slow", "normal", "fast"))
    change = pick(rng, ("ST elevation", "inverted T waves", "tall T waves", "no P waves", "deep S waves"))
    rows, ink = int(rng.integers(1, 4)), pick(rng, ("black", "blue", "red"))
    image, draw = _canvas(width, height, ground)
    for x in range(0, width * 2, 32):
        draw.line((x, 0, x, height * 2), fill=lines, width=4 if x % 160 == 0 else 2)
    for y in range(0, height * 2, 32):
        draw.line((0, y, width * 2, y), fill=lines, width=4 if y % 160 == 0 else 2)
    beats = {"slow": 3, "normal": 5, "fast": 9}[rate]
    t = np.linspace(0, beats, width * 2)
    if change == "no P waves":
        t = t + 0.22 * np.sin(1.7 * t + rng.uniform(0, 6))
    phase = (t + rng.uniform(0, 1)) % 1.0

    def wave(at: float, spread: float, size: float) -> np.ndarray:
        return size * np.exp(-(((phase - at) / spread) ** 2))

    trace = wave(0.4, 0.016, 1.0) - wave(0.365, 0.014, 0.14)
    trace -= wave(0.44, 0.022, 0.75 if change == "deep S waves" else 0.2)
    trace += 0 if change == "no P waves" else wave(0.22, 0.035, 0.16)
    trace += wave(0.66, 0.06, {"inverted T waves": -0.42, "tall T waves": 0.75}.get(change, 0.22))
    if change == "ST elevation":
        trace += 0.38 * ((phase > 0.43) & (phase < 0.68))
    room = height * 2 / rows
    for row in range(rows):
        middle = room * (row + 0.62)
        y = middle - trace * room * 0.5 * rng.uniform(0.8, 1.05) + rng.normal(0, 1.2, t.size)
        draw.line(list(zip(range(width * 2), y.tolist(), strict=True)), fill=INKS[ink], width=6, joint="curve")
        draw.text((12, middle - room * 0.5), ("I", "II", "III")[row], fill=_BLACK, font=font(26))
    leads = "one lead" if rows == 1 else f"{NUMBERS[rows]} leads"
    return image.reduce(2), pick(
        rng,
        (
            f"Electrocardiogram on {paper} paper, {leads}, {rate} rhythm with {change}, {ink} trace",
            f"ECG: {rate} rate and {change} in {leads}, {ink} trace on {paper} grid",
        ),
    )


def survival(rng: Rng, width: int, height: int) -> Drawn:
    """Kaplan-Meier steps of two or three groups."""
    n = int(rng.integers(2, 4))
    names = [str(c) for c in rng.permutation(list(INKS))[:n]]
    gap = pick(rng, ("wide", "narrow"))
    early = rng.random() < 0.5
    image, draw = _canvas(width, height)
    box = (width * 0.22, height * 0.2, width * 1.9, height * 1.66)
    x0, y0, x1, y1 = box
    finals = np.linspace(0.86, 0.1, n) if gap == "wide" else np.linspace(0.42, 0.42 - 0.11 * (n - 1), n)
    time = np.sort(rng.random((n, 22)) ** (2.4 if early else 1.0), axis=1)
    for name, final, times in zip(names, finals, time, strict=True):
        points, level = [(x0, y0)], 1.0
        for k, moment in enumerate(times):
            x = x0 + (x1 - x0) * float(moment)
            points.append((x, y1 - (y1 - y0) * level))
            level = 1 - (1 - float(final)) * (k + 1) / times.size
            points.append((x, y1 - (y1 - y0) * level))
        points.append((x1, points[-1][1]))
        draw.line(points, fill=INKS[name], width=11)
    _axes(draw, box, pick(rng, ("Months", "Days", "Years")), "Survival (%)")
    legend = y0 + 4 if gap == "narrow" and early else y1 - 40 * n - 6
    left = x1 - 240 if gap == "narrow" and early else x0 + 16
    for k, name in enumerate(names):
        draw.line((left, legend + 40 * k + 14, left + 44, legend + 40 * k + 14), fill=INKS[name], width=9)
        draw.text((left + 56, legend + 40 * k + 14), f"group {k + 1}", fill=_BLACK, font=font(24), anchor="lm")
    course = "early drop" if early else "steady decline"
    low = names[-1]
    return image.reduce(2), pick(
        rng,
        (
            f"Kaplan-Meier survival curves of {NUMBERS[n]} groups, {names[0]} above {low}, {gap} separation, {course}",
            f"Survival: the {names[0]} group lives longer than the {low}, {gap} gap, {course}, {NUMBERS[n]} groups",
        ),
    )


def bar_chart(rng: Rng, width: int, height: int) -> Drawn:
    """Bars of one or two colours, upright or lying, with error bars."""
    n = int(rng.integers(3, 9))
    trend = pick(rng, ("increasing", "decreasing", "highest in the middle", "lowest in the middle", "about equal"))
    lying = rng.random() < 0.35
    first, second = (str(c) for c in rng.permutation(list(INKS))[:2])
    two = rng.random() < 0.4
    x = np.linspace(0, 1, n)
    values = {
        "increasing": 0.15 + 0.75 * x,
        "decreasing": 0.9 - 0.75 * x,
        "highest in the middle": 0.92 - 1.5 * np.abs(x - 0.5),
        "lowest in the middle": 0.2 + 1.4 * np.abs(x - 0.5),
        "about equal": np.full(n, 0.65),
    }[trend] + rng.uniform(-0.04, 0.04, n)
    image, draw = _canvas(width, height)
    box = (width * 0.22, height * 0.2, width * 1.92, height * 1.66)
    x0, y0, x1, y1 = box
    length, across = (x1 - x0, y1 - y0) if lying else (y1 - y0, x1 - x0)
    step = across / n
    for k, value in enumerate(values):
        colour = INKS[second if two and k % 2 else first]
        a, b = step * (k + 0.16), step * (k + 0.84)
        size, error = length * float(value), length * float(rng.uniform(0.02, 0.06))
        middle = (a + b) / 2
        if lying:
            draw.rectangle((x0, y0 + a, x0 + size, y0 + b), fill=colour, outline=_BLACK, width=3)
            draw.line((x0 + size - error, y0 + middle, x0 + size + error, y0 + middle), fill=_BLACK, width=4)
        else:
            draw.rectangle((x0 + a, y1 - size, x0 + b, y1), fill=colour, outline=_BLACK, width=3)
            draw.line((x0 + middle, y1 - size - error, x0 + middle, y1 - size + error), fill=_BLACK, width=4)
    _axes(draw, box, pick(rng, ("Group", "Dose", "Condition")), pick(rng, ("Expression (%)", "Viability (%)", "Cells")))
    way = "horizontal " if lying else ""
    colours = f"{first} and {second}" if two else first
    order = "from top to bottom" if lying else "from left to right"
    course = f"{trend} {order}" if trend in ("increasing", "decreasing") else trend
    return image.reduce(2), pick(
        rng,
        (
            f"Bar chart of {NUMBERS[n]} {way}{colours} bars, {course}",
            f"Bar graph: {NUMBERS[n]} {colours} {way}bars with values {course}",
        ),
    )


_MAPS: dict[str, tuple[Colour, Colour, Colour]] = {
    "blue to red": ((40, 70, 180), (246, 244, 244), (196, 34, 44)),
    "green to red": ((30, 160, 60), (16, 16, 16), (214, 36, 36)),
    "purple to yellow": ((68, 12, 92), (36, 144, 140), (252, 230, 60)),
    "white to blue": ((250, 252, 255), (146, 182, 220), (16, 58, 132)),
    "black to orange": ((10, 8, 14), (150, 52, 40), (255, 190, 70)),
}


def heat_map(rng: Rng, width: int, height: int) -> Drawn:
    """A matrix in false colour with a pattern."""
    scale = pick(rng, list(_MAPS))
    fine = rng.random() < 0.5
    pattern = pick(rng, ("block", "block", "diagonal", "rising to the right", "rising to the bottom"))
    where = pick(rng, list(POSITIONS))
    rows, columns = (int(rng.integers(18, 30)), int(rng.integers(18, 30))) if fine else (7, int(rng.integers(6, 9)))
    y, x = np.mgrid[0:rows, 0:columns] / np.array([rows - 1, columns - 1]).reshape(2, 1, 1)
    px, py = POSITIONS[where]
    value = {
        "block": ((abs(x - px) < 0.24) & (abs(y - py) < 0.24)) * 0.8 + 0.1,
        "diagonal": 0.95 - 2.2 * abs(x - y),
        "rising to the right": x,
        "rising to the bottom": y,
    }[pattern] + rng.normal(0, 0.08, (rows, columns))
    value = np.clip(value, 0, 1)[..., None]
    low, mid, high = (np.array(c, np.float32) for c in _MAPS[scale])
    colours = np.where(value < 0.5, low + (mid - low) * value * 2, mid + (high - mid) * (value - 0.5) * 2)
    image, draw = _canvas(width, height)
    box = (round(width * 0.2), round(height * 0.14), round(width * 1.68), round(height * 1.84))
    size = (box[2] - box[0], box[3] - box[1])
    cells = Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    image.paste(cells, box[:2])
    if not fine:
        for k in range(columns + 1):
            draw.line((box[0] + size[0] * k / columns, box[1], box[0] + size[0] * k / columns, box[3]), _WHITE, 4)
        for k in range(rows + 1):
            draw.line((box[0], box[1] + size[1] * k / rows, box[2], box[1] + size[1] * k / rows), _WHITE, 4)
    ramp = np.linspace(1, 0, 60)[:, None, None]
    bar = np.where(ramp < 0.5, low + (mid - low) * ramp * 2, mid + (high - mid) * (ramp - 0.5) * 2).astype(np.uint8)
    key = (round(width * 1.76), round(height * 0.5), round(width * 1.84), round(height * 1.4))
    image.paste(Image.fromarray(bar).resize((key[2] - key[0], key[3] - key[1])), key[:2])
    draw.rectangle(key, outline=_BLACK, width=2)
    for k in range(4):
        at = box[1] + size[1] * (k + 0.5) / 4
        draw.text((box[0] - 12, at), f"g{k + 1}", fill=_BLACK, font=font(22), anchor="rm")
    course = {"block": f"a high block in the {where}", "diagonal": "a high diagonal"}.get(pattern, f"values {pattern}")
    grid = "fine" if fine else "coarse"
    return image.reduce(2), pick(
        rng,
        (
            f"Heat map from {scale} on a {grid} grid with {course}",
            f"{grid.capitalize()} heatmap ({scale}) of expression, {course}",
        ),
    )


def pathway(rng: Rng, width: int, height: int) -> Drawn:
    """Boxes or ovals joined by arrows."""
    n, shape = int(rng.integers(4, 8)), pick(rng, ("boxes", "ovals"))
    layout = pick(rng, ("cascade", "cycle", "tree", "hub"))
    ink, paper = pick(rng, [c for c in INKS if c != "black"]), pick(rng, ("white", "pale yellow", "light grey"))
    ground: Colour = {"white": _WHITE, "pale yellow": (255, 248, 208), "light grey": (226, 228, 230)}[paper]
    image, draw = _canvas(width, height, ground)
    w, h = width * 2.0, height * 2.0
    ring = [(0.5 + 0.34 * np.sin(2 * np.pi * k / n), 0.5 - 0.37 * np.cos(2 * np.pi * k / n)) for k in range(n)]
    if layout == "cascade":
        places = [(0.5 + 0.27 * (-1) ** k * (n > 5), 0.1 + 0.8 * k / (n - 1)) for k in range(n)]
        arrows = [(k, k + 1) for k in range(n - 1)]
    elif layout == "cycle":
        places, arrows = ring, [(k, (k + 1) % n) for k in range(n)]
    elif layout == "tree":
        leaves = n - 1
        places = [(0.5, 0.16), *((0.13 + 0.74 * k / (leaves - 1), 0.62 + 0.2 * (k % 2)) for k in range(leaves))]
        arrows = [(0, k) for k in range(1, n)]
    else:
        places = [(0.5, 0.5), *((0.5 + 0.36 * (x - 0.5) / 0.34, 0.5 + (y - 0.5)) for x, y in ring[1:])]
        arrows = [(k, 0) for k in range(1, n)]
    points = [(x * w, y * h) for x, y in places]
    half_w, half_h = w * 0.105, h * (0.048 if layout == "cascade" else 0.06)
    for a, b in arrows:
        _arrow(draw, points[a], points[b], half_w, half_h)
    names = rng.permutation(["AKT", "RAS", "MEK", "ERK", "p53", "TNF", "JAK", "mTOR", "PI3K", "CDK2", "MYC", "BAX"])
    for k, (x, y) in enumerate(points):
        oval = (x - half_w, y - half_h, x + half_w, y + half_h)
        if shape == "boxes":
            draw.rounded_rectangle(oval, 10, fill=INKS[ink], outline=shade(INKS[ink], 0.6), width=4)
        else:
            draw.ellipse(oval, fill=INKS[ink], outline=shade(INKS[ink], 0.6), width=4)
        draw.text((x, y), str(names[k]), fill=_WHITE, font=font(26), anchor="mm")
    form = {"cascade": "vertical cascade", "cycle": "closed cycle", "tree": "branching tree", "hub": "central hub"}[
        layout
    ]
    return image.reduce(2), pick(
        rng,
        (
            f"Pathway diagram, {form} of {NUMBERS[n]} {ink} {shape} on a {paper} background",
            f"Signalling pathway drawn as a {form}: {NUMBERS[n]} {ink} {shape}, {paper} background",
        ),
    )


def _arrow(
    draw: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float], half_w: float, half_h: float
) -> None:
    """A line with a head that ends at the border of the target's box."""
    delta = np.array(end) - np.array(start)
    length = float(np.hypot(*delta)) or 1.0
    unit = delta / length
    inset = min(half_w / max(abs(unit[0]), 1e-6), half_h / max(abs(unit[1]), 1e-6)) + 8
    tip = np.array(end) - unit * inset
    side = np.array([-unit[1], unit[0]]) * 11
    draw.line((*start, *tip.tolist()), fill=(70, 70, 70), width=6)
    draw.polygon([tuple(p) for p in (tip, tip - unit * 24 + side, tip - unit * 24 - side)], fill=(70, 70, 70))


KINDS: dict[str, Callable[[Rng, int, int], Drawn]] = {
    "micrograph": micrograph,
    "fluorescence": fluorescence,
    "radiograph": radiograph,
    "gel": gel,
    "histology": histology,
    "ecg": ecg,
    "survival_curve": survival,
    "bar_chart": bar_chart,
    "heat_map": heat_map,
    "pathway": pathway,
}

# (columns, rows) of a compound by its number of panels; several to choose from.
_GRIDS = {2: ((2, 1), (1, 2)), 3: ((3, 1), (1, 3)), 4: ((2, 2),)}
_LETTER = 26


def compound(rng: Rng, kinds: list[str]) -> tuple[Image.Image, list[list[float]], list[str]]:
    """2 to 4 panels in a grid with white gaps and a letter above each.

    Returns the image, one box per panel ([x0, y0, x1, y1] in fractions, its letter included), and what each shows.
    """
    columns, rows = pick(rng, _GRIDS[len(kinds)])
    side_w, side_h = int(rng.integers(190, 240)), int(rng.integers(160, 210))
    gap = int(rng.integers(12, 22))
    width, height = columns * (side_w + gap) + gap, rows * (side_h + _LETTER + gap) + gap
    image = Image.new("RGB", (width, height), _WHITE)
    draw = ImageDraw.Draw(image)
    boxes, words = [], []
    for k, kind in enumerate(kinds):
        x, y = gap + (k % columns) * (side_w + gap), gap + (k // columns) * (side_h + _LETTER + gap)
        panel, sentence = KINDS[kind](rng, side_w, side_h)
        image.paste(panel, (x, y + _LETTER))
        draw.text((x + 2, y), "ABCD"[k], fill=(0, 0, 0), font=font(24), stroke_width=1, stroke_fill=(0, 0, 0))
        corners = (x / width, y / height, (x + side_w) / width, (y + _LETTER + side_h) / height)
        boxes.append([round(c, 5) for c in corners])
        words.append(sentence)
    return image, boxes, words
