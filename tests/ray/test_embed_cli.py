"""`workflows/embed.py` as its users run it: a process of its own, killed in the middle, started again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.ray.test_serve import drawn, make

WORKFLOW = Path(__file__).resolve().parents[2] / "workflows" / "embed.py"
ROWS, GROUP = 48, 4


@pytest.mark.slow  # three Rays of its own
def test_a_million_pictures_and_a_clip_survive_a_kill(tmp_path: Path) -> None:
    pictures, captions = drawn()
    bundle, _, encoder = make(tmp_path / "made", 0, pictures, captions)
    images = [*pictures[: ROWS - 1], b"no image at all"]
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"image": images}), tmp_path / "in" / "mine.parquet", row_group_size=GROUP)
    out = tmp_path / "out"
    command = [sys.executable, str(WORKFLOW), "--bundle", bundle.place.at("bundle").uri, "--out", str(out)]
    command += ["--images", str(tmp_path / "in"), "--column", "image"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)

    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 240
    while not (done := sorted(out.glob("vectors/*/ledger/*.parquet"))):
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    stamps = {file: file.stat().st_mtime_ns for file in done}
    again = run()
    assert again.returncode == 0, again.stderr[-2000:]
    assert again.stdout.startswith(("resumed: 47 vectors", "ran: 47 vectors")) and "broken_image 1" in again.stdout
    assert {file: file.stat().st_mtime_ns for file in done} == stamps  # what was done is not done again
    rows = pa.concat_tables([pq.read_table(file) for file in sorted(out.glob("vectors/*/data/*.parquet"))])
    assert sorted(rows["id"].to_pylist()) == sorted(f"mine.parquet#{n}" for n in range(ROWS - 1))
    order = [int(name.partition("#")[2]) for name in rows["id"].to_pylist()]
    expected = encoder.encode_images(pictures[: ROWS - 1])[order]
    assert np.abs(np.array(rows["vector"].to_pylist()) - expected).max() < 1e-5
    assert run().stdout.startswith("skipped: 47 vectors")
