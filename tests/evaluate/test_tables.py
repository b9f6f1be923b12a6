"""The tables that end a run say what evaluation.json says."""

from __future__ import annotations

from rich.console import Console

from biomedclip_ray.evaluate.set_tables import set_lines
from biomedclip_ray.evaluate.tables import tables


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
        "by_kind": {"gel": {"n": 20, **dict.fromkeys(directions, within)}},
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
