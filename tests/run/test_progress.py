"""Progress: a rate and a time left that a person can believe, in a log as well."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pyarrow as pa
import pytest

from biomedclip_ray.run import progress
from biomedclip_ray.run.progress import Progress, rate_and_eta
from biomedclip_ray.store.attempt import attempt
from biomedclip_ray.store.ledger import Ledger
from biomedclip_ray.store.product import Product


@pytest.mark.parametrize(
    ("done", "total", "seconds", "said"),
    [
        (0, 10, 5.0, "no part yet"),
        (3, 10, 0.0, "no part yet"),
        (50, 200, 10.0, "5.0 parts/s, 0:00:30 left"),
        (2, 10, 60.0, "2.0 parts/min, 0:04:00 left"),
        (1, 1000, 36.0, "1.7 parts/min, 9:59:24 left"),
        (10, 10, 60.0, "10.0 parts/min, 0:00:00 left"),
    ],
)
def test_rate_and_time_left(done: int, total: int, seconds: float, said: str) -> None:
    assert rate_and_eta(done, total, seconds, "part") == said


def test_a_log_gets_lines_that_count_what_lies_in_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "POLL_S", 0.01)
    monkeypatch.setattr(progress, "LINE_S", 0.02)
    product = Product.plan(str(tmp_path), "ingest", 1, {}, [])
    row = pa.table({"id": ["a"]})
    with attempt(product, 4) as current:
        current.write_part(0, row, Ledger("ingest").table(), {})
        with caplog.at_level(logging.INFO), Progress(current, missing=3):
            current.write_part(1, row, Ledger("ingest").table(), {})
            deadline = time.monotonic() + 20
            while not any("2 of 4 parts" in line for line in caplog.messages) and time.monotonic() < deadline:
                time.sleep(0.01)
    line = next(line for line in caplog.messages if "2 of 4 parts" in line)
    assert line.startswith("ingest: 2 of 4 parts, ")
    assert line.endswith(" left")
