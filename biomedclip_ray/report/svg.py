"""The report's plots as inline SVG: a few lines of text each, coloured by the page's own CSS, so that they follow
light, dark and print without a script; matplotlib's SVG would bring its own fonts, colours and 40 KB a plot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from markupsafe import Markup, escape

_LARGE, _SMALL = (720, 250), (340, 150)
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 12, 30
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
