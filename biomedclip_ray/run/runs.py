"""The record of each run: root/runs/ID.json, one a run and never overwritten, beside root/run.json, which tells the
newest.

It is what says how a run ended. Exit codes do not: `ray job submit` knows 0 and 1, `ray symmetric-run` and `sbatch
--wait` end with 0 for runs that never began. Whoever submits a run gives it an id beforehand (RUN_ID in its
environment) and looks for that.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from biomedclip_ray.store.place import Place, StorageError

log = logging.getLogger(__name__)

RUN_ID = "BIOMEDCLIP_RUN_ID"
FOLDER = "runs"
STATES = {0: "done", 1: "failed", 2: "refused", 3: "unfinished", 130: "interrupted"}
RUNNING = "running"
_SECRET = re.compile(r"^(notice(?:\.webhook)?=).*", re.DOTALL)
"""Of a command line: whoever knows a webhook's address may write to it."""


def new_id() -> str:
    """An id that sorts by time: 20261129-231455-9f3a."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


class RunRecord:
    """This run's file. An id that is taken (the same submission, tried again on another cluster) gets
    -2, -3 and so on.
    """

    def __init__(self, root: str, command: Sequence[str]) -> None:
        self.place = Place(root)
        self.given = os.environ.get(RUN_ID)
        self.id = self.given or new_id()
        self.begun = False
        self.stages: list[dict[str, Any]] = []
        """As in root/run.json; whoever runs them adds to it."""
        self.over = ""
        """Why the run was ended before its end, where its budget was spent."""
        self.earlier: list[dict[str, Any]] = []
        """What earlier runs on this root have spent: {stage, product, seconds, node_seconds, money}; from `begin`."""
        self.spent_before = (0.0, 0.0)
        """Seconds and money of the earlier tries of this very submission, likewise."""
        self.content: dict[str, Any] = {
            "id": self.id,
            "state": RUNNING,
            "exit_code": None,
            "said": [],
            "started": _now(),
            "ended": None,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "command": [_SECRET.sub(r"\1(not told)", one) for one in command],
            "stages": [],
        }

    def begin(self) -> None:
        """Read what was spent before, and write this one for the first time. Raises StorageError where the root
        cannot be written.
        """
        self.earlier = [entry for record in records(self.place) for entry in record.get("spent", [])]
        tries = _tries(self.place, self.given) if self.given else iter(())
        before = [entry for record in tries for entry in record.get("spent", [])]
        self.spent_before = (sum(entry["seconds"] for entry in before), sum(entry["money"] for entry in before))
        attempt = 1
        while not self.place.create(self._name(), self._bytes()):
            attempt += 1
            self.id = f"{self.given or self.content['id']}-{attempt}"
        self.begun = True

    def save(self) -> None:
        """Write it as it stands; a store that fails now may work at the end."""
        self.content["stages"] = self.stages
        if not self.begun:
            return
        try:
            self.place.write(self._name(), self._bytes())
        except OSError as error:
            log.warning("%s/%s could not be written: %s", self.place.uri, self._name(), error)

    def end(self, code: int, said: Sequence[str]) -> None:
        """How it ended. A run that was refused before it began leaves a record only where somebody waits for it."""
        self.content |= {"state": STATES.get(code, "failed"), "exit_code": code, "said": list(said), "ended": _now()}
        if not self.begun and self.given:
            try:
                self.begin()
            except OSError as error:  # StorageError among them, and what stopped the run is told last
                log.warning("%s/%s could not be written: %s", self.place.uri, self._name(), error)
        self.save()

    def _name(self) -> str:
        return f"{FOLDER}/{self.id}.json"

    def _bytes(self) -> bytes:
        return json.dumps(self.content | {"id": self.id}, indent=1, ensure_ascii=False).encode()


def find(root: str, run_id: str) -> dict[str, Any] | None:
    """The record of a submission, of its last try where there were several; None where it has not begun.

    Raises:
        StorageError: the root cannot be read from here.
    """
    try:
        found = list(_tries(Place(root), run_id))
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"root={root} cannot be read from here: {error}") from error
    return found[-1] if found else None


def records(place: Place) -> list[dict[str, Any]]:
    """Every run's, the oldest first."""
    names = [name for name in place.list(FOLDER) if name.endswith(".json")]
    with ThreadPoolExecutor(16) as threads:
        return sorted(
            threads.map(lambda name: whole(place, name, ("id", "started")), names), key=lambda one: one["started"]
        )


def whole(place: Place, name: str, keys: Iterable[str]) -> dict[str, Any]:
    """A record of the root. Raises StorageError where it is none with these keys, FileNotFoundError where there is
    none.
    """
    data = place.read(name)
    try:
        found: dict[str, Any] = json.loads(data)
        lacking = [key for key in keys if key not in found]
    except (ValueError, TypeError) as error:
        raise StorageError(f"{place.at(name).uri} is damaged ({error}); {_FIX}") from error
    if lacking or not isinstance(found, dict):
        raise StorageError(f"{place.at(name).uri} is damaged (no {', '.join(lacking) or 'record'}); {_FIX}")
    return found


_FIX = "put a copy back, or remove it: products stay, and a root without run.json settles on the newest inventory"


def _tries(place: Place, run_id: str) -> Iterator[dict[str, Any]]:
    """The records of a submission: its first try, its second, and so on."""
    attempt = 1
    try:
        while True:
            name = run_id if attempt == 1 else f"{run_id}-{attempt}"
            yield whole(place, f"{FOLDER}/{name}.json", ("state", "exit_code"))
            attempt += 1
    except FileNotFoundError:
        return


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
