"""A shortage of nodes is waited out, with a line that says for what, and ends the run when the operator
has had enough.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from biomedclip_ray.config import PartResources
from biomedclip_ray.run import nodes
from biomedclip_ray.run.capacity import Capacity, NodeKind, of_cluster, remember
from biomedclip_ray.run.nodes import ShortageError, wait_for_nodes
from biomedclip_ray.run.parts import on_ray
from biomedclip_ray.run.placement import place
from biomedclip_ray.run.telemetry import told
from biomedclip_ray.store.attempt import Attempt
from biomedclip_ray.store.ledger import Ledger, PartResult
from biomedclip_ray.store.product import Product

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def grows() -> Iterator[Capacity]:
    """This machine is the head; data nodes and GPU nodes may come, and never do."""
    kinds = (
        NodeKind("head", {"CPU": 2.0}, {}, 1, head=True),
        NodeKind("data", {"CPU": 8.0, "pool_data": 1.0}, {}, 4),
        NodeKind("gpu", {"CPU": 8.0, "GPU": 1.0, "pool_gpu": 1.0}, {}, 2),
    )
    capacity = Capacity(kinds, "a test", True, "v1")
    remember(capacity)
    yield capacity
    remember(of_cluster())


def test_what_is_waited_for_is_said_and_given_up_when_told(
    grows: Capacity, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(nodes, "PATIENCE_S", 0.2)
    with caplog.at_level(logging.INFO), pytest.raises(ShortageError) as ended:
        wait_for_nodes("train", grows, [(place(grows, 4.0, 1.0), 2)], 2.0, look_s=0.1)
    assert "train waits for room for 2 x 4 CPU and 1 GPU: gpu (0 of 2 up)" in caplog.text
    assert str(ended.value).startswith("train: room for 2 x 4 CPU and 1 GPU did not come within 2 s (wait_for_nodes_s)")


def test_whoever_asks_for_numbers_is_told_of_the_waiting_and_of_its_end(
    grows: Capacity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "PATIENCE_S", 0.2)
    wanted = [(place(grows, 4.0, 1.0), 2)]
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(wait_for_nodes, "train", grows, wanted, 3.0, look_s=0.1)
        seen = set()
        while not waiting.done():
            seen.add(told("waits_for_nodes", stage="train"))
            time.sleep(0.02)
    assert isinstance(waiting.exception(), ShortageError)
    assert 1 in seen
    assert told("waits_for_nodes", stage="train") == 0


def test_nodes_that_are_up_are_not_waited_for(grows: Capacity, caplog: pytest.LogCaptureFixture) -> None:
    plain = Capacity(grows.kinds[:1], "a test", True, "v1")
    with caplog.at_level(logging.INFO):
        wait_for_nodes("train", plain, [(place(plain, 1.0), 2)], 0.1)
    assert "waits for room" not in caplog.text


def _part(part: int) -> PartResult:
    ledger = Ledger("preprocess")
    ledger.count("picture", 1, 1)
    return PartResult(pa.table({"id": [part]}), ledger)


def test_a_stage_over_parts_waits_for_its_kind_of_node_and_not_for_its_stall(
    grows: Capacity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The head has CPUs, but the parts go to data nodes: that nothing moves is a shortage, whatever
    no_progress_timeout_s says.
    """
    monkeypatch.setattr(nodes, "PATIENCE_S", 0.5)
    current = Attempt(Product.plan(str(tmp_path), "preprocess", 1, {}, []), "ran", 2)
    resources = PartResources(num_cpus=1, no_progress_timeout_s=1, wait_for_nodes_s=6)
    with caplog.at_level(logging.INFO), pytest.raises(ShortageError, match="6 s"):
        on_ray(current, _part, resources)
    assert "preprocess waits for a node with 1 CPU: data (0 of 4 up)" in caplog.text
