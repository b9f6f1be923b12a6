"""A disk that Ray spills to and that is full: the run's line names Ray's folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.disks import small_disk

SCRIPT = """
import numpy as np
import ray
from biomedclip_ray.run.room import no_room

ray.init("local", num_cpus=1, object_store_memory=80_000_000, include_dashboard=False, log_to_driver=False)
make = ray.remote(lambda: np.zeros(10_000_000, np.uint8))
kept = [make.remote() for _ in range(30)]  # in memory there is room for seven
try:
    for one in kept:
        ray.wait([one], fetch_local=False)
    ray.get(kept[-1])
except ray.exceptions.RayError as error:
    print(no_room(error, "s3://bucket/run"))
ray.shutdown()
"""


def test_objects_that_find_no_room_on_disk_are_told_with_rays_folder_and_the_way_on() -> None:
    with tempfile.TemporaryDirectory(prefix="rt", dir="/tmp") as folder, small_disk(Path(folder), 100):
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        env |= {"RAY_TMPDIR": folder, "RAY_AUTH_TOKEN": "0" * 64}  # Ray's sockets allow a path of 107 bytes
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, timeout=240, check=False
        )
    told = [
        line for line in done.stdout.splitlines() if line.startswith("no room")
    ]  # the raylet's errors stand there too
    assert len(told) == 1, done.stdout + done.stderr
    assert told[0].startswith(f"no room is left in {folder}/ray/session_")
    assert "give Ray a larger folder" in told[0] and told[0].endswith("(OutOfDiskError: Local disk is full)")
