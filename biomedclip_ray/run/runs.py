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
import secrets
import socket
import time
from collections.abc import Sequence
from typing import Any

from biomedclip_ray.store.place import Place, StorageError

log = logging.getLogger(__name__)

RUN_ID = "BIOMEDCLIP_RUN_ID"
FOLDER = "runs"
STATES = {0: "done", 1: "failed", 2: "refused", 3: "unfinished", 130: "interrupted"}
RUNNING = "running"


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
        self.content: dict[str, Any] = {
            "id": self.id,
            "state": RUNNING,
            "exit_code": None,
            "said": [],
            "started": _now(),
            "ended": None,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "command": list(command),
            "stages": [],
        }

    def begin(self) -> None:
        """Write it for the first time. Raises StorageError where the root cannot be written."""
        attempt = 1
        while not self.place.create(self._name(), self._bytes()):
            attempt += 1
            self.id = f"{self.given or self.content['id']}-{attempt}"
        self.begun = True

    def end(self, code: int, said: Sequence[str]) -> None:
        """How it ended. A run that was refused before it began leaves a record only where somebody waits for it."""
        self.content |= {
            "state": STATES.get(code, "failed"),
            "exit_code": code,
            "said": list(said),
            "ended": _now(),
            "stages": self.stages,
        }
        try:
            if not self.begun and self.given:
                self.begin()
            elif self.begun:
                self.place.write(self._name(), self._bytes())
        except (
            OSError
        ) as error:  # StorageError among them: a full disk may be what stopped the run, and that is told last
            log.warning("%s/%s could not be written: %s", self.place.uri, self._name(), error)

    def _name(self) -> str:
        return f"{FOLDER}/{self.id}.json"

    def _bytes(self) -> bytes:
        return json.dumps(self.content | {"id": self.id}, indent=1, ensure_ascii=False).encode()


def find(root: str, run_id: str) -> dict[str, Any] | None:
    """The record of a submission, of its last try where there were several; None where it has not begun.

    Raises:
        StorageError: the root cannot be read from here.
    """
    place = Place(root)
    found, attempt = None, 1
    try:
        while True:
            name = run_id if attempt == 1 else f"{run_id}-{attempt}"
            found = json.loads(place.read(f"{FOLDER}/{name}.json"))
            attempt += 1
    except FileNotFoundError:
        return found
    except OSError as error:
        raise StorageError(f"root={root} cannot be read from here: {error}") from error


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
