"""From a head alone, on both of Ray's autoscalers: nodes of the right kind come for each stage, leave after it, and the
rows are those of one machine.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from biomedclip_ray.sample import make_bucket
from tests.cluster.autoscaled import IDLE_MINUTES, run_in_namespaces
from tests.cluster.conftest import REPO, tables

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces of its own need root"),
]

KINDS: dict[str, Any] = {
    "data": {"resources": {"CPU": 2, "pool_data": 1}, "labels": {"pool": "data"}, "max_workers": 2},
    "gpu": {"resources": {"CPU": 2, "GPU": 1, "pool_gpu": 1}, "labels": {"pool": "gpu"}, "max_workers": 2},
}
WORKFLOW = str(REPO / "workflows" / "biomedclip.py")


CONFIG = """
root: {root}
source: {{uri: {bucket}, articles_per_part: 3}}
curate: {{splits: {{validation: 0.05, test: 0.2}}}}
model: {{config: sample_64, init: random, tokenizer: fit}}
train:
  epochs: 2
  batch: 16
  micro_batches: 2
  warmup_steps: 2
  precision: fp32
  resources: {{workers: 1, cpus_per_worker: 1, feed_cpus: 0.5, feed_concurrency: 1}}
evaluate: {{resources: {{num_cpus: 1, num_gpus: 1}}}}
embed: {{resources: {{num_cpus: 1, num_gpus: 1}}}}
serve: {{resources: {{cpus_per_replica: 0.5, gpus_per_replica: 1}}}}
"""
"""Training stays on CPUs, where a pretended GPU cannot compute; whoever encodes asks for one and
computes on CPUs too.
"""


@dataclass
class Ran:
    root: Path
    commands: list[dict[str, Any]]
    output: str
    looks: list[dict[str, Any]]

    def most(self, command: int) -> Counter[str]:
        """Nodes of each kind that were up at once at most while a command ran."""
        begun, ended = self.commands[command]["begun"], self.commands[command]["ended"]
        most: Counter[str] = Counter()
        for look in self.looks:
            if begun <= look["time"] <= ended:
                most |= Counter(node["kind"] for node in look["nodes"])
        return most

    def line(self) -> str:
        """When which nodes were up, one line a change."""
        lines, before = [], None
        for look in self.looks:
            up = dict(sorted(Counter(node["kind"] for node in look["nodes"]).items()))
            if up != before:
                lines.append(f"{look['time'] - self.looks[0]['time']:5.0f} s {up}")
            before = up
        return "\n".join(lines)

    def idle_share(self) -> float:
        """Of the seconds that nodes besides the head were up, those that they had been idle for longer than the
        autoscaler lets them.
        """
        paid = idle = 0.0
        for look, following in itertools.pairwise(self.looks):
            for node in look["nodes"]:
                if node["kind"] != "ray.head.default":
                    paid += following["time"] - look["time"]
                    if node["idle_s"] > 60 * IDLE_MINUTES:
                        idle += following["time"] - look["time"]
        return idle / paid


def config(folder: Path, bucket: Path) -> Path:
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(root=folder / "root", bucket=bucket))
    return path


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "bucket"
    make_bucket(folder, n_articles=30, seed=11)
    return folder


@pytest.fixture(scope="module")
def at_home(bucket: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.Table]:
    """Every row of the same stages on this machine alone."""
    folder = tmp_path_factory.mktemp("home")
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    command = [sys.executable, WORKFLOW, str(config(folder, bucket)), "--until", "curate"]
    subprocess.run(command, env=env, check=True, capture_output=True, timeout=300)
    return tables(folder / "root")


@pytest.fixture(scope="module", params=["v1", "v2"])
def ran(request: pytest.FixtureRequest, bucket: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    folder = tmp_path_factory.mktemp(request.param)
    with tempfile.TemporaryDirectory(prefix="rt", dir="/tmp") as temp:  # Ray's sockets allow a path of 107 bytes
        job = {
            "folder": str(folder),
            "temp": temp,
            "kinds": KINDS,
            "autoscaler": request.param,
            "timeline": str(folder / "timeline.jsonl"),
            "ran": str(folder / "ran.json"),
            "timeout_s": 600,
            "linger_s": 60 * IDLE_MINUTES + 15,
            "commands": [[WORKFLOW, str(config(folder, bucket)), "--until", last] for last in ("curate", "deploy")],
        }
        code = run_in_namespaces(job, folder)
        output = (folder / "cluster.log").read_text(errors="replace")
        assert code == 0, output
    looks = [json.loads(line) for line in (folder / "timeline.jsonl").read_text().splitlines()]
    yield Ran(folder / "root", json.loads((folder / "ran.json").read_text()), output, looks)


def test_catalog_to_a_served_answer_from_a_head_alone(ran: Ran) -> None:
    assert [command["code"] for command in ran.commands] == [0, 0], ran.output
    assert {node["kind"] for node in ran.looks[0]["nodes"]} == {"ray.head.default"}
    assert "Serving at http://127.0.0.1:8000 (ran). It was asked:" in ran.output


def test_from_catalog_to_curate_data_nodes_come_to_their_most_and_no_node_with_a_gpu(ran: Ran) -> None:
    """There is work for ten CPUs, and data nodes have four at most."""
    assert ran.most(0) == {"ray.head.default": 1, "data": 2}


def test_for_encoding_all_nodes_with_gpus_come(ran: Ran) -> None:
    assert ran.most(1)["gpu"] == 2


def test_in_the_end_the_nodes_are_left_that_serve(ran: Ran) -> None:
    assert Counter(node["kind"] for node in ran.looks[-1]["nodes"]) == {"ray.head.default": 1, "gpu": 1}


def test_nodes_that_nobody_needs_leave(ran: Ran) -> None:
    print(
        f"{ran.line()}\nidle beyond the autoscaler's own time: {ran.idle_share():.1%} of the node-seconds", flush=True
    )
    assert ran.idle_share() <= 0.15


def test_the_rows_are_those_of_one_machine(ran: Ran, at_home: dict[str, pa.Table]) -> None:
    assert {name: rows for name, rows in tables(ran.root).items() if name in at_home} == at_home
