"""What panels cost now over what they cost in an earlier revision: the same figures, the same command, in turns.

Each side runs in a process of its own, one thread, as a task of Ray does, and a figure's cost is the least of three by
process time.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from earlier import HERE, earlier_revision
from numpy.typing import NDArray

_TIMED = """
import pickle, sys, time
import cv2
from biomedclip_ray.figures.panels import split_panels
cv2.setNumThreads(1)
with open(sys.argv[1], "rb") as file:
    figures = pickle.load(file)
split_panels(*figures[0])
costs = []
for image, labels in figures:
    times = []
    for _ in range(3):
        began = time.process_time()
        split_panels(image, labels)
        times.append(time.process_time() - began)
    costs.append(min(times))
print(sum(costs))
"""

Question = tuple[NDArray[np.uint8], tuple[str, ...]]


def panels_vs_before(figures: list[Question], turns: int = 2) -> float | None:
    """The earlier revision's seconds over today's, the median of some turns; None where git has not got
    the revision.
    """
    with earlier_revision() as earlier, tempfile.TemporaryDirectory() as folder:
        if earlier is None:
            return None
        asked = Path(folder) / "figures.pickle"
        asked.write_bytes(pickle.dumps(figures))
        return float(np.median([_seconds(earlier, asked) / _seconds(HERE, asked) for _ in range(turns)]))


def _seconds(root: Path, asked: Path) -> float:
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _TIMED, str(asked)]
    done = subprocess.run(command, env=environment, cwd=root, check=True, capture_output=True, text=True)
    return float(done.stdout)
