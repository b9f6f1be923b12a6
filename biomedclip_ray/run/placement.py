"""Where a task may run: work on CPUs brings no node that has GPUs, and work beside GPUs brings no other.

An autoscaler prefers nodes without GPUs for CPU work, but once those are at their most, or cannot be had, it starts the
others: 24 CPUs of demand above the limit brought both GPU nodes of a cluster. So the node types say what they are for,
twice: by the label `pool` for autoscaler v2 (KubeRay's, and `ray up` since 2.50), and by a resource `pool_data` or
`pool_gpu` for v1, which drops labels without a word. A cluster that says neither gets plain requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from biomedclip_ray.run.capacity import Capacity, NodeKind

LABEL = "pool"
DATA, GPU = "data", "gpu"
SHARE = 0.001
"""Of a node's one `pool_...` resource, for each task: a thousand of them at once."""

Beside = Literal["cpus", "gpus"]


@dataclass(frozen=True)
class Placement:
    """What a task or an actor asks for besides its size.

    Attributes:
        kinds: the node kinds that may take it.
        selector: of labels.
        resources: of the node type.
    """

    cpus: float
    gpus: float
    kinds: tuple[NodeKind, ...]
    selector: dict[str, str]
    resources: dict[str, float]

    @property
    def options(self) -> dict[str, Any]:
        """For `ray.remote`, an actor's or Serve's options, and Ray Data's remote arguments."""
        options: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        return options | self.only

    @property
    def only(self) -> dict[str, Any]:
        """The same without the size."""
        options: dict[str, Any] = {}
        if self.selector:
            options["label_selector"] = self.selector
        if self.resources:
            options["resources"] = self.resources
        return options

    def admits(self, resources: Mapping[str, float], labels: Mapping[str, str]) -> bool:
        """Whether a node of that kind is one that it may run on; its size is another question."""
        named = all(
            (labels.get(key) == value) if value[0] != "!" else (labels.get(key) != value[1:])
            for key, value in self.selector.items()
        )
        return named and all(resources.get(name, 0.0) >= need for name, need in self.resources.items())

    @property
    def bundle(self) -> tuple[dict[str, float], dict[str, str]]:
        """Resources and label selector, as autoscalers are asked."""
        size = {unit: amount for unit, amount in (("CPU", self.cpus), ("GPU", self.gpus)) if amount}
        return size | self.resources, self.selector


def place(capacity: Capacity, cpus: float, gpus: float = 0.0, beside: Beside = "cpus") -> Placement:
    """Where a task of this size goes.

    Args:
        beside: of a task without GPUs, whose nodes it shares: those of the data stages, or those that the GPU work
            around it has brought anyway.
    """
    fitting = capacity.fitting(cpus, gpus)
    plain = Placement(cpus, gpus, tuple(fitting), {}, {})
    if gpus or not capacity.grows:  # only nodes with GPUs can take it; nodes that are there anyway may as well be used
        return plain
    wanted = [kind for kind in fitting if bool(kind.amount("GPU")) == (beside == "gpus")]
    others = [kind for kind in fitting if kind not in wanted]
    if not wanted or not others:  # nothing else can ever come
        return plain
    pool = GPU if beside == "gpus" else DATA
    labelled = [kind for kind in capacity.kinds if kind.labels.get(LABEL) == GPU]
    if capacity.autoscaler == "v2" and labelled:
        selector = {LABEL: GPU if beside == "gpus" else f"!{GPU}"}
        kinds = tuple(kind for kind in fitting if (kind in labelled) == (beside == "gpus"))
        return Placement(cpus, 0.0, kinds, selector, {}) if kinds else plain
    resource = f"pool_{pool}"
    kinds = tuple(kind for kind in wanted if kind.amount(resource))
    return Placement(cpus, 0.0, kinds, {}, {resource: SHARE}) if kinds else plain
