"""The tables that end a run say what evaluation.json says."""

from __future__ import annotations

from rich.console import Console

from biomedclip_ray.evaluate.compare import as_csv, as_html, as_latex, table
from biomedclip_ray.evaluate.set_tables import set_lines
from biomedclip_ray.evaluate.tables import bundles_table, tables


def test_each_figure_stands_beside_chance_and_control() -> None:
    recall = {"recall@10": {"value": 0.5, "low": 0.4, "high": 0.6, "chance": 0.1}}
    rank = {"median_rank": {"value": 3.0, "low": 2.0, "high": 4.5, "chance": 50.5}}
    control = {"recall@10": {"value": 0.11}, "median_rank": {"value": 49.0}}
    within = {"recall@10": {"value": 0.75, "chance": 0.5}}
    directions = ("text_to_image", "image_to_text")
    evaluation = {
        "split": "test",
        "retrieval": {
            "n": 100,
            **dict.fromkeys(directions, recall | rank),
            "control_shuffled": dict.fromkeys(directions, control),
            **dict.fromkeys(("same_image", "same_text"), dict.fromkeys(directions, recall)),
        },
        "slices": {"image": {"panel": {"n": 30, "of": 130, **dict.fromkeys(directions, recall)}}},
        "by_kind": {kind: {"n": n, **dict.fromkeys(directions, within)} for kind, n in (("gel", 20), ("signal", 10))},
    }
    console = Console(width=120, record=True)
    console.print(*tables(evaluation))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert "Retrieval among 100 figures of the test split, with 95% intervals".split() in lines
    assert "text to image recall@10 50.0% 40.0% - 60.0% 10.0% 5.0 11.0%".split() in lines
    assert "image to text median rank 3 2 - 4.5 50.5 49".split() in lines
    assert "text to image recall@10, same text 50.0% 40.0% - 60.0% 10.0% 5.0".split() in lines
    assert "whole or panel panel 30 130 50.0% 40.0% - 60.0% 50.0% 40.0% - 60.0%".split() in lines
    assert "gel 20 75.0% 75.0% 50.0%".split() in lines
    assert "signal 10 - - 50.0%".split() in lines


def test_a_task_is_shown_whatever_it_is_called() -> None:
    figure = {"value": 0.5, "low": 0.4, "high": 0.6}
    found = {
        "name": "s",
        "left_out": {"n": 1, "of": 9},
        "zero_shot": {"n": 8, "accuracy": figure},
        "nearest_mean": {"n": 8, "accuracy": figure},
        "linear_probe": {"left_out": "there is no train table"},
        "robustness": {"n": 8, "clean": 0.5, "kinds": {}},
        "few_labels": {"shots": []},
        "encoded": {"test": 8},
    }
    lines = [(line["task"], line["metric"]) for line in set_lines({"s": found})]
    assert lines == [
        ("zero shot", "accuracy"),
        ("nearest mean", "accuracy"),
        ("linear probe", "not measured: there is no train table"),
    ]


def found(value: float, specialty: str = "", left_out: int = 0, warnings: tuple[str, ...] = ()) -> dict:
    figure = {"value": value, "low": value - 0.1, "high": value + 0.1}
    about = {"specialty": specialty, "left_out": {"n": left_out}, "warnings": list(warnings)}
    return about | {"zero_shot": {"n": 9, "accuracy": figure}}


def test_every_form_of_the_table_tells_of_images_left_out_and_of_sets_that_are_not_whole() -> None:
    odd = found(0.5, "haematology", 2, ("test holds 9 rows, 90 are stated",))
    lines = table({"A": {"cells": odd, "smears": found(0.7, "haematology")}, "B_1": {"cells": odd}})
    html, text, tex = (made(lines, ["A", "B_1"]) for made in (as_html, as_csv, as_latex))
    assert "<small>(2 left out)</small>" in html
    assert '<tfoot><tr><td class="warn" colspan="5">cells: test holds 9 rows, 90 are stated</td></tr></tfoot>' in html
    assert text.splitlines()[0].endswith("A left out,B_1 value,B_1 low,B_1 high,B_1 left out,warnings")
    assert text.splitlines()[1].endswith(',2,0.5,0.4,0.6,2,"test holds 9 rows, 90 are stated"')
    assert r"\textbf{50.0} [40.0, 60.0], 2 left out & \textbf{50.0}" in tex and r"B\_1" in tex
    assert r"\multicolumn{5}{l}{cells: test holds 9 rows, 90 are stated} \\" in tex
    console = Console(width=120, record=True)
    console.print(bundles_table(lines, ["A", "B_1"], "All"))
    shown = console.export_text()
    assert "50.0% (40.0% - 60.0%), 2 left out" in shown and "cells: test holds 9 rows, 90 are stated" in shown


def test_the_macro_mean_is_over_specialties_and_a_set_without_one_stands_for_itself() -> None:
    sets = {"a": found(0.2, "skin"), "b": found(0.4, "skin"), "c": found(0.9)}
    (mean,) = [line for line in table({"A": sets}) if line["set"].startswith("macro")]
    assert (mean["set"], round(mean["bundles"]["A"]["value"], 12)) == ("macro over 2 specialties", 0.6)
    alone = {name: found(0.5) for name in "ab"}
    assert table({"A": alone})[-1]["set"] == "macro over 2 sets"
