"""What Ray Data must not do to a stage: split a part, repeat what is done, or stand still without a word."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray.data.exceptions

from biomedclip_ray.config import PartResources
from biomedclip_ray.run.parts import on_ray
from biomedclip_ray.store.attempt import Attempt
from biomedclip_ray.store.ledger import Ledger, PartResult
from biomedclip_ray.store.product import Product
from tests.processes import faults

pytestmark = pytest.mark.usefixtures("ray_cluster")

ROW_BYTES, ROWS = 1 << 20, 300  # more than two of Ray's blocks of 128 MB
FAST = PartResources(num_cpus=0.5)


def _attempt(root: Path, parts: int) -> Attempt:
    return Attempt(Product.plan(str(root), "preprocess", 1, {}, []), "ran", parts)


def _result(table: pa.Table) -> PartResult:
    ledger = Ledger("preprocess")
    ledger.count("picture", table.num_rows, table.num_rows)
    return PartResult(table, ledger)


def _big(part: int) -> PartResult:
    images = [np.random.default_rng(row).bytes(ROW_BYTES) for row in range(ROWS)]
    return _result(pa.table({"id": np.arange(ROWS), "image": pa.array(images, pa.binary())}))


def test_a_part_of_many_pictures_is_one_file_with_every_row(tmp_path: Path) -> None:
    current = _attempt(tmp_path, 1)
    on_ray(current, _big, FAST)
    assert [name for name in current.place.list() if name.startswith("data/")] == ["data/part-00000.parquet"]
    table = current.read(0)
    assert table["id"].to_pylist() == list(range(ROWS))
    assert table["image"][ROWS - 1].as_py() == np.random.default_rng(ROWS - 1).bytes(ROW_BYTES)


def _marked(part: int, folder: str) -> PartResult:
    with (Path(folder) / f"{part}").open("a") as file:
        file.write("x")
    return _result(pa.table({"id": [part]}))


def test_a_run_killed_at_nine_tenths_does_only_the_last_tenth_again(tmp_path: Path) -> None:
    (tmp_path / "calls").mkdir()
    current = _attempt(tmp_path, 20)
    for part in set(range(20)) - {4, 13}:
        result = _marked(part, str(tmp_path / "calls"))
        current.write_part(part, result.data, result.ledger.table(), result.ledger.counts)
    on_ray(current, _marked, FAST, (str(tmp_path / "calls"),))
    assert current.missing_parts() == []
    assert {path.name: path.read_text() for path in (tmp_path / "calls").iterdir()} == {f"{n}": "x" for n in range(20)}
    assert [current.read(part)["id"].to_pylist() for part in (3, 4, 13)] == [[3], [4], [13]]


class _Heavy:
    """What a model takes to load: here until every part has been read."""

    def __init__(self, folder: str) -> None:
        deadline = time.monotonic() + 60
        while len(list(Path(folder).iterdir())) < 4:
            assert time.monotonic() < deadline, "nothing was read meanwhile"
            time.sleep(0.05)

    @staticmethod
    def read(part: int, folder: str) -> tuple[int, bytes]:
        (Path(folder) / f"{part}").write_text("read")
        return part, bytes([part])

    def __call__(self, read: tuple[int, bytes]) -> PartResult:
        return _result(pa.table({"id": [read[0]], "read": [read[1]]}))


def test_tasks_read_ahead_of_a_worker_that_is_still_being_made(tmp_path: Path) -> None:
    (tmp_path / "read").mkdir()
    current = _attempt(tmp_path, 4)
    on_ray(current, _Heavy, FAST, (str(tmp_path / "read"),))
    found = [row for part in range(4) for row in current.read(part).to_pylist()]
    assert found == [{"id": part, "read": bytes([part])} for part in range(4)]


class _Passes:
    """A model that computes, as far as memory goes."""

    def __call__(self, part: int) -> PartResult:
        return _result(pa.table({"faults": [faults()]}))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's switches")
def test_workers_that_hold_a_model_keep_the_memory_of_a_pass_for_the_next(tmp_path: Path) -> None:
    current = _attempt(tmp_path, 1)
    on_ray(current, _Passes, FAST)
    assert current.read(0)["faults"][0].as_py() < 5000  # 400,000 otherwise


def _stalled(part: int) -> PartResult:
    time.sleep(60)
    return _result(pa.table({"id": [part]}))


def test_a_stage_that_stands_still_stops_and_names_the_operator(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(ray.data.exceptions.ExecutionTimeoutError, match="_part_task"):
        on_ray(_attempt(tmp_path, 2), _stalled, PartResources(num_cpus=0.5, no_progress_timeout_s=3))
    assert time.monotonic() - started < 55


def _slow(part: int) -> PartResult:
    time.sleep(20)
    return _result(pa.table({"id": [part]}))


def test_a_stage_whose_cpus_others_hold_says_so_and_one_that_holds_them_itself_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    resources = PartResources(num_cpus=2, no_progress_timeout_s=3)
    with pytest.raises(ray.data.exceptions.ExecutionTimeoutError):
        on_ray(_attempt(tmp_path / "long", 1), _slow, resources)
    assert "waits" not in caplog.text
    server = ray.remote(num_cpus=1.75)(_Passes).remote()
    ray.get(server.__ray_ready__.remote())
    why = "preprocess waits: a task takes 0.5 CPU, 0.25 of 2 are free, and 1"
    with pytest.raises(ray.data.exceptions.ExecutionTimeoutError, match=why):
        on_ray(_attempt(tmp_path / "short", 1), _slow, resources.model_copy(update={"num_cpus": 0.5}))
    assert why in caplog.text
    ray.kill(server)
