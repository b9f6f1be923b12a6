"""How much memory a process has held, and keeping it for the next pass."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path


def peak_rss() -> int:
    """Most bytes of main memory that this process has held.

    Where Linux tells its own peak that is taken: `ru_maxrss` outlives exec, so a process that a large one started
    begins with that one's.
    """
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource  # not on Windows, where an Encoder works too

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


_KEPT_BYTES = 2**30
_SWITCHES = {"TRIM_THRESHOLD_": (-1, _KEPT_BYTES), "MMAP_THRESHOLD_": (-3, _KEPT_BYTES), "ARENA_MAX": (-8, 1)}
"""What glibc calls each in the environment, as a number of mallopt's, and its value."""


def keeping_freed(gpus: float) -> dict[str, dict[str, str]]:
    """A runtime environment of Ray whose processes do what `keep_freed` has this one do; an empty one where they
    compute on GPUs, since threads that feed those would share the one arena for nothing.

    It is set at their start: in a worker of Ray other threads hold arenas by the time that code of ours runs, and a
    thread that computes gets one.
    """
    if gpus:
        return {}
    return {"env_vars": {f"MALLOC_{name}": str(value) for name, (_, value) in _SWITCHES.items()}}


def keep_freed() -> None:
    """Have the C library keep what this process frees for what it asks next, instead of giving it back to the kernel.

    glibc returns every block above 32 MB at once, and the next layer's activations are new pages that the kernel has
    to clear: 29,500 page faults an image for a ViT-B/16 in batches of 32, a sixth of the time
    (`benchmarks/forward.py`). The process stays as large as its largest pass was. One arena for all threads,
    because no other holds blocks above 64 MB. Does nothing where the C library has no such switch.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for number, value in _SWITCHES.values():
            mallopt(number, value)
