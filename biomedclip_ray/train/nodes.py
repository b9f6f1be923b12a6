"""Where the parts of a training run: workers, the feed beside them, and the task that measures a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from biomedclip_ray.config import TrainResources
from biomedclip_ray.run.capacity import Capacity
from biomedclip_ray.run.nodes import Demand
from biomedclip_ray.run.placement import Placement, place
from biomedclip_ray.train.batches import WINDOW_CPUS


@dataclass(frozen=True)
class Places:
    worker: Placement
    feed: Demand
    validation: Placement


def placed(resources: TrainResources, capacity: Capacity) -> Places:
    """Workers with GPUs bring nodes whose other CPUs feed them, where that is enough for one task of each kind: no data
    node is paid for beside them. Else the feed brings data nodes of its own.
    """
    worker = place(capacity, resources.cpus_per_worker, resources.gpus_per_worker)
    gpus = bool(resources.gpus_per_worker)
    read = min(WINDOW_CPUS, resources.feed_cpus)
    left = _left(worker, resources)
    beside = gpus and left >= resources.feed_cpus + 2 * read
    work = place(capacity, resources.feed_cpus, beside="gpus" if beside else "cpus")
    brings = 0 if beside else resources.feed_concurrency
    feed = Demand(
        "train",
        capacity,
        work,
        (place(capacity, read),) * 2 if brings else (),
        most=brings,
        parts=brings,  # all of them, until the feed ends
        stalled_s=None,
        wait_s=resources.wait_for_nodes_s,
    )
    validation = place(
        capacity, resources.validation_cpus, resources.validation_gpus, beside="gpus" if gpus else "cpus"
    )
    return Places(worker, feed, validation)


def _left(worker: Placement, resources: TrainResources) -> float:
    """CPUs that the workers leave on a node of theirs."""
    return max(
        (kind.amount("CPU") - kind.room(worker.cpus, worker.gpus) * resources.cpus_per_worker for kind in worker.kinds),
        default=0.0,
    )
