"""What the application needs of a cluster; asked before anything starts."""

from __future__ import annotations

from typing import Any

from biomedclip_ray.config import Config
from biomedclip_ray.run.capacity import Capacity


def check(config: Config, *_: Any) -> list[str]:
    """Nothing is needed before a cluster is there."""
    return []


def fit(config: Config, capacity: Capacity, *_: Any) -> list[str]:
    """What the cluster lacks for the replicas, one line each with the key and the fix."""
    serve, cpus = config.serve.resources, capacity.total("CPU")
    models = 1 + len(config.serve.more)
    if capacity.sized and models * serve.replicas * serve.cpus_per_replica > cpus:
        of_each = f"{models} models x " if models > 1 else ""
        return [
            f"{of_each}serve.resources.replicas={serve.replicas} x cpus_per_replica={serve.cpus_per_replica:g}, but "
            f"{capacity.found} has {cpus:g} CPUs; lower one of them"
        ]
    return []


def try_out(config: Config, *_: Any) -> list[str]:
    """The application is tried out by its deployment."""
    return []
