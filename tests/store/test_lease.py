"""One driver at a time: who waits, who leaves, who takes over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from biomedclip_ray.store.lease import HeldError, Lease
from biomedclip_ray.store.place import Place

HOLD = """
import sys, time
from biomedclip_ray.store.lease import Lease
from biomedclip_ray.store.place import Place
with Lease(Place(sys.argv[1]), "ingest", heartbeat_s=0.1):
    print("held", flush=True)
    time.sleep(60)
"""


def _holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_driver_leaves_naming_the_first(tmp_path: Path) -> None:
    process = _holder(tmp_path)
    try:
        with pytest.raises(HeldError, match=rf"process {process.pid} on "), Lease(Place(str(tmp_path)), "ingest", 0.1):
            pass
    finally:
        process.kill()
        process.wait()


def test_after_a_kill_the_next_driver_takes_over_at_once(tmp_path: Path) -> None:
    process = _holder(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    started = time.monotonic()
    with Lease(Place(str(tmp_path)), "ingest", heartbeat_s=5.0):
        assert time.monotonic() - started < 20  # a heart that may beat is watched for 25 s
        assert json.loads((tmp_path / "_LEASE.json").read_text())["pid"] == os.getpid()


def test_a_lease_from_another_machine_is_taken_over_when_its_heart_stands_still(tmp_path: Path) -> None:
    dead = {"host": "elsewhere", "pid": 1, "boot": "x", "started": "2026-01-01T00:00:00Z", "token": "t", "beat": 7}
    (tmp_path / "_LEASE.json").write_text(json.dumps(dead))
    with Lease(Place(str(tmp_path)), "ingest", heartbeat_s=0.05) as lease:
        assert json.loads((tmp_path / "_LEASE.json").read_text())["token"] == lease.token


def test_who_stood_still_and_was_taken_over_leaves_the_others_lease_alone(tmp_path: Path) -> None:
    other = {"host": "elsewhere", "pid": 1, "boot": "x", "started": "2026-01-01T00:00:00Z", "token": "t", "beat": 7}
    with (
        pytest.raises(HeldError, match="ingest was taken over meanwhile"),
        Lease(Place(str(tmp_path)), "ingest", heartbeat_s=0.05),
    ):
        (tmp_path / "_LEASE.json").write_text(json.dumps(other))
        time.sleep(0.3)
    assert json.loads((tmp_path / "_LEASE.json").read_text()) == other


def test_the_lease_goes_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Lease(Place(str(tmp_path)), "ingest", 0.1):
        raise ZeroDivisionError
    assert not (tmp_path / "_LEASE.json").exists()


def test_of_many_that_start_at_once_only_one_works(tmp_path: Path) -> None:
    working, refused, most = 0, [], 0
    lock, go = threading.Lock(), threading.Barrier(6)

    def drive() -> None:
        nonlocal working, most
        go.wait()
        try:
            with Lease(Place(str(tmp_path)), "ingest", heartbeat_s=0.1):
                with lock:
                    working += 1
                    most = max(most, working)
                time.sleep(1.5)
                with lock:
                    working -= 1
        except HeldError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=drive) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert len(refused) == 5


def test_a_heart_goes_on_after_beats_that_could_not_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "product"

    def beat() -> int:
        return int(json.loads((folder / "_LEASE.json").read_text())["beat"])

    def wait_for(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    with Lease(Place(str(folder)), "ingest", heartbeat_s=0.05) as lease:
        wait_for(lambda: beat() >= 1)
        folder.rename(tmp_path / "away")
        folder.write_text("no folder, so nothing can be written below it")
        missed = lease.beat + 3
        wait_for(lambda: lease.beat >= missed)
        folder.unlink()
        (tmp_path / "away").rename(folder)
        wait_for(lambda: beat() > missed)
        with pytest.raises(HeldError), Lease(Place(str(folder)), "ingest", heartbeat_s=0.2):
            pass
