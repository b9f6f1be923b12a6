"""One HTML file about the separation of compound figures: the figures of merit, and everything that is not wholly right
to look at.

It carries its images and needs no script and no network. Truth and answer are drawn as vectors over the image, in two
colours that stay apart for the colour-blind, so that thin lines stay sharp at any size.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Box = tuple[float, float, float, float]
_SIDE = 900  # pixels of an image's long side: twice what a column of the page shows

_NAMES = {
    "compound_or_single": "compound or single, share right",
    "panels_f1_50": "panels, F1 at 0.5",
    "panels_f1_75": "panels, F1 at 0.75",
    "labels": "labels, share right",
    "subcaptions_f1": "subcaptions, F1",
}


@dataclass(frozen=True)
class Measured:
    """A figure of merit with its 95% interval over `n` figures; `goal` is None where there is none."""

    source: str
    name: str
    value: float
    low: float
    high: float
    n: int
    goal: float | None

    @property
    def reached(self) -> bool:
        return self.goal is None or self.value >= self.goal


@dataclass(frozen=True)
class WrongFigure:
    """A figure whose panels are not wholly right; boxes in fractions of the sides, each with its label
    ("" for none).
    """

    name: str
    image: NDArray[np.uint8]
    why: str
    true: list[tuple[str, Box]]
    found: list[tuple[str, Box]]

    @property
    def picture(self) -> str:
        """A JPEG as a data URI."""
        image = Image.fromarray(self.image)
        image.thumbnail((_SIDE, _SIDE))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=82)
        return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


@dataclass(frozen=True)
class WrongCaption:
    """A caption whose subcaptions are not wholly right: (label, words of truth, words of the answer,
    right) in order.
    """

    caption: str
    rows: list[tuple[str, str, str, bool]]


def write(
    path: Path,
    measured: list[Measured],
    cost: dict[str, float],
    figures: list[WrongFigure],
    captions: list[WrongCaption],
) -> None:
    """Args: cost: source -> mean core-milliseconds a figure."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(_PAGE).render(
        measured=measured, cost=cost, figures=figures, captions=captions, names=_NAMES
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Panels and subcaptions</title>
<style>
  :root { --true: #0072b2; --found: #d55e00; --line: #d8d8d8; --soft: #666; }
  body { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; max-width: 1180px; margin: 0 auto; padding: 24px; }
  h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 32px 0 8px; }
  p { margin: 4px 0 12px; max-width: 85ch; } .soft { color: var(--soft); }
  table { border-collapse: collapse; } th { text-align: left; font-weight: 600; }
  th, td { padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
  .number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
  .yes { color: #1a7f37; } .no { color: #b3261e; font-weight: 600; }
  .legend { display: flex; gap: 24px; margin: 0 0 12px; }
  .legend span::before { content: ""; display: inline-block; width: 22px; height: 0; margin-right: 8px; vertical-align: middle; }
  .legend .t::before { border-top: 3px dashed var(--true); } .legend .f::before { border-top: 3px solid var(--found); }
  .columns { columns: 3 340px; column-gap: 20px; }
  figure { margin: 0 0 20px; break-inside: avoid; border: 1px solid var(--line); border-radius: 6px; overflow: hidden; }
  .frame { position: relative; background: #fff; } .frame img { display: block; width: 100%; }
  .frame svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
  rect { fill: none; vector-effect: non-scaling-stroke; }
  .t rect { stroke: var(--true); stroke-width: 2.5; stroke-dasharray: 7 5; } .f rect { stroke: var(--found); stroke-width: 2.5; }
  .tag { position: absolute; font: 600 12px/16px system-ui, sans-serif; color: #fff; padding: 0 5px; border-radius: 3px; }
  .tag.t { background: var(--true); } .tag.f { background: var(--found); transform: translate(-100%, -100%); }
  figcaption { padding: 8px 12px; font-size: 13px; border-top: 1px solid var(--line); overflow-wrap: anywhere; }
  details { border: 1px solid var(--line); border-radius: 6px; margin: 0 0 12px; padding: 10px 14px; }
  summary { cursor: pointer; } details table { width: 100%; table-layout: fixed; margin-top: 10px; font-size: 13.5px; }
  .label { width: 3em; font-weight: 600; } tr.right td { color: var(--soft); }
  th.t { color: var(--true); } th.f { color: var(--found); }
  td { overflow-wrap: anywhere; }
</style>
<h1>Panels and subcaptions</h1>
<p class="soft">A panel counts at an overlap (intersection over union) of 0.5 or 0.75 with its box; a subcaption with its label right and
a word F1 of 0.8 or more, after the words that all share are taken off both ends. Intervals: 95%, from 2,000 resamples.</p>
<table>
<tr><th>set</th><th>measure</th><th class="number">found</th><th class="number">95% interval</th><th class="number">n</th><th class="number">goal</th><th></th></tr>
{% for row in measured %}
<tr><td>{{ row.source }}</td><td>{{ names[row.name] }}</td><td class="number">{{ "%.3f"|format(row.value) }}</td>
<td class="number">{{ "%.3f"|format(row.low) }} – {{ "%.3f"|format(row.high) }}</td><td class="number">{{ row.n }}</td>
<td class="number">{{ "%.2f"|format(row.goal) }}</td>
<td class="{{ 'yes' if row.reached else 'no' }}">{{ "reached" if row.reached else "below" }}</td></tr>
{% endfor %}
{% for source, milliseconds in cost.items() %}
<tr><td>{{ source }}</td><td>core-milliseconds a figure, mean</td><td class="number">{{ "%.0f"|format(milliseconds) }}</td><td></td><td></td><td></td><td></td></tr>
{% endfor %}
</table>
<h2>Figures that are not wholly right: {{ figures|length }}</h2>
{% if figures %}
<p class="legend"><span class="t">truth</span><span class="f">found</span></p>
<div class="columns">
{% for figure in figures %}
<figure><div class="frame"><img src="{{ figure.picture }}" alt="{{ figure.name }}">
<svg viewBox="0 0 1 1" preserveAspectRatio="none">
{% for name, boxes in (("f", figure.found), ("t", figure.true)) %}
<g class="{{ name }}">{% for _, box in boxes %}<rect x="{{ box[0] }}" y="{{ box[1] }}" width="{{ box[2] - box[0] }}" height="{{ box[3] - box[1] }}"/>{% endfor %}</g>
{% endfor %}
</svg>
{% for label, box in figure.true if label %}<span class="tag t" style="left: {{ 100 * box[0] }}%; top: {{ 100 * box[1] }}%">{{ label }}</span>{% endfor %}
{% for label, box in figure.found if label %}<span class="tag f" style="left: {{ 100 * box[2] }}%; top: {{ 100 * box[3] }}%">{{ label }}</span>{% endfor %}
</div><figcaption><b>{{ figure.name }}</b><br>{{ figure.why }}</figcaption></figure>
{% endfor %}
</div>
{% else %}
<p>None.</p>
{% endif %}
<h2>Captions that are not wholly right: {{ captions|length }}</h2>
<p class="soft">Words as they are compared. Rows in grey are right.</p>
{% for each in captions %}
<details open><summary>{{ each.caption }}</summary>
<table><tr><th class="label"></th><th class="t">truth</th><th class="f">found</th></tr>
{% for label, truth, found, right in each.rows %}
<tr{% if right %} class="right"{% endif %}><td class="label">{{ label }}</td><td>{{ truth }}</td><td>{{ found }}</td></tr>
{% endfor %}
</table></details>
{% endfor %}
</html>
"""
