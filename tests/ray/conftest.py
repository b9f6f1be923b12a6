"""One local Ray cluster of two CPUs for all tests of this folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A Ray of our own, never one that happens to run on this machine."""
    os.environ.pop("RAY_ADDRESS", None)
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    yield
    ray.shutdown()
