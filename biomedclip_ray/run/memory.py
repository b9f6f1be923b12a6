"""How much memory a process has held."""

from __future__ import annotations

import resource
import sys


def peak_rss() -> int:
    """Most bytes of main memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
