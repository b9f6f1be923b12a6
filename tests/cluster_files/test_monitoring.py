"""Alert rules and dashboard: every alert fires in promtool's own test, and every series is one that the
program tells.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from biomedclip_ray.run.telemetry import GAUGES
from biomedclip_ray.schema import Reason

MONITORING = Path(__file__).resolve().parents[2] / "cluster" / "monitoring"
TRAIN = MONITORING.parents[1] / "biomedclip_ray" / "train"
SOURCE = "".join((TRAIN / name).read_text() for name in ("loop.py", "throughput.py", "step.py"))
TRAINER = {*re.findall(r'"(\w+)": ', SOURCE), *(f"{name}_share" for name in re.findall(r'"(\w+)"', SOURCE))}
"""Where a line of metrics.jsonl is put together."""
KNOWN = {f"ray_biomedclip_{name}" for name in GAUGES} | {f"ray_biomedclip_train_{name}" for name in TRAINER}


def rules() -> list[dict[str, Any]]:
    return [
        rule for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
    ]


def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian: apt install prometheus)")
    return found


def test_the_rules_pass_their_tests() -> None:
    told = subprocess.run(
        [promtool(), "test", "rules", "alerts_test.yaml"], cwd=MONITORING, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stdout + told.stderr
    subprocess.run([promtool(), "check", "config", "prometheus.yaml"], cwd=MONITORING, check=True)


def test_every_alert_fires_in_a_test_and_none_is_tested_that_is_not_there() -> None:
    """promtool passes names that no rule has, with exp_alerts []."""
    names = [rule["alert"] for rule in rules()]
    tests = [
        one
        for group in yaml.safe_load((MONITORING / "alerts_test.yaml").read_text())["tests"]
        for one in group["alert_rule_test"]
    ]
    assert len(set(names)) == len(names) >= 8
    assert {one["alertname"] for one in tests if one["exp_alerts"]} == set(names)
    assert {one["alertname"] for one in tests} == set(names)


def test_every_alert_says_what_to_do() -> None:
    for rule in rules():
        assert rule["annotations"]["summary"] and rule["annotations"]["fix"]
        assert rule["labels"]["severity"] in ("page", "warn")


@pytest.mark.parametrize("name", ["alerts.yaml", "alerts_test.yaml", "grafana.json"])
def test_every_series_that_is_asked_for_is_told(name: str) -> None:
    asked = set(re.findall(r"ray_\w+", (MONITORING / name).read_text()))
    assert asked
    assert asked - KNOWN == set()


def test_the_dashboard_shows_every_gauge_of_the_driver() -> None:
    board = json.loads((MONITORING / "grafana.json").read_text())
    shown = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"ray_\w+", target["expr"])
    }
    assert {f"ray_biomedclip_{name}" for name in GAUGES} - shown == set()
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len(places)


def test_units_that_are_lost_are_those_that_the_ledger_calls_transient() -> None:
    [rule] = [rule for rule in rules() if rule["alert"] == "BiomedclipUnitsLost"]
    [named] = re.findall(r'outcome=~"(\S+)"', rule["expr"])
    assert set(named.split("|")) == {reason.value for reason in Reason if reason.transient}
