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

from biomedclip_ray.evaluate.compare import MAIN, as_html
from biomedclip_ray.evaluate.set_tables import PER_CLASS, as_rank, set_lines
from biomedclip_ray.report import svg

_STATED = {"specialty": "", "source": "from ", "licence": "licence ", "prompts_from": "prompts from "}


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
            "sets": [_one(where, found) for where, found in sets.items()],
        }
        for name, sets in bundles.items()
    ]
    text = _template("sets.html.j2").render(
        bundles=shown,
        table=Markup(as_html(lines, list(bundles))) if len(bundles) > 1 else "",
        comparison=evaluation.get("comparison") or [],
        interval=svg.interval,
        per_class=PER_CLASS,
    )
    return Markup(text)


def sets_page(evaluation: Mapping[str, Any]) -> str:
    """The section as a page of its own, in the report's clothes."""
    run = resources.files("biomedclip_ray.report").joinpath("report.html.j2").read_text("utf-8")
    style = run[run.index("<style>") : run.index("</style>") + len("</style>")]
    head = '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    head += '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>Evaluation</title>\n'
    count = len(evaluation["bundles"])
    bundles = "1 bundle" if count == 1 else f"{count} bundles"
    title = f"{bundles}, {evaluation['bootstraps']:,} draws, seed {evaluation['seed']}"
    body = f'<main><header><h1>Evaluation on labelled sets</h1><p class="lead">{title}</p></header>'
    return f"{head}{style}\n</head>\n<body>\n{body}\n{sets_section(evaluation)}\n</main>\n</body>\n</html>\n"


def _one(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """What one set has besides its figures."""
    tasks = [_task(task, measured) for task, measured in found.items() if "per_class" in _entry(measured)]
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
            told = (lambda at: f"{100 * at:g}%") if kind == "share" else (lambda at: f"{at:g}")
            shown = [(told(at), mean, sd) for at, mean, sd in few_points]
            left = [(told(p["at"]), p["left_out"]) for p in left]
            curves.append({"words": words, "points": shown, "left_out": left, "plot": plot})
    return {
        "name": name,
        "lines": list(set_lines({name: found})),
        "left_out": found["left_out"],
        "warnings": found.get("warnings", []),
        "stated": [(words, found[key]) for key, words in _STATED.items() if found.get(key)],
        "near": found.get("images_near_training"),
        "without": [
            (task.replace("_", " "), own["n"], name, own[name])
            for task, own in found.get("without_near_training", {}).items()
            for name in [name for name in MAIN.values() if name in own][:1]
        ],
        "tasks": tasks,
        "robustness": found.get("robustness"),
        "curves": curves,
        "vqa": found.get("vqa", {})
        | {f"{split}, by a fusion head": one for split, one in found.get("vqa_fusion", {}).items()},
    }


def _entry(measured: Any) -> Mapping[str, Any]:
    return measured if isinstance(measured, dict) else {}


def _task(name: str, measured: Mapping[str, Any]) -> dict[str, Any]:
    """What a task with classes has besides its figures; labels by prompt pairs have no confusion and no confidences."""
    one = {
        "name": name.replace("_", " "),
        "confusion": [_shaded(row) for row in measured.get("confusion", [])],
        "classes": measured.get("classes", []),
        "per_class": measured["per_class"],
        "absent": measured["absent"],
        "ece": measured["ece"]["value"] if "ece" in measured else None,
        "temperature": measured.get("temperature"),
        "examples": measured.get("examples", {}),
        "prompts": measured.get("accuracy_by_template", {}),
        "plots": [],
    }
    if "reliability" in measured:
        points = [(bin_["confidence"], bin_["accuracy"]) for bin_ in measured["reliability"]]
        words = f"reliability, ECE {one['ece']:.3f}"
        one["plots"].append((words, svg.square([("", points)], ("confidence", "accuracy"), (0.0, 1.0), dots=True)))
    curves = measured.get("curves", {})
    one["strokes"] = {label: number % svg.STROKES for number, label in enumerate(curves)}
    for key, words, axes, chance in (
        ("roc", "ROC", ("false positive rate", "recall"), (0.0, 1.0)),
        ("precision_recall", "precision and recall", ("recall", "precision"), None),
    ):
        lines = [(label, curve[key]) for label, curve in curves.items()]
        if lines:
            one["plots"].append((f"{words} of each class", svg.square(lines, axes, chance)))
    return one


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


def _template(name: str) -> jinja2.Template:
    text = resources.files("biomedclip_ray.report").joinpath(name).read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"share": lambda value: f"{100 * value:.1f}%", "rank": as_rank}
    return environment.from_string(text)
