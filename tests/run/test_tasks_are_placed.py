"""No task of the package is started without saying where it may run: a plain request may bring a node with a GPU."""

from __future__ import annotations

import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "biomedclip_ray"


def test_every_remote_task_with_cpus_is_placed() -> None:
    plain = [
        f"{path.relative_to(PACKAGE)}:{number}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"ray\.remote\([^)]*num_cpus=(?!0[,)])", line)
    ]
    assert plain == [], "give `**place(known(), cpus, gpus).options` instead (run/placement.py)"
