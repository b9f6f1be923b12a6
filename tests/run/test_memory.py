"""What a process says of the most memory that it held."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MB = 1 << 20
ROOT = Path(__file__).parents[2]


def told(work: str = "") -> int:
    """What a process says that did some work."""
    code = f"from biomedclip_ray.run.memory import peak_rss\n{work}\nprint(peak_rss())"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def test_the_peak_is_what_was_held_also_after_it_was_given_back() -> None:
    assert 400 * MB < told(f"held = b'x' * {400 * MB}\ndel held") < 600 * MB


def test_a_process_does_not_begin_with_the_peak_of_the_one_that_started_it() -> None:
    held = b"x" * (600 * MB)
    assert 0 < told() < len(held) // 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's switches")
def test_what_a_thread_freed_is_not_asked_of_the_kernel_again() -> None:
    work = "from tests.processes import faults\nprint(faults())"
    keeps = f"from biomedclip_ray.run.memory import keep_freed\nkeep_freed()\n{work}"
    plain, kept = (
        int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout)
        for code in (work, keeps)
    )
    assert kept < 100 < 5000 < plain
