"""Two runs side by side, by their records."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from biomedclip_ray.config import ConfigError
from biomedclip_ray.run.compare import compare, rows
from biomedclip_ray.run.runs import RUN_ID, RunRecord


def stage(name: str, product: str, seconds: float, kept: int, **more: Any) -> dict[str, Any]:
    counts = [{"unit": "pair", "in": 100, "kept": kept, "dropped": {"duplicate": 100 - kept}}]
    nodes = {"cpu": 2 * seconds, "gpu": seconds}
    return {
        "name": name,
        "state": "ran",
        "product": f"/root/{name}/{product}",
        "seconds": seconds,
        "node_seconds": nodes,
        "money": 0.0,
        "peak_rss": 0,
        "counts": counts,
        **more,
    }


def ran(root: Path, name: str, stages: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_ID, name)
    record = RunRecord(str(root), [])
    record.begin()
    record.stages = stages
    record.end(0, [])


def test_stages_stand_side_by_side_with_what_they_took_kept_and_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {"text_to_image": 0.25, "image_to_text": 0.5}
    after = {"text_to_image": 0.3, "image_to_text": 0.5}
    first = [stage("curate", "aa", 10, 80), stage("evaluate", "bb", 4, 0, **{"recall@10": before})]
    second = [stage("curate", "aa", 15, 80), stage("evaluate", "cc", 4, 0, **{"recall@10": after})]
    ran(tmp_path, "one", first, monkeypatch)
    ran(tmp_path, "two", [*second, stage("embed", "dd", 1, 7)], monkeypatch)
    shown = io.StringIO()
    compare(str(tmp_path), "one", "two", Console(file=shown, width=160))
    lines = [line.split() for line in shown.getvalue().splitlines()]
    assert ["curate", "state", "ran", "ran"] in lines
    assert ["product", "aa", "aa", "the", "same"] in lines
    assert ["product", "bb", "cc", "another"] in lines
    assert ["seconds", "10.0", "15.0", "1.5"] in lines
    assert ["node-seconds", "30.0", "45.0", "1.5"] in lines
    assert ["pair", "kept", "80", "80", "1"] in lines
    assert ["recall@10", "text", "to", "image", "0.2500", "0.3000", "1.2"] in lines
    assert ["embed", "state", "-", "ran"] in lines
    assert ["pair", "kept", "-", "7"] in lines


def test_a_run_that_is_not_there_is_refused_and_those_that_are_there_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran(tmp_path, "one", [], monkeypatch)
    with pytest.raises(ConfigError, match=r"--compare two: .*/runs/ has no such run; its newest: one"):
        compare(str(tmp_path), "one", "two", Console(file=io.StringIO()))


def test_records_of_a_version_that_counted_no_nodes_can_be_compared() -> None:
    old = {
        "state": "done",
        "started": "2026-11-01T00:00:00Z",
        "stages": [{"name": "catalog", "state": "ran", "product": None, "seconds": 3.0, "peak_rss": 0, "counts": []}],
    }
    assert ("catalog", "seconds", "3.0", "3.0", "1") in list(rows(old, old))
