"""Everything that can be known to fail is tried before anything starts: each failure is one line with the key and the fix.

A night's run that stops after six hours because a folder was read-only costs more than these seconds.
"""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import ray
from ray.exceptions import NodeDiedError, TaskUnschedulableError, WorkerCrashedError

from biomedclip_ray.config import Config, ConfigError, PartResources
from biomedclip_ray.run.capacity import Capacity
from biomedclip_ray.sources.bucket import SourceError
from biomedclip_ray.sources.inventory import Inventory, find_inventory
from biomedclip_ray.sources.open import open_bucket
from biomedclip_ray.store.place import Place, StorageError, check_writable

READS_SOURCE = ("catalog", "ingest", "preprocess")
MIN_FREE_BYTES = 1_000_000_000
CONNECT_S = 5.0


class PreflightError(RuntimeError):
    """One or more things that this run needs are not there; one line each (exit code 2)."""


def check_root(config: Config) -> None:
    """Raises ConfigError for a relative root inside a submitted job: it would lie in Ray's unpacked package and vanish."""
    _check_lasting("root=", config.root)


def check_out(out: str) -> None:
    """As `check_root`, for the place that an export goes to; it must be writable too. Raises StorageError for that."""
    _check_lasting("--out ", out)
    check_writable(out)


def _check_lasting(key: str, uri: str) -> None:
    unpacked = "runtime_resources/working_dir_files" in str(Path.cwd())
    if "://" not in uri and not Path(uri).expanduser().is_absolute() and unpacked:
        raise ConfigError(
            f"{key}{uri} is relative, but this job runs in Ray's unpacked copy of the code, which is deleted afterwards; "
            f"give an absolute path on shared storage or a URI ({key}/mnt/shared/run or {key}s3://bucket/run)"
        )


def check_address(address: str) -> None:
    """Raises PreflightError where no cluster listens at RAY_ADDRESS: Ray itself asks a dead address for over a minute."""
    try:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise PreflightError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there ({error}); expected HOST:PORT of a running head, "
            "usually port 6379; unset RAY_ADDRESS to run on a Ray of its own"
        ) from error


def check_places(
    config: Config, inventory: Inventory | None, stages: tuple[str, ...], towers: bool = True
) -> list[str]:
    """What is wrong with source and root; needs no cluster. `towers`: training has still to make its own, tokenizer included."""
    problems = []
    try:
        check_writable(config.root)
    except StorageError as error:
        problems.append(f"root: {error}; give a place that this user may write")
    else:
        problems += _space(config.root)
    if inventory is not None and any(stage in READS_SOURCE for stage in stages):
        try:
            bucket = open_bucket(config.source.uri, config.source.resources)
            if "catalog" in stages:
                find_inventory(bucket, inventory.date)
            else:
                bucket.folders("inventory-reports/")
        except SourceError as error:
            problems.append(str(error))
    classifier = config.preprocess.select.classifier
    if classifier is not None and "preprocess" in stages and not config.own.alone:
        from biomedclip_ray.figures.select import classifier_sha256, load_classifier

        try:
            load_classifier(classifier.uri, classifier_sha256(classifier.uri))
        except ConfigError as error:
            problems.append(str(error))
    if config.model.tokenizer != "fit" and config.model.bundle is None and "train" in stages and towers:
        from biomedclip_ray.clip.tokenizer import load_tokenizer

        try:
            load_tokenizer(config.model.tokenizer, 64)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            problems.append(
                f"model.tokenizer={config.model.tokenizer} cannot be loaded: {reason}; give a folder with tokenizer.json"
            )
    return problems


def _space(root: str) -> list[str]:
    local = Place(root).local
    if local is None or (free := shutil.disk_usage(local).free) >= MIN_FREE_BYTES:
        return []
    return [f"root={root}: only {free / 1e9:.1f} GB are free; at least {MIN_FREE_BYTES / 1e9:.0f} GB are needed"]


def check_capacity(config: Config, stages: tuple[str, ...], capacity: Capacity) -> list[str]:
    """What the nodes that may come cannot give these stages; needs no cluster."""
    problems = []
    demands: dict[str, PartResources] = {
        "catalog": config.catalog.resources,
        "ingest": config.ingest.resources,
        "preprocess": config.preprocess.resources,
        "evaluate": config.evaluate.resources,
        "embed": config.embed.resources,
    }
    if config.own.uri is not None and "preprocess" in stages:
        problems += _fits("own.resources", config.own.resources, capacity)
    for name, need in demands.items():
        if name in stages:
            problems += _fits(f"{name}.resources", need, capacity)
    if "train" in stages and capacity.sized:
        from biomedclip_ray.train.check import check as check_train

        problems += check_train(config, capacity.total("CPU"), capacity.total("GPU"), capacity.nodes())
    if "deploy" in stages and capacity.sized:
        serve, cpus = config.serve.resources, capacity.total("CPU")
        if serve.replicas * serve.cpus_per_replica > cpus:
            problems.append(
                f"serve.resources.replicas={serve.replicas} x cpus_per_replica={serve.cpus_per_replica:g}, but "
                f"{capacity.found} has {cpus:g} CPUs; lower one of them"
            )
    return problems


def check_cluster(config: Config, stages: tuple[str, ...], capacity: Capacity, towers: bool = True) -> list[str]:
    """What the connected Ray cluster lacks, nodes that do not see the root, and towers that cannot be built or trained there.

    `towers`: try those too; a run that goes on has its towers already and asks nobody for weights.
    """
    problems = check_capacity(config, stages, capacity) + _check_nodes(config.root)
    if "train" in stages and towers and not problems:  # it takes seconds, so only where nothing else is wrong
        problems += _try_towers(config)
    return problems


def _fits(key: str, need: PartResources, capacity: Capacity) -> list[str]:
    """A task runs on one node, whatever the others have: what none of them can give waits for ever, without a word."""
    if capacity.fits(need.num_cpus, need.num_gpus):
        return []
    problems = []
    for name, unit, wanted in (("num_cpus", "CPU", need.num_cpus), ("num_gpus", "GPU", need.num_gpus)):
        total, largest = capacity.total(unit), capacity.largest(unit)
        if wanted > total:
            problems.append(f"{key}.{name}={wanted:g}, but {capacity.found} has {total:g} {unit}s; lower it")
        elif wanted > largest:
            problems.append(
                f"{key}.{name}={wanted:g}, but no node of {capacity.found} has more than {largest:g} {unit}s; lower it"
            )
    return problems or [
        f"{key}: no node of {capacity.found} has num_cpus={need.num_cpus:g} and num_gpus={need.num_gpus:g} together; lower one"
    ]


def _try_towers(config: Config) -> list[str]:
    """Build the towers once, where the tasks of training run as well."""

    def attempt() -> str:
        from biomedclip_ray.train.check import build

        try:
            build(config)
        except ConfigError as error:
            return str(error)
        return ""

    problem = ray.get(ray.remote(num_cpus=0)(attempt).remote())
    return [problem] if problem else []


def _check_nodes(root: str) -> list[str]:
    """Each further node writes into the root and reads back: a folder that only the head has loses every row."""
    here = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU") and node["NodeID"] != here]
    if not nodes:
        return []
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    place = Place(root)
    name, mark = f"_preflight-{os.getpid()}", os.urandom(8)
    place.write(name, mark)

    def sees() -> str:
        try:
            check_writable(root)
            return "" if Place(root).read(name) == mark else "sees another file than the driver wrote"
        except (StorageError, OSError) as error:
            return str(error)

    try:
        task = ray.remote(num_cpus=0)(sees)
        answers = [
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
            for node in nodes
        ]
        seen = [_answer(answer) for answer in answers]
    finally:
        place.delete(name)
    return [
        f"root={root} is not shared storage: node {node['NodeManagerAddress']}: {answer}; use a mounted folder or s3://"
        for node, answer in zip(nodes, seen, strict=True)
        if answer
    ]


def _answer(task: ray.ObjectRef[str]) -> str:
    """Of a node; none where it is gone: the head takes seconds to notice, and work that a lost node had goes to others."""
    try:
        return ray.get(task)
    except (TaskUnschedulableError, NodeDiedError, WorkerCrashedError):
        return ""
