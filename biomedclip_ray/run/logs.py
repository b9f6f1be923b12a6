"""Logs that outlive the cluster: root/logs/ID/driver.log, and of each worker that died or node of a run that failed the
last lines it wrote.

Each node copies its own, straight to the root; a node that is gone has taken its logs along, so workers that died are
looked for all the time and not only at the end.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from pathlib import Path
from types import TracebackType

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from biomedclip_ray.run import private
from biomedclip_ray.store.background import Background
from biomedclip_ray.store.lease import HeldError
from biomedclip_ray.store.place import Place

log = logging.getLogger(__name__)

FOLDER = "logs"
KEEP_S, COPY_S = 30.0, 60.0
TAIL_BYTES, DRIVER_BYTES = 256 * 1024, 8 << 20
MOST_WORKERS, NEWEST = 200, 5
_OF_A_NODE = ("raylet.err", "raylet.out", "gcs_server.err", "gcs_server.out", "monitor.err", "monitor.log")


class DriverLog(logging.Handler):
    """What the driver logs, in memory: some hundred kB a day, the oldest lines go beyond 8 MB."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._lines: deque[str] = deque()
        self._size = 0
        self._written = 0
        self._told = 0
        self._guard = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        self.add(self.format(record))

    def add(self, text: str) -> None:
        with self._guard:
            self._lines.append(text)
            self._told += 1
            self._size += len(text) + 1
            while self._size > DRIVER_BYTES:
                self._size -= len(self._lines.popleft()) + 1

    def keep(self, root: str, run: str) -> None:
        """Write it where it has changed; a store that does not take it is no reason to end a run."""
        with self._guard:
            told, text = self._told, "\n".join(self._lines) + "\n"
        if told == self._written:
            return
        try:
            Place(root).write(f"{FOLDER}/{run}/driver.log", text.encode(errors="replace"))
            self._written = told
        except OSError as error:
            log.debug("the driver's log could not be written: %s", error)


class Logs(Background):
    """`with Logs(root, run, driver)`: keeps logs as the run goes, and where it fails those of all nodes."""

    def __init__(self, root: str, run: str, driver: DriverLog, keep_s: float = KEEP_S) -> None:
        self.root, self.run, self.driver, self.keep_s = root, run, driver, keep_s
        self._known = {worker.id for worker in private.failed_workers()}  # of other runs, before this one
        super().__init__("logs", patience_s=COPY_S)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._keep()
        if isinstance(error, Exception) and not isinstance(error, HeldError):  # an interrupt is no failure either
            nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
            self._copy({f"node-{node[:12]}.log": (node, "", None) for node in nodes})

    def watch(self) -> None:
        while not self.stopped.wait(self.keep_s):
            self._keep()

    def _keep(self) -> None:
        self.driver.keep(self.root, self.run)
        try:
            failed = [worker for worker in private.failed_workers() if worker.id not in self._known]
        except RayError as error:
            log.debug("workers could not be asked for: %r", error)
            return
        self._known |= {worker.id for worker in failed}
        wanted = {f"worker-{worker.id[:12]}.log": (worker.node, worker.told, worker.id) for worker in failed}
        self._copy(dict(list(wanted.items())[:MOST_WORKERS]))

    def _copy(self, wanted: dict[str, tuple[str, str, str | None]]) -> None:
        """Each file by the node that has it: (node, what is known already, the worker's id or None for the
        node's own).
        """
        copies = {}
        for name, (node, head, worker) in wanted.items():
            where = NodeAffinitySchedulingStrategy(node, soft=False)
            task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=where)(_copy_tails)
            copies[name] = task.remote(self.root, f"{FOLDER}/{self.run}/{name}", head, worker)
        for name, copy in copies.items():
            try:
                ray.get(copy, timeout=COPY_S)
            except (RayError, GetTimeoutError, OSError) as error:
                node, head, _ = wanted[name]
                said = f"{head}\nits node {node} could not be asked for more: {type(error).__name__}\n"
                try:
                    Place(self.root).write(f"{FOLDER}/{self.run}/{name}", said.encode())
                except OSError as full:
                    log.debug("%s could not be written: %s", name, full)


def _copy_tails(root: str, name: str, head: str, worker: str | None) -> None:
    """On the node: the last lines of a worker's files, or of the node's own and of those that were written to last."""
    folder = private.logs_folder()
    if worker is not None:
        files = sorted(folder.glob(f"*{worker}*"))
    else:
        files = [folder / name for name in _OF_A_NODE]
        said = [path for path in folder.glob("worker-*.*") if path.stat().st_size]
        files += sorted(said, key=lambda path: path.stat().st_mtime)[-NEWEST:]
    parts = [head.encode()] if head else []
    for path in files:
        if path.is_file() and (tail := _tail(path)):
            parts.append(b"==> " + path.name.encode() + b" <==\n" + tail)
    Place(root).write(name, b"\n".join(parts) + b"\n")


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read()
