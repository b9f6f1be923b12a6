"""Logs that outlive the cluster: the driver's, those of workers that died, and of the nodes of a run that failed."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from pathlib import Path

import boto3
import pytest
import ray
from ray.exceptions import WorkerCrashedError

from biomedclip_ray.run import logs, private
from biomedclip_ray.run.logs import DriverLog, Logs
from biomedclip_ray.store.place import Place
from tests.conftest import S3

pytestmark = pytest.mark.usefixtures("ray_cluster")


@ray.remote(num_cpus=0, max_retries=0)
def _die(word: str) -> None:
    print(f"{word} at the end of its means", flush=True)
    print(f"{word} complains", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(params=["folder", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, s3: S3) -> str:
    if request.param == "folder":
        return str(tmp_path)
    boto3.client("s3").create_bucket(Bucket="kept-logs")
    return "s3://kept-logs/run"


def test_what_a_worker_said_before_it_was_killed_is_in_the_root_and_so_are_driver_and_nodes(root: str) -> None:
    before = {worker.id for worker in private.failed_workers()}
    with pytest.raises(WorkerCrashedError):  # of another run, before this one
        ray.get(_die.remote("the stranger"))
    while not any(worker.id not in before for worker in private.failed_workers()):  # the control store learns it later
        time.sleep(0.1)
    driver = DriverLog()
    driver.add("stage ingest begins")
    with pytest.raises(WorkerCrashedError), Logs(root, "one", driver, keep_s=60):
        ray.get(_die.remote("the worker"))
    place = Place(root).at("logs/one")
    kept = {name: place.read(name).decode() for name in place.list()}
    assert kept["driver.log"] == "stage ingest begins\n"
    [worker] = [text for name, text in kept.items() if name.startswith("worker-")]
    assert "SYSTEM_ERROR" in worker
    assert "the worker at the end of its means" in worker
    assert "the worker complains" in worker
    assert "the stranger" not in worker
    [node] = [text for name, text in kept.items() if name.startswith("node-")]
    assert "==> raylet.out <==" in node


def test_workers_that_died_are_kept_while_the_run_goes_on_and_an_end_without_failure_copies_no_node(
    tmp_path: Path,
) -> None:
    with Logs(str(tmp_path), "one", DriverLog(), keep_s=0.1) as kept:
        with pytest.raises(WorkerCrashedError):
            ray.get(_die.remote("a worker"))
        while not list((tmp_path / "logs" / "one").glob("worker-*.log")):
            assert not kept.stopped.wait(0.1)
    assert [path.name[:6] for path in (tmp_path / "logs" / "one").iterdir()] == ["worker"]


def test_the_drivers_log_keeps_the_newest_lines_and_is_written_only_where_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "DRIVER_BYTES", 100)
    driver = DriverLog()
    for number in range(20):
        driver.emit(logging.LogRecord("biomedclip", logging.INFO, "", 0, "line %d", (number,), None))
    driver.keep(str(tmp_path), "one")
    path = tmp_path / "logs" / "one" / "driver.log"
    lines = path.read_text().splitlines()
    assert [line.partition(" INFO ")[2] for line in lines] == ["line 18", "line 19"]
    path.unlink()
    driver.keep(str(tmp_path), "one")
    assert not path.exists()
