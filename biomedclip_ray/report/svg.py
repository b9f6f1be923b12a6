"""The report's plots as inline SVG: a few lines of text each, coloured by the page's own CSS, so that they follow
light, dark and print without a script; matplotlib's SVG would bring its own fonts, colours and 40 KB a plot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

_LARGE, _SMALL = (720, 250), (340, 150)
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 12, 30
_BAND, _KINDS = 24, 5
STROKES = 5
_MAX_POINTS = 600  # more than the plot has pixels is only bytes


def curve(
    points: Sequence[tuple[float, float]],
    title: str,
    chance: tuple[float, str] | None = None,
    others: Sequence[tuple[str, Sequence[tuple[float, float]]]] = (),
    small: bool = False,
) -> Markup:
    """A line through (step, value) points, y from 0, as one `<svg>`.

    Args:
        points: at least one, ascending in step.
        title: read out to those who cannot see the plot.
        chance: height and label of a dashed line, what chance would give.
        others: (label, points) of further lines with points marked.
        small: for one of several in a row.
    """
    width, height = _SMALL if small else _LARGE
    most_ticks = 3 if small else 5
    every = [*points, *(point for _, series in others for point in series)]
    x_max = max(x for x, _ in every) or 1.0
    y_max = 1.06 * max([y for _, y in every] + ([chance[0]] if chance else [])) or 1.0

    def across(x: float) -> float:
        return _LEFT + (width - _LEFT - _RIGHT) * x / x_max

    def up(y: float) -> float:
        return height - _BOTTOM - (height - _TOP - _BOTTOM) * y / y_max

    def at(x: float, y: float) -> str:
        return f"{across(x):.1f},{up(y):.1f}"

    parts = [
        f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
    ]
    for value in ticks(y_max, most_ticks):
        y = up(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in ticks(x_max, most_ticks):
        x = across(value)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 8}" text-anchor="middle">{value:,.0f}</text>')
    if chance:
        y = up(chance[0])
        parts.append(f'<line class="chance" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="label" x="{width - _RIGHT}" y="{y - 6:.1f}" text-anchor="end">{escape(chance[1])}</text>'
        )
    parts.append(f'<polyline class="line" points="{" ".join(at(x, y) for x, y in thin(points))}"/>')
    for label, series in others:
        parts.append(f'<polyline class="other" points="{" ".join(at(x, y) for x, y in thin(series))}"/>')
        for x, y in thin(series, 40):
            parts.append(f'<circle class="dot" cx="{across(x):.1f}" cy="{up(y):.1f}" r="3"/>')
        x, y = series[-1]
        parts.append(
            f'<text class="label" x="{across(x):.1f}" y="{up(y) - 8:.1f}" text-anchor="end">{escape(label)}</text>'
        )
    return Markup("".join([*parts, "</svg>"]))


@dataclass(frozen=True)
class Step:
    """From `at` on, until the next: what is going on, and how many of each kind there are."""

    at: float
    label: str
    counts: Mapping[str, float]


def steps(series: Sequence[Step], end: float, kinds: Sequence[str], title: str, unit: str) -> Markup:
    """Counts over time, one area of steps for each kind on top of the other, below a band that says what went on.

    Args:
        series: ascending in `at`, the first at 0 or later; the last holds until `end` (> 0).
        kinds: of `counts`, the lowest area first; drawn in the classes kind0, kind1, ...
        unit: of `at`, at the axis.
    """
    width, height = _LARGE
    top = _TOP + _BAND
    edges = [step.at for step in series] + [end]
    spans = list(zip(series, pairwise(edges), strict=True))
    y_max = 1.06 * max([sum(step.counts.values()) for step in series] + [0]) or 1.0

    def across(x: float) -> float:
        return _LEFT + (width - _LEFT - _RIGHT) * x / end

    def up(y: float) -> float:
        return height - _BOTTOM - (height - top - _BOTTOM) * y / y_max

    parts = [
        f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
    ]
    for value in ticks(y_max):
        y = up(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        if value == int(value):
            parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in ticks(end):
        anchor = "end" if across(value) > width - 40 else "middle"
        words = f"{value:g} {unit}"
        parts.append(
            f'<text class="tick" x="{across(value):.1f}" y="{height - 8}" text-anchor="{anchor}">{words}</text>'
        )
    floor = [0.0] * len(spans)
    for number, kind in enumerate(kinds):
        ceiling = [low + step.counts.get(kind, 0.0) for low, (step, _) in zip(floor, spans, strict=True)]
        forth = [point for high, (_, ends) in zip(ceiling, spans, strict=True) for point in ((x, high) for x in ends)]
        back = [point for low, (_, ends) in zip(floor, spans, strict=True) for point in ((x, low) for x in ends)]
        outline = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in [*forth, *reversed(back)])
        parts.append(f'<polygon class="kind{number % _KINDS}" points="{outline}"/>')
        floor = ceiling
    for number, (label, ends) in enumerate(_merged(spans)):
        x, length = across(ends[0]), across(ends[1]) - across(ends[0])
        parts.append(
            f'<rect class="stage{number % 2}" x="{x:.1f}" y="{_TOP}" width="{max(length, 1):.1f}" height="{_BAND - 6}">'
            f"<title>{escape(label)}</title></rect>"
        )
        if length > 7 * len(label):
            parts.append(f'<text x="{x + length / 2:.1f}" y="{_TOP + 12}" text-anchor="middle">{escape(label)}</text>')
    return Markup("".join([*parts, "</svg>"]))


def _merged(spans: Sequence[tuple[Step, tuple[float, float]]]) -> list[tuple[str, tuple[float, float]]]:
    """Neighbours that say the same as one; those that say nothing are left out."""
    found: list[tuple[str, tuple[float, float]]] = []
    for step, (begin, end) in spans:
        if found and found[-1][0] == step.label and found[-1][1][1] == begin:
            found[-1] = (step.label, (found[-1][1][0], end))
        elif step.label:
            found.append((step.label, (begin, end)))
    return found


def interval(value: float, low: float, high: float, chance: float | None) -> Markup:
    """A share in [0, 1] on a track: a dot, its interval as a bar, chance as a tick (where it is known)."""

    def x(share: float) -> str:
        return f"{2 + 116 * min(max(share, 0.0), 1.0):.1f}"

    tick = "" if chance is None else f'<line class="chance" x1="{x(chance)}" x2="{x(chance)}" y1="2" y2="12"/>'
    return Markup(
        '<svg class="interval" viewBox="0 0 120 14" aria-hidden="true">'
        '<line class="track" x1="2" x2="118" y1="7" y2="7"/>'
        f'<line class="bar" x1="{x(low)}" x2="{x(high)}" y1="7" y2="7"/>'
        f"{tick}"
        f'<circle class="dot" cx="{x(value)}" cy="7" r="3.5"/></svg>'
    )


def square(
    lines: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    axes: tuple[str, str],
    chance: tuple[float, float] | None = None,
    dots: bool = False,
) -> Markup:
    """Lines of points in the unit square, 200 x 200, each named where the pointer rests on it.

    Args:
        lines: (label, points); beyond STROKES of them the strokes begin again.
        axes: words under the first and beside the second.
        chance: heights of the dashed line at 0 and at 1.
        dots: whether points are marked.
    """

    def at(x: float, y: float) -> str:
        return f"{24 + 168 * x:.1f},{190 - 168 * y:.1f}"

    title = escape(f"{axes[1]} by {axes[0]}")
    parts = [f'<svg class="plot" viewBox="0 0 210 212" style="max-width:15rem" role="img" aria-label="{title}">']
    parts += [f'<polyline class="grid" fill="none" points="{at(0, 1)} {at(0, 0)} {at(1, 0)}"/>']
    if chance:
        parts.append(f'<polyline class="chance" fill="none" points="{at(0, chance[0])} {at(1, chance[1])}"/>')
    for number, (label, points) in enumerate(lines):
        shown = " ".join(at(x, y) for x, y in points)
        stroke = f"line stroke{number % STROKES}"
        parts.append(f'<polyline class="{stroke}" points="{shown}"><title>{escape(label)}</title></polyline>')
        if dots:
            places = (at(x, y).split(",") for x, y in points)
            parts += [f'<circle class="dot" cx="{x}" cy="{y}" r="3"/>' for x, y in places]
    for x, word in ((24, "0"), (192, "1")):
        parts.append(f'<text class="tick" x="{x}" y="205" text-anchor="middle">{word}</text>')
    parts.append('<text class="tick" x="18" y="26" text-anchor="end">1</text>')
    parts.append(f'<text x="108" y="205" text-anchor="middle">{escape(axes[0])}</text>')
    parts.append(f'<text x="13" y="106" text-anchor="middle" transform="rotate(-90 13 106)">{escape(axes[1])}</text>')
    return Markup("".join([*parts, "</svg>"]))


def ticks(top: float, most: int = 5) -> list[float]:
    """Round numbers from 0 up to at most `top` (> 0), at most `most` of them above 0."""
    raw = top / most
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(step * unit for step in (1, 2, 2.5, 5, 10) if step * unit >= raw)
    return [round(i * step, 10) for i in range(int(top / step + 1e-9) + 1)]


def thin(points: Sequence[tuple[float, float]], most: int = _MAX_POINTS) -> list[tuple[float, float]]:
    """At most `most` + 1 points: means of equal runs; the last point stays as it is."""
    if len(points) <= most:
        return list(points)
    edges = [round(i * len(points) / most) for i in range(most + 1)]
    runs = [points[start:end] for start, end in pairwise(edges)]
    return [*((_mean([x for x, _ in run]), _mean([y for _, y in run])) for run in runs), points[-1]]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
