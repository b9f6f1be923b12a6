"""The report draws the nodes of a run over time, by stage, with what they cost."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from biomedclip_ray.report import svg
from biomedclip_ray.report.nodes import nodes_section

NODES = [
    {"at": 0.0, "stage": "", "up": {"head": 1}},
    {"at": 60.0, "stage": "ingest", "up": {"head": 1}},
    {"at": 300.0, "stage": "ingest", "up": {"head": 1, "cpu_spot": 8}},
    {"at": 5000.0, "stage": "ingest", "up": {"head": 1, "cpu_spot": 5}},
    {"at": 9000.0, "stage": "train", "up": {"head": 1, "gpu": 2}},
    {"at": 14400.0, "stage": "", "up": {"head": 1, "gpu": 2}},
]


def cost(seconds: float, nodes: dict[str, float], money: float) -> dict[str, Any]:
    return {"seconds": seconds, "node_seconds": nodes, "money": money}


def written(root: Path, money: float | None = 12.5) -> dict[str, Any]:
    ingest, train = cost(8940, {"cpu_spot": 57600, "head": 8940}, 9.5), cost(5400, {"gpu": 10800, "head": 5400}, 3.0)
    spent = [{"stage": "", "product": None, **cost(60, {"head": 60}, 0.0)}]
    spent += [{"stage": name, "product": name, **took} for name, took in (("ingest", ingest), ("train", train))]
    (root / "runs").mkdir()
    (root / "runs" / "one.json").write_text(json.dumps({"nodes": NODES, "spent": spent, "money": money}))
    stages = [
        {"name": "ingest", "state": "resumed", **cost(10000, {"cpu_spot": 72000}, 11.0), "this_run": ingest},
        {"name": "train", "state": "ran", **train, "this_run": train},
    ]
    return {"run": "one", "stages": stages}


def test_nodes_are_drawn_by_type_and_stage_with_hours_and_money(tmp_path: Path) -> None:
    page = str(nodes_section(str(tmp_path), written(tmp_path)))
    assert [page.count(f'<polygon class="kind{number}"') for number in range(4)] == [1, 1, 1, 0]
    assert re.findall(r"<rect.*?<title>(\w+)</title>", page) == ["ingest", "train"]
    words = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    assert "cpu_spot 8 16.00" in words
    assert "ingest resumed 2 h 46 min 2 h 29 min cpu_spot 20.00 11.00 9.50" in words
    assert "This run took 12.50 of machines" in words


def test_without_prices_there_is_no_money_and_without_a_record_no_section(tmp_path: Path) -> None:
    run = written(tmp_path, money=None)
    assert "money" not in str(nodes_section(str(tmp_path), run))
    assert nodes_section(str(tmp_path), {"run": "two", "stages": []}) == ""
    assert nodes_section(str(tmp_path), {"run": None, "stages": []}) == ""


def test_an_area_has_a_corner_where_a_count_changes_and_lies_on_the_one_below() -> None:
    series = [svg.Step(0, "a", {"x": 2}), svg.Step(5, "b", {"x": 1, "y": 1})]
    drawn = svg.steps(series, 10, ["x", "y"], "two", "s")
    outlines = [
        [tuple(map(float, point.split(","))) for point in points.split()]
        for points in re.findall(r'<polygon class="kind\d" points="([^"]*)"', drawn)
    ]
    left, middle, right, floor, top = 56, 382, 708, 220, 36
    one = (floor - top) / (1.06 * 2)
    lower = [(left, floor - 2 * one), (middle, floor - 2 * one), (middle, floor - one), (right, floor - one)]
    upper = [(left, floor - 2 * one), (middle, floor - 2 * one), (middle, floor - 2 * one), (right, floor - 2 * one)]
    for outline, expected in zip(outlines, (lower, upper), strict=True):
        assert [(round(x), round(y)) for x, y in outline[:4]] == [(round(x), round(y)) for x, y in expected]
