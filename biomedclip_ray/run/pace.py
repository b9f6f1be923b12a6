"""One budget of requests a second for the whole run, which finds the source's limit by itself.

Each process paces its own requests, to the share that one actor gives it; the actor hears four times a second what was
sent and what was refused. Unpaced, 64 nodes send 65,536 requests at once, and a source that refuses most of them costs
each its tries: 61% were lost. Additive increase and multiplicative decrease (Chiu and Jain 1989), with small steps: a
cut by half would leave a quarter of the source's limit unused, and here everybody who sends hears of every refusal.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import random
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

START = 200.0
"""Requests a second of a run that knows nothing yet; doubled until the first refusal."""

FLOOR = 5.0
WINDOW_S, CLIMB_S, DEAF_S = 1.0, 0.5, 0.5
"""Over which refusals are counted: a whole second, since a source that counts by the second answers all in the first
half of one and nothing in the second; until the first refusal; and how long a lower rate needs to be seen.
"""

CUT, LEAST, STEP = 0.97, 0.8, 0.01
"""Of the rate: what a refusal leaves at most and at least, by the share that is refused; and what each second without
adds for each second since the last: slowly near the limit, faster and faster where the source gives more than it did.
"""

_REPORT_S = 0.25
_MEMBERS_A_SECOND = 1000
"""Reports a second that one actor hears: more processes report less often."""

_FORGET_S = 10.0
_IDLE_S = 600.0
_BURST_S = 0.05
_HOLD_S = (0.03, 0.4)
"""How long a process sends nothing after a refusal, and at most where one follows the other."""

_UNTOLD = START / 100
"""Requests a second of a process that has not been told its share: hundreds may begin at once."""

_NAMESPACE = "biomedclip-ray"

log = logging.getLogger(__name__)


@dataclass
class _Member:
    seen: float
    used: float = 0.0
    waiting: bool = True


@dataclass
class Budget:
    """The rate of all processes together; time is told, so that a test needs none.

    Attributes:
        rate: requests a second of all.
        sent, refused: since the beginning.
        climbing: no refusal yet: the rate doubles.
    """

    now: float
    rate: float = START
    sent: int = 0
    refused: int = 0
    climbing: bool = True
    members: dict[str, _Member] = field(default_factory=dict)
    _sent: int = 0
    _refused: int = 0
    _cut_at: float = 0.0
    _begun: float = field(init=False)

    def __post_init__(self) -> None:
        self._begun = self.now

    def report(
        self, name: str, now: float, sent: int, refused: int, waiting: bool, lasted: float
    ) -> tuple[float, float]:
        """A process tells what it sent in the last `lasted` seconds and whether it would have sent more.

        Returns:
            Requests a second that it may send, and seconds to its next report.
        """
        self.now = now
        member = self.members.setdefault(name, _Member(now))
        self.sent, self.refused = self.sent + sent, self.refused + refused
        member.seen, member.used, member.waiting = now, sent / max(lasted, 0.01), waiting
        if now >= self._begun:
            self._sent, self._refused = self._sent + sent, self._refused + refused
        if now - self._begun >= (CLIMB_S if self.climbing else WINDOW_S):
            self._adjust(now - self._begun)
        return self._share(member), max(_REPORT_S, len(self.members) / _MEMBERS_A_SECOND)

    def _adjust(self, lasted: float) -> None:
        self._begun = self.now
        if self._refused:
            share = self._refused / max(self._sent, self._refused)
            self.rate = max(FLOOR, self.rate * max(0.5 if self.climbing else LEAST, min(CUT, 1 - share)))
            self.climbing, self._cut_at = False, self.now
            self._begun += DEAF_S  # what is refused until then was sent at the old rate
        elif self._sent >= 0.8 * self.rate * lasted:  # a rate that nobody uses says nothing about the source
            self.rate *= 2 if self.climbing else 1 + min(1.0, STEP * (self.now - self._cut_at) * lasted)
        self.members = {name: member for name, member in self.members.items() if self.now - member.seen < _FORGET_S}
        self._sent = self._refused = 0

    def _share(self, member: _Member) -> float:
        """Those who wait share what the others do not use."""
        others = [each for each in self.members.values() if not each.waiting]
        used = sum(1.2 * each.used + 1.0 for each in others)
        waiting = len(self.members) - len(others)
        fair = self.rate / len(self.members)
        if not member.waiting:
            return max(fair, 1.2 * member.used + 1.0)
        return max(fair, (self.rate - used) / waiting)


class Pace:
    """Of one process: `wait` before each request, `refused` after one that the source would not take."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.name = uuid.uuid4().hex
        # one thread at a time waits for its turn: turns that are promised ahead are at the rate of then
        self._queue = threading.Lock()
        self._changed = threading.Condition()
        self._rate, self._next = _UNTOLD, 0.0
        self._hold, self._held = 0.0, 0.0
        self._sent = self._refused = 0
        self._waited = False
        self._reporter: threading.Thread | None = None
        self._last = 0.0

    def wait(self, deadline: float) -> None:
        """Return when this request may go. Raises TimeoutError where that is after the deadline (of time.monotonic)."""
        if not self._queue.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise TimeoutError("its turn comes after the deadline")
        try:
            with self._changed:
                if self._reporter is None or not self._reporter.is_alive():  # a forked process has none
                    self._last = time.monotonic()
                    self._reporter = threading.Thread(target=self._report, name="pace", daemon=True)
                    self._reporter.start()
                while (turn := max(self._next, (now := time.monotonic()) - _BURST_S)) > now:
                    if turn > deadline:
                        raise TimeoutError("its turn comes after the deadline")
                    self._waited = True
                    self._changed.wait(turn - now)
                # never even: processes that began together would send together for ever
                self._next = turn + random.uniform(0.5, 1.5) / self._rate
                self._sent += 1
        finally:
            self._queue.release()

    def refused(self) -> None:
        """The source would not take a request: what follows at once would be refused too, and each costs a thread its
        Retry-After. So all wait a little, and longer each time it goes on.
        """
        with self._changed:
            self._refused += 1
            now = time.monotonic()
            if now >= self._held:
                again = now < self._held + _HOLD_S[1]
                self._hold = min(_HOLD_S[1], 2 * self._hold) if again else _HOLD_S[0]
                self._held = now + self._hold
                self._next = max(self._next, self._held)

    def _report(self) -> None:
        """Report as long as anything is sent, then end: the next request starts another thread."""
        budget = _budget(self.source)
        quiet = 0.0
        while quiet < _FORGET_S:
            with self._changed:
                now = time.monotonic()
                sent, refused, waiting, lasted = self._sent, self._refused, self._waited, now - self._last
                self._sent = self._refused = 0
                self._waited, self._last = False, now
            rate, pause = budget.report(self.name, sent, refused, waiting, lasted)
            with self._changed:
                # whoever waits for a turn that a low rate put far away takes the new one
                ahead = max(0.0, self._next - now) * self._rate / rate
                self._rate, self._next = rate, max(now + ahead, self._held)
                self._changed.notify()
            quiet = 0.0 if sent or waiting else quiet + pause
            time.sleep(pause)


class _Local:
    """The budget of a process that no cluster runs."""

    def __init__(self) -> None:
        self.budget = Budget(time.monotonic())
        self._lock = threading.Lock()

    def report(self, name: str, sent: int, refused: int, waiting: bool, lasted: float) -> tuple[float, float]:
        with self._lock:
            return self.budget.report(name, time.monotonic(), sent, refused, waiting, lasted)


class _Shared:
    """The budget that an actor keeps for all processes; while it is not there, the last share goes on."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.answer = (START / 10, _REPORT_S)
        self.actor: Any = None

    def report(self, name: str, sent: int, refused: int, waiting: bool, lasted: float) -> tuple[float, float]:
        import ray
        from ray.exceptions import RayError

        if not ray.is_initialized():  # it was shut down; a call would start another Ray
            return self.answer
        try:
            if self.actor is None:
                self.actor = _actor(self.source)
            self.answer = ray.get(self.actor.report.remote(name, sent, refused, waiting, lasted), timeout=10.0)
        except (RayError, ValueError) as error:  # its node went, or this process's cluster does
            log.debug("the budget of %s does not answer: %s", self.source, error)
            self.actor = None
        return self.answer


def _budget(source: str) -> _Local | _Shared:
    import ray

    return _Shared(source) if ray.is_initialized() else _local(source)


@functools.cache
def _local(source: str) -> _Local:
    return _Local()


@functools.cache
def pace(source: str) -> Pace:
    """The pace of this process at a source, whoever asks."""
    return Pace(source)


def _actor(source: str) -> Any:
    """The one actor of this cluster and source, on the head where it outlives nodes; it ends by itself when nobody
    reports.
    """
    import ray

    name = f"pace-{hashlib.sha256(source.encode()).hexdigest()[:12]}"
    keeper = ray.remote(_Keeper).options(
        name=name,
        namespace=_NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        num_cpus=0,
        max_concurrency=1,
        max_restarts=-1,
        resources={"node:__internal_head__": 0.001},
    )
    return keeper.remote(source)


def state() -> list[tuple[str, int, int, float]]:
    """Of each source of the connected cluster that is asked: its name, requests sent and refused so far, and how many a
    second may be sent now. Raises RayError where an actor does not answer.
    """
    import ray

    named = ray.util.list_named_actors(all_namespaces=True)
    names = [each["name"] for each in named if each["namespace"] == _NAMESPACE and each["name"].startswith("pace-")]
    keepers = [ray.get_actor(name, _NAMESPACE) for name in sorted(names)]
    found: list[tuple[str, int, int, float]] = ray.get([each.state.remote() for each in keepers], timeout=5.0)
    return found


class _Keeper:
    """The actor."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.local = _Local()
        self.heard = time.monotonic()
        threading.Thread(target=self._end, name="idle", daemon=True).start()

    def report(self, name: str, sent: int, refused: int, waiting: bool, lasted: float) -> tuple[float, float]:
        self.heard = time.monotonic()
        return self.local.report(name, sent, refused, waiting, lasted)

    def state(self) -> tuple[str, int, int, float]:
        budget = self.local.budget
        return self.source, budget.sent, budget.refused, budget.rate

    def _end(self) -> None:
        import ray

        while time.monotonic() - self.heard < _IDLE_S:
            time.sleep(_IDLE_S / 10)
        ray.kill(ray.get_runtime_context().current_actor)
