"""A set is streamed: what a worker holds does not grow with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from biomedclip_ray.evaluate.features import PART
from tests.evaluate.conftest import png

GROWTH = 100 << 20
"""Bytes between 2,000 and 20,000 images of 12 kB, which are 216 MB more. What grows is the allocators' within the first
parts: 1,038, 1,071 and 1,089 MB after one, two and three, and 1,089 after all ten.
"""

WORKER = """
import sys
from biomedclip_ray.evaluate.features import Worker, jobs_of
from biomedclip_ray.evaluate.sets import load_set
from biomedclip_ray.run.memory import peak_rss
bundle, uri, features = sys.argv[1:]
worker = Worker(bundle, features)
print(sum(worker(job).encoded for job in jobs_of(load_set(uri), "test")), peak_rss())
"""


def set_of(folder: Path, about: dict, rows: int) -> Path:
    """Images of noise, no two alike."""
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps(about))
    random = np.random.default_rng(rows)
    schema = pa.schema({"image": pa.binary(), "label": pa.string()})
    with pq.ParquetWriter(folder / "test.parquet", schema, compression="none") as file:
        for _ in range(0, rows, 500):
            images = [png(pixels) for pixels in random.integers(0, 255, (500, 64, 64, 3), np.uint8)]
            file.write_table(pa.table({"image": images, "label": [about["classes"][0]] * 500}, schema))
    return folder


def peak(bundle: Path, folder: Path, out: Path) -> tuple[int, int]:
    command = [sys.executable, "-c", WORKER, str(bundle), str(folder), str(out)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    encoded, most = map(int, found.stdout.split())
    return encoded, most


@pytest.mark.slow
def test_a_worker_holds_no_more_of_ten_times_as_many_images(bundles, about, tmp_path):
    few = peak(bundles[0], set_of(tmp_path / "few", about, 2_000), tmp_path / "f")
    many = peak(bundles[0], set_of(tmp_path / "many", about, 20_000), tmp_path / "m")
    print(f"peak of a worker: {few[1] / 1e6:.0f} MB at 2,000 images, {many[1] / 1e6:.0f} MB at 20,000")
    assert (few[0], many[0]) == (2_000, 20_000)
    assert many[1] - few[1] < GROWTH
    parts = sorted((tmp_path / "m").glob("*/images/*"))
    assert len(parts) == -(-20_000 // PART)  # what kill -9 can take is one of these
