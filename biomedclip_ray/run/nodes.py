"""Nodes for a stage: asked for by what it still needs, and waited for as long as the operator allows.

Ray Data asks for nodes by CPUs alone, which an autoscaler may answer with GPU nodes; it doubles only after the first
parts are done, each of them minutes, and keeps what it has asked for until the last one is. We know how many parts are
left: that many tasks are asked for at once, where they may run, and fewer as they get done, so that idle nodes leave
while the last parts run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError

from biomedclip_ray.run import private
from biomedclip_ray.run.capacity import GROUP_LABEL, Capacity, NodeKind
from biomedclip_ray.run.notice import waits
from biomedclip_ray.run.placement import Placement
from biomedclip_ray.run.room import check_scratch
from biomedclip_ray.run.telemetry import tell
from biomedclip_ray.store.product import StageError

LOOK_S, ASK_S, TELL_S, FULL_S = 1.0, 10.0, 60.0, 30.0
RENEW_S = 60.0  # far below the time after which a request is forgotten
PATIENCE_S = 10.0
"""Seconds without any movement before somebody is told: a node takes longer to come."""

_KEY = "biomedclip_ray.demand"

log = logging.getLogger(__name__)


class ShortageError(StageError):
    """No node came that the work fits on, for as long as the operator allows; the same command goes on from there."""


@dataclass(frozen=True)
class Demand:
    """What a dataset will need while it runs.

    Attributes:
        work: where one of its tasks or actors goes; `beside`: what runs once besides all of them.
        most: tasks at once at most.
        parts: of work in all; each is one task of the last operator.
        stalled_s: seconds without movement that end the run where nodes are up; None: Ray Data's own guard keeps that
            watch.
        wait_s: seconds that a shortage of nodes is waited out.
    """

    stage: str
    capacity: Capacity
    work: Placement
    beside: tuple[Placement, ...]
    most: int
    parts: int
    stalled_s: float | None
    wait_s: float

    def bundles(self, done: int) -> private.Bundles:
        left = min(self.parts - done, self.most)
        return [self.work.bundle] * left + ([placed.bundle for placed in self.beside] if left else [])


def watch(context: DataContext, demand: Demand) -> None:
    """Have a dataset's nodes asked for and waited for by us."""
    context.set_config(_KEY, demand)
    if demand.stalled_s is not None:
        context.execution_no_progress_timeout_s = -1  # it does not tell waiting for a node from standing still
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, _Watch]


class _Watch(ExecutionCallback):
    """Looks at a running dataset once a second."""

    def before_execution_starts(self, executor: Any) -> None:
        self.demand: Demand = private.config_of(executor, _KEY)
        self.moved: list[tuple[int, int]] = []
        self.since = self.asked = self.told = self.looked = time.monotonic()
        if self.demand.capacity.grows:
            private.silence(executor)
            private.ask(executor, self.demand.bundles(0))

    def on_execution_step(self, executor: Any) -> None:
        now = time.monotonic()
        if now - self.looked < LOOK_S:
            return
        self.looked = now
        operators = private.operators(executor)
        moved = [(op.metrics.num_tasks_finished, op.metrics.num_outputs_taken) for op in operators]
        if moved != self.moved:
            self.moved, self.since = moved, now
            tell("waits_for_nodes", 0, stage=self.demand.stage)
        if self.demand.capacity.grows and now - self.asked >= ASK_S:
            private.ask(executor, self.demand.bundles(operators[-1].metrics.num_tasks_finished))
            self.asked = now
        if self.demand.stalled_s is not None and now - self.since >= min(PATIENCE_S, self.demand.stalled_s):
            self._stands_still(operators, now, self.demand.stalled_s)

    def _stands_still(self, operators: list[Any], now: float, stalled_s: float) -> None:
        demand, still = self.demand, now - self.since
        if still >= FULL_S:
            check_scratch()
        if demand.capacity.grows and not room_up(demand.work):
            if still >= demand.wait_s:
                raise ShortageError(_gave_up(demand.stage, demand.work, 1, demand.wait_s))
            if now - self.told >= TELL_S or self.told < self.since:
                _tell(demand.stage, demand.capacity, demand.work, 1)
                self.told = now
            return
        held = held_by_others(demand.stage, demand.work, operators)
        if held and (now - self.told >= TELL_S or self.told < self.since):
            log.warning("%s", held)
            waits(demand.stage, held)
            self.told = now
        if still >= stalled_s:
            names = "; ".join(
                f"{op.name}: {op.num_active_tasks()} running, {op.metrics.num_tasks_finished} done"
                for op in operators
                if not op.has_completed()
            )
            raise ExecutionTimeoutError(
                f"{demand.stage}: nothing moved for {still:.0f} s (no_progress_timeout_s), though nodes are up: "
                f"{names}{f'; {held}' if held else ''}"
            )


def wait_for_nodes(
    stage: str, capacity: Capacity, wanted: Sequence[tuple[Placement, int]], wait_s: float, look_s: float = LOOK_S
) -> None:
    """Return when the nodes that are up take so many of each at once; they are asked for meanwhile.

    Raises:
        ShortageError: not within `wait_s`.
    """
    if not capacity.grows:
        return
    name = f"biomedclip-{stage}"
    begun = time.monotonic()
    asked = told = float("-inf")
    try:
        while lacking := [(placed, count) for placed, count in wanted if room_up(placed) < count]:
            now = time.monotonic()
            if now - begun >= wait_s:
                raise ShortageError(_gave_up(stage, *lacking[0], wait_s))
            if now - asked >= RENEW_S:
                private.ask_for(name, [placed.bundle for placed, count in wanted for _ in range(count)])
                asked = now
            now = time.monotonic()  # the first to ask waits until there is somebody to be asked
            if now - told >= TELL_S and now - begun >= min(PATIENCE_S, wait_s / 2):
                _tell(stage, capacity, *lacking[0])
                told = now
            time.sleep(look_s)
    finally:
        tell("waits_for_nodes", 0, stage=stage)
        if asked > 0:
            private.ask_for(name, None)


def room_up(placed: Placement) -> int:
    """Tasks of this size that the nodes that are up take at once when nothing else runs on them."""
    return sum(
        NodeKind("", node["Resources"], {}, 1).room(placed.cpus, placed.gpus)
        for node in ray.nodes()
        if node["Alive"] and placed.admits(node["Resources"], node.get("Labels") or {})
    )


def held_by_others(stage: str, placed: Placement, operators: Sequence[Any] = ()) -> str:
    """What a stage may wait for: fewer CPUs or GPUs are free in the whole cluster than one of its tasks takes, and
    others than these operators of its dataset hold some; "" where that is not so.
    """
    free, whole = ray.available_resources(), ray.cluster_resources()
    own = [operator.current_logical_usage() for operator in operators]  # what waits to start counts as its own
    for kind, needed, used in (
        ("CPU", placed.cpus, sum(usage.cpu for usage in own)),
        ("GPU", placed.gpus, sum(usage.gpu for usage in own)),
    ):
        there, left = whole.get(kind, 0.0), free.get(kind, 0.0)
        if left < needed and (others := there - left - used) > 0:
            return (
                f"{stage} waits: a task takes {needed:g} {kind}, {left:g} of {there:g} are free, and {others:g} or "
                "more are held by what else runs on this cluster, such as a server, another job, workers that train "
                "(ray status tells): end one or add a node"
            )
    return ""


def _tell(stage: str, capacity: Capacity, placed: Placement, count: int) -> None:
    line = waiting(stage, capacity, placed, count)
    log.info("%s", line)
    tell("waits_for_nodes", 1, stage=stage)
    waits(stage, line)


def waiting(stage: str, capacity: Capacity, placed: Placement, count: int) -> str:
    """For what a stage waits: size, kinds with how many of them are up, what is on its way, what could not be had."""
    up = [(node.get("Labels") or {}).get(GROUP_LABEL) for node in ray.nodes() if node["Alive"]]
    kinds = ", ".join(f"{kind.name} ({up.count(kind.name)} of {kind.most} up)" for kind in placed.kinds)
    line = f"{stage} waits for {_size(placed, count)}: {kinds}"
    try:
        pending, failed = private.coming(capacity.autoscaler or "v2", ray.get_runtime_context().gcs_address)
    except RayError as error:
        return f"{line}; the autoscaler does not answer: {error}"
    if pending:
        line += "; on their way: " + ", ".join(f"{number} {kind}" for kind, number in sorted(pending.items()))
    if failed:
        line += "; could not be had: " + ", ".join(f"{kind} ({why})" for kind, why in sorted(failed.items()))
    return line


def _size(placed: Placement, count: int) -> str:
    gpus = f" and {placed.gpus:g} GPU" if placed.gpus else ""
    return f"a node with {placed.cpus:g} CPU{gpus}" if count == 1 else f"room for {count} x {placed.cpus:g} CPU{gpus}"


def _gave_up(stage: str, placed: Placement, count: int, wait_s: float) -> str:
    return (
        f"{stage}: {_size(placed, count)} did not come within {wait_s:g} s (wait_for_nodes_s); the same command goes "
        "on from here, "
        "with resources.wait_for_nodes_s it waits longer"
    )
