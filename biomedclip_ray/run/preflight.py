"""Everything that can be known to fail is tried before anything starts: each failure is one line with the key and the
fix.

A night's run that stops after six hours because a folder was read-only costs more than these seconds.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.exceptions import NodeDiedError, TaskUnschedulableError, WorkerCrashedError

from biomedclip_ray.config import Config, ConfigError
from biomedclip_ray.run.capacity import Capacity
from biomedclip_ray.run.room import lacking
from biomedclip_ray.store.place import FULL, Place, StorageError, check_writable

CONNECT_S = 5.0


class PreflightError(RuntimeError):
    """One or more things that this run needs are not there; one line each (exit code 2)."""


def check_root(config: Config) -> None:
    """Raises ConfigError for a relative root inside a submitted job: it would lie in Ray's unpacked
    package and vanish.
    """
    _check_lasting("root=", config.root)


def check_out(out: str) -> None:
    """As `check_root`, for the place that an export goes to; it must be writable too. Raises StorageError for that."""
    _check_lasting("--out ", out)
    check_writable(out)


def _check_lasting(key: str, uri: str) -> None:
    unpacked = "runtime_resources/working_dir_files" in str(Path.cwd())
    if "://" not in uri and not Path(uri).expanduser().is_absolute() and unpacked:
        raise ConfigError(
            f"{key}{uri} is relative, but this job runs in Ray's unpacked copy of the code, which is deleted "
            "afterwards; "
            f"give an absolute path on shared storage or a URI ({key}/mnt/shared/run or {key}s3://bucket/run)"
        )


def check_address(address: str) -> None:
    """Raises PreflightError where no cluster listens at RAY_ADDRESS: Ray itself asks a dead address for
    over a minute.
    """
    try:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise PreflightError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there ({error}); expected HOST:PORT of a running head, "
            "usually port 6379; unset RAY_ADDRESS to run on a Ray of its own"
        ) from error


class Needs(Protocol):
    """What a stage needs, whatever it does; `run/stage.py` says what each is given."""

    @property
    def check(self) -> Callable[..., Iterable[str]]: ...

    @property
    def fit(self) -> Callable[..., Iterable[str]]: ...

    @property
    def try_out(self) -> Callable[..., Iterable[str]]: ...


Step = tuple[Needs, tuple[Any, ...]]
"""A stage with what it reads."""


def check_places(config: Config, steps: Sequence[Step]) -> list[str]:
    """What is wrong with the root, and with what the stages need before a cluster is there."""
    try:
        check_writable(config.root)
        problems = lacking(config.root)
    except StorageError as error:
        full = isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL
        problems = lacking(config.root) if full else []
        problems = problems or [f"root: {error}; give a place that this user may write"]
    problems += [problem for stage, inputs in steps for problem in stage.check(config, *inputs)]
    return list(dict.fromkeys(problems))  # stages that read the same source say the same of it


def check_capacity(config: Config, steps: Sequence[Step], capacity: Capacity) -> list[str]:
    """What the nodes that may come cannot give these stages; needs no cluster."""
    return [problem for stage, inputs in steps for problem in stage.fit(config, capacity, *inputs)]


def check_cluster(config: Config, steps: Sequence[Step], capacity: Capacity) -> list[str]:
    """What the connected Ray cluster lacks, nodes that do not see the root, and what can only be tried out there."""
    problems = check_capacity(config, steps, capacity) + _check_nodes(config.root)
    if not problems:  # it takes seconds, so only where nothing else is wrong
        problems = [problem for stage, inputs in steps for problem in stage.try_out(config, *inputs)]
    return problems


def _check_nodes(root: str) -> list[str]:
    """Each further node writes into the root and reads back: a folder that only the head has loses every row. And each
    has room for temporary files.
    """
    here = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU") and node["NodeID"] != here]
    if not nodes:
        return []
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    place = Place(root)
    name, mark = f"_preflight-{os.getpid()}", os.urandom(8)
    place.write(name, mark)

    def sees(node: str) -> list[str]:
        try:
            check_writable(root)
            wrong = "" if Place(root).read(name) == mark else "sees another file than the driver wrote"
        except (StorageError, OSError) as error:
            wrong = str(error)
        if wrong:
            return [f"root={root} is not shared storage: node {node}: {wrong}; use a mounted folder or s3://"]
        return [f"node {node}: {line}" for line in lacking(root)]

    try:
        task = ray.remote(num_cpus=0)(sees)
        answers = [
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                node["NodeManagerAddress"]
            )
            for node in nodes
        ]
        return [line for answer in answers for line in _answer(answer)]
    finally:
        place.delete(name)


def _answer(task: ray.ObjectRef[list[str]]) -> list[str]:
    """Of a node; none where it is gone: the head takes seconds to notice, and work that a lost node had
    goes to others.
    """
    try:
        return ray.get(task)
    except (TaskUnschedulableError, NodeDiedError, WorkerCrashedError):
        return []
