"""kill -9 of the driver in ingest and in preprocess, a rival, workers killed: the rows are those of a run nobody
disturbed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from tests.cluster.conftest import PATIENCE_S, Driver, Workflow, is_picture, is_xml, tables
from tests.conftest import S3
from tests.processes import descendants, is_busy_worker, survivors


@dataclass
class Story:
    """What was seen on the way."""

    workflow: Workflow
    first: Driver
    rival: Driver
    families: set[int]
    done_at_first_kill: dict[Path, int]
    parts: int
    states_at_second_kill: dict[str, str]
    done_at_second_kill: dict[Path, int]
    killed_workers: list[int]
    last: Driver


def _states(root: Path) -> dict[str, str]:
    return {stage["name"]: stage["state"] for stage in json.loads((root / "run.json").read_text())["stages"]}


def _times(files: list[Path]) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in files}


def _first_to_leave(drivers: list[Driver]) -> Driver:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for driver in drivers:
            if driver.process.poll() is not None:
                return driver
        time.sleep(0.05)
    pytest.fail("neither of two drivers on one root has left:\n" + "\n".join(driver.output for driver in drivers))


@pytest.fixture(scope="module")
def story(workflow: Workflow, s3_server: S3) -> Story:
    s3_server.hold(is_xml, after=12)
    both = [workflow.start(), workflow.start()]
    rival = _first_to_leave(both)
    [first] = [driver for driver in both if driver is not rival]
    first.until(lambda: len(workflow.done("ingest")) >= 2, "a part of ingest is done")
    done_at_first_kill = _times(workflow.done("ingest"))
    families = first.kill()
    s3_server.release()

    s3_server.hold(is_picture, after=40)
    second = workflow.start()
    second.until(lambda: len(workflow.done("preprocess")) >= 2, "a part of preprocess is done")
    states = _states(workflow.root)
    done_at_second_kill = _times(workflow.done("preprocess"))
    families |= second.kill()
    s3_server.release()

    fetched = len(s3_server.gets)
    s3_server.hold(is_picture, after=10)
    last = workflow.start()
    last.until(lambda: sum(map(is_picture, s3_server.gets[fetched:])) > 10, "workers wait for pictures")
    last.until(lambda: any(map(is_busy_worker, descendants(last.pid))), "a worker calls itself by its task")
    killed_workers = [pid for pid in descendants(last.pid) if is_busy_worker(pid)]
    for pid in killed_workers:
        os.kill(pid, signal.SIGKILL)
    s3_server.release()
    assert last.wait() == 0, last.output
    parts = len(workflow.done("ingest")) // 2
    return Story(
        workflow,
        first,
        rival,
        families,
        done_at_first_kill,
        parts,
        states,
        done_at_second_kill,
        killed_workers,
        last,
    )


def test_drivers_and_workers_killed_leave_the_rows_of_an_undisturbed_run(
    story: Story, undisturbed: dict[str, pa.Table]
) -> None:
    found = tables(story.workflow.root)
    assert set(found) == set(undisturbed)
    assert {name.split("/")[0] for name in found} == {"catalog", "ingest", "preprocess", "curate"}
    assert [name for name in found if not found[name].equals(undisturbed[name])] == []


def test_the_kills_hit_stages_half_done_and_workers_at_work(story: Story) -> None:
    assert story.killed_workers
    assert 1 <= len(story.done_at_first_kill) // 2 < story.parts
    assert 1 <= len(story.done_at_second_kill) // 2 < story.parts


def test_finished_parts_are_never_written_again(story: Story) -> None:
    for done in (story.done_at_first_kill, story.done_at_second_kill):
        assert _times(list(done)) == done


def test_the_record_says_what_ran_what_was_resumed_and_what_was_skipped(story: Story) -> None:
    assert story.states_at_second_kill == {"catalog": "skipped", "ingest": "resumed"}
    assert _states(story.workflow.root) == {
        "catalog": "skipped",
        "ingest": "skipped",
        "preprocess": "resumed",
        "curate": "ran",
    }


def test_no_process_of_ray_outlives_a_killed_driver(story: Story) -> None:
    assert len(story.families) >= 6  # twice at least the store, the node's manager and a worker
    assert survivors(story.families) == set()


def test_of_two_started_at_once_one_works_and_the_other_leaves_with_exit_2_naming_it(story: Story) -> None:
    assert story.rival.process.returncode == 2
    errors = [line for line in story.rival.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert f" by process {story.first.pid} on {socket.gethostname()} " in errors[0]
    assert "start again" in errors[0]
    assert "Traceback" not in story.rival.output


def test_a_killed_drivers_lease_is_taken_over_and_given_back(story: Story) -> None:
    assert list(story.workflow.root.rglob("_LEASE.json")) == []


def test_nothing_half_written_stays(story: Story) -> None:
    assert [path for path in story.workflow.root.rglob("*") if path.name.endswith(".tmp")] == []


def test_the_end_is_a_table_with_every_unit_and_reason_and_the_same_is_in_the_record(story: Story) -> None:
    stages = json.loads((story.workflow.root / "run.json").read_text())["stages"]
    rows = [line.split() for line in story.last.output.splitlines()]
    for stage in stages:
        assert any(row[:2] == [stage["name"], stage["state"]] for row in rows)
        for count in stage["counts"]:
            assert count["in"] == count["kept"] + sum(count["dropped"].values())
            assert any(
                count["unit"] in row and str(count["in"]) in row and str(count["kept"]) in row for row in rows
            ), count
            for reason, number in count["dropped"].items():
                assert f"{reason} {number}" in " ".join(story.last.output.split())


@pytest.mark.slow
def test_the_same_command_once_more_skips_everything(story: Story) -> None:
    before = _times(list(story.workflow.root.rglob("*.parquet")))
    story.workflow.run()
    assert set(_states(story.workflow.root).values()) == {"skipped"}
    assert _times(list(before)) == before
