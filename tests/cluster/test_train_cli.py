"""Training by the command its user gives: two workers on the sample, the curve in the report, and a bundle that
outlives an evaluation that fails.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from biomedclip_ray.clip.bundle import load_bundle
from biomedclip_ray.sample import make_bucket
from biomedclip_ray.store.place import Place
from biomedclip_ray.train.metrics import read
from tests.cluster.conftest import REPO

ENOUGH_S = 400


def workflow(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python workflows/biomedclip.py workflows/configs/sample.yaml ...` on a bucket and a root below a folder."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    command = [sys.executable, "workflows/biomedclip.py", "workflows/configs/sample.yaml", *arguments]
    places = [f"root={folder / 'root'}", f"source.uri={folder / 'bucket'}", "train.epochs=20"]
    return subprocess.run(
        [*command, *places], cwd=REPO, env=environment, capture_output=True, text=True, timeout=ENOUGH_S, check=False
    )


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_only_train_on_two_workers_leaves_its_curve_and_a_bundle_that_a_failing_evaluation_does_not_cost(tmp_path):
    make_bucket(tmp_path / "bucket", 60)
    first = workflow(tmp_path, "--until", "curate")
    assert first.returncode == 0, first.stdout + first.stderr
    trained = workflow(tmp_path, "--only", "train", "train.resources.workers=2")
    assert trained.returncode == 0, trained.stdout + trained.stderr

    [product] = (tmp_path / "root" / "train").iterdir()
    attempt = json.loads((product / "attempts" / "0001.json").read_text())
    assert len({worker["pid"] for worker in attempt["workers"]}) == 2
    lines = read(Place(str(product)))
    assert lines[-1]["step"] == attempt["steps"] > 20 and lines[-1]["loss"] < lines[0]["loss"]
    page = (tmp_path / "root" / "report.html").read_text()
    points, *others = re.findall(r'<polyline class="line" points="([^"]+)"', page)
    assert len(points.split()) == len(lines)
    assert len(others) >= 5 and all(len(other.split()) == len(lines) for other in others)
    assert f"{attempt['steps']} steps of 128 pairs; the loss went from {lines[0]['loss']:.2f} to " in page
    assert load_bundle(product / "bundle").info["provenance"]["steps"] == attempt["steps"]

    before = digests(product / "bundle")
    parts = {path: path.read_bytes() for path in (tmp_path / "root" / "preprocess").glob("*/data/*.parquet")}
    for path, data in parts.items():
        path.write_bytes(data[:1000])  # a disk that lost their ends
    failed = workflow(tmp_path, "--only", "evaluate")
    assert failed.returncode == 1 and "evaluate" in failed.stderr, failed.stdout + failed.stderr
    assert digests(product / "bundle") == before and (product / "_MANIFEST.json").is_file()
    for path, data in parts.items():
        path.write_bytes(data)
    again = workflow(tmp_path, "--only", "evaluate")
    assert again.returncode == 0, again.stdout + again.stderr
