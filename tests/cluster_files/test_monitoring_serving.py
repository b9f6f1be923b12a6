"""Alerts and dashboard of the server: every alert fires in promtool's own test, every series is one that it tells."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import pytest
import yaml

from biomedclip_ray.serve.observe import Metrics
from tests.cluster_files.test_monitoring import MONITORING, promtool

SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
TOLD = {family.name + suffix for family in Metrics().registry.collect() for suffix in SUFFIXES[family.type]}


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((MONITORING / "serving.yaml").read_text())["groups"]
    return list(group["rules"])


def test_the_rules_pass_their_tests() -> None:
    command = [promtool(), "test", "rules", "serving_test.yaml"]
    told = subprocess.run(command, cwd=MONITORING, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr
    subprocess.run([promtool(), "check", "config", "prometheus.yaml"], cwd=MONITORING, check=True)


def test_every_alert_fires_in_a_test_and_says_what_to_do() -> None:
    groups = yaml.safe_load((MONITORING / "serving_test.yaml").read_text())["tests"]
    fired = {one["alertname"] for group in groups for one in group["alert_rule_test"] if one["exp_alerts"]}
    assert fired == {rule["alert"] for rule in rules()}
    for rule in rules():
        assert rule["annotations"]["summary"] and rule["annotations"]["fix"]
        assert rule["labels"]["severity"] in ("page", "warn")


@pytest.mark.parametrize("name", ["serving.yaml", "serving_test.yaml", "serving.json"])
def test_every_series_that_is_asked_for_is_told(name: str) -> None:
    asked = set(re.findall(r"\bbiomedclip_\w+", (MONITORING / name).read_text())) - {"biomedclip_ray"}
    assert asked
    assert asked - TOLD == set()


def test_the_dashboard_shows_every_number_of_an_ingress() -> None:
    board = json.loads((MONITORING / "serving.json").read_text())
    shown = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"biomedclip_\w+", target["expr"])
    }
    wanted = {name for name in TOLD if not name.endswith(("_count", "_sum"))}
    assert wanted - shown == set()
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len(places)


def test_what_an_alert_sees_increase_is_there_before_it_does() -> None:
    """`increase` of a series that is born with 1 is nothing: the first vector that is not finite would go untold."""
    watched = set(
        re.findall(r'increase\(biomedclip_item_errors_total{code="(\w+)"}', (MONITORING / "serving.yaml").read_text())
    )
    samples = [sample for family in Metrics().registry.collect() for sample in family.samples]
    born = {sample.labels["code"]: sample.value for sample in samples if sample.name == "biomedclip_item_errors_total"}
    assert watched and {code: born.get(code) for code in watched} == dict.fromkeys(watched, 0.0)
