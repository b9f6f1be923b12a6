"""TERM, Ctrl-C, a stage that fails, a disk that fills up: nothing is left behind, and it is said how to go on."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from tests.cluster.conftest import Driver, Workflow, is_picture, is_xml, tables
from tests.conftest import S3
from tests.disks import fill, small_disk
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
def test_a_root_that_fills_up_is_named_with_the_way_on_and_with_room_the_same_command_goes_on(
    source: str, undisturbed: dict[str, pa.Table], s3_server: S3, tmp_path: Path
) -> None:
    workflow = Workflow(tmp_path, source)
    with small_disk(workflow.root, 1200):
        try:
            s3_server.hold(is_xml, after=12)
            driver = workflow.start()
            driver.until(lambda: len(workflow.done("ingest")) >= 2, "a part of ingest is done")
            filler = fill(workflow.root)
            s3_server.release()
            assert driver.wait() == 3, driver.output
            last = driver.output.splitlines()[-1]
            assert last.startswith(f"unfinished: ingest: no room is left in {workflow.root}: make room there"), last
            assert "No space left on device" in last
            assert list(workflow.root.rglob("*.tmp")) == []
            kept = {path: path.read_bytes() for path in workflow.done("ingest")}
            filler.unlink()
            workflow.run()
            assert len(kept) < len(workflow.done("ingest"))
            assert [path for path, data in kept.items() if path.read_bytes() != data] == []
            found = tables(workflow.root)
            assert set(found) == set(undisturbed)
            assert [name for name in found if not found[name].equals(undisturbed[name])] == []
        finally:
            s3_server.release()
            workflow.close()


@pytest.mark.slow
def test_a_full_folder_for_temporary_files_ends_a_run_by_name(source: str, s3_server: S3, tmp_path: Path) -> None:
    """Ray begins tasks that cannot write their logs again and again; a run that is begun there is refused."""
    workflow = Workflow(tmp_path, source)
    with tempfile.TemporaryDirectory(prefix="rt", dir="/tmp") as temporary, small_disk(Path(temporary), 1200):
        workflow.env |= {"TMPDIR": temporary, "RAY_TMPDIR": temporary}
        try:
            s3_server.hold(is_xml, after=12)
            driver = workflow.start()
            driver.until(lambda: len(workflow.done("ingest")) >= 2, "a part of ingest is done")
            filler = fill(Path(temporary))
            s3_server.release()
            code = driver.wait()
            assert code in (0, 3), driver.output  # workers that are there already may be all that is needed
            if code == 3:
                assert f": no room is left in {temporary}" in driver.output, driver.output
            again = workflow.start("--until curate")
            assert again.wait() == 2
            assert f"TMPDIR={temporary}: only 0.0 MB are free" in again.output, again.output
            filler.unlink()
            workflow.run("--until ingest")
        finally:
            s3_server.release()
            workflow.close()
