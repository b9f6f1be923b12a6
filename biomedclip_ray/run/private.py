"""Every private name of Ray, botocore and torch that this program leans on, each with why: one file to read when one of
them changes.

Public Ray says which nodes are up, not which may come, and lets nobody say what a dataset will still need. A test asks
for each name in NAMES, so that another version tells in one line what is gone; pyproject.toml holds Ray to the version
they were read in.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

if TYPE_CHECKING:
    from torch import Tensor

NAMES = {
    "ray.autoscaler.v2.sdk:get_cluster_status": "v2: nodes that are on their way, and why others failed",
    "ray._private.ray_constants:DEBUG_AUTOSCALING_STATUS": "v1: the same, as JSON in the control store",
    "ray.experimental.internal_kv:_internal_kv_get": "reads it",
    "ray.autoscaler._private.kuberay.autoscaling_config:_generate_available_node_types_from_ray_cr_spec": (
        "a RayCluster's groups as the autoscaler counts them"
    ),
    "ray.autoscaler._private.kuberay.node_provider:KubernetesHttpApiClient": "asks Kubernetes for the RayCluster",
    "ray.autoscaler.v2.utils:is_autoscaler_v2": "which of the two runs beside KubeRay's head",
    "ray.data._internal.execution.execution_callback:ExecutionCallback": "is told of each round of a dataset",
    "ray.data._internal.cluster_autoscaler.rate_based_cluster_autoscaler"
    ":RateBasedClusterAutoscaler.try_trigger_scaling": (
        "asks for nodes by CPUs alone, so for any kind of node: replaced by `ask`"
    ),
    "ray.data._internal.cluster_autoscaler:DefaultAutoscalingCoordinator.request_resources": "where a dataset asks",
    "ray.data._internal.cluster_autoscaler:get_or_create_autoscaling_coordinator": "where everybody else asks",
    "ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator:STANDARD_RESOURCE_TYPES": (
        "the share of what is left that a dataset asks for, which may not change while it runs"
    ),
    "ray._private.state:state._connect_and_get_accessor": "workers that died, and how: the state API needs a dashboard",
    "ray._private.worker:global_worker": "the folder of a node's logs",
    "ray._private.runtime_env.packaging:_dir_travel": "a working directory without what .gitignore and .rayignore name",
    "ray._private.ray_constants:DASHBOARD_CLIENT_MAX_SIZE": "the most that a cluster takes of it: HTTP 413 beyond",
    "botocore.httpsession:URLLib3Session()._pool_classes_by_scheme": (
        "which connections a client makes: ours can be cut at a deadline, and botocore has no switch for it"
    ),
    "torch:_foreach_mul_": "clipped gradients in one kernel: what torch's own optimisers and clipping call",
    "torch:_foreach_lerp_": "the weights' running average in one kernel",
    "torch:ops.mkldnn._reorder_linear_weight": "weights as oneDNN multiplies them, which torch.compile alone offers",
    "torch:ops.mkldnn._linear_pointwise": "multiplies by them",
}

Autoscaler = Literal["v1", "v2"]

_MONITORS: dict[str, Autoscaler] = {"autoscaler/v2/monitor.py": "v2", "autoscaler/_private/monitor.py": "v1"}
_KUBERNETES = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_EXPIRE_S = 180

log = logging.getLogger(__name__)
_QUIET = logging.getLogger("biomedclip.weighing")
_QUIET.setLevel(logging.ERROR)


def missing_names() -> list[str]:
    """Those of NAMES that are not there, each with what it was needed for; `()` makes an object, to look into it."""
    gone = []
    for name, why in NAMES.items():
        module, _, path = name.partition(":")
        try:
            found = import_module(module)
            for step in path.split("."):
                found = getattr(found, step.removesuffix("()"))
                found = found() if step.endswith("()") else found
        except (ImportError, AttributeError):
            gone.append(f"{name}: {why}")
    return gone


def autoscaler_config(gcs_address: str) -> tuple[Autoscaler, dict[str, Any], str] | None:
    """What the autoscaler of this cluster works by: version, its configuration, where that was read; None: there is
    none.

    To be called on the head. `ray start --autoscaling-config` names a file to a process of the head, which reads it
    anew at each round, as this does; KubeRay's sidecar asks Kubernetes for the RayCluster, as this does with the same
    account.

    Raises:
        LookupError: there is one, but its configuration cannot be read; says why.
    """
    for command in _commands():
        version = next((v for script, v in _MONITORS.items() if any(word.endswith(script) for word in command)), None)
        if version is None or f"--gcs-address={gcs_address}" not in command:
            continue
        option = next((word for word in command if word.startswith("--autoscaling-config=")), None)
        if option is None:  # a cluster of machines that are there: this process only counts them
            return None
        path = Path(option.partition("=")[2]).expanduser()
        try:
            return version, yaml.safe_load(path.read_text()), str(path)
        except (OSError, yaml.YAMLError) as error:
            raise LookupError(f"{path}: {error}") from error
    name = os.environ.get("RAY_CLUSTER_NAME")
    if name is None or not (_KUBERNETES / "namespace").exists():
        return None
    return _of_kubernetes(name, (_KUBERNETES / "namespace").read_text())


def _commands() -> list[list[str]]:
    """The command lines of all processes that run here."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().decode(errors="replace").split("\0"))
        except OSError:  # it has ended
            continue
    return found


def _of_kubernetes(name: str, namespace: str) -> tuple[Autoscaler, dict[str, Any], str] | None:
    import requests
    from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    try:
        cluster = KubernetesHttpApiClient(namespace=namespace).get(f"rayclusters/{name}")
    except (requests.RequestException, OSError) as error:
        raise LookupError(f"RayCluster {name} in namespace {namespace}: {error}") from error
    if not cluster["spec"].get("enableInTreeAutoscaling"):
        return None
    version: Autoscaler = "v2" if is_autoscaler_v2() else "v1"
    return version, cluster, f"RayCluster {name}"


def kuberay_node_types(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A RayCluster's groups as the launcher's `available_node_types`; the head's is called `headgroup`.

    Raises:
        ValueError: a group does not say how many CPUs its pods have.
    """
    from ray.autoscaler._private.kuberay.autoscaling_config import _generate_available_node_types_from_ray_cr_spec

    types: dict[str, Any] = _generate_available_node_types_from_ray_cr_spec(dict(spec))
    return types


def coming(version: str, gcs_address: str) -> tuple[dict[str, int], dict[str, str]]:
    """Node kinds that are on their way (how many), and those that could not be had lately (why)."""
    if version == "v2":
        from ray.autoscaler.v2.sdk import get_cluster_status

        status = get_cluster_status(gcs_address)
        pending: dict[str, int] = {}
        for launch in status.pending_launches:
            pending[launch.ray_node_type_name] = pending.get(launch.ray_node_type_name, 0) + launch.count
        for node in status.pending_nodes:
            pending[node.ray_node_type_name] = pending.get(node.ray_node_type_name, 0) + 1
        failed = {launch.ray_node_type_name: launch.details or "no reason given" for launch in status.failed_launches}
        return pending, failed
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    told = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    report = (json.loads(told) if told else {}).get("autoscaler_report") or {}
    pending = dict(report.get("pending_launches", {}))
    for _, kind, _ in report.get("pending_nodes", []):
        pending[kind] = pending.get(kind, 0) + 1
    records = report.get("node_availability_summary", {}).get("node_availabilities", {})
    failed = {
        record["node_type"]: (record.get("unavailable_node_information") or {}).get("description") or "no reason given"
        for record in records.values()
        if not record["is_available"]
    }
    return pending, failed


Bundles = Sequence[tuple[dict[str, float], dict[str, str]]]
"""Tasks or actors that are to fit at once: resources and label selector of each."""


def ask(executor: Any, bundles: Bundles) -> None:
    """Ask for nodes in the name of a running dataset, in place of what Ray Data would ask for it (see `silence`)."""
    from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import STANDARD_RESOURCE_TYPES

    executor._cluster_autoscaler._autoscaling_coordinator.request_resources(
        resources=[dict(resources) for resources, _ in bundles],
        label_selectors=[dict(selector) for _, selector in bundles],
        expire_after_s=_EXPIRE_S,
        request_remaining=STANDARD_RESOURCE_TYPES,
    )


def silence(executor: Any) -> None:
    """Ray Data asks for nodes of a running dataset no more."""
    executor._cluster_autoscaler.try_trigger_scaling = lambda: None


def config_of(executor: Any, key: str) -> Any:
    """What was set with `DataContext.set_config` for a running dataset."""
    return executor._data_context.get_config(key)


def operators(executor: Any) -> list[Any]:
    """The physical operators of a running dataset, from the first to the last."""
    return list(executor._topology)


def remote_args(dataset: Any) -> dict[str, Any]:
    """What the tasks of a dataset's last step ask for, to be changed: some steps take no resources of their own."""
    args: dict[str, Any] = dataset._logical_plan.dag.ray_remote_args
    return args


def ask_for(name: str, bundles: Bundles | None) -> None:
    """Ask for nodes in a name of one's own, before there is any task; None: no more."""
    import ray
    from ray.data._internal.cluster_autoscaler import get_or_create_autoscaling_coordinator

    coordinator = get_or_create_autoscaling_coordinator()
    if bundles is None:
        ray.get(coordinator.cancel_request.remote(name))
        return
    ray.get(
        coordinator.request_resources.remote(
            requester_id=name,
            resources=[dict(resources) for resources, _ in bundles],
            label_selectors=[dict(selector) for _, selector in bundles],
            expire_after_s=_EXPIRE_S,
        )
    )


@dataclass(frozen=True)
class FailedWorker:
    """A process that died otherwise than it should."""

    id: str
    node: str
    told: str


def failed_workers() -> list[FailedWorker]:
    """Of the connected cluster, as far back as its control store remembers."""
    from ray._private.state import state
    from ray.core.generated import common_pb2, gcs_pb2

    found = []
    for packed in state._connect_and_get_accessor().get_worker_table():
        worker = gcs_pb2.WorkerTableData.FromString(packed)
        kind = common_pb2.WorkerExitType.Name(worker.exit_type)
        if not worker.is_alive and not kind.startswith("INTENDED"):
            node = worker.worker_address.node_id.hex()
            told = f"process {worker.pid} on {worker.worker_address.ip_address}: {kind}: {worker.exit_detail}"
            found.append(FailedWorker(worker.worker_address.worker_id.hex(), node, told))
    return found


def logs_folder() -> Path:
    """Where this node's processes log."""
    from ray._private.worker import global_worker

    return Path(global_worker.node.get_session_dir_path()) / "logs"


def weigh_folder(folder: Path) -> tuple[dict[str, int], int]:
    """Bytes of each file of a working directory that a submission would send, unpacked as it is sent, and the most that
    is taken.
    """
    from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE
    from ray._private.runtime_env.packaging import _dir_travel

    sizes: dict[str, int] = {}

    def weigh(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(folder).as_posix()] = path.stat().st_size

    _dir_travel(folder, [], weigh, include_gitignore=True, logger=_QUIET)
    return sizes, int(DASHBOARD_CLIENT_MAX_SIZE)


def connect_with(client: Any, http: type, https: type) -> None:
    """Have a boto3 client connect by these pools of connections (subclasses of botocore's own)."""
    client._endpoint.http_session._pool_classes_by_scheme.update(http=http, https=https)


def scale_(tensors: list[Tensor], factor: Tensor) -> None:
    """Multiply tensors in place by a scalar."""
    import torch

    torch._foreach_mul_(tensors, factor)


def lerp_(tensors: list[Tensor], ends: list[Tensor], weight: Tensor) -> None:
    """Move tensors in place by `weight` (a scalar tensor) of the way to `ends`."""
    import torch

    torch._foreach_lerp_(tensors, ends, [weight] * len(tensors))


_PACKED_ROWS = 1024
"""The layout is chosen for so many; any other number is multiplied as well."""


def packed_weight(weight: Tensor) -> Tensor:
    """A weight (out, in) of a linear layer as oneDNN multiplies it, on the CPU; opaque."""
    import torch

    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_ROWS)
    return packed


def packs_bfloat16() -> bool:
    """Whether `packed_weight` takes bfloat16 on this CPU: it raises RuntimeError where AVX-512 and its like lack."""
    import torch

    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(..., in) -> (..., out), with a weight of `packed_weight`; no gradients."""
    import torch

    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y
