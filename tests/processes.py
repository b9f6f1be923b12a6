"""Processes of this machine as /proc tells of them; another Ray that runs here is none of the tests'."""

from __future__ import annotations

import resource
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def descendants(pid: int) -> set[int]:
    """All processes below one, by what /proc tells of parents."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found, fresh = set(), {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found


def survivors(pids: set[int], seconds: float = 30.0) -> set[int]:
    """Those that still run after a while; zombies have ended."""

    def runs(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return False

    deadline = time.monotonic() + seconds
    while (left := {pid for pid in pids if runs(pid)}) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def command(pid: int) -> str:
    """The command line of a process, empty where it is gone. Ray calls a worker by what it runs:
    ray::IDLE, ray::Map...
    """
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_worker(pid: int) -> bool:
    return command(pid).startswith("ray::") and "Agent" not in command(pid)


def is_busy_worker(pid: int) -> bool:
    """True for a worker that is at a part."""
    return is_worker(pid) and "MapBatches" in command(pid)


def of_ours(pid: int, name: str) -> list[int]:
    """The processes below one whose command line begins with a name, `ray::ServeReplica:biomedclip:Engine`."""
    return [found for found in sorted(descendants(pid)) if command(found).startswith(name)]


def faults() -> int:
    """Pages that this process asks of the kernel where a thread holds 200 MB and frees them, eight times."""

    def passes() -> int:
        before = 0
        for n in range(10):
            if n == 2:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            held = b"x" * (200 << 20)
            del held
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(passes).result()
