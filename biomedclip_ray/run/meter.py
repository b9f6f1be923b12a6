"""What a run takes while it lives: seconds, node-seconds and money of each stage, and which nodes were up when; and its
end when the budget is spent.

Nodes are looked at every few seconds and what was up between two looks is counted to the stage that ran, whatever the
nodes did: an idle node is paid for as well. The record in the root is written as it goes, so a run that is killed has
told what it cost, and a stage's cost is summed over every run that worked on its product.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from biomedclip_ray.config.operate import Budget
from biomedclip_ray.run.capacity import Capacity
from biomedclip_ray.run.runs import RunRecord
from biomedclip_ray.run.telemetry import nodes_up, told
from biomedclip_ray.store.background import Background

log = logging.getLogger(__name__)

LOOK_S, SAVE_S = 3.0, 30.0

Up = Mapping[tuple[str, str], int]
"""Nodes that are up: (type, role) -> how many."""

Worked = tuple[str, str | None]
"""A stage and the URI of its product; ("", None): between stages."""

NOTHING: Worked = ("", None)


def price(prices: Mapping[str, float], name: str, role: str) -> float | None:
    """Of a node and hour; None where neither its type nor its role has one."""
    return prices.get(name, prices.get(role))


def unpriced(budget: Budget, capacity: Capacity) -> list[str]:
    """The node types without a price where money is limited, one line each with the key and the fix."""
    if budget.money is None:
        return []
    problems = []
    for kind in capacity.kinds:
        role = "gpu" if kind.amount("GPU") else "head" if kind.head and not kind.amount("CPU") else "cpu"
        if kind.most and price(budget.prices, kind.name, role) is None:
            problems.append(
                f"budget.money is limited and node type {kind.name} has no price; set budget.prices.{role}, or the "
                f"type's own: budget.prices={{{kind.name}: PRICE_PER_HOUR}}"
            )
    return problems


@dataclass
class Spent:
    """On one piece of work."""

    seconds: float = 0.0
    node_seconds: dict[str, float] = field(default_factory=dict)
    money: float = 0.0

    def add(self, seconds: float, up: Up, prices: Mapping[str, float]) -> None:
        self.seconds += seconds
        for (name, role), count in up.items():
            self.node_seconds[name] = self.node_seconds.get(name, 0.0) + seconds * count
            self.money += seconds * count / 3600 * (price(prices, name, role) or 0.0)

    def plus(self, entry: Mapping[str, Any]) -> None:
        """What a record tells of an earlier run."""
        self.seconds += entry["seconds"]
        self.money += entry["money"]
        for name, seconds in entry["node_seconds"].items():
            self.node_seconds[name] = self.node_seconds.get(name, 0.0) + seconds

    def as_json(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds, 2),
            "node_seconds": {name: round(seconds, 1) for name, seconds in sorted(self.node_seconds.items())},
            "money": round(self.money, 4),
        }


@dataclass
class Usage:
    """The arithmetic; time is told, in seconds since the run began."""

    prices: Mapping[str, float]
    worked: Worked = NOTHING
    spent: dict[Worked, Spent] = field(default_factory=dict)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    """Each change of what is up or of the stage: {at, stage, up = {type: n}}."""
    _up: dict[tuple[str, str], int] = field(default_factory=dict)
    _at: float = 0.0

    def look(self, now: float, up: Up) -> None:
        """These are up now; until now those of the last look were."""
        spent = self.spent.setdefault(self.worked, Spent())
        if now > self._at:
            spent.add(now - self._at, self._up, self.prices)
        self._at = now
        if up != self._up or not self.nodes:
            self._up = dict(up)
            self._note()

    def turn(self, now: float, worked: Worked) -> None:
        """From now on another stage is worked on."""
        self.look(now, self._up)
        self.worked = worked
        self._note()

    @property
    def seconds(self) -> float:
        return sum(spent.seconds for spent in self.spent.values())

    @property
    def money(self) -> float:
        return sum(spent.money for spent in self.spent.values())

    def _note(self) -> None:
        up: dict[str, int] = {}
        for (name, _), count in sorted(self._up.items()):
            up[name] = up.get(name, 0) + count
        if self.nodes and self.nodes[-1]["at"] == round(self._at, 1):  # the later of two at one moment is what holds
            self.nodes.pop()
        self.nodes.append({"at": round(self._at, 1), "stage": self.worked[0], "up": up})


class Meter(Background):
    """`with Meter(...)`: counts until the block ends. A budget that is spent interrupts the main thread once, as
    Ctrl-C would; `RunRecord.over` then says why.

    Args:
        stages: those of this run, in order.
        look: nodes that are up, of the connected cluster.
    """

    def __init__(
        self,
        record: RunRecord,
        budget: Budget,
        stages: Sequence[str],
        look: Callable[[], Up] = nodes_up,
        look_s: float = LOOK_S,
    ) -> None:
        self.record, self.budget, self.stages = record, budget, stages
        self.look, self.look_s = look, look_s
        self.usage = Usage(budget.prices)
        self._began, self._saved = time.monotonic(), 0.0
        self._lock = threading.Lock()
        self._earlier: dict[Worked, Spent] = {}
        for entry in record.earlier:
            self._earlier.setdefault((entry["stage"], entry["product"]), Spent()).plus(entry)
        super().__init__("meter", patience_s=look_s + 10)

    def __enter__(self) -> Self:
        with self._lock:  # once before anything starts, so that a short run counts as well
            self.usage.look(self._now(), self.look())
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self.turn(*NOTHING)

    def turn(self, stage: str, product: str | None) -> None:
        """Another stage begins, or none."""
        with self._lock:
            self.usage.turn(self._now(), (stage, product))
            self._save()

    def cost(self, stage: str, product: str | None) -> dict[str, Any]:
        """What a stage took: in all over every run that worked on its product, and in this one."""
        with self._lock:
            here = self.usage.spent.get((stage, product), Spent())
            whole = Spent()
            whole.plus(here.as_json())
            if product is not None and (stage, product) in self._earlier:
                whole.plus(self._earlier[stage, product].as_json())
            return whole.as_json() | {"this_run": here.as_json()}

    def watch(self) -> None:
        while not self.stopped.wait(self.look_s):
            try:
                up = self.look()
            except Exception as error:  # as in telemetry: counting is not worth a run
                log.debug("nodes could not be counted: %r", error)
                continue
            with self._lock:
                self.usage.look(self._now(), up)
                if self.usage.seconds - self._saved >= SAVE_S:
                    self._save()
                over = "" if self.record.over else self._over()
            if over:
                self.record.over = over
                log.warning("%s", over)
                os.kill(os.getpid(), signal.SIGINT)

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _save(self) -> None:
        self._saved = self.usage.seconds
        spent = [
            {"stage": stage, "product": product, **taken.as_json()}
            for (stage, product), taken in self.usage.spent.items()
        ]
        self.record.content |= {
            "spent": spent,
            "nodes": self.usage.nodes,
            "money": round(self.usage.money, 4) if self.budget.prices else None,
        }
        self.record.save()

    def _over(self) -> str:
        """What is spent and what is left to do, in one line; empty: the budget lasts."""
        hours = (self.record.spent_before[0] + self.usage.seconds) / 3600
        money = self.record.spent_before[1] + self.usage.money
        for name, limit, spent in (("hours", self.budget.hours, hours), ("money", self.budget.money, money)):
            if limit is not None and spent >= limit:
                return f"budget.{name}={limit:g} is spent ({spent:,.4g}); left to do: {self._left()}"
        return ""

    def _left(self) -> str:
        stage = self.usage.worked[0]
        after = self.stages[self.stages.index(stage) + 1 :] if stage in self.stages else self.stages
        left, done = told("parts_left", stage=stage), told("parts_done", stage=stage)
        if left is not None and done is not None:
            now = [f"{stage}, {left:,.0f} of {left + done:,.0f} parts"]
        elif stage == "train" and (steps := told("train_steps")) is not None:
            now = [f"train, steps {told('checkpoint_step') or 0:,.0f} to {steps:,.0f}"]
        else:
            now = [stage] if stage else []
        return "; then ".join([*now, *([", ".join(after)] if after else [])]) or "nothing"
