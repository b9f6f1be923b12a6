"""A disk that is full is told by its place, however it shows."""

from __future__ import annotations

import errno
import pickle
import subprocess
from collections.abc import Iterator
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
import torch
from ray.exceptions import OutOfDiskError, RayTaskError
from safetensors.torch import save_file

from biomedclip_ray.run.room import no_room
from biomedclip_ray.store.place import Place
from tests.disks import small_disk


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk of two megabytes."""
    with small_disk(tmp_path_factory.mktemp("small"), 2) as folder:
        yield folder


def _lance(folder: Path) -> None:
    lance.write_dataset(pa.table({"v": np.random.default_rng(0).random(500_000)}), str(folder / "t.lance"))


WRITERS = {
    "place": lambda folder: Place(str(folder)).write("data/part-00000.parquet", bytes(4_000_000)),
    "torch": lambda folder: torch.save({"x": torch.zeros(1_000_000)}, folder / "x.pt"),
    "safetensors": lambda folder: save_file({"x": torch.zeros(1_000_000)}, folder / "x.safetensors"),
    "lance": _lance,
    "numpy": lambda folder: np.save(folder / "x.npy", np.zeros(1_000_000)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_whoever_finds_no_room_the_root_is_named_with_the_way_on(small: Path, name: str) -> None:
    root = small / name
    root.mkdir()
    with pytest.raises((OSError, RuntimeError, Exception)) as raised:
        WRITERS[name](root)
    told = no_room(pickle.loads(pickle.dumps(raised.value)), str(root))  # as it comes from a worker
    assert told is not None
    assert told.startswith(f"no room is left in {root}")
    assert "--prune removes those that nothing refers to" in told and "the same command goes on" in told
    assert "\n" not in told
    subprocess.run(["rm", "-r", str(root)], check=True)


def test_what_was_written_halfway_is_gone_and_the_file_is_named(small: Path) -> None:
    with pytest.raises(OSError, match="No space left on device") as raised:
        Place(str(small)).write("data/part-00000.parquet", bytes(4_000_000))
    assert raised.value.filename == str(small / "data" / "part-00000.parquet")
    assert list((small / "data").iterdir()) == []


def test_a_task_on_another_node_and_what_led_to_an_error_are_looked_at(tmp_path: Path) -> None:
    cause = OSError(errno.ENOSPC, "No space left on device", f"{tmp_path}/root/embed/data/part-00001.parquet")
    task = RayTaskError("write", "ray::write() (pid=7, ip=10.0.0.7)", cause, ip="10.0.0.7")
    error = RuntimeError("the pipeline failed")
    error.__cause__ = task.as_instanceof_cause()
    told = no_room(error, f"{tmp_path}/root")
    assert told is not None and told.startswith(f"no room is left in {tmp_path}/root")
    export = no_room(OSError(errno.EDQUOT, "Disk quota exceeded", "/elsewhere/shard-0.tar"), f"{tmp_path}/root")
    assert export is not None and export.startswith("no room is left in /elsewhere: make room there")


def test_what_ray_cannot_spill_is_rays_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    told = no_room(OutOfDiskError("Local disk is full"), "s3://bucket/run")
    assert told is not None and told.startswith(f"no room is left in {tmp_path}: ")
    assert "RAY_TMPDIR" in told


def test_an_error_beside_a_disk_without_room_is_put_down_to_it(small: Path) -> None:
    filler = small / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while file.write(bytes(4096)):
            pass
    told = no_room(RuntimeError("the worker died"), str(small))
    filler.unlink()
    assert told is not None and told.startswith(f"no room is left in {small}: ")
    assert told.endswith("(RuntimeError: the worker died)")


def test_other_errors_are_others(tmp_path: Path) -> None:
    assert no_room(ValueError("no such column"), str(tmp_path)) is None
    assert no_room(OSError(errno.EACCES, "Permission denied"), str(tmp_path)) is None
