"""The page of an evaluation shows what evaluation.json holds: classes, confusion, curves, VQA, comparison."""

from __future__ import annotations

import re

import numpy as np

from biomedclip_ray.evaluate.compare import comparison, table
from biomedclip_ray.evaluate.measure import measure
from biomedclip_ray.evaluate.vqa import answer
from biomedclip_ray.report.sets import sets_page
from tests.evaluate.test_tasks import ABOUT, questions, two_bundles


def page(**sets) -> str:
    bundles = {name: {where: found[name] for where, found in sets.items()} for name in ("good", "poor")}
    tasks = {("s", "zero_shot"): ("classification", two_bundles(), ABOUT)}
    evaluation = {"bundles": bundles, "bootstraps": 50, "seed": 0, "table": table(bundles)}
    return sets_page(evaluation | {"comparison": comparison(tasks, 50, 0)})


def words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html.partition("</style>")[2]).split())


def entry(**tasks) -> dict:
    return {"left_out": {"n": 0, "of": 120, "rows": [], "reasons": {}}, "warnings": []} | tasks


def test_each_class_has_its_line_and_its_curves() -> None:
    found = {
        name: entry(zero_shot=measure("classification", rows, 50, 0, ABOUT)) for name, rows in two_bundles().items()
    }
    html = page(s=found)
    shown = words(html)
    cell = found["good"]["zero_shot"]["per_class"]["cell"]
    assert f"cell 40 {cell['recall']:.1%} {cell['precision']:.1%} {cell['f1']:.1%} {cell['auroc']:.1%}" in shown
    assert "Confusion: truth in rows" in shown and "reliability, ECE" in shown
    assert html.count("ROC of each class") == html.count("precision and recall of each class") == 2
    assert "good against poor" in shown and "1 won, 0 lost" in shown
    curve = found["good"]["zero_shot"]["curves"]["cell"]
    area = np.trapezoid([0, *(y for _, y in curve["roc"])], [0, *(x for x, _ in curve["roc"])])
    assert abs(area - cell["auroc"]) < 0.02


def test_answers_are_told_by_type_measure_and_control() -> None:
    train, *fit = questions(300, 0)
    test, *ask = questions(150, 1)
    measured = measure("vqa", answer(train, test, tuple(fit), tuple(ask), 0), 50, 0, {})
    found = entry(vqa={"disjoint": measured})
    shown = words(page(s={"good": found, "poor": found}))
    for metric in ("closed, question only: exact match", "open, model: token F1", "all, model: BLEU-1"):
        assert f"vqa, disjoint {metric}" in shown
    assert "question type organ, model: exact match" in shown
    assert "The model less the question alone:" in shown
