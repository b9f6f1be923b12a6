"""A lease: one driver at a time on one product. A file with a heartbeat, because a killed driver cleans up nothing.

No clock is compared between machines: who finds a lease watches whether its heartbeat moves. A holder that was killed
on this very machine is known at once by its process id, so that a restarted run does not wait for its own ghost.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from biomedclip_ray.store.background import Background
from biomedclip_ray.store.place import Place

log = logging.getLogger(__name__)

HEARTBEAT_S = 2.0
_NAME = "_LEASE.json"


class HeldError(RuntimeError):
    """Another driver holds the lease; the message names its host, process and start (exit code 2)."""


_beats: dict[str, float] = {}


def beats() -> dict[str, float]:
    """When this process last wrote the heartbeat of each lease that it holds: what it is on -> seconds since 1970."""
    return dict(_beats)


class Lease(Background):
    """`with Lease(place, what): ...`; raises HeldError where another driver is alive, takes over from a dead one."""

    def __init__(self, place: Place, what: str, heartbeat_s: float = HEARTBEAT_S) -> None:
        super().__init__(f"lease {what}")
        self.place = place
        self.what = what
        self.heartbeat_s = heartbeat_s
        self.token = uuid.uuid4().hex
        self.started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.beat = 0
        self.before = "another driver"
        """Who held it before, as far as this driver has seen."""

    def __enter__(self) -> Self:
        took_over = False
        while not (self._create() and (not took_over or self._still_mine())):
            self._wait_for_the_dead()
            took_over = True
        _beats[self.what] = time.time()
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        _beats.pop(self.what, None)
        if not self._lost():
            self.place.delete(_NAME)
        elif error is None:
            raise HeldError(f"{self.what} was taken over meanwhile: this driver had stood still ({self.place.uri})")

    def _create(self) -> bool:
        """Whether the lease is ours now. A store that loses its first answer lets the second try find our own file."""
        if self.place.create(_NAME, self._content()):
            return True
        holder = self._holder()
        return holder is not None and holder["token"] == self.token

    def _wait_for_the_dead(self) -> None:
        """Return once the lease that stands there is gone. Raises HeldError when its holder shows a sign of life."""
        holder = self._holder()
        if holder is None:
            return
        self.before = f"process {holder['pid']} on {holder['host']}"
        if not _died_here(holder):
            for _ in range(5):
                time.sleep(self.heartbeat_s)
                now = self._holder()
                if now is None:
                    return
                if now != holder:
                    raise HeldError(
                        f"{self.what} is being run by process {now['pid']} on {now['host']} since {now['started']}; "
                        f"wait for it, or stop it and start again ({self.place.uri})"
                    )
        if self._holder() == holder:
            self.place.delete(_NAME)

    def _still_mine(self) -> bool:
        """Two that take over at the same moment may each delete the other's lease; who is left after a pause has it."""
        time.sleep(self.heartbeat_s / 4)
        holder = self._holder()
        return holder is not None and holder["token"] == self.token

    def _holder(self) -> dict[str, Any] | None:
        try:
            holder: dict[str, Any] = json.loads(self.place.read(_NAME))
        except FileNotFoundError:
            return None
        return holder

    def watch(self) -> None:
        while not self.stopped.wait(self.heartbeat_s):
            self.beat += 1
            try:
                if self._lost():
                    log.error("%s: another driver took over while this one stood still; stop this one", self.what)
                    return
                self.place.write(_NAME, self._content())
                _beats[self.what] = time.time()
            except OSError as error:  # a full disk or a slow store for a while: the holder lives, so the heart goes on
                log.warning("%s: heartbeat not written: %s", self.what, error)

    def _lost(self) -> bool:
        """Whether another driver has taken over."""
        holder = self._holder()
        return holder is not None and holder["token"] != self.token

    def _content(self) -> bytes:
        holder = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "boot": _boot_id(),
            "started": self.started,
            "token": self.token,
            "beat": self.beat,
        }
        return json.dumps(holder).encode()


def leases(root: Place, stages: Iterable[str]) -> list[Place]:
    """The products of these stages below a root that have a lease, dead or alive: a handful of
    questions, no listing.
    """
    products = [root.at(f"{stage}/{name}") for stage in stages for name in root.at(stage).folders()]
    return [place for place in products if place.exists(_NAME)]


def alive(places: Iterable[Place]) -> list[str]:
    """Who works on these places now, one sentence each; takes as long as a dead heart must be watched, if there is a
    lease.
    """
    leases = {place: Lease(place, "") for place in places if place.exists(_NAME)}
    seen = {place: lease._holder() for place, lease in leases.items()}
    waiting = {place for place, holder in seen.items() if holder is not None and not _died_here(holder)}
    found = []
    for _ in range(5):
        if not waiting:
            break
        time.sleep(HEARTBEAT_S)
        for place in sorted(waiting, key=lambda place: place.uri):
            now = leases[place]._holder()
            if now != seen[place]:
                waiting.discard(place)
                if now is not None:
                    found.append(f"process {now['pid']} on {now['host']} works on {place.uri} since {now['started']}")
    return found


def _died_here(holder: dict[str, Any]) -> bool:
    """True if the holder ran on this very machine (same boot) and its process is gone."""
    if holder["host"] != socket.gethostname() or holder["boot"] != _boot_id():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _boot_id() -> str:
    """The kernel's id of this boot together with the process namespace: containers share hosts, not process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""
