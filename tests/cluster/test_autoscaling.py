"""From a head alone, on both of Ray's autoscalers: nodes of the right kind come for each stage, leave after it, and the rows are those
of one machine."""

from __future__ import annotations

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


@dataclass
class Ran:
    root: Path
    codes: list[int]
    output: str
    looks: list[dict[str, Any]]

    def most(self) -> Counter[str]:
        """Nodes of each kind that were up at once at most."""
        most: Counter[str] = Counter()
        for look in self.looks:
            most |= Counter(node["kind"] for node in look["nodes"])
        return most

    def last(self) -> set[str]:
        """The kinds that were up at the end."""
        return {node["kind"] for node in self.looks[-1]["nodes"]}


def config(folder: Path, bucket: Path) -> Path:
    path = folder / "config.yaml"
    path.write_text(f"root: {folder / 'root'}\nsource: {{uri: {bucket}, articles_per_part: 2}}\n")
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
            "commands": [[WORKFLOW, str(config(folder, bucket)), "--until", "curate"]],
        }
        code = run_in_namespaces(job, folder)
        output = (folder / "cluster.log").read_text(errors="replace")
        assert code == 0, output
    codes = [each["code"] for each in json.loads((folder / "ran.json").read_text())]
    looks = [json.loads(line) for line in (folder / "timeline.jsonl").read_text().splitlines()]
    yield Ran(folder / "root", codes, output, looks)


def test_the_data_stages_run_from_a_head_alone(ran: Ran) -> None:
    assert ran.codes == [0], ran.output
    assert {node["kind"] for node in ran.looks[0]["nodes"]} == {"ray.head.default"}


def test_as_many_data_nodes_come_as_may_and_no_node_with_a_gpu(ran: Ran) -> None:
    """There is work for eight CPUs, and data nodes have four at most."""
    assert ran.most() == {"ray.head.default": 1, "data": 2}


def test_they_leave_when_there_is_nothing_left_to_do(ran: Ran) -> None:
    assert ran.last() == {"ray.head.default"}


def test_the_rows_are_those_of_one_machine(ran: Ran, at_home: dict[str, pa.Table]) -> None:
    assert tables(ran.root) == at_home
