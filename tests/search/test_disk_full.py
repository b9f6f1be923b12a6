"""A disk that is full while an index is built."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, resource, signal, sys
import numpy as np
from biomedclip_ray.search import build
from biomedclip_ray.search.index import Index
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit is an error, as on a full disk
folder, most = sys.argv[1], int(sys.argv[2])
if most:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
rows = [{"pair_id": f"PMC{n}.1/F1#0", "article_id": f"PMC{n}.1", "caption": f"gel {n}", "bundle": "b",
         "image_vector": np.eye(64)[n % 64], "text_vector": np.eye(64)[n % 64]} for n in range(400)]
index = build.from_rows(folder, rows, 10**6)
print(json.dumps([hit.pair_id for hit in index.text_search("gel 7", 1)]))
"""


def _build(folder: Path, most: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, str(folder), str(most)]
    environment = {**os.environ, "RUST_BACKTRACE": "0"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def test_an_index_that_finds_no_room_is_an_error_and_never_a_finished_index(tmp_path: Path) -> None:
    for most in (20_000, 110_000):  # of one file: the rows do not fit; the rows do, an index does not
        full = _build(tmp_path / str(most), most)
        assert full.returncode == 1, full.stdout + full.stderr
        assert "Error" in full.stderr.splitlines()[-1]
        assert not (tmp_path / str(most) / "search.json").exists()
    again = _build(tmp_path / "20000", 0)  # room was made
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout.splitlines()[-1]) == ["PMC7.1/F1#0"]
