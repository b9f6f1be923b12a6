"""What can be asked of a plan: the machines of a cluster's file, the cheapest of them for a deadline, what a lost spot
node costs, a month of serving, the next month's articles, and preprints. Arithmetic on the same assumptions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from biomedclip_ray.config import Config, ConfigError
from biomedclip_ray.cost.estimate import money
from biomedclip_ray.cost.inputs import Cluster, Rates, World
from biomedclip_ray.cost.later import Whole, whole
from biomedclip_ray.run.capacity import Capacity, NodeKind

MONTH_H = 730.0
_MOST_NODES = 64


@dataclass(frozen=True)
class Machines:
    """The node types that a plan is made for."""

    cpu: NodeKind
    gpu: NodeKind | None
    cluster: Cluster


def machines(capacity: Capacity, prices: Mapping[str, float], cluster: Cluster) -> Machines:
    """The cheapest type with and the cheapest without GPUs, as many of each as may come; those without a price last.

    Raises:
        ConfigError: no node takes work on CPUs, or the file does not say how large its nodes are.
    """
    sized = [kind for kind in capacity.kinds if kind.most and kind.amount("CPU")]
    if not sized:
        raise ConfigError(f"{capacity.found}: no node type says how many CPUs it has; give --nodes and --cpus")

    def cost(kind: NodeKind) -> float:
        role = "gpu" if kind.amount("GPU") else "cpu"
        return prices.get(kind.name, prices.get(role, math.inf))

    plain = [kind for kind in sized if not kind.amount("GPU")] or sized
    cpu = min(plain, key=lambda kind: cost(kind) / kind.amount("CPU"))
    gpu = min(
        (kind for kind in sized if kind.amount("GPU")), key=lambda kind: cost(kind) / kind.amount("GPU"), default=None
    )
    workers = math.inf if capacity.workers is None else capacity.workers
    changes: dict[str, float] = {"nodes": int(min(cpu.most, workers)), "cpus": int(cpu.amount("CPU"))}
    if math.isfinite(cost(cpu)):
        changes["node_hour"] = cost(cpu)
    if gpu is not None:
        changes |= {"gpu_nodes": int(min(gpu.most, workers)), "gpus": int(gpu.amount("GPU"))}
        if math.isfinite(cost(gpu)):
            changes["gpu_hour"] = cost(gpu)
    head = next((kind for kind in capacity.kinds if kind.head), None)
    if head is not None and head not in (cpu, gpu):
        changes["head_hour"] = prices.get(head.name, prices.get("head", 0.0))
    return Machines(cpu, gpu, dataclasses.replace(cluster, **changes))  # type: ignore[arg-type]


def spent(plan: Whole, cluster: Cluster) -> float:
    """Money for machines and for what leaves the source's region."""
    return sum(money(stage, cluster) + _egress(stage.bytes_in, cluster) for stage in plan.stages[:3]) + sum(
        money(stage, cluster) for stage in plan.stages[3:]
    )


def _egress(size: float, cluster: Cluster) -> float:
    return size / 1e9 * cluster.egress_gb


def cheapest(config: Config, rates: Rates, world: World, cluster: Cluster, hours: float) -> Cluster | None:
    """The cluster of the same node types, no more of each than may come, that is through in `hours` for the least money
    (with no prices: for the fewest node-hours); None: none is.
    """
    priced = cluster if cluster.node_hour or cluster.gpu_hour else dataclasses.replace(cluster, node_hour=1, gpu_hour=1)
    best: tuple[float, Cluster] | None = None
    for gpu_nodes in range(1, cluster.gpu_nodes + 1) if cluster.gpu_nodes else (0,):
        for nodes in range(1, min(cluster.nodes, _MOST_NODES) + 1):
            tried = dataclasses.replace(priced, nodes=nodes, gpu_nodes=gpu_nodes)
            plan = whole(config, rates, world, tried)
            if plan.hours <= hours and (best is None or spent(plan, tried) < best[0]):
                best = spent(plan, tried), dataclasses.replace(cluster, nodes=nodes, gpu_nodes=gpu_nodes)
    return None if best is None else best[1]


def waste_from(config: Config, rates: Rates, world: World, cluster: Cluster) -> dict[str, int]:
    """Of each stage that reads the source: the number of nodes from which on more of them finish it no sooner, for the
    source answers no faster.
    """
    found = {}
    for number, stage in enumerate(whole(config, rates, world, cluster).source.stages):
        floor = stage.requests / world.requests_per_s / 3600
        for nodes in range(1, 1025):
            tried = whole(config, rates, world, dataclasses.replace(cluster, nodes=nodes)).source.stages[number]
            if tried.wall - tried.fixed <= floor * 1.0001:
                found[stage.name] = nodes
                break
    return found


@dataclass(frozen=True)
class Loss:
    """One spot node that vanishes."""

    node_hours: float
    """Work that is done again, and nodes that wait meanwhile."""
    money: float
    times: float
    """How often it is to be expected in this stage."""


def spot_losses(config: Config, plan: Whole, cluster: Cluster) -> dict[str, Loss]:
    """What the loss of one node costs in each stage. Of parts, those in the works on it, half done on average; of
    training, half of what lies between checkpoints, on all nodes, and the wait for another.
    """
    found = {}
    parts = max(1.0, plan.source.articles / config.source.articles_per_part)
    start = cluster.node_start_s / 3600
    for stage in plan.stages:
        nodes = cluster.gpu_nodes if stage.on == "gpu" else cluster.nodes
        price = cluster.gpu_hour if stage.on == "gpu" else cluster.node_hour
        if stage.name in ("catalog", "ingest", "preprocess", "embed"):
            part_hours = stage.wall * nodes / parts  # node-hours of one part
            again = part_hours * (cluster.cpus if stage.on == "cpu" else cluster.gpus) / 2 + start
        elif stage.name == "train":
            steps = max(1.0, plan.kept * config.train.epochs / config.train.batch)
            again = (stage.wall * min(1.0, config.train.checkpoint_steps / steps) / 2 + start) * nodes
        else:
            again = stage.wall * nodes / 2 + start
        found[stage.name] = Loss(again, again * price, cluster.losses * nodes * stage.wall)
    return found


@dataclass(frozen=True)
class Serving:
    """A month of the endpoint."""

    replicas: int
    nodes: int
    money: float
    storage: float


def serving(config: Config, plan: Whole, cluster: Cluster) -> Serving:
    """A month with serve.resources.replicas of them, and the index and pairs in storage."""
    resources = config.serve.resources
    on_gpus = resources.gpus_per_replica > 0
    per_node = cluster.gpus / resources.gpus_per_replica if on_gpus else cluster.cpus / resources.cpus_per_replica
    nodes = math.ceil(resources.replicas / max(1.0, math.floor(per_node)))
    price = cluster.gpu_hour if on_gpus else cluster.node_hour
    kept = plan.index_bytes + sum(stage.bytes_out for stage in plan.source.stages)
    return Serving(
        resources.replicas, nodes, MONTH_H * (nodes * price + cluster.head_hour), kept / 1e9 * cluster.gb_month
    )


def delta(config: Config, rates: Rates, world: World, cluster: Cluster) -> Whole:
    """The next month's `--sync`: new versions are read and made, the rows of all others are copied, curate and the
    index are made over all; nothing is trained.
    """
    every = whole(config, rates, world, cluster)
    select = config.source.select.model_copy(update={"articles": None, "percent": 100.0, "pmcids": None})
    untrained = config.train.model_copy(update={"epochs": 0.0})
    source = config.source.model_copy(update={"select": select})
    some = config.model_copy(update={"source": source, "train": untrained})
    share = min(1.0, config.source.select.percent / 100)
    if config.source.select.articles is not None:
        share = min(share, config.source.select.articles / world.versions)
    fresh = whole(some, rates, dataclasses.replace(world, versions=world.month_versions * share), cluster)
    merged = []
    old = {stage.name: stage for stage in every.stages}
    for stage in fresh.stages:
        if stage.name in ("curate", "deploy"):
            merged.append(old[stage.name])
            continue
        copied = old[stage.name].bytes_out if stage.name in ("catalog", "ingest", "preprocess", "embed") else 0.0
        hours = dict(stage.hours)
        nodes = cluster.gpu_nodes if stage.on == "gpu" else cluster.nodes
        hours["network"] += 2 * copied * 8 / (max(1, nodes) * cluster.gbit_per_s * 1e9) / 3600  # read, and written
        merged.append(dataclasses.replace(stage, hours=hours, bytes_out=stage.bytes_out + copied))
    return dataclasses.replace(fresh, stages=tuple(merged), kept=every.kept, index_bytes=every.index_bytes)


@dataclass(frozen=True)
class Preprints:
    """What a server's packages would cost to read."""

    packages: float
    requests: float
    size: float
    request_money: float
    egress_money: float
    """Where the cluster is not in us-east-1."""
    core_hours: float


_PREPRINTS = {"bioRxiv": (550e3, 450e3, 800e3), "medRxiv": (110e3, 80e3, 160e3)}
"""Packages: likely, low, high; bioRxiv's bucket is said to hold 6 TB, its packages 6 to 10 MB."""
PACKAGE_BYTES, READ_SHARE, RANGES, EGRESS_GB = 8e6, 0.7, 9, 0.09
"""Bytes of a package; of which figures and XML; its two ends twice (inventory and ingest) and a range a figure; price
of a GB that leaves us-east-1.
"""


def preprints(rates: Rates, world: World, cluster: Cluster) -> dict[str, tuple[Preprints, Preprints, Preprints]]:
    """Of each server, low, likely and high. Money is the reader's: GETs by the million, and bytes outside of
    us-east-1.
    """

    def one(packages: float) -> Preprints:
        requests, size = packages * RANGES, packages * PACKAGE_BYTES * READ_SHARE
        images = packages * world.figures * world.with_file
        work = packages * (rates.article_ms * world.xml_bytes / rates.xml_bytes) + images * (
            rates.image_ms * world.image_scale
        )
        core_hours = (work + requests * rates.request_ms) / 3.6e6
        return Preprints(
            packages, requests, size, requests / 1e6 * cluster.get_million, size / 1e9 * EGRESS_GB, core_hours
        )

    return {name: (one(low), one(likely), one(high)) for name, (likely, low, high) in _PREPRINTS.items()}
