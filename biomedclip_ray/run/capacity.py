"""What nodes may come: the one truth behind preflight, --dry-run, placement, actor pools and deploy.

Nodes that are up say little: an autoscaling cluster starts from its head alone, and nodes leave between stages. So it
is read from the autoscaler's own configuration, or from the file that the cluster is made from (`--cluster FILE`); only
where neither is there are the nodes that are up all there will be.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from biomedclip_ray.config import ConfigError, PartResources
from biomedclip_ray.run import private
from biomedclip_ray.run.private import Autoscaler

HEAD = "node:__internal_head__"
GROUP_LABEL = "ray.io/node-group"
_KUBERAY = {
    "RayCluster": ("spec",),
    "RayJob": ("spec", "rayClusterSpec"),
    "RayService": ("spec", "rayClusterConfig"),
    "RayCronJob": ("spec", "jobTemplate", "rayClusterSpec"),
}
"""Kinds of manifests, and where in each the cluster stands."""

_Found = tuple[Autoscaler, dict[str, Any], str] | None

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NodeKind:
    """Nodes that are alike.

    Attributes:
        resources: logical, of one node: CPU, GPU, and the cluster's own names; empty: its size is not known before it
            is up.
        most: nodes of this kind at once.
    """

    name: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    most: int
    head: bool = False

    @property
    def sized(self) -> bool:
        return bool(self.resources)

    def amount(self, unit: str) -> float:
        return float(self.resources.get(unit, 0.0))

    def room(self, cpus: float, gpus: float = 0.0) -> int:
        """Tasks of this size that one node takes at once."""
        shares = [self.amount(unit) / need for unit, need in (("CPU", cpus), ("GPU", gpus)) if need]
        return math.floor(min(shares) + 1e-9) if shares else 1


@dataclass(frozen=True)
class Capacity:
    """The nodes that may come.

    Attributes:
        found: where this was read, for messages.
        grows: an autoscaler brings nodes; else those that are here are all.
        autoscaler: which one; v1 knows no labels.
        workers: nodes besides the head at once, whatever their kinds say; None: no such limit.
    """

    kinds: tuple[NodeKind, ...]
    found: str
    grows: bool = False
    autoscaler: Autoscaler | None = None
    workers: int | None = None

    @property
    def sized(self) -> bool:
        """Whether it is known how large each node will be; where it is not, nothing can be refused."""
        return all(kind.sized for kind in self.kinds if kind.most)

    def fitting(self, cpus: float, gpus: float = 0.0) -> list[NodeKind]:
        """The kinds of which one node takes a task of this size."""
        return [kind for kind in self.kinds if kind.most and kind.sized and kind.room(cpus, gpus)]

    def fits(self, cpus: float, gpus: float = 0.0) -> bool:
        return not self.sized or bool(self.fitting(cpus, gpus))

    def total(self, unit: str) -> float:
        return sum(kind.amount(unit) * count for kind, count in self._most(lambda kind: kind.amount(unit)))

    def largest(self, unit: str) -> float:
        return max((kind.amount(unit) for kind in self.kinds if kind.most), default=0.0)

    def room(self, cpus: float, gpus: float = 0.0, kinds: tuple[NodeKind, ...] | None = None) -> int:
        """Tasks or actors of this size at once at most, on nodes of these kinds (None: of any)."""
        counts = self._most(lambda kind: kind.room(cpus, gpus))
        return sum(kind.room(cpus, gpus) * count for kind, count in counts if kinds is None or kind in kinds)

    def nodes(self) -> list[dict[str, float]]:
        """Resources of each node when as many as may come are there, those with GPUs first."""
        counts = self._most(lambda kind: (kind.amount("GPU"), kind.amount("CPU")))
        return [dict(kind.resources) for kind, count in counts for _ in range(count)]

    def lacks(self, key: str, need: PartResources) -> list[str]:
        """What of a task's resources no node has, one line each with the key and the fix.

        A task runs on one node, whatever the others have: what none of them can give waits for ever, without a word.
        """
        if self.fits(need.num_cpus, need.num_gpus):
            return []
        if not self.grows and not self.total("CPU"):  # its autoscaler may have ended: its own log says why
            return [
                f"{key}: no node of {self.found} takes work, and no autoscaler runs beside its head that would bring "
                "one "
                "(monitor.err there may say why); start nodes, or name the file that the cluster is made from: "
                "--cluster FILE"
            ]
        problems = []
        for name, unit, wanted in (("num_cpus", "CPU", need.num_cpus), ("num_gpus", "GPU", need.num_gpus)):
            total, largest = self.total(unit), self.largest(unit)
            if wanted > total:
                problems.append(f"{key}.{name}={wanted:g}, but {self.found} has {total:g} {unit}s; lower it")
            elif wanted > largest:
                problems.append(
                    f"{key}.{name}={wanted:g}, but no node of {self.found} has more than {largest:g} {unit}s; lower it"
                )
        return problems or [
            f"{key}: no node of {self.found} has num_cpus={need.num_cpus:g} and num_gpus={need.num_gpus:g} together; "
            "lower one"
        ]

    def _most(self, worth: Any) -> Iterator[tuple[NodeKind, int]]:
        """Each kind with its number of nodes, the worthiest first where not all may come together."""
        left = math.inf if self.workers is None else self.workers
        for kind in sorted(self.kinds, key=worth, reverse=True):
            count = kind.most if kind.head else int(min(kind.most, left))
            left -= 0 if kind.head else count
            yield kind, count


def of_file(path: str) -> Capacity:
    """From the file that a cluster is made from: a launcher's YAML or a KubeRay manifest.

    Raises:
        ConfigError: there is none, it is neither of both, or a node type does not say how large it is.
    """
    try:
        documents = [document for document in yaml.safe_load_all(Path(path).read_text()) if document]
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--cluster {path}: {error}".splitlines()[0]) from error
    for document in documents:
        if isinstance(document, dict) and (document.get("kind") in _KUBERAY or "provider" in document):
            capacity = _of_config(document, f"--cluster {path}", "v2")
            break
    else:
        raise ConfigError(
            f"--cluster {path}: neither a launcher's file (with provider and available_node_types) nor a RayCluster, "
            "RayJob, RayService or RayCronJob; cluster/ holds one of each"
        )
    local = document.get("provider", {}).get("type") == "local"
    unsized = [kind.name for kind in capacity.kinds if not kind.sized]
    if unsized and not local:
        raise ConfigError(
            f"--cluster {path}: available_node_types.{unsized[0]} does not say what a node has; write for example "
            "resources: {CPU: 16, GPU: 1}"
        )
    return capacity


def of_cluster() -> Capacity:
    """Of the connected Ray cluster."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    head = next((node for node in nodes if HEAD in node["Resources"]), None)
    found = None if head is None else _ask_head(head["NodeID"])
    if found is None:
        return Capacity(_alike(nodes), "the cluster")
    version, config, where = found
    return _with_nodes(_of_config(config, f"the autoscaler ({where})", version), nodes)


def connected(file: str | None = None) -> Capacity:
    """Of the connected cluster; the file that it was made from, if there is one, says what may come."""
    there = of_cluster()
    if file is None:
        return there
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return _with_nodes(dataclasses.replace(of_file(file), autoscaler=there.autoscaler or "v2"), nodes)


_named: dict[str, Capacity] = {}


def known() -> Capacity:
    """Of the connected cluster, asked once for each; what `remember` was told goes before."""
    address = ray.get_runtime_context().gcs_address
    if address not in _named:
        _named[address] = of_cluster()
    return _named[address]


def remember(capacity: Capacity) -> None:
    """What `known` says of the connected cluster from now on."""
    _named[ray.get_runtime_context().gcs_address] = capacity


def _ask_head(node_id: str) -> _Found:
    """The autoscaler runs beside the head, and a driver may be elsewhere."""
    here = ray.get_runtime_context()
    look = functools.partial(private.autoscaler_config, here.gcs_address)
    try:
        if here.get_node_id() == node_id:
            return look()
        where = NodeAffinitySchedulingStrategy(node_id, soft=False)
        found: _Found = ray.get(ray.remote(num_cpus=0, scheduling_strategy=where)(look).remote())
        return found
    except LookupError as error:
        log.warning(
            "what nodes may come could not be read (%s), so only those that are up count; name the cluster's file: "
            "--cluster FILE",
            error,
        )
        return None


def _of_config(config: Mapping[str, Any], found: str, autoscaler: Autoscaler) -> Capacity:
    if config.get("kind") in _KUBERAY:
        return _of_kuberay(config, found, autoscaler)
    if config["provider"].get("type") == "local" and "worker_ips" in config["provider"]:
        return _of_machines(config, found, autoscaler)
    types = config.get("available_node_types") or {}
    head, workers = config.get("head_node_type"), config.get("max_workers")
    kinds = [
        NodeKind(
            name,
            kind.get("resources") or {},
            kind.get("labels") or {},
            int(kind.get("max_workers", 0 if name == head else workers or 0)) + (name == head),
            name == head,
        )
        for name, kind in types.items()
    ]
    return Capacity(tuple(kinds), found, True, autoscaler, None if workers is None else int(workers))


def _of_machines(config: Mapping[str, Any], found: str, autoscaler: Autoscaler) -> Capacity:
    """Machines of one's own: their number is known, their sizes are when they are up."""
    machines = len(config["provider"]["worker_ips"])
    most = min(machines, config.get("max_workers", machines))
    kinds = (NodeKind("head", {}, {}, 1, True), NodeKind("local.cluster.node", {}, {}, most))
    return Capacity(kinds, found, True, autoscaler)


def _of_kuberay(manifest: Mapping[str, Any], found: str, autoscaler: Autoscaler) -> Capacity:
    spec: Any = functools.reduce(lambda within, name: within[name], _KUBERAY[manifest["kind"]], manifest)
    grows = bool(spec.get("enableInTreeAutoscaling"))
    fixed = {group["groupName"]: group.get("replicas", 1) for group in spec.get("workerGroupSpecs", [])}
    try:
        types = private.kuberay_node_types(spec)
    except ValueError as error:
        raise ConfigError(f"{found}: {error}") from error
    kinds = []
    for name, kind in types.items():
        head = name not in fixed
        most = 1 if head else kind["max_workers"] if grows else fixed[name]
        kinds.append(NodeKind(name, kind["resources"], kind["labels"], most, head))
    return Capacity(tuple(kinds), found, grows, autoscaler if grows else None)


def _with_nodes(capacity: Capacity, nodes: list[dict[str, Any]]) -> Capacity:
    """With the sizes of those machines that are up already, where the configuration has none."""
    if capacity.sized:
        return capacity
    still = sum(kind.most for kind in capacity.kinds) - len(nodes)
    unseen = (NodeKind("not up yet", {}, {}, still),) if still > 0 else ()
    return dataclasses.replace(capacity, kinds=(*_alike(nodes), *unseen))


def _alike(nodes: list[dict[str, Any]]) -> tuple[NodeKind, ...]:
    """Nodes that are up, equal ones as one kind."""
    kinds: dict[tuple[Any, ...], NodeKind] = {}
    for node in nodes:
        head = HEAD in node["Resources"]
        told = node["Resources"]
        own = {
            k: v for k, v in told.items() if k not in ("memory", "object_store_memory") and not k.startswith("node:")
        }
        labels = {k: v for k, v in (node.get("Labels") or {}).items() if not k.startswith("ray.io/")}
        key = (head, tuple(sorted(own.items())), tuple(sorted(labels.items())))
        name = (node.get("Labels") or {}).get(GROUP_LABEL) or f"{own.get('CPU', 0):g} CPUs"
        seen = kinds.get(key) or NodeKind(name, own or {"CPU": 0.0}, labels, 0, head)
        kinds[key] = dataclasses.replace(seen, most=seen.most + 1)
    return tuple(kinds.values())
