"""A disk that is full under a running stage: what comes of it through Ray Data names the file's place."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from biomedclip_ray.config import PartResources
from biomedclip_ray.run.parts import on_ray
from biomedclip_ray.run.room import no_room
from biomedclip_ray.store.attempt import Attempt
from biomedclip_ray.store.ledger import Ledger, PartResult
from biomedclip_ray.store.product import Product
from tests.disks import small_disk

pytestmark = pytest.mark.usefixtures("ray_cluster")


def _part(part: int) -> PartResult:
    """The second of three parts is larger than the disk."""
    ledger = Ledger("preprocess")
    ledger.count("picture", 1, 1)
    return PartResult(pa.table({"image": [bytes(4_000_000 if part == 1 else 10)]}), ledger)


def test_the_part_that_found_no_room_is_not_done_and_the_root_is_named(tmp_path: Path) -> None:
    with small_disk(tmp_path, 2):
        current = Attempt(Product.plan(str(tmp_path), "preprocess", 1, {}, []), "ran", 3)
        with pytest.raises(OSError) as full:
            on_ray(current, _part, PartResources(num_cpus=1, concurrency=1))
        told = no_room(full.value, str(tmp_path))
        assert told is not None and told.startswith(f"no room is left in {tmp_path}: make room there")
        assert "\n" not in told and len(told) < 700
        assert 1 in current.missing_parts()
        assert list(tmp_path.rglob("*.tmp")) == []
