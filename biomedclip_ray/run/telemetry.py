"""What a running driver tells Prometheus, by Ray's own metrics: stages, parts, units, nodes, the newest checkpoint.

Whoever knows a number calls `tell`, which only keeps it; one thread of the driver sets every gauge anew each few
seconds, because Ray exports a gauge for about 20 s after it was last set, and a stage of hours changes less often. The
driver alone counts: series of workers that have ended would stay in their node's agent for ever. The trainer's own
gauges are in `train/metrics.py`.
"""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType
from typing import Any

from biomedclip_ray.config.operate import ROLES
from biomedclip_ray.run.capacity import GROUP_LABEL, HEAD
from biomedclip_ray.run.pace import state
from biomedclip_ray.store.background import Background
from biomedclip_ray.store.lease import beats

log = logging.getLogger(__name__)

SET_S = 7.0

GAUGES = {
    "beat_timestamp_seconds": ("when the driver last set these; the heart of its leases is the same process", ()),
    "stage_running": ("1 for the stage that runs, 0 for those that have ended", ("stage",)),
    "parts_done": ("parts of the running stage that are in the root", ("stage",)),
    "parts_left": ("parts of the running stage that are not", ("stage",)),
    "units": ("units that a finished stage accounts for; outcome: kept, or the reason", ("stage", "unit", "outcome")),
    "train_steps": ("optimiser steps of the whole run", ()),
    "checkpoint_step": ("step of the newest checkpoint", ()),
    "checkpoint_timestamp_seconds": ("when the newest checkpoint was first seen, or training began", ()),
    "lease_timestamp_seconds": ("when the heartbeat of the stage's lease was last written", ("stage",)),
    "source_requests": ("requests sent to a source since its budget began", ("source",)),
    "source_refused": ("those of them that it refused: 503, SlowDown, 429", ("source",)),
    "source_requests_per_second": ("how many the run may send now, all its processes together", ("source",)),
    "waits_for_nodes": ("1 while the stage waits for a node that it fits on, else 0", ("stage",)),
    "nodes": ("nodes that are up; kind: head, cpu or gpu", ("kind",)),
}
"""Name (after `biomedclip_`, and Ray's own `ray_` before that), what it says, its labels."""

_Key = tuple[str, tuple[tuple[str, str], ...]]
_told: dict[_Key, float] = {}
_lock = threading.Lock()


def tell(name: str, value: float, **labels: str) -> None:
    """Keep a number until the next round; without a `Telemetry` it is kept for nobody."""
    expected = GAUGES[name][1]
    if set(labels) != set(expected):
        raise ValueError(f"{name} has the labels {expected}, not {tuple(labels)}")
    with _lock:
        _told[name, tuple(sorted(labels.items()))] = float(value)


def forget(**labels: str) -> None:
    """Numbers with all of these labels are told no more, so they end with what they are about."""
    with _lock:
        for key in [key for key in _told if set(labels.items()) <= set(key[1]) and key[0] != "units"]:
            del _told[key]


class Telemetry(Background):
    """Sets the gauges for as long as the run lives: `with Telemetry(run_id): ...`, connected to Ray."""

    def __init__(self, run: str, set_s: float = SET_S) -> None:
        self.run, self.set_s = run, set_s
        self._gauges: dict[str, Any] = {}
        super().__init__("telemetry", patience_s=set_s)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._set()  # how it ended: Ray sends on what was set last when it is shut down
        with _lock:
            _told.clear()

    def watch(self) -> None:
        while True:
            try:
                self._round()
            except (
                Exception
            ) as error:  # Ray's errors of a head that does not answer are many; telling is not worth a run
                log.debug("telemetry: %r", error)
            if self.stopped.wait(self.set_s):
                return

    def _round(self) -> None:
        tell("beat_timestamp_seconds", time.time())
        for kind, count in _nodes().items():
            tell("nodes", count, kind=kind)
        for what, when in beats().items():
            tell("lease_timestamp_seconds", when, stage=what.partition("/")[0])
        _tell_sources()
        self._set()

    def _set(self) -> None:
        """What was told, for Ray to send on; nobody is asked."""
        with _lock:
            now = dict(_told)
        for (name, labels), value in now.items():
            self._gauge(name).set(value, tags={"run": self.run, **dict(labels)})

    def _gauge(self, name: str) -> Any:
        if name not in self._gauges:
            from ray.util.metrics import Gauge

            says, labels = GAUGES[name]
            self._gauges[name] = Gauge(f"biomedclip_{name}", says, tag_keys=("run", *labels))
        return self._gauges[name]


def told(name: str, **labels: str) -> float | None:
    """What was told last and is not forgotten."""
    with _lock:
        return _told.get((name, tuple(sorted(labels.items()))))


def nodes_up() -> dict[tuple[str, str], int]:
    """How many nodes are up of each (type, role): its type's name, or its role where the cluster names none; a head
    without CPUs, with GPUs, or neither."""
    import ray

    counts: dict[tuple[str, str], int] = {}
    for node in ray.nodes():
        if node["Alive"]:
            have = node["Resources"]
            head = HEAD in have and not have.get("CPU")
            role = "head" if head else "gpu" if have.get("GPU") else "cpu"
            name = (node.get("Labels") or {}).get(GROUP_LABEL) or role
            counts[name, role] = counts.get((name, role), 0) + 1
    return counts


def _tell_sources() -> None:
    from ray.exceptions import RayError

    try:
        sources = state()
    except (RayError, ValueError) as error:  # a keeper that has just ended, or whose node is gone
        log.debug("telemetry: the source's budget does not answer: %s", error)
        return
    for source, sent, refused, rate in sources:
        tell("source_requests", sent, source=source)
        tell("source_refused", refused, source=source)
        tell("source_requests_per_second", rate, source=source)


def _nodes() -> dict[str, int]:
    counts = dict.fromkeys(ROLES, 0)
    for (_, role), count in nodes_up().items():
        counts[role] += count
    return counts
