"""TERM, Ctrl-C, a stage that fails, a disk that fills up: nothing is left behind, and it is said how to go on."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from tests.cluster.conftest import Driver, Workflow, is_picture, is_xml, tables
from tests.conftest import S3
from tests.processes import descendants, survivors


@dataclass
class Stopped:
    """A driver after a signal, and the processes of its Ray that are still there."""

    driver: Driver
    left_behind: set[int]


def _interrupt(workflow: Workflow, stage: str, send: Callable[[int], None]) -> Stopped:
    driver = workflow.start()
    driver.until(lambda: len(workflow.done(stage)) >= 2, f"a part of {stage} is done")
    assert list(workflow.root.glob(f"{stage}/*/_LEASE.json")), "the lease is held while the stage runs"
    family = descendants(driver.pid)
    send(driver.pid)
    driver.wait()
    return Stopped(driver, survivors(family))


@pytest.fixture(scope="module")
def terminated(workflow: Workflow, s3_server: S3) -> Stopped:
    """As `ray job stop`, Kubernetes and init systems end a process."""
    s3_server.hold(is_xml, after=12)
    try:
        return _interrupt(workflow, "ingest", lambda pid: os.kill(pid, signal.SIGTERM))
    finally:
        s3_server.release()


@pytest.fixture(scope="module")
def interrupted(workflow: Workflow, s3_server: S3, terminated: Stopped) -> Stopped:
    """As a terminal does it: the signal goes to the whole process group."""
    s3_server.hold(is_picture, after=40)
    try:
        return _interrupt(workflow, "preprocess", lambda pid: os.killpg(pid, signal.SIGINT))
    finally:
        s3_server.release()


@pytest.mark.parametrize("how", ["terminated", "interrupted"])
def test_a_stopped_driver_says_how_to_go_on_and_leaves_nothing_running(
    how: str, request: pytest.FixtureRequest, workflow: Workflow
) -> None:
    stopped: Stopped = request.getfixturevalue(how)
    assert stopped.driver.process.returncode == 130
    assert "interrupted: what is done is kept; the same command goes on from there" in stopped.driver.output
    assert "Traceback" not in stopped.driver.output
    assert stopped.left_behind == set()
    assert list(workflow.root.rglob("_LEASE.json")) == []


def test_a_stage_that_fails_unexpectedly_is_named_and_the_exit_code_is_1(
    source: str, undisturbed: dict[str, pa.Table], tmp_path: Path
) -> None:
    workflow = Workflow(tmp_path, source)
    name = max(name for name in undisturbed if name.startswith("ingest/") and "/data/" in name)
    (workflow.root / name).mkdir(parents=True)  # a folder where the last part's file should go
    driver = workflow.start("--until ingest")
    assert driver.wait() == 1, driver.output
    assert driver.output.splitlines()[-1].startswith("ingest failed; what it has done is kept")
    assert "IsADirectoryError" in driver.output
    assert list(workflow.root.rglob("_LEASE.json")) == []


@pytest.mark.slow
def test_a_disk_that_fills_up_stops_the_stage_by_name_and_with_room_the_same_command_goes_on(
    source: str, undisturbed: dict[str, pa.Table], s3_server: S3, tmp_path: Path
) -> None:
    workflow = Workflow(tmp_path, source)
    workflow.root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1200m", "none", str(workflow.root)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        s3_server.hold(is_xml, after=12)
        driver = workflow.start()
        driver.until(lambda: len(workflow.done("ingest")) >= 2, "a part of ingest is done")
        filler = workflow.root / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while file.write(bytes(1 << 20)):
                pass
        s3_server.release()
        assert driver.wait() == 1, driver.output
        assert driver.output.splitlines()[-1].startswith("ingest failed; what it has done is kept")
        assert "No space left on device" in driver.output
        filler.unlink()
        workflow.run()
        found = tables(workflow.root)
        assert set(found) == set(undisturbed)
        assert [name for name in found if not found[name].equals(undisturbed[name])] == []
    finally:
        s3_server.release()
        workflow.close()
        subprocess.run(["umount", str(workflow.root)], check=True)
