"""What a dry run says of a cluster: of the one that a file describes, or of the one that is there."""

from __future__ import annotations

import os
from collections.abc import Sequence

import ray

from biomedclip_ray.config import Config
from biomedclip_ray.run.capacity import Capacity, connected, of_file
from biomedclip_ray.run.connect import connect
from biomedclip_ray.run.meter import unpriced
from biomedclip_ray.run.preflight import Step, check_capacity


def check_foreseen(config: Config, steps: Sequence[Step], cluster: str | None) -> list[str]:
    """What the stages lack there; [] where no cluster is named. Nothing is started on it.

    Args:
        cluster: a launcher's YAML or a KubeRay manifest, as --cluster takes it.

    Raises:
        ConfigError: the file describes no cluster.
        PreflightError: no cluster answers at RAY_ADDRESS.
    """

    def lacking(capacity: Capacity) -> list[str]:
        return check_capacity(config, steps, capacity) + unpriced(config.budget, capacity)

    if os.environ.get("RAY_ADDRESS", "local") == "local":
        return lacking(of_file(cluster)) if cluster is not None else []
    connect()
    try:
        return lacking(connected(cluster))
    finally:
        ray.shutdown()
