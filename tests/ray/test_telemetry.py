"""The driver's numbers where Prometheus asks for them, at the node's agent, for as long as the run lives, and how it
ended.
"""

from __future__ import annotations

import re
import time
import urllib.request

import pytest
import ray

from biomedclip_ray.run.telemetry import Telemetry, tell

pytestmark = pytest.mark.usefixtures("ray_cluster")

Told = dict[tuple[str, str | None], float]


def _asked() -> Told:
    """What the node's agent answers of the run `one`: (name, stage or kind) -> value."""
    [node] = ray.nodes()
    with urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics") as answer:
        page = answer.read().decode()
    found = re.findall(r"^ray_biomedclip_(\w+){(.*)} (\S+)$", page, re.MULTILINE)
    labelled = [(name, dict(re.findall(r'(\w+)="([^"]*)"', labels)), value) for name, labels, value in found]
    return {
        (name, labels.get("stage") or labels.get("kind")): float(value)
        for name, labels, value in labelled
        if labels.get("run") == "one"
    }


def _until(wanted: Told) -> Told:
    """Asked until it has these, or a minute has gone; the agent is told every few seconds."""
    deadline, told = time.monotonic() + 60, _asked()
    while not wanted.items() <= told.items() and time.monotonic() < deadline:
        time.sleep(0.5)
        told = _asked()
    return told


def test_what_is_told_once_is_there_with_its_labels_the_nodes_are_counted_and_the_end_is_told() -> None:
    wanted: Told = {("parts_done", "ingest"): 4.0, ("stage_running", "ingest"): 1.0, ("nodes", "gpu"): 1.0}
    with Telemetry("one", set_s=1):
        tell("parts_done", 4, stage="ingest")
        tell("stage_running", 1, stage="ingest")
        told = _until(wanted)
        tell("stage_running", 0, stage="ingest")
    assert wanted.items() <= told.items()
    assert ("beat_timestamp_seconds", None) in told
    ended: Told = {("stage_running", "ingest"): 0.0}
    assert ended.items() <= _until(ended).items()
