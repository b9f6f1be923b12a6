"""The decisions of Ray's two autoscalers, asked directly: which nodes they would start for what is
wanted. No cluster.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for
from ray.autoscaler.v2.event_logger import AutoscalerEventLogger
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.common_pb2 import LabelSelectorOperator

from biomedclip_ray.run.capacity import Capacity

Bundles = list[tuple[dict[str, float], dict[str, str]]]


class _Silent(AutoscalerEventLogger):
    def __init__(self) -> None:
        pass

    def log_cluster_scheduling_update(self, *args: object, **kwargs: object) -> None:
        pass


def started(capacity: Capacity, bundles: Bundles) -> dict[str, int]:
    """Nodes of each kind that the cluster's own autoscaler would start from its head alone."""
    return _by_v1(capacity, bundles) if capacity.autoscaler == "v1" else _by_v2(capacity, bundles)


def _by_v1(capacity: Capacity, bundles: Bundles) -> dict[str, int]:
    types = {
        kind.name: {
            "resources": dict(kind.resources),
            "max_workers": kind.most - kind.head,
            "labels": dict(kind.labels),
        }
        for kind in capacity.kinds
    }
    [head] = [kind.name for kind in capacity.kinds if kind.head]
    scorer = partial(_default_utilization_scorer, node_availability_summary=NodeAvailabilitySummary({}))
    found, _ = get_nodes_for(types, {head: 1}, head, capacity.workers or 10**6, [b for b, _ in bundles], scorer)
    return dict(found)


def _by_v2(capacity: Capacity, bundles: Bundles) -> dict[str, int]:
    types = {
        kind.name: NodeTypeConfig(
            kind.name, 0, kind.most - kind.head, resources=dict(kind.resources), labels=dict(kind.labels)
        )
        for kind in capacity.kinds
    }
    requests = [ResourceRequestUtil.make(need, label_selectors=[_selector(s)] if s else None) for need, s in bundles]
    reply = ResourceDemandScheduler(_Silent()).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=types,
            max_num_nodes=None if capacity.workers is None else capacity.workers + 1,
            resource_requests=ResourceRequestUtil.group_by_count(requests),
        )
    )
    found: Counter[str] = Counter()
    for launch in reply.to_launch:
        found[launch.instance_type] += launch.count
    return dict(found)


def _selector(selector: dict[str, str]) -> list[tuple[str, int, list[str]]]:
    operators = LabelSelectorOperator
    return [
        (
            key,
            operators.LABEL_OPERATOR_NOT_IN if value.startswith("!") else operators.LABEL_OPERATOR_IN,
            [value.lstrip("!")],
        )
        for key, value in selector.items()
    ]
