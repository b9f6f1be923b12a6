"""Who runs the parts that a product still misses: one Ray Data pipeline (one part, one block, one task, two files), or
a plain loop in this process, for measuring and for tests.

Written once for every stage that is made of parts. Resume needs no checkpoint of Ray Data's: what lies on disk says
which parts are done (its own CheckpointConfig reads every input row again and filters only readers). A part is minutes
of work, so the 12-30 ms that Ray Data spends on a block do not count.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, ExecutionOptions
from ray.data.block import Block
from ray.data.datasource import Datasink

from biomedclip_ray.config import PartResources
from biomedclip_ray.run.capacity import Capacity, known
from biomedclip_ray.run.memory import keeping_freed, peak_rss
from biomedclip_ray.run.nodes import Demand, watch
from biomedclip_ray.run.placement import Beside, Placement, place
from biomedclip_ray.run.progress import Progress
from biomedclip_ray.schema import LEDGER
from biomedclip_ray.store.attempt import Attempt
from biomedclip_ray.store.ledger import PartResult

# A block holds the rows of one part and one more, the last, that carries ledger and counts as JSON: so they are written
# together with the rows or not at all.
_NOTE = "_note"

READ_CPUS, WRITE_CPUS = 0.2, 0.25
"""Logical CPUs of a task that reads, with threads of its own, what an actor will make something of, and of one that
writes what it has made. Ray Data lets an operator have a share of the CPUs alone: at 0.4 one reader ran at a time
beside an actor on two CPUs, and evaluate's scan took 18.1 ms a part behind a store that answers in 30 ms instead of
13.2 at 0.2 (9.2 to 9.9 since).
"""

Worker = Callable[..., PartResult] | type[Any]
"""A function `(part, *args) -> PartResult`; or a class, made once per process from `args` and called with the part, for
a worker that holds something expensive such as a model. A class with a function `read(part, *args)` is called with what
that gives: on a cluster tasks read ahead of it, while it is being made too.
"""


class Runner(Protocol):
    """Runs a worker over the missing parts of an attempt; each part is written as soon as it is done."""

    def __call__(self, attempt: Attempt, worker: Worker, resources: PartResources, args: tuple[Any, ...] = ()) -> None:
        """`args` go to the worker."""


def in_process(attempt: Attempt, worker: Worker, resources: PartResources, args: tuple[Any, ...] = ()) -> None:
    """Run the parts one after the other, here. `resources` say how a cluster is used, so nothing of them counts."""
    missing = attempt.missing_parts()
    if missing:
        run = worker(*args) if isinstance(worker, type) else lambda part: worker(part, *args)
        read = getattr(worker, "read", None)
        for part in missing:
            result = run(part if read is None else read(part, *args))
            attempt.write_part(
                part,
                result.data,
                result.ledger.table(),
                result.ledger.counts,
                peak_rss(),
                result.reused,
                result.withdrawn,
            )


def on_ray(attempt: Attempt, worker: Worker, resources: PartResources, args: tuple[Any, ...] = ()) -> None:
    """Run the parts on the connected Ray cluster, as tasks or on a pool of actors.

    Raises:
        ray.data.exceptions.ExecutionTimeoutError: nothing moved for resources.no_progress_timeout_s, though nodes are
        up.
        ShortageError: no node came within resources.wait_for_nodes_s.
    """
    missing = attempt.missing_parts()
    if not missing:
        return
    capacity = known()
    work = place(capacity, resources.num_cpus, resources.num_gpus)
    compute: dict[str, Any] = {**work.options}
    apply: Any
    read = getattr(worker, "read", None)
    if isinstance(worker, type):
        apply = _actor(worker, args)
        beside: Beside = "gpus" if resources.num_gpus else "cpus"
        write, reading = place(capacity, WRITE_CPUS, beside=beside), place(capacity, READ_CPUS, beside=beside)
        most = pool_size(capacity, work, resources, len(missing))
        compute["compute"] = ActorPoolStrategy(min_size=1, max_size=most)
        compute["runtime_env"] = keeping_freed(resources.num_gpus)
    else:
        apply = _part_task
        write = reading = work  # equal demands let Ray Data fuse tasks and writing into one step
        most = min(resources.concurrency or len(missing), max(1, capacity.room(work.cpus, work.gpus, work.kinds)))
        compute["fn_args"] = (worker, args)
        compute["concurrency"] = resources.concurrency
    demand = Demand(
        attempt.product.stage,
        capacity,
        work,
        () if write is work else (write,) if read is None else (reading, write),
        most,
        len(missing),
        resources.no_progress_timeout_s,
        resources.wait_for_nodes_s,
    )
    with DataContext.current(context_of(demand)), Progress(attempt, len(missing)):
        parts = ray.data.from_items([{"part": part} for part in missing], override_num_blocks=len(missing))
        if read is not None:  # of another size than the actors: Ray Data fuses equal ones, and none would read ahead
            parts = parts.map_batches(
                _read_task, batch_size=1, batch_format="pyarrow", fn_args=(read, args), **reading.options
            )
        # one row a block, so a batch of one row is a whole block; None would say the same, and is refused beside GPUs
        blocks = parts.map_batches(apply, batch_size=1, batch_format="pyarrow", **compute)
        blocks.write_datasink(_PartSink(attempt), ray_remote_args=write.options)


def context_of(demand: Demand) -> DataContext:
    """Ray Data as every pipeline of ours has it: no bars, no splitting of blocks, nodes asked for by what is left."""
    context: DataContext = DataContext.get_current().copy()
    context.target_max_block_size = (
        None  # with the default 128 MB a large part became two blocks, and one file got lost
    )
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options = ExecutionOptions()
    watch(context, demand)
    return context


def pool_size(capacity: Capacity, work: Placement, resources: PartResources, parts: int) -> int:
    """At most so many actors: what all nodes take that may come, less half a CPU for tasks that read and write."""
    room = capacity.room(work.cpus, work.gpus, work.kinds)
    cpus = sum(node.amount("CPU") * node.most for node in work.kinds)
    room = min(room, int((cpus - 0.5) / work.cpus)) if capacity.sized else parts
    return max(1, min(resources.concurrency or parts, room, parts))


def _part_task(batch: pa.Table, worker: Callable[..., PartResult], args: tuple[Any, ...]) -> pa.Table:
    part = batch["part"][0].as_py()
    return _as_block(part, worker(part, *args))


def _read_task(batch: pa.Table, read: Callable[..., Any], args: tuple[Any, ...]) -> pa.Table:
    found = pickle.dumps(read(batch["part"][0].as_py(), *args))
    return batch.append_column("read", pa.array([found], pa.large_binary()))


def _actor(worker: type[Any], args: tuple[Any, ...]) -> type[Any]:
    """A class without constructor arguments: those would lie in the object store, from where no actor can restart."""

    class PartActor:
        def __init__(self) -> None:
            self.worker = worker(*args)

        def __call__(self, batch: pa.Table) -> pa.Table:
            part = batch["part"][0].as_py()
            read = pickle.loads(batch["read"][0].as_buffer()) if "read" in batch.column_names else part
            return _as_block(part, self.worker(read))

    return PartActor


def _as_block(part: int, result: PartResult) -> pa.Table:
    note = {
        "part": part,
        "ledger": result.ledger.rows,
        "counts": result.ledger.counts,
        "reused": result.reused,
        "withdrawn": result.withdrawn,
        "peak_rss": peak_rss(),
    }
    rows = result.data.append_column(_NOTE, pa.nulls(result.data.num_rows, pa.string()))
    last = {field.name: pa.nulls(1, field.type) for field in rows.schema}
    last[_NOTE] = pa.array([json.dumps(note)], pa.string())
    return pa.concat_tables([rows, pa.table(last, schema=rows.schema)])


class _PartSink(Datasink):
    """Writes each block as the two files of its part."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt

    def write(self, blocks: Iterable[Block], ctx: Any) -> None:
        for block in blocks:
            note = json.loads(block[_NOTE][block.num_rows - 1].as_py())
            rows = block.slice(0, block.num_rows - 1).drop_columns([_NOTE])
            ledger = pa.Table.from_pylist(note.pop("ledger"), schema=LEDGER)
            self.attempt.write_part(note.pop("part"), rows, ledger, **note)
