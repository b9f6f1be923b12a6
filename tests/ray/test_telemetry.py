"""The driver's numbers where Prometheus asks for them, at the node's agent, for as long as the run lives."""

from __future__ import annotations

import re
import time
import urllib.request

import pytest
import ray

from biomedclip_ray.run.telemetry import Telemetry, tell

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_what_is_told_once_is_there_with_its_labels_and_the_nodes_are_counted() -> None:
    [node] = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = {("parts_done", "ingest"): 4.0, ("parts_left", "ingest"): 6.0, ("nodes", "gpu"): 1.0}
    with Telemetry("one", set_s=1):
        tell("parts_done", 4, stage="ingest")
        tell("parts_left", 6, stage="ingest")
        deadline, told = time.monotonic() + 60, {}
        while not wanted.items() <= told.items() and time.monotonic() < deadline:
            time.sleep(0.5)  # the agent is told every few seconds
            with urllib.request.urlopen(url, timeout=10) as answer:
                page = answer.read().decode()
            found = re.findall(r"^ray_biomedclip_(\w+){(.*)} (\S+)$", page, re.MULTILINE)
            labelled = [(name, dict(re.findall(r'(\w+)="([^"]*)"', labels)), value) for name, labels, value in found]
            told = {
                (name, labels.get("stage") or labels.get("kind")): float(value)
                for name, labels, value in labelled
                if labels.get("run") == "one"
            }
    assert wanted.items() <= told.items()
    assert ("beat_timestamp_seconds", None) in told
