"""Work whose results the driver reads as they come, in order: jobs streamed through actors that hold a model.

Unlike `run/parts.py` nothing is written here: what a job leaves in storage is its own business, and what it returns
must be small (keys, counts). Ray Data brings actors as there is work for them, restarts one that was killed and runs
its job again.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext

from biomedclip_ray.config import PartResources
from biomedclip_ray.run.capacity import known
from biomedclip_ray.run.memory import keeping_freed
from biomedclip_ray.run.nodes import Demand
from biomedclip_ray.run.parts import context_of, pool_size
from biomedclip_ray.run.placement import place


def stream(
    name: str, worker: type[Any], args: tuple[Any, ...], jobs: Sequence[Any], resources: PartResources
) -> Iterator[Any]:
    """What `worker(*args)(job)` gives for each job, in the order of the jobs, from the connected Ray cluster.

    Args:
        name: of the work, for messages.
        worker: a class, made once per actor.
        jobs, and what is given for them: anything that pickles.

    Raises:
        ray.exceptions.RayTaskError: a job raised.
        ExecutionTimeoutError, ShortageError: as `run.parts.on_ray`.
    """
    if not jobs:
        return
    capacity = known()
    work = place(capacity, resources.num_cpus, resources.num_gpus)
    most = pool_size(capacity, work, resources, len(jobs))
    waits = resources.no_progress_timeout_s, resources.wait_for_nodes_s
    context = context_of(Demand(name, capacity, work, (), most, len(jobs), *waits))
    context.execution_options.preserve_order = True
    with DataContext.current(context):
        rows = [{"job": pickle.dumps(job)} for job in jobs]
        given = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _actor(worker, args),
            compute=ActorPoolStrategy(min_size=1, max_size=most),
            runtime_env=keeping_freed(resources.num_gpus),
            **work.options,
        )
        for row in given.iter_rows():
            yield pickle.loads(row["given"])


def _actor(worker: type[Any], args: tuple[Any, ...]) -> type[Any]:
    """A class without constructor arguments: those would lie in the object store, from where no actor can restart."""

    class StreamActor:
        def __init__(self) -> None:
            self.worker = worker(*args)

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            return {"given": pickle.dumps(self.worker(pickle.loads(row["job"])))}

    return StreamActor
