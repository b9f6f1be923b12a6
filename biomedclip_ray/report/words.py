"""Figures as a person reads them."""

from __future__ import annotations

import math


def count_text(value: int) -> str:
    """1234567 -> "1,234,567"."""
    return f"{value:,}"


def share_text(value: float) -> str:
    """A share as a percentage with three figures: 0.9876 -> "98.8%", 0.025 -> "2.50%", 0.00012 -> "0.0120%"."""
    percent = 100 * value
    digits = 1 if percent >= 10 else 2 if percent >= 1 or percent == 0 else 2 - math.floor(math.log10(percent))
    return f"{percent:.{digits}f}%"


def duration_text(seconds: float) -> str:
    """3.21 -> "3.2 s", 75 -> "1 min 15 s", 7260 -> "2 h 1 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def bytes_text(size: int) -> str:
    """123456789 -> "118 MiB"."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
