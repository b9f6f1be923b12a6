"""Labelled sets in a report: figures, confusion, reliability, few labels, hits and misses, and how bundles compare.

Shows what evaluation.json holds and computes nothing; a section of the run's report, and the whole page of
workflows/evaluate.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from biomedclip_ray.evaluate.compare import as_html
from biomedclip_ray.evaluate.tables import set_lines
from biomedclip_ray.report import svg


def sets_section(evaluation: Mapping[str, Any]) -> Markup:
    """The section for evaluation.json of a run (one bundle's "sets") or of workflows/evaluate.py ("bundles"); empty
    without sets.
    """
    bundles = evaluation.get("bundles") or ({"this bundle": evaluation["sets"]} if evaluation.get("sets") else {})
    if not bundles:
        return Markup()
    lines = evaluation.get("table") or []
    shown = [
        {
            "name": name,
            "lines": list(set_lines(sets)),
            "sets": [_one(where, found) for where, found in sets.items()],
        }
        for name, sets in bundles.items()
    ]
    text = _template("sets.html.j2").render(
        bundles=shown,
        table=Markup(as_html(lines, list(bundles))) if len(bundles) > 1 else "",
        comparison=evaluation.get("comparison") or [],
        interval=svg.interval,
    )
    return Markup(text)


def sets_page(evaluation: Mapping[str, Any]) -> str:
    """The section as a page of its own, in the report's clothes."""
    run = resources.files("biomedclip_ray.report").joinpath("report.html.j2").read_text("utf-8")
    style = run[run.index("<style>") : run.index("</style>") + len("</style>")]
    head = '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    head += '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>Evaluation</title>\n'
    title = f"{len(evaluation['bundles'])} bundles, {evaluation['bootstraps']:,} draws, seed {evaluation['seed']}"
    body = f'<main><header><h1>Evaluation on labelled sets</h1><p class="lead">{title}</p></header>'
    return f"{head}{style}\n</head>\n<body>\n{body}\n{sets_section(evaluation)}\n</main>\n</body>\n</html>\n"


def _one(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """What one set has besides its figures."""
    tasks = []
    for task, measured in found.items():
        if isinstance(measured, dict) and "confusion" in measured:
            points = [(bin_["confidence"], bin_["accuracy"]) for bin_ in measured["reliability"]]
            tasks.append(
                {
                    "name": task.replace("_", " "),
                    "classes": measured["classes"],
                    "confusion": [_shaded(row) for row in measured["confusion"]],
                    "per_class": measured["per_class"],
                    "absent": measured["absent"],
                    "reliability": _reliability(points),
                    "ece": measured["ece"]["value"],
                    "examples": measured.get("examples", {}),
                    "prompts": measured.get("accuracy_by_template", {}),
                }
            )
    few = found.get("few_labels") or {}
    classes = (found.get("zero_shot") or {}).get("classes", [])
    curves = []
    for kind, words in (("shots", "labels of each class"), ("share", "share of train's labels")):
        few_points = [
            (float(p["at"]), p["balanced_accuracy"]["mean"], p["balanced_accuracy"]["sd"])
            for p in few.get(kind, [])
            if "n" in p
        ]
        left = [p for p in few.get(kind, []) if "left_out" in p]
        if few_points or left:
            plot = _few_plot(few_points, kind, words, 1 / max(len(classes), 1)) if len(few_points) > 1 else ""
            curves.append({"words": words, "points": few_points, "left_out": left, "plot": plot})
    return {
        "name": name,
        "left_out": found["left_out"],
        "warnings": found.get("warnings", []),
        "near": found.get("images_near_training"),
        "without": found.get("without_near_training", {}),
        "tasks": tasks,
        "robustness": found.get("robustness"),
        "curves": curves,
        "vqa": found.get("vqa", {})
        | {f"{split}, by a fusion head": one for split, one in found.get("vqa_fusion", {}).items()},
    }


def _few_plot(points: list[tuple[float, float, float]], kind: str, words: str, chance: float) -> Markup:
    """Balanced accuracy by labels, its mean with a line a standard deviation above and below."""
    scale = 100 if kind == "share" else 1  # ticks are whole numbers
    title = f"balanced accuracy by {words}{', in percent' if kind == 'share' else ''}"
    mean, above, below = ([(scale * at, value + sign * sd) for at, value, sd in points] for sign in (0, 1, -1))
    others = [("", above), ("", below)] if any(sd for _, _, sd in points) else []
    return svg.curve(mean, title, (chance, "chance"), others, small=True)


def _shaded(row: list[float]) -> list[tuple[str, float]]:
    """Counts of a confusion's row with their share of it."""
    total = sum(row) or 1.0
    return [(f"{cell:g}", cell / total) for cell in row]


def _reliability(points: list[tuple[float, float]]) -> Markup:
    """Accuracy by confidence beside the line of a calibrated model, 200 x 200."""

    def at(x: float, y: float) -> str:
        return f"{20 + 170 * x:.1f},{190 - 170 * y:.1f}"

    line = " ".join(at(x, y) for x, y in points)
    dots = "".join(f'<circle class="dot" cx="{20 + 170 * x:.1f}" cy="{190 - 170 * y:.1f}" r="3"/>' for x, y in points)
    return Markup(
        '<svg class="plot" viewBox="0 0 210 210" style="max-width:15rem" role="img" aria-label="accuracy by '
        'confidence">'
        f'<line class="grid" x1="20" y1="190" x2="190" y2="190"/><line class="grid" x1="20" y1="190" x2="20" y2="20"/>'
        f'<polyline class="chance" fill="none" points="{at(0, 0)} {at(1, 1)}"/><polyline class="line" '
        f'points="{line}"/>{dots}'
        '<text x="105" y="206" text-anchor="middle">confidence</text>'
        '<text x="12" y="105" text-anchor="middle" transform="rotate(-90 12 105)">accuracy</text></svg>'
    )


def _template(name: str) -> jinja2.Template:
    text = resources.files("biomedclip_ray.report").joinpath(name).read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["share"] = lambda value: f"{100 * value:.1f}%"
    return environment.from_string(text)
