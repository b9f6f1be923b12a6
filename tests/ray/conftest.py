"""One local Ray cluster of two CPUs and a GPU that only Ray believes in, for all tests of this folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from tests.conftest import S3


@pytest.fixture(scope="session")
def ray_cluster(s3_server: S3) -> Iterator[None]:
    """A Ray of our own, never one that happens to run on this machine; its workers know the session's S3."""
    os.environ.pop("RAY_ADDRESS", None)
    import ray

    ray.init(
        "local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING
    )
    yield
    ray.shutdown()
